"""The cache as a server sees it: reads what is there, says what is not, never writes.

Called from the event loop (`wait=False`) and from threads (`wait=True`). Rows of complete blocks are remembered; they
are only hints, since bytes that are not where a row says make it forget the row and ask the index once more. Seals that
were right when their file was opened are remembered too: as long as the file looks as its seal says, nobody has touched
it since, whatever became of the index.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from threading import Lock

from mountkit.cache.checked import CheckedFiles, Missing, WouldBlock
from mountkit.cache.checksum import CRC_BYTES, part_crcs
from mountkit.cache.content import BLOCK_BYTES, PARTS_PER_BLOCK, ContentId, blocks_in, full_mask, parts_in
from mountkit.cache.files import open_placed
from mountkit.cache.index import IndexView, Placed
from mountkit.cache.objects import Stamp, look, stamp_of

REMEMBERED_ROWS = 4096
REMEMBERED_SEALS = 16384


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A file that may be given to the kernel as it is. The caller closes `fd`."""

    fd: int
    stamp: Stamp


class NotSealed(Enum):
    NO_SEAL = "the object is not sealed"
    NEEDS_VERIFY = "the seal is of another life, or the file has changed since: the mover must verify it"


class CacheReader:
    """Made by `open`; thread-safe."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._index = IndexView(root)
        self._files = CheckedFiles(root)
        self._rows: OrderedDict[tuple[ContentId, int], Placed] = OrderedDict()
        self._seals: dict[ContentId, Stamp] = {}
        self._lock = Lock()

    @classmethod
    def open(cls, directory_fd: int) -> CacheReader:
        """A reader of the cache in this directory, also where there is none yet. Duplicates the descriptor."""
        return cls(os.dup(directory_fd))

    def __repr__(self) -> str:
        return f"<CacheReader {len(self._files)} files open, {len(self._rows)} rows>"

    def read(
        self, content: ContentId, size: int, offset: int, length: int, *, wait: bool
    ) -> bytes | Missing | WouldBlock:
        """The bytes [offset, offset + length) of the object, fewer only at its end, each part with its CRC checked.

        With `wait=False` it reads from memory only and answers WouldBlock where it would have to wait for the disk.
        At most one index lookup, two if the bytes are not where they should be. Raises nothing.
        """
        if offset >= size or length <= 0:
            return b""
        first = offset // BLOCK_BYTES
        last = (min(size, offset + length) - 1) // BLOCK_BYTES
        rows = self._remembered(content, first, last) or self._looked_up(content, size, first, last)
        answer = self._files.read(content, size, offset, length, rows=rows, wait=wait)
        if isinstance(answer, Missing) and answer.bad:
            self._forget(content, rows)
            rows = self._looked_up(content, size, first, last)
            answer = self._files.read(content, size, offset, length, rows=rows, wait=wait)
            if isinstance(answer, Missing):
                self._forget(content, rows)
        return answer

    def has(self, content: ContentId, size: int, part: int) -> bool:
        """Whether the index has this part; its bytes are checked when they are read."""
        index, bit = divmod(part, PARTS_PER_BLOCK)
        rows = self._remembered(content, index, index) or self._looked_up(content, size, index, index)
        return index in rows and bool(rows[index].parts >> bit & 1)

    def parts(self, content: ContentId, size: int) -> dict[int, int]:
        """The bitmask of the parts that the index has, by block."""
        return {index: row.parts for index, row in self._index.blocks(content, 0, blocks_in(size) - 1).items()}

    def held(self, content: ContentId, size: int) -> tuple[int, int]:
        """How many parts of the object the index has, and how many whole blocks. For people: reads all of its rows."""
        found = self.parts(content, size)
        whole = sum(parts == full_mask(size, index) for index, parts in found.items())
        return sum(parts.bit_count() for parts in found.values()), whole

    def sealed(self, content: ContentId) -> Stamp | None:
        """The object's seal, whatever became of its file."""
        found = self._index.stamp(content)
        return None if found is None else found[0]

    def is_sealed(self, content: ContentId) -> bool:
        """Whether the object has a seal; the file is perhaps not what it was."""
        known = self._seals.get(content)
        if known is not None and look(self._root, content, known.life) == known:
            return True
        return self.sealed(content) is not None

    def holds_sealed(self) -> bool:
        """Whether there is any seal at all."""
        return self._index.has_stamps()

    def sealed_among(self, contents: list[ContentId]) -> set[ContentId]:
        """Those of these objects, some hundreds at once, that have a seal, whatever became of their files."""
        return self._index.stamped_among(contents)

    def open_sealed(self, content: ContentId) -> SealedFile | NotSealed:
        """The object's own file, if nothing touched it since its CRCs were right in this life of the mover, or in an
        earlier one that this reader has seen."""
        known = self._seals.get(content)
        if known is not None:
            if (file := self._open_as(content, known)) is not None:
                return file
            self._seals.pop(content, None)
        found = self._index.stamp(content)
        if found is None:
            return NotSealed.NO_SEAL
        stamp, life = found
        file = self._open_as(content, stamp) if stamp.life == life else None
        if file is None:
            return NotSealed.NEEDS_VERIFY
        self._remember_seal(content, stamp)
        return file

    def check_seal(self, content: ContentId, size: int) -> bool:
        """Whether the sealed file has its CRCs, whosever life its seal is of; then `open_sealed` opens it. Reads all of
        it into memory: for small objects, in a thread."""
        found = self._index.stamp(content)
        file = self._open_as(content, found[0]) if found else None
        if file is None:
            return False
        try:
            rows = self._index.blocks(content, 0, blocks_in(size) - 1)
            crcs = b"".join(rows[index].crcs for index in sorted(rows))
            data = memoryview(os.pread(file.fd, size + 1, 0))
            right = len(data) == size and len(crcs) == CRC_BYTES * parts_in(size) and part_crcs(data) == crcs
            if not right or stamp_of(file.fd, file.stamp.life) != file.stamp:
                return False
        except OSError:
            return False
        finally:
            os.close(file.fd)
        self._remember_seal(content, file.stamp)
        return True

    def _remember_seal(self, content: ContentId, stamp: Stamp) -> None:
        with self._lock:
            self._seals[content] = stamp
            if len(self._seals) > REMEMBERED_SEALS:
                del self._seals[next(iter(self._seals))]

    def _open_as(self, content: ContentId, stamp: Stamp) -> SealedFile | None:
        """The object's own file if it looks as the stamp says."""
        try:
            fd = open_placed(self._root, content)
        except OSError:
            return None
        if stamp_of(fd, stamp.life) == stamp:
            return SealedFile(fd, stamp)
        os.close(fd)
        return None

    def move(self, directory_fd: int) -> None:
        """Reads the cache in another directory from now on."""
        os.dup2(directory_fd, self._root, inheritable=False)
        self._files.close()
        self._seals.clear()
        with self._lock:
            self._rows.clear()

    def drop_deleted(self) -> None:
        """Close files that were deleted meanwhile, so that the disk gets their space back; for a timer."""
        self._files.drop_deleted()

    def close(self) -> None:
        self._files.close()
        self._index.close()
        os.close(self._root)

    def _remembered(self, content: ContentId, first: int, last: int) -> dict[int, Placed] | None:
        """The rows of the blocks if all are remembered."""
        rows = {}
        with self._lock:
            for index in range(first, last + 1):
                row = self._rows.get((content, index))
                if row is None:
                    return None
                self._rows.move_to_end((content, index))
                rows[index] = row
        return rows

    def _looked_up(self, content: ContentId, size: int, first: int, last: int) -> dict[int, Placed]:
        rows = self._index.blocks(content, first, last)
        with self._lock:
            for index, row in rows.items():
                if row.parts == full_mask(size, index):
                    self._rows[content, index] = row
            while len(self._rows) > REMEMBERED_ROWS:
                self._rows.popitem(last=False)
        return rows

    def _forget(self, content: ContentId, rows: dict[int, Placed]) -> None:
        self._files.forget(content, rows)
        with self._lock:
            for index in rows:
                self._rows.pop((content, index), None)
