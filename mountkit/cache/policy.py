"""Policy: what the cache may hold. Admit until full, then keep what is there.

Training reads all of its data again and again; replacing the least recently used gives no hits at all once the data
is larger than the cache, keeping what is there gives cache/data of them. A share of the disk always stays free.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """`size_bytes`: how much the cache may hold; `free_fraction`: the share of its disk (0 … 1) it leaves free;
    `idle_days`: how long nobody touched what may be evicted when the cache holds too much."""

    size_bytes: int
    free_fraction: float
    idle_days: float = 7


@dataclass(frozen=True, slots=True)
class CacheUsage:
    bytes_used: int
    limit_bytes: int
    free_bytes: int
    objects: int
    sealed: int
    segments: int
    full: bool


class Policy:
    """The limits against what is used; `used` answers without touching the disk."""

    def __init__(
        self, root: int, limits: Limits, used: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self.limits = limits
        self._used, self._clock = used, clock
        self._looked: tuple[float, int, int, int] | None = None

    def admits(self, size: int, *, overshoot: int = 0) -> bool:
        """Whether `size` more bytes fit; `overshoot` widens the size limit for what is freed again soon."""
        if self._used() + size > self.limits.size_bytes + overshoot:
            return False
        free, floor = self._lately()
        return free - size >= floor

    def excess(self) -> int:
        """How many bytes too many the cache holds, 0 or less if none."""
        free, floor = self._disk()
        return max(self._used() - self.limits.size_bytes, floor - free)

    def disk_is_full(self) -> bool:
        """Whether much less is free than should stay so: what we admit never brings that about."""
        free, floor = self._lately()
        return 2 * free < floor

    def free_bytes(self) -> int:
        return self._disk()[0]

    def _lately(self) -> tuple[int, int]:
        """As `_disk`, up to 0.1 s old and less what was written since: asking it for each of thousands of files a
        second gives the interpreter away each time."""
        now, used, looked = self._clock(), self._used(), self._looked
        if looked is None or not 0 <= now - looked[0] < _LOOK_S:
            looked = self._looked = (now, used, *self._disk())
        _, used_then, free, floor = looked
        return free - max(0, used - used_then), floor

    def _disk(self) -> tuple[int, int]:
        try:
            disk = os.fstatvfs(self._root)
        except OSError:
            return 0, 1  # a disk that cannot even say how full it is takes nothing
        return disk.f_bavail * disk.f_frsize, int(disk.f_blocks * disk.f_frsize * self.limits.free_fraction)
