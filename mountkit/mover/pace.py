"""Pace: how many fetches nobody waits for may run at once, found from how late the mover is.

What a reader waits for goes through the same interpreter as all that is fetched ahead, so with too many of those it
waits for its turn several times, each time as long as the mover is late. The time from a thread's call to the moment
when the trio thread answers it tells how late that is, whatever the network does: the limit grows while it is short and
shrinks while it is long. Plain numbers, no clock.
"""

from __future__ import annotations

_FIRST, _LEAST = 16.0, 4.0
_SOON_S, _LATE_S = 0.006, 0.020
_GROWTH, _SHRINKAGE = 0.5, 0.95


class Pace:
    """`limit` moves between a few and `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = min(_FIRST, most)

    def __repr__(self) -> str:
        return f"<Pace {self.limit} of {self._most}>"

    @property
    def limit(self) -> int:
        return int(self._limit)

    def answered(self, lag_s: float, *, full: bool) -> None:
        """A thread's call was answered after so long; `full` if the limit kept something from running."""
        if lag_s > _LATE_S:
            self._limit = max(_LEAST, self._limit * _SHRINKAGE)
        elif lag_s < _SOON_S and full:
            self._limit = min(self._most, self._limit + _GROWTH)
