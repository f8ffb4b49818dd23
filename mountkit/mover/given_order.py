"""A given order: how far ahead of its reader a list of files may be fetched. Plain rules, no I/O.

A file that was cached already takes no place in the window: its open may be the kernel's business and never heard of.
Who opens a file of the list is taken to have passed all before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class Window:
    """`ahead`: how many files may be fetched and not opened yet; None: any number."""

    def __init__(self, keys: Sequence[bytes], ahead: int | None) -> None:
        self._places = {key: place for place, key in enumerate(keys)} if ahead is not None else {}
        self._ahead = ahead
        self._waiting: deque[int] = deque()
        self._passed = -1

    def __repr__(self) -> str:
        return f"<Window {len(self._waiting)} of {self._ahead} ahead, read up to {self._passed}>"

    @property
    def open(self) -> bool:
        """Whether one more may be fetched."""
        return self._ahead is None or len(self._waiting) < self._ahead

    def fetched(self, place: int) -> None:
        """The file at this place of the list was fetched for the reader; places only rise."""
        if self._ahead is not None and place > self._passed:
            self._waiting.append(place)

    def opened(self, key: bytes) -> None:
        """Somebody opened this file."""
        self._passed = max(self._passed, self._places.get(key, -1))
        while self._waiting and self._waiting[0] <= self._passed:
            self._waiting.popleft()
