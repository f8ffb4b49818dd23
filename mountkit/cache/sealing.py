"""Sealing: a complete object becomes a read-only file of its own whose CRCs were all right in this life.

Called from worker threads, beside writes and commits. The order is file, stamp, index row; a kill in between leaves the
object as it was, and a file that the next seal replaces or checks again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from mountkit.cache.content import BLOCK_BYTES, ContentId, parts_in
from mountkit.cache.faults import cache_full, translated
from mountkit.cache.files import object_name, open_below
from mountkit.cache.objects import OPEN_MODE, SEALED_MODE, Stamp, stamp_of
from mountkit.cache.segments import SEGMENT_BYTES
from mountkit.cache.stock import Stock


class Sealer:
    def __init__(self, stock: Stock) -> None:
        self._stock = stock

    def seal(self, content: ContentId, size: int) -> bool:
        """Whether the object is sealed now; its bad bytes, if any, are forgotten. Raises CacheFull, CacheBroken."""
        stock = self._stock
        with stock.guard.alone(content, complete=True):
            stamp = stock.index.stamp(content)
            if stamp is not None:
                return stamp.life == stock.life or self._verify(content, stamp)
            if not stock.index.is_complete(content, size):
                return False
            if size <= BLOCK_BYTES:
                row = stock.index.blocks(content, 0, 0).get(0)
                if row is None or row.segment:
                    return self._seal_copy(content, size)
            return self._seal_in_place(content, size)

    def seal_some(self, objects: Sequence[tuple[ContentId, int]], *, stop: Callable[[], bool]) -> None:
        """As `seal`, these (object, size) until `stop()`; the seals of small ones are recorded in one transaction."""
        # In order, so that two threads never wait for each other.
        small = sorted(each for each in objects if each[1] <= BLOCK_BYTES)
        sealed: dict[ContentId, Stamp] = {}
        with ExitStack() as alone:
            try:
                for content, size in small:
                    if stop():
                        return
                    alone.enter_context(self._stock.guard.alone(content, complete=True))
                    row = self._stock.index.blocks(content, 0, 0).get(0)
                    if row is not None and row.segment and (stamp := self._copied(content, size)) is not None:
                        sealed[content] = stamp
            finally:
                self._record(sealed)
        for content, size in objects:  # what is in no segment
            if stop():
                return
            if content not in sealed:
                self.seal(content, size)

    def verify(self, content: ContentId) -> bool:
        """Whether the sealed file is what it should be; then its seal is of this life, else the object is gone."""
        with self._stock.guard.alone(content, complete=True):
            stamp = self._stock.index.stamp(content)
            return stamp is not None and self._verify(content, stamp)

    def recheck(self, content: ContentId, size: int, first_part: int, last_part: int) -> bool:
        """Whether all of these parts that the index has are in the files; forgets those that are not."""
        stock = self._stock
        with stock.guard.alone(content, complete=False):
            bad = stock.bad_parts(content, size, first_part, last_part)
            if bad:
                self._forget(content, size, bad)
            return not bad

    def _seal_copy(self, content: ContentId, size: int) -> bool:
        stamp = self._copied(content, size)
        if stamp is None:
            return False
        self._record({content: stamp})
        return True

    def _copied(self, content: ContentId, size: int) -> Stamp | None:
        """Copies the object out of its segment; None if its bytes turned out bad, and are forgotten. May pass the size
        limit by two segments: they are deleted when empty."""
        stock = self._stock
        if not stock.policy.admits(size, overshoot=2 * SEGMENT_BYTES):
            raise cache_full("no room to seal an object")
        data = stock.read(content, size, 0, size) if size else b""
        if not isinstance(data, bytes):
            stock.discard([content])
            return None
        try:
            stamp = stock.objects.create_sealed(content, data, stock.life)
        except OSError as exc:
            raise translated(exc, "sealing an object") from exc
        stock.own_bytes.add(-(-size // 4096) * 4096)
        return stamp

    def _record(self, seals: dict[ContentId, Stamp]) -> None:
        for number, records in self._stock.index.seal(seals).items() if seals else ():
            self._stock.segments.release(number, records)

    def _seal_in_place(self, content: ContentId, size: int) -> bool:
        stock = self._stock
        stock.objects.stop_writing(content)
        stamp, bad = self._checked(content, size)
        if stamp is None:
            self._forget(content, size, bad)
            return False
        stock.index.seal({content: stamp})
        return True

    def _verify(self, content: ContentId, old: Stamp) -> bool:
        stock = self._stock
        stock.objects.stop_writing(content)
        stamp, _ = self._checked(content, old.size)
        if stamp is None:
            stock.discard([content])
            return False
        stock.index.seal({content: stamp})
        return True

    def _checked(self, content: ContentId, size: int) -> tuple[Stamp | None, list[int]]:
        """The stamp of the own file if every part of it is right and it did not change meanwhile, else what is bad."""
        stock = self._stock
        everything = list(range(parts_in(size)))
        try:
            fd = open_below(stock.root, object_name(content), os.O_RDONLY)
        except OSError:
            return None, everything
        try:
            if os.fstat(fd).st_mode & 0o777 != SEALED_MODE:
                os.fchmod(fd, SEALED_MODE)
            before = stamp_of(fd, stock.life)
            if before.size != size:
                return None, everything
            bad = stock.bad_parts(content, size, 0, parts_in(size) - 1)
            if not bad and _same_file(stock.root, content, before.inode) and stamp_of(fd, stock.life) == before:
                return before, []
            os.fchmod(fd, OPEN_MODE)
            return None, bad
        except OSError as exc:
            raise translated(exc, "checking an object") from exc
        finally:
            os.close(fd)

    def _forget(self, content: ContentId, size: int, bad: list[int]) -> None:
        """Drop the bad parts of a growing file; drop small and sealed objects as a whole."""
        stock = self._stock
        sealed = stock.index.stamp(content) is not None
        stock.segments.retire_if_lost()
        stock.objects.stop_writing(content)
        if sealed or size <= BLOCK_BYTES or len(bad) == parts_in(size):
            stock.discard([content])
        else:
            stock.index.drop_parts(content, bad)


def _same_file(root: int, content: ContentId, inode: int) -> bool:
    try:
        return os.stat(object_name(content), dir_fd=root, follow_symlinks=False).st_ino == inode
    except FileNotFoundError:
        return False
