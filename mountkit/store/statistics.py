"""Counting requests."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Requests since the store was opened."""

    get: int = 0
    head: int = 0
    list: int = 0
    put: int = 0
    """Objects and parts that were sent, and every other request that changes the bucket."""
    copy: int = 0
    delete: int = 0
    bytes_received: int = 0
    """Of objects; listings do not count."""
    bytes_sent: int = 0
    """Of objects, whether they were taken or not."""
    errors: int = 0
    """Answers that were none, failures and refusals; a missing or changed object is an answer."""
    slow_downs: int = 0
    retries: int = 0


class Counters:
    """What StoreStatistics is taken from. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(StoreStatistics.__dataclass_fields__, 0)

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._counts[name] += count

    def statistics(self) -> StoreStatistics:
        with self._lock:
            return StoreStatistics(**self._counts)
