"""Housekeeping: what leaves the cache, and when. For idle moments: it walks all files.

Superseded versions and segments without live records go at once; what is merely unused goes only when the cache holds
more than its limits, and only after nobody touched it for days (its access time; on a disk mounted noatime, the time
it was written).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from mountkit.cache.content import ContentId
from mountkit.cache.files import segment_name
from mountkit.cache.objects import OwnFile
from mountkit.cache.stock import Stock

_DAY_NS = 86_400 * 10**9
_ORPHAN_AGE_NS = 3600 * 10**9
"""A younger file without rows may belong to a write that is not committed yet."""


class Housekeeper:
    def __init__(self, stock: Stock) -> None:
        self._stock = stock

    def discard(self, contents: Iterable[ContentId]) -> int:
        """Delete the objects; the bytes freed. Waits for seals and writes of them to end."""
        return sum(self._discard_batch(batch) for batch in _batches(sorted(set(contents)), 256))

    def run(self, superseded: Iterable[ContentId]) -> int:
        """All of housekeeping; the bytes freed."""
        stock = self._stock
        freed = self.discard(superseded)
        freed += stock.remove_dead_segments()
        files = list(stock.objects.scan())
        orphans = self._orphans(files)
        freed += self._remove_orphans(orphans)
        kept = [file for file in files if file.content not in orphans]
        stock.own_bytes.add(sum(file.held_bytes for file in kept) - stock.own_bytes.value)
        if stock.policy.excess() > 0:
            freed += self._evict_idle(kept)
        stock.index.checkpoint()
        return freed

    def _discard_batch(self, contents: list[ContentId]) -> int:
        with ExitStack() as alone:
            for content in contents:  # sorted, so that two threads never wait for each other
                alone.enter_context(self._stock.guard.alone(content, complete=False))
            return self._stock.discard(contents)

    def _orphans(self, files: list[OwnFile]) -> set[ContentId]:
        settled_before = time.time_ns() - _ORPHAN_AGE_NS
        old = [file.content for file in files if file.modified_ns < settled_before]
        return set(old) - self._stock.index.known_own_files(old)

    def _remove_orphans(self, orphans: set[ContentId]) -> int:
        freed = 0
        for content in sorted(orphans):
            with self._stock.guard.alone(content, complete=False):
                if not self._stock.index.known_own_files([content]):
                    freed += self._stock.objects.remove(content)
        return freed

    def _evict_idle(self, files: list[OwnFile]) -> int:
        """Evict the longest unused objects and segments until the limits hold; the bytes freed."""
        stock = self._stock
        idle_before = time.time_ns() - int(stock.policy.limits.idle_days * _DAY_NS)
        idle: list[tuple[int, ContentId | int]] = [
            (f.touched_ns, f.content) for f in files if f.touched_ns < idle_before
        ]
        idle += [(touched, number) for number, touched in self._segments_touched() if touched < idle_before]
        freed = 0
        for _, item in sorted(idle, key=lambda entry: entry[0]):
            if stock.policy.excess() <= 0:
                break
            freed += self._evict_segment(item) if isinstance(item, int) else self.discard([item])
        return freed

    def _segments_touched(self) -> list[tuple[int, int]]:
        found = []
        for number in self._stock.segments.numbers():
            with suppress(FileNotFoundError):
                at = os.stat(segment_name(number), dir_fd=self._stock.root, follow_symlinks=False)
                found.append((number, max(at.st_atime_ns, at.st_mtime_ns)))
        return found

    def _evict_segment(self, number: int) -> int:
        self._stock.index.drop_segments([number])
        self._stock.segments.evict(number)
        return self._stock.remove_dead_segments()


def _batches(items: list[ContentId], length: int) -> list[list[ContentId]]:
    return [items[at : at + length] for at in range(0, len(items), length)]
