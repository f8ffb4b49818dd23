"""Stock: what the writer, the sealer and the housekeeper of one mover have in common, and how an object leaves it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from mountkit.cache.checked import CheckedFiles, Missing
from mountkit.cache.content import PART_BYTES, PARTS_PER_BLOCK, ContentId
from mountkit.cache.guard import Guard
from mountkit.cache.index_writer import IndexWriter
from mountkit.cache.objects import Objects
from mountkit.cache.policy import Policy
from mountkit.cache.segments import Segments

_CHECK_PARTS = 8 * PARTS_PER_BLOCK


@dataclass(slots=True)
class OwnBytes:
    """About how many bytes of disk the own files hold."""

    value: int
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int) -> None:
        with self._lock:
            self.value = max(0, self.value + count)


@dataclass(frozen=True, slots=True)
class Stock:
    root: int
    life: bytes
    index: IndexWriter
    segments: Segments
    objects: Objects
    files: CheckedFiles
    policy: Policy
    own_bytes: OwnBytes
    guard: Guard = field(default_factory=Guard)

    def read(self, content: ContentId, size: int, offset: int, length: int) -> bytes | Missing:
        """Checked bytes, or what is missing; looks twice, since a seal may move the object in between."""
        answer: bytes | Missing = Missing(0, 0)
        for _ in range(2):
            first = offset // (PART_BYTES * PARTS_PER_BLOCK)
            last = (offset + length - 1) // (PART_BYTES * PARTS_PER_BLOCK)
            rows = self.index.blocks(content, first, last)
            found = self.files.read(content, size, offset, length, rows=rows, wait=True)
            assert isinstance(found, bytes | Missing), "a waiting read never would block"
            answer = found
            if isinstance(answer, bytes) or not answer.bad:
                break
            self.files.forget(content, rows)
        return answer

    def bad_parts(self, content: ContentId, size: int, first_part: int, last_part: int) -> list[int]:
        """Which of these parts the index has and the files have not. Reads them all, by name."""
        self.files.forget(content, self.index.blocks(content, 0, 0))
        bad: list[int] = []
        for start in range(first_part, last_part + 1, _CHECK_PARTS):
            stop = min(start + _CHECK_PARTS, last_part + 1)
            whole = self.read(content, size, start * PART_BYTES, (stop - start) * PART_BYTES)
            if isinstance(whole, Missing):
                singles = ((n, self.read(content, size, n * PART_BYTES, PART_BYTES)) for n in range(start, stop))
                bad += [n for n, single in singles if isinstance(single, Missing) and single.bad]
        return bad

    def remove_dead_segments(self) -> int:
        """Delete segments without live records; the bytes freed."""
        freed = self.segments.remove_dead()
        if freed:
            self.files.drop_deleted()
        return freed

    def discard(self, contents: Iterable[ContentId]) -> int:
        """Forget the objects and delete their own files; the bytes freed. The caller has them alone.

        Rows first: a kill in between leaves files without rows (housekeeping finds them), never rows without files.
        """
        doomed = list(contents)
        for number, records in self.index.discard(doomed).items():
            self.segments.release(number, records)
        freed = 0
        for content in doomed:
            self.files.forget(content, {})
            freed += self.objects.remove(content)
        self.own_bytes.add(-freed)
        return freed
