"""Checked reads: whole parts from a segment or an own file, given out only when their CRCs are right.

Where the bytes lie comes from the caller (rows of the index, perhaps old ones); a wrong place cannot give wrong bytes,
because a record must name the object asked for and every part must have its CRC. Thread-safe.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct

from mountkit.cache.checksum import wrong_parts
from mountkit.cache.content import BLOCK_BYTES, PART_BYTES, ContentId, by_block, part_span
from mountkit.cache.files import FdCache, open_placed
from mountkit.cache.index import NOWHERE, Placed
from mountkit.cache.segments import HEADER_BYTES, record_header

READ_FDS = 128
_SCRATCH_BYTES = BLOCK_BYTES + 2 * PART_BYTES
_NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EINVAL})
_CRCS = [Struct(f"<{n}I") for n in range(9)]


@dataclass(frozen=True, slots=True)
class Missing:
    """These parts (and perhaps some between them that are there) must be fetched.

    `bad`: the index has them, but not the files. The mover must `recheck` them before it can fetch them again.
    """

    first_part: int
    last_part: int
    bad: bool = False


@dataclass(frozen=True, slots=True)
class WouldBlock:
    """The bytes are there but not in memory; ask again with `wait=True`, in a thread."""


WOULD_BLOCK = WouldBlock()


class _Scratch(threading.local):
    """A buffer per thread: a fresh one per read costs its page faults, 20 µs for 100 KB."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_SCRATCH_BYTES))

    def take(self, length: int) -> memoryview:
        return self.view[:length] if length <= _SCRATCH_BYTES else memoryview(bytearray(length))


class CheckedFiles:
    """At most 128 open segments and own files below `root`, read with every part checked."""

    def __init__(self, root: int) -> None:
        self._files: FdCache[int | bytes] = FdCache(lambda key: open_placed(root, key), READ_FDS)
        self._scratch = _Scratch()
        self._nowait = os.RWF_NOWAIT

    def __len__(self) -> int:
        return len(self._files)

    def read(
        self, content: ContentId, size: int, offset: int, length: int, *, rows: Mapping[int, Placed], wait: bool
    ) -> bytes | Missing | WouldBlock:
        """The bytes [offset, offset + length) of the object, fewer only at its end, from where `rows` say."""
        stop = min(size, offset + length)
        if offset >= stop:
            return b""
        first, last = offset // PART_BYTES, (stop - 1) // PART_BYTES
        lacking: list[int] = []
        crcs: list[int] = []
        row = NOWHERE
        for pieces in by_block(first, last):
            row = rows.get(pieces.block, NOWHERE)
            lacking += row.lacks(pieces)
            if not lacking:
                crcs += _CRCS[len(row.crcs) // 4].unpack(row.crcs)[pieces.first : pieces.last + 1]
        if lacking:
            return Missing(lacking[0], lacking[-1])
        begin, end = part_span(size, first, last)
        view = self._scratch.take(end - begin)
        found = self._load(content, size, row, begin, view, wait=wait)
        if found is not None:
            return Missing(first, last, bad=True) if found is BAD else WOULD_BLOCK
        bad = wrong_parts(view, crcs)
        if bad:
            return Missing(first + bad[0], first + bad[-1], bad=True)
        return bytes(view[offset - begin : stop - begin])

    def forget(self, content: ContentId, rows: Mapping[int, Placed]) -> None:
        """Open the files of the object by name the next time."""
        self._files.drop(content)
        for number in {row.segment for row in rows.values()}:
            self._files.drop(number)

    def drop_deleted(self) -> None:
        """Close the files that were deleted meanwhile: while they are open the disk does not get their space back."""
        self._files.drop_deleted()

    def close(self) -> None:
        self._files.close()

    def _load(
        self, content: ContentId, size: int, row: Placed, begin: int, view: memoryview, *, wait: bool
    ) -> WouldBlock | _Bad | None:
        """Fill `view` from the object's offset `begin`; None if that worked."""
        try:
            handle = self._files.acquire(row.segment or content)
        except OSError:
            return BAD
        try:
            if not row.segment:
                return self._fill(handle.fd, view, begin, wait=wait)
            if size > BLOCK_BYTES:
                return BAD  # no record is that long: a damaged index
            # Two reads cost 1 µs more than one with two buffers and serve any part of the record.
            head = memoryview(bytearray(HEADER_BYTES))
            problem = self._fill(handle.fd, head, row.offset, wait=wait)
            if problem is None and head != record_header(content, size, row.crcs):
                problem = BAD
            return problem or self._fill(handle.fd, view, row.offset + HEADER_BYTES + begin, wait=wait)
        finally:
            self._files.release(handle)

    def _fill(self, fd: int, view: memoryview, position: int, *, wait: bool) -> WouldBlock | _Bad | None:
        flags = 0 if wait else self._nowait
        wanted = view.nbytes
        done = 0
        while done < wanted:
            try:
                got = os.preadv(fd, (view[done:] if done else view,), position + done, flags)
            except BlockingIOError:
                return WOULD_BLOCK
            except OSError as exc:
                if not flags or exc.errno not in _NOT_SUPPORTED:
                    return BAD
                flags = self._nowait = 0  # this filesystem cannot say whether it would block
                continue
            done += got
            if done < wanted and flags:
                return WOULD_BLOCK  # the rest is not in memory, or the file is too short: the waiting read will tell
            if not got:
                return BAD
        return None


@dataclass(frozen=True, slots=True)
class _Bad:
    """What should be in the file is not."""


BAD = _Bad()
