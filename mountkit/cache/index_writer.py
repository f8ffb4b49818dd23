"""The index as its one writer sees it: merges rows of blocks, records seals, forgets objects.

Thread-safe: one connection under one lock, held for a statement or a short transaction. Knows no files but its own;
what a change means for segments and own files is returned as a value.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from mountkit.cache.content import BLOCK_BYTES, PART_BYTES, ContentId, blocks_in, full_mask
from mountkit.cache.faults import cache_broken, disk_full
from mountkit.cache.index import NOWHERE, OWN_FILE, Placed, identity, select_blocks, select_stamp
from mountkit.cache.objects import Stamp
from mountkit.errors import HostError

REBUILD_MARK = "index.damaged"
"""A file of this name says that the index is known to be damaged and must not be opened again."""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH})
_COUNTED_OBJECTS = 4096
_REMEMBERED_DISCARDS = 65536

_PUT_BLOCK = "INSERT OR REPLACE INTO block(content, idx, segment, offset, parts, crcs) VALUES (?, ?, ?, ?, ?, ?)"
_PUT_FRESH = "INSERT INTO fresh(content, size) VALUES (?, ?)"
_PUT_SEAL = "INSERT OR REPLACE INTO sealed(content, size, mtime_ns, ctime_ns, inode, life) VALUES (?, ?, ?, ?, ?, ?)"
_COUNT_COMPLETE = "SELECT count(*) FROM block WHERE content = ? AND (parts = 255 OR (idx = ? AND parts = ?))"


@dataclass(frozen=True, slots=True)
class BlockRow:
    """Parts of one block that were written and are not yet in the index. `moment` orders writes against discards."""

    content: ContentId
    size: int
    index: int
    segment: int
    offset: int
    parts: int
    crcs: bytes
    moment: int


@dataclass(slots=True)
class Change:
    """What a commit did to the files: records now (not) referenced, records given up, bytes counted twice."""

    settled: list[tuple[int, int, bool]] = field(default_factory=list)
    released: Counter[int] = field(default_factory=Counter)
    repeated_bytes: int = 0


def is_damage(exc: sqlite3.Error) -> bool:
    """Whether the error says that the database's content is wrong, not that it is busy or the disk is."""
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF in _DAMAGED or code == sqlite3.SQLITE_IOERR_SHORT_READ)


def translated_sqlite(exc: sqlite3.Error) -> HostError:
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    if code is not None and code & 0xFF == sqlite3.SQLITE_FULL:
        return disk_full("no space left for the index")
    return cache_broken(f"its index says `{exc}`")


