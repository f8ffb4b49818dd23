"""Reading ahead within a file: plain rules over what was read, no clock, no I/O.

A run of reads that go forward opens a window that grows with what was consumed: four times that, from 8 to 128 MiB
ahead, cut into GETs of 1 to 8 MiB so that several connections share the work. A read elsewhere ends the run: random
readers get only what they ask for. What the cache will not keep has to wait in memory until it is read: files read
that way share one small window, and beyond a number of readers nothing is fetched ahead.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from mountkit.cache.content import BLOCK_BYTES, PART_BYTES

SLACK_BYTES = 4 * BLOCK_BYTES
"""Reads of one run arrive out of order by up to the kernel's own read-ahead, spread over servers."""
_START = 2 * BLOCK_BYTES
_MIN_WINDOW, MAX_WINDOW_BYTES = 8 * BLOCK_BYTES, 128 * BLOCK_BYTES
_UNKEPT_BYTES, _UNKEPT_MAX = 32 * BLOCK_BYTES, 16 * BLOCK_BYTES
"""What all files together, and one of them, may have ahead in memory: half of what memory parts may take."""
_RECENT = 256
"""A file counts among those that share the memory as long as it was read within so many reads of all of them."""
_GROWTH, _GETS_AT_ONCE = 4, 8
_MAX_GET = 8 * BLOCK_BYTES
_FILES = 512


@dataclass(slots=True)
class _Run:
    end: int = 0
    consumed: int = 0
    planned: int = 0
    unkept_at: int = -_RECENT
    """When it was last read without being kept, in reads of that kind."""


class Readahead:
    """Remembers how each of the last few hundred files is being read."""

    def __init__(self) -> None:
        self._runs: OrderedDict[int, _Run] = OrderedDict()
        self._unkept_reads = 0

    def observe(self, object_id: int, size: int, offset: int, length: int, *, kept: bool = True) -> list[range]:
        """Notes a read of a file of `size` bytes; the part ranges to fetch now, in order, none twice in one run.

        `kept`: whether the cache will take what is fetched ahead.
        """
        run = self._runs.get(object_id)
        if run is None:
            run = self._runs[object_id] = _Run()
            if len(self._runs) > _FILES:
                self._runs.popitem(last=False)
        self._runs.move_to_end(object_id)
        end = min(size, offset + length)
        if run.end - SLACK_BYTES <= offset <= run.end + SLACK_BYTES:
            run.consumed += max(0, end - run.end)
            run.end = max(run.end, end)
        else:
            run.end, run.consumed, run.planned = end, 0, 0
        if run.consumed < min(_START, size - BLOCK_BYTES):
            return []
        window = max(_MIN_WINDOW, min(MAX_WINDOW_BYTES, _GROWTH * run.consumed))
        return _plan(run, size, window if kept else min(window, self._unkept_window(run)))

    def forget(self, object_id: int) -> None:
        self._runs.pop(object_id, None)

    def _unkept_window(self, run: _Run) -> int:
        self._unkept_reads += 1
        run.unkept_at = self._unkept_reads
        sharing = sum(other.unkept_at > self._unkept_reads - _RECENT for other in self._runs.values())
        return min(_UNKEPT_MAX, _UNKEPT_BYTES // sharing // BLOCK_BYTES * BLOCK_BYTES)


def _plan(run: _Run, size: int, window: int) -> list[range]:
    get = max(BLOCK_BYTES, min(_MAX_GET, window // _GETS_AT_ONCE // BLOCK_BYTES * BLOCK_BYTES))
    run.planned = max(run.planned, run.end // BLOCK_BYTES * BLOCK_BYTES)
    plans = []
    while run.planned < size and run.planned + get <= run.end + window:
        stop = min(size, run.planned + get)
        plans.append(range(run.planned // PART_BYTES, -(-stop // PART_BYTES)))
        run.planned = stop
    return plans
