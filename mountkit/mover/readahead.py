"""Reading ahead within a file: plain rules over what was read, no clock, no I/O.

A run of reads that go forward opens a window that grows with what was consumed: four times that, from 8 to 128 MiB
ahead, cut into GETs of 1 to 8 MiB so that several connections share the work. A read elsewhere ends the run: random
readers get only what they ask for.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from mountkit.cache.content import BLOCK_BYTES, PART_BYTES

_SLACK = 4 * BLOCK_BYTES
"""Reads of one run arrive out of order by up to the kernel's own read-ahead, spread over servers."""
_START = 2 * BLOCK_BYTES
_MIN_WINDOW, _MAX_WINDOW = 8 * BLOCK_BYTES, 128 * BLOCK_BYTES
_GROWTH, _GETS_AT_ONCE = 4, 8
_MAX_GET = 8 * BLOCK_BYTES
_FILES = 512


@dataclass(slots=True)
class _Run:
    end: int = 0
    consumed: int = 0
    planned: int = 0


class Readahead:
    """Remembers how each of the last few hundred files is being read."""

    def __init__(self) -> None:
        self._runs: OrderedDict[int, _Run] = OrderedDict()

    def observe(self, object_id: int, size: int, offset: int, length: int) -> list[range]:
        """Notes a read of a file of `size` bytes; the part ranges to fetch now, in order, none twice in one run."""
        run = self._runs.get(object_id)
        if run is None:
            run = self._runs[object_id] = _Run()
            if len(self._runs) > _FILES:
                self._runs.popitem(last=False)
        self._runs.move_to_end(object_id)
        end = min(size, offset + length)
        if run.end - _SLACK <= offset <= run.end + _SLACK:
            run.consumed += max(0, end - run.end)
            run.end = max(run.end, end)
        else:
            run.end, run.consumed, run.planned = end, 0, 0
        if run.consumed < min(_START, size - BLOCK_BYTES):
            return []
        return self._plan(run, size)

    def forget(self, object_id: int) -> None:
        self._runs.pop(object_id, None)

    def _plan(self, run: _Run, size: int) -> list[range]:
        window = max(_MIN_WINDOW, min(_MAX_WINDOW, _GROWTH * run.consumed))
        get = max(BLOCK_BYTES, min(_MAX_GET, window // _GETS_AT_ONCE // BLOCK_BYTES * BLOCK_BYTES))
        run.planned = max(run.planned, run.end // BLOCK_BYTES * BLOCK_BYTES)
        plans = []
        while run.planned < size and run.planned + get <= run.end + window:
            stop = min(size, run.planned + get)
            plans.append(range(run.planned // PART_BYTES, -(-stop // PART_BYTES)))
            run.planned = stop
        return plans
