"""The cache as the mover sees it: its only writer.

`write` and `read` may be called from many threads at once, `seal`, `verify`, `recheck` and `housekeep` from worker
threads beside them. Bytes are on disk before a row names them, rows are committed before a reader sees them; a kill at
any moment leaves bytes that nobody names, never a name without its bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mountkit.cache.checked import CheckedFiles
from mountkit.cache.checksum import part_crcs
from mountkit.cache.content import (
    BLOCK_BYTES,
    PART_BYTES,
    PARTS_PER_BLOCK,
    ContentId,
    by_block,
    full_mask,
    parts_in,
    parts_of_block,
    runs,
)
from mountkit.cache.faults import CacheBroken, CacheFull, cache_full, disk_full, translated
from mountkit.cache.housekeeping import Housekeeper
from mountkit.cache.index import NOWHERE, OWN_FILE
from mountkit.cache.index_writer import BlockRow
from mountkit.cache.objects import Objects
from mountkit.cache.policy import CacheUsage, Limits, Policy
from mountkit.cache.recovery import open_index
from mountkit.cache.sealing import Sealer
from mountkit.cache.segments import SEGMENT_BYTES, Segments
from mountkit.cache.stock import OwnBytes, Stock

if TYPE_CHECKING:
    from typing_extensions import Buffer


class CacheWriter:
    """Made by `open`. `warnings`: what the user should know about how the cache was found."""

    def __init__(self, stock: Stock, warnings: list[str]) -> None:
        self._stock = stock
        self._sealer = Sealer(stock)
        self._housekeeper = Housekeeper(stock)
        self.warnings = tuple(warnings)

    @classmethod
    def open(cls, directory_fd: int, limits: Limits, life: bytes, *, segment_bytes: int = SEGMENT_BYTES) -> CacheWriter:
        """The writer of the cache in this directory, made or emptied as needed. Keeps a duplicate of the descriptor.

        `life` (16 bytes) names this mount's life: seals of another must be verified. Nobody else may have it open for
        writing (the mover holds a lock). Reads the whole index. Raises CacheFull, CacheBroken.
        """
        root = os.dup(directory_fd)
        index = None
        try:
            found = open_index(root, life)
            index, warnings = found.index, list(found.warnings)
            segments = Segments(
                root,
                live=found.live_records,
                next_number=found.next_segment,
                announce=lambda number: index.put_meta(next_segment=number),
                segment_bytes=segment_bytes,
            )
            lost = found.live_records.keys() - set(segments.numbers())
            if lost:
                index.drop_segments(lost)
                warnings.append(f"{len(lost)} segments of the cache were deleted; what they held is fetched again")
            segments.remove_dead()
        except BaseException as exc:
            if index is not None:
                index.close(clean=False)
            os.close(root)
            if isinstance(exc, OSError):
                raise translated(exc, "opening its directory") from exc
            raise
        own = OwnBytes(found.own_bytes)
        policy = Policy(root, limits, lambda: segments.bytes_used + own.value)
        stock = Stock(root, life, index, segments, Objects(root), CheckedFiles(root), policy, own)
        return cls(stock, warnings)

    def __repr__(self) -> str:
        stock = self._stock
        return f"<CacheWriter {stock.segments!r}, {stock.own_bytes.value} bytes in own files>"

    def write(self, content: ContentId, size: int, first_part: int, data: Buffer) -> tuple[BlockRow, ...]:
        """Store `data`, which begins at part `first_part` and ends at a part's or the object's end. Thread-safe.

        The rows must be given to `commit`, also one by one or in another order. None come back where the bytes are
        not needed (the object is sealed or being sealed). Raises CacheFull, CacheBroken: then nothing is referenced.
        """
        view = memoryview(data).cast("B")
        start = first_part * PART_BYTES
        stop = start + view.nbytes
        if first_part < 0 or stop > size or (stop < size and stop % PART_BYTES):
            raise ValueError(f"bytes {start}-{stop} are not whole parts of an object of {size} bytes")
        if not view.nbytes:
            return ()
        stock = self._stock
        moment = stock.index.moment
        if not stock.policy.admits(view.nbytes):
            if stock.policy.disk_is_full():
                raise disk_full(f"{stock.policy.free_bytes()} bytes are free, and a share of it is to stay free")
            raise cache_full("its size limit or the free share of its disk is reached")
        crcs = part_crcs(view)
        try:
            if view.nbytes == size <= BLOCK_BYTES:
                segment, offset = stock.segments.append(content, crcs, view)
                full = (1 << parts_in(size)) - 1
                return (BlockRow(content, size, 0, segment, offset, full, crcs, moment),)
            if not self._write_own(content, start, view):
                return ()
        except OSError as exc:
            raise translated(exc, "writing an object") from exc
        return _own_rows(content, size, first_part, crcs, moment)

    def commit(self, rows: Iterable[BlockRow]) -> None:
        """Make the rows visible to readers, in one transaction. Each row once. Raises CacheFull, CacheBroken."""
        stock = self._stock
        rows = list(rows)
        try:
            change = stock.index.commit(rows)
        except BaseException:
            for row in rows:
                if row.segment:
                    stock.segments.settle(row.segment, row.offset, live=False)
            raise
        for segment, offset, live in change.settled:
            stock.segments.settle(segment, offset, live=live)
        for segment, records in change.released.items():
            stock.segments.release(segment, records)
        stock.own_bytes.add(-change.repeated_bytes)

    def missing(self, content: ContentId, size: int, first_part: int, last_part: int) -> list[range]:
        """The runs of parts among first_part … last_part that the index does not have."""
        last_part = min(last_part, parts_in(size) - 1)
        if first_part > last_part:
            return []
        rows = self._stock.index.blocks(content, first_part // PARTS_PER_BLOCK, last_part // PARTS_PER_BLOCK)
        lacking: list[int] = []
        for pieces in by_block(first_part, last_part):
            lacking += rows.get(pieces.block, NOWHERE).lacks(pieces)
        return runs(lacking)

    def complete_among(self, objects: list[tuple[ContentId, int]]) -> set[ContentId]:
        """Which of these (object, size) of at most one block are complete; for some hundreds at once."""
        parts = self._stock.index.first_parts([content for content, _ in objects])
        return {content for content, size in objects if parts.get(content) == full_mask(size, 0)}

    def read(self, content: ContentId, size: int, offset: int, length: int) -> bytes | None:
        """The checked bytes [offset, offset + length), fewer only at the object's end; None if any is missing."""
        if offset >= size or length <= 0:
            return b""
        found = self._stock.read(content, size, offset, min(length, size - offset))
        return found if isinstance(found, bytes) else None

    def is_complete(self, content: ContentId, size: int) -> bool:
        """Whether the index has every part of the object."""
        return self._stock.index.is_complete(content, size)

    def seal_some(self, objects: Sequence[tuple[ContentId, int]], *, stop: Callable[[], bool]) -> None:
        """As `seal`, these (object, size) until `stop()`; small ones together."""
        self._sealer.seal_some(objects, stop=stop)
        self._stock.remove_dead_segments()

    def seal(self, content: ContentId, size: int) -> bool:
        """Whether the object is now a sealed file of its own; False if it is not complete or its bytes turned out bad
        (those are forgotten). Reads all of it. Raises CacheFull, CacheBroken."""
        sealed = self._sealer.seal(content, size)
        self._stock.remove_dead_segments()
        return sealed

    def verify(self, content: ContentId) -> bool:
        """Whether the sealed file has its CRCs; then the seal is of this life, else the object is discarded."""
        return self._sealer.verify(content)

    def recheck(self, content: ContentId, size: int, first_part: int, last_part: int) -> bool:
        """Whether the parts the index has here are in the files; what is not is forgotten, so `missing` names it.

        What to do with a reader's Missing(bad=True).
        """
        last_part = min(last_part, parts_in(size) - 1)
        return first_part > last_part or self._sealer.recheck(content, size, first_part, last_part)

    def discard(self, content: ContentId) -> None:
        """Forget the object, also what was written of it and not committed yet. Waits for a seal of it to end."""
        self._housekeeper.discard([content])
        self._stock.remove_dead_segments()

    def admits(self, size: int) -> bool:
        """Whether the limits leave room for `size` more bytes."""
        return self._stock.policy.admits(size)

    def unsealed(self, limit: int) -> list[tuple[ContentId, int]]:
        """At most `limit` complete objects that are not sealed, those complete for longest first."""
        return self._stock.index.unsealed(limit)

    def housekeep(self, superseded: Iterable[ContentId]) -> int:
        """Delete the superseded objects, orphaned files, empty segments and, over the limits, what is long unused;
        the bytes freed. Walks all files: for a worker thread in an idle moment."""
        return self._housekeeper.run(superseded)

    def shrink(self, size_bytes: int) -> int:
        """Holds the cache to `size_bytes` from now on and evicts what is longest unused at once; the bytes freed."""
        policy = self._stock.policy
        before = policy.limits
        policy.limits = replace(before, size_bytes=size_bytes, idle_days=0)
        try:
            return self._housekeeper.run(())
        finally:
            policy.limits = replace(before, size_bytes=size_bytes)

    def is_there(self) -> bool:
        """Whether readers find the index we write."""
        return self._stock.index.is_there()

    def works(self) -> bool:
        """Whether the disk takes bytes and rows right now, tried; for when it did not. Blocks on the disk."""
        stock = self._stock
        if not stock.policy.admits(BLOCK_BYTES):
            return False
        try:
            stock.objects.prove()
            stock.index.put_meta(proof=1)
        except (OSError, CacheFull, CacheBroken):
            return False
        return True

    def usage(self) -> CacheUsage:
        """How full the cache is. Counts the objects in the index: 0.1 s for a million."""
        stock = self._stock
        objects, sealed = stock.index.count_objects()
        return CacheUsage(
            bytes_used=stock.segments.bytes_used + stock.own_bytes.value,
            limit_bytes=stock.policy.limits.size_bytes,
            free_bytes=stock.policy.free_bytes(),
            objects=objects,
            sealed=sealed,
            segments=len(stock.segments),
            full=not stock.policy.admits(BLOCK_BYTES),
        )

    def close(self) -> None:
        """Leave everything complete on disk. No other call may run or follow."""
        stock = self._stock
        stock.segments.close()
        stock.objects.close()
        stock.files.close()
        try:
            stock.index.close(clean=True)
        finally:
            os.close(stock.root)

    def _write_own(self, content: ContentId, position: int, view: memoryview) -> bool:
        """Write into the object's own file; False if it is complete and sealed or being sealed."""
        stock = self._stock
        if not stock.guard.begin_write(content):
            return False
        try:
            if stock.index.stamp(content) is not None:
                return False
            stock.objects.write(content, position, view)
        finally:
            stock.guard.end_write(content)
        stock.own_bytes.add(view.nbytes)
        return True


def _own_rows(content: ContentId, size: int, first_part: int, crcs: bytes, moment: int) -> tuple[BlockRow, ...]:
    last_part = first_part + len(crcs) // 4 - 1
    rows = []
    for pieces in by_block(first_part, last_part):
        at = 4 * (pieces.block * PARTS_PER_BLOCK + pieces.first - first_part)
        count = pieces.last - pieces.first + 1
        rows.append(
            BlockRow(
                content,
                size,
                pieces.block,
                OWN_FILE,
                0,
                ((1 << count) - 1) << pieces.first,
                (bytes(4 * pieces.first) + crcs[at : at + 4 * count]).ljust(
                    4 * parts_of_block(size, pieces.block), b"\0"
                ),
                moment,
            )
        )
    return tuple(rows)
