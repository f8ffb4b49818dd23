"""Segments: whole small objects in append-only files, each written once and read without locks.

A record says whose bytes it holds (content, size, part CRCs) in a header with a CRC of its own; a reader compares the
header with what it asked for. Space is reserved under a short lock and written outside of it, so a killed writer leaves
holes which no index row names. Numbers are never used again: they count up from the highest that the index or the
directory knows, the highest file is never deleted, and after a restart a new number is begun. Only the mover writes.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from mountkit.cache.checksum import CRC_BYTES, crc
from mountkit.cache.content import PARTS_PER_BLOCK, ContentId
from mountkit.cache.files import SEGMENTS, open_below, remove, segment_name, write_all

if TYPE_CHECKING:
    from typing_extensions import Buffer

SEGMENT_BYTES = 256 << 20
_MAGIC = b"mks1"
_HEADER = struct.Struct(f"<4s16sQII{4 * PARTS_PER_BLOCK}s")
HEADER_BYTES = _HEADER.size + CRC_BYTES
_NAME = re.compile(r"(\d{4,})\.seg")


def record_header(content: ContentId, size: int, crcs: bytes) -> bytes:
    """What stands before the data of a record: magic, content, object size, block index, data length, CRCs, CRC.

    Records hold whole objects of one block, so the index is 0 and the length is the size; both are kept in the format.
    """
    head = _HEADER.pack(_MAGIC, content, size, 0, size, crcs)
    return head + crc(head)


def segment_numbers(root: int) -> list[int]:
    """The numbers of the segment files that are there, ascending."""
    fd = open_below(root, SEGMENTS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, os.listdir(fd)) if match)
    finally:
        os.close(fd)


class _Active:
    """The segment being written: its descriptor outlives its end until the last write into it is done."""

    __slots__ = ("end", "fd", "number", "writers")

    def __init__(self, number: int, fd: int) -> None:
        self.number = number
        self.fd = fd
        self.end = 0
        self.writers = 0


class Segments:
    """The writer's side: appends records, counts which segments still hold live ones, deletes the others.

    `live` are the referenced records by segment; `announce` makes a new segment's number known to the index before
    anything is written to it.
    """

    def __init__(
        self, root: int, *, live: dict[int, int], next_number: int, announce: Callable[[int], None], segment_bytes: int
    ) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._live = Counter(live)
        self._announce = announce
        self._segment_bytes = segment_bytes
        self._active: _Active | None = None
        self._pending: dict[int, set[int]] = {}
        self._some_dead = True
        self._sizes = {number: self._size_on_disk(number) for number in segment_numbers(root)}
        self._bytes = sum(self._sizes.values())
        self._next = max(next_number, max(self._sizes, default=0) + 1)

    def __repr__(self) -> str:
        return f"<Segments {len(self._sizes)} files, {self.bytes_used} bytes, next {self._next}>"

    @property
    def bytes_used(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._sizes)

    def append(self, content: ContentId, crcs: bytes, data: Buffer) -> tuple[int, int]:
        """(segment, offset) of a new record with the whole object. Thread-safe. Raises OSError.

        The segment is kept until `settle` has said whether the index refers to the record.
        """
        view = memoryview(data)
        header = record_header(content, view.nbytes, crcs)
        active, offset = self._reserve(HEADER_BYTES + view.nbytes)
        try:
            write_all(active.fd, (header, view), offset)
        except OSError:
            self.settle(active.number, offset, live=False)
            raise
        finally:
            self._written(active)
        return active.number, offset

    def settle(self, number: int, offset: int, *, live: bool) -> None:
        """The record is now (not) referenced by the index."""
        with self._lock:
            waiting = self._pending.get(number)
            if waiting is None or offset not in waiting:
                return
            waiting.discard(offset)
            if not waiting:
                del self._pending[number]
            self._live[number] += live
            self._some_dead |= self._live[number] <= 0

    def release(self, number: int, records: int = 1) -> None:
        """`records` records of the segment are no longer referenced."""
        with self._lock:
            self._live[number] -= records
            self._some_dead |= self._live[number] <= 0

    def remove_dead(self) -> int:
        """Delete the segments without live records; the bytes freed."""
        with self._lock:
            if not self._some_dead:
                return 0
            self._some_dead = False
            highest = max(self._sizes, default=0)
            dead = [n for n in self._sizes if self._live[n] <= 0 and n not in self._pending and n != highest]
            freed = sum(self._sizes.pop(number) for number in dead)
            self._bytes -= freed
            for number in dead:
                self._live.pop(number, None)
        for number in dead:
            remove(self._root, segment_name(number))
        return freed

    def numbers(self) -> list[int]:
        """The segments that may be evicted: all but the one being written."""
        with self._lock:
            active = self._active.number if self._active else 0
            return sorted(number for number in self._sizes if number != active)

    def evict(self, number: int) -> None:
        """The index refers to no record of the segment any more."""
        with self._lock:
            self._live.pop(number, None)
            self._some_dead = True

    def retire_if_lost(self) -> None:
        """Begin a new segment if somebody deleted the one being written."""
        with self._lock:
            active = self._active
            if active is None:
                return
            with suppress(FileNotFoundError):
                found = os.stat(segment_name(active.number), dir_fd=self._root, follow_symlinks=False)
                if found.st_ino == os.fstat(active.fd).st_ino:
                    return
            self._retire()

    def close(self) -> None:
        with self._lock:
            self._retire()

    def _reserve(self, length: int) -> tuple[_Active, int]:
        with self._lock:
            active = self._active
            if active is None or active.end + length > self._segment_bytes:
                active = self._begin()
            offset = active.end
            active.end += length
            active.writers += 1
            self._sizes[active.number] = active.end
            self._bytes += length
            self._pending.setdefault(active.number, set()).add(offset)
            return active, offset

    def _begin(self) -> _Active:
        number = self._next
        self._announce(number + 1)
        fd = open_below(self._root, segment_name(number), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._retire()
        self._next = number + 1
        self._sizes[number] = 0
        self._some_dead = True  # what had to stay as the highest number may go now
        self._active = _Active(number, fd)
        return self._active

    def _retire(self) -> None:
        active, self._active = self._active, None
        if active is not None and not active.writers:
            os.close(active.fd)

    def _written(self, active: _Active) -> None:
        with self._lock:
            active.writers -= 1
            if active is not self._active and not active.writers:
                os.close(active.fd)

    def _size_on_disk(self, number: int) -> int:
        try:
            return os.stat(segment_name(number), dir_fd=self._root, follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            return 0


def wipe_segments(root: int) -> int:
    """Delete all segments but leave an empty one with a new highest number; that number (0: there were none)."""
    old = segment_numbers(root)
    if not old:
        return 0
    mark = old[-1] + 1
    os.close(open_below(root, segment_name(mark), os.O_RDWR | os.O_CREAT | os.O_EXCL))
    for number in old:
        remove(root, segment_name(number))
    return mark