class IndexWriter:
    """Made by `recovery.open_index`. Errors are CacheFull or CacheBroken; a failed transaction leaves no trace."""

    def __init__(self, root: int, db: sqlite3.Connection) -> None:
        self._root = root
        self._db = db
        self._lock = threading.RLock()
        self._identity = identity(root)
        self._complete_blocks: OrderedDict[ContentId, int] = OrderedDict()
        self._discarded: OrderedDict[ContentId, int] = OrderedDict()
        self.moment = 0

    def is_there(self) -> bool:
        """Whether readers find the file we write: nobody has deleted or replaced it."""
        return identity(self._root) == self._identity

    def blocks(self, content: ContentId, first: int, last: int) -> dict[int, Placed]:
        with self._errors():
            return select_blocks(self._db, content, first, last)

    def first_parts(self, contents: list[ContentId]) -> dict[ContentId, int]:
        """The parts that are there of the first block of each of these objects, in one statement."""
        marks = ",".join("?" * len(contents))
        with self._errors():
            query = f"SELECT content, parts FROM block WHERE idx = 0 AND content IN ({marks})"  # noqa: S608 - marks only
            return dict(self._db.execute(query, contents).fetchall())

    def stamp(self, content: ContentId) -> Stamp | None:
        with self._errors():
            return select_stamp(self._db, content)

    def is_complete(self, content: ContentId, size: int) -> bool:
        with self._errors():
            if size <= BLOCK_BYTES:
                return not size or self._block(content, 0).parts == full_mask(size, 0)
            return self._count(content, size) == blocks_in(size)

    def commit(self, rows: Iterable[BlockRow]) -> Change:
        """Merge the rows into the index in one transaction."""
        change = Change()
        merged: dict[tuple[ContentId, int], Placed] = {}
        completed: list[tuple[ContentId, int]] = []
        with self._transaction() as db:
            touched: set[ContentId] = set()
            try:
                for row in rows:
                    if row.size > BLOCK_BYTES:
                        self._count(row.content, row.size)
                        touched.add(row.content)
                    self._merge(row, merged, completed, change)
                db.executemany(_PUT_BLOCK, ((*key, *placed) for key, placed in merged.items()))
                db.executemany(_PUT_FRESH, completed)
            except BaseException:
                for content in touched:
                    self._complete_blocks.pop(content, None)
                raise
        return change

    def seal(self, stamps: Mapping[ContentId, Stamp]) -> Counter[int]:
        """Record the seals: all rows of these objects are in their own files now. The segments left, counted."""
        left: Counter[int] = Counter()
        with self._transaction() as db:
            for content, stamp in stamps.items():
                segments = self._segments_of(content)
                if segments:
                    left += segments
                    db.execute("UPDATE block SET segment = 0, offset = 0 WHERE content = ?", (content,))
                db.execute(_PUT_SEAL, (content, *stamp))
        return left

    def drop_parts(self, content: ContentId, bad: Iterable[int]) -> None:
        """These parts of the object's own file are not there after all."""
        with self._transaction() as db:
            self._complete_blocks.pop(content, None)
            for part in bad:
                db.execute(
                    "UPDATE block SET parts = parts & ~(1 << ?) WHERE content = ? AND idx = ?",
                    (part % 8, content, part // 8),
                )

    def discard(self, contents: Iterable[ContentId]) -> Counter[int]:
        """Forget the objects, and what was written of them but not committed. The segments left, counted."""
        left: Counter[int] = Counter()
        with self._transaction() as db:
            self.moment += 1
            for content in contents:
                left += self._segments_of(content)
                db.execute("DELETE FROM block WHERE content = ?", (content,))
                db.execute("DELETE FROM sealed WHERE content = ?", (content,))
                self._complete_blocks.pop(content, None)
                self._discarded[content] = self.moment
                self._discarded.move_to_end(content)
            while len(self._discarded) > _REMEMBERED_DISCARDS:
                self._discarded.popitem(last=False)
        return left

    def drop_segments(self, numbers: Iterable[int]) -> None:
        """Forget every block in these segments. Reads the whole index."""
        with self._transaction() as db:
            marks = ",".join(str(int(number)) for number in numbers)
            db.execute(f"DELETE FROM block WHERE segment IN ({marks})")  # noqa: S608 - integers only

    def unsealed(self, limit: int) -> list[tuple[ContentId, int]]:
        """Complete objects without a seal, oldest first; forgets those that are sealed or gone."""
        found: dict[ContentId, int] = {}
        stale: list[tuple[int]] = []
        after = 0
        with self._errors():
            while len(found) < limit:
                batch = self._db.execute(
                    "SELECT f.serial, f.content, f.size, s.content IS NOT NULL FROM fresh f"
                    " LEFT JOIN sealed s ON s.content = f.content WHERE serial > ? ORDER BY serial LIMIT 256",
                    (after,),
                ).fetchall()
                for serial, content, size, sealed in batch:
                    if sealed or content in found or not self.is_complete(content, size):
                        stale.append((serial,))
                    elif len(found) < limit:
                        found[content] = size
                if not batch:
                    break
                after = batch[-1][0]
        if stale:
            with self._transaction() as db:
                db.executemany("DELETE FROM fresh WHERE serial = ?", stale)
        return list(found.items())

    def known_own_files(self, contents: list[ContentId]) -> set[ContentId]:
        """Which of the objects have something in a file of their own."""
        query = (
            "SELECT EXISTS(SELECT 1 FROM block WHERE content = ?1 AND segment = 0)"
            " OR EXISTS(SELECT 1 FROM sealed WHERE content = ?1)"
        )
        with self._errors():
            return {content for content in contents if self._db.execute(query, (content,)).fetchone()[0]}

    def live_records(self) -> dict[int, int]:
        """How many records of each segment are referenced. Reads the whole index."""
        with self._errors():
            query = "SELECT segment, count(*) FROM block WHERE segment > 0 GROUP BY segment"
            return dict(self._db.execute(query).fetchall())

    def own_bytes(self) -> int:
        """About how many bytes of disk the own files hold. Reads the whole index."""
        with self._errors():
            (sealed,) = self._db.execute("SELECT coalesce(sum((size + 4095) / 4096 * 4096), 0) FROM sealed").fetchone()
            partial = self._db.execute(
                "SELECT parts, count(*) FROM block WHERE segment = 0"
                " AND content NOT IN (SELECT content FROM sealed) GROUP BY parts"
            ).fetchall()
        return int(sealed) + PART_BYTES * sum(int(parts).bit_count() * int(count) for parts, count in partial)

    def count_objects(self) -> tuple[int, int]:
        """(objects with cached bytes, sealed ones). Reads the whole index."""
        with self._errors():
            (objects,) = self._db.execute("SELECT count(DISTINCT content) FROM block").fetchone()
            (sealed,) = self._db.execute("SELECT count(*) FROM sealed").fetchone()
        return objects, sealed

    def get_meta(self, name: str) -> object:
        with self._errors():
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
            return None if row is None else row[0]

    def put_meta(self, **values: object) -> None:
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def close(self, *, clean: bool) -> None:
        """Leave the index complete on disk; `clean` says so to the next boot."""
        with self._lock:
            try:
                if clean and identity(self._root) == self._identity:
                    self._db.execute("PRAGMA synchronous = FULL")
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                    self.put_meta(clean=1)
            finally:
                with suppress(sqlite3.Error):
                    self._db.close()

    def checkpoint(self) -> None:
        """Move the WAL into the database as far as readers allow; for idle moments."""
        with self._errors():
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _merge(
        self,
        row: BlockRow,
        merged: dict[tuple[ContentId, int], Placed],
        completed: list[tuple[ContentId, int]],
        change: Change,
    ) -> None:
        key = (row.content, row.index)
        old = merged.get(key) or self._block(*key)
        full = full_mask(row.size, row.index)
        keep_old = self._keeps(old, row, full)
        if row.segment:
            change.settled.append((row.segment, row.offset, not keep_old))
        else:
            change.repeated_bytes += 0 if old.segment else _length(row, old.parts & row.parts)
        if keep_old:
            return
        if old.segment:
            change.released[old.segment] += 1
        if row.segment or row.parts == full:
            new = Placed(row.segment, row.offset, row.parts, row.crcs)
        else:
            new = Placed(OWN_FILE, 0, old.parts | row.parts, _overlaid(old.crcs, row.crcs, row.parts))
        merged[key] = new
        if new.parts == full and old.parts != full:
            if row.size <= BLOCK_BYTES:
                completed.append((row.content, row.size))
            else:
                self._complete_blocks[row.content] += 1
                if self._complete_blocks[row.content] == blocks_in(row.size):
                    completed.append((row.content, row.size))

    def _keeps(self, old: Placed, row: BlockRow, full: int) -> bool:
        """Whether what the index holds is better than the new row.

        It is if the object was discarded after the row was written, if it is sealed, and if the row is only a piece of
        what is there as one record. Otherwise the newer bytes win.
        """
        if row.moment < self._discarded.get(row.content, 0):
            return True
        if old.parts != full:
            return False
        return not row.segment if old.segment else select_stamp(self._db, row.content) is not None

    def _block(self, content: ContentId, index: int) -> Placed:
        return select_blocks(self._db, content, index, index).get(index, NOWHERE)

    def _count(self, content: ContentId, size: int) -> int:
        """How many blocks of a larger object are complete, kept in memory while it is being written."""
        count = self._complete_blocks.get(content)
        if count is None:
            last = blocks_in(size) - 1
            row = self._db.execute(_COUNT_COMPLETE, (content, last, full_mask(size, last))).fetchone()
            count = self._complete_blocks[content] = int(row[0])
            while len(self._complete_blocks) > _COUNTED_OBJECTS:
                self._complete_blocks.popitem(last=False)
        self._complete_blocks.move_to_end(content)
        return count

    def _segments_of(self, content: ContentId) -> Counter[int]:
        query = "SELECT segment FROM block WHERE content = ? AND segment > 0"
        return Counter(number for (number,) in self._db.execute(query, (content,)).fetchall())

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            if identity(self._root) != self._identity:
                raise cache_broken("its index was deleted or replaced by somebody else")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as exc:
                if is_damage(exc):
                    mark_damaged(self._root)
                raise translated_sqlite(exc) from exc


def _length(row: BlockRow, parts: int) -> int:
    """How many bytes these parts of the row's block have."""
    last = full_mask(row.size, row.index) + 1 >> 1
    short = -row.size % PART_BYTES if parts & last else 0
    whole = parts.bit_count() * PART_BYTES
    return whole - short if row.index == blocks_in(row.size) - 1 else whole


def mark_damaged(root: int) -> None:
    """Make the next open rebuild the index."""
    with suppress(OSError):
        os.close(os.open(REBUILD_MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root))


def _overlaid(old: bytes, new: bytes, parts: int) -> bytes:
    """`old` CRCs with those of `parts` taken from `new`."""
    crcs = bytearray(old.ljust(len(new), b"\0"))
    for n in range(parts.bit_length()):
        if parts >> n & 1:
            crcs[4 * n : 4 * n + 4] = new[4 * n : 4 * n + 4]
    return bytes(crcs)
