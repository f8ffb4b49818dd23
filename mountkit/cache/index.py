"""Index: where the parts of each object lie, what their CRCs are, and which objects are sealed.

`index.db` is SQLite in WAL mode: one writer (the mover, see index_writer), many readers (this module's `IndexView`). A
row is committed after its bytes are written. synchronous=off: a killed process loses nothing, a lost machine at worst
the whole index, and neither can make it name wrong bytes that pass their CRC. No read transaction survives a call.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from mountkit.cache.content import BlockPieces, ContentId
from mountkit.cache.objects import Stamp

INDEX = "index.db"
FORMAT = 1
OWN_FILE = 0

SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE block(
    content BLOB NOT NULL,
    idx INTEGER NOT NULL,
    segment INTEGER NOT NULL,  -- 0: the object's own file
    offset INTEGER NOT NULL,   -- of the record in the segment
    parts INTEGER NOT NULL,    -- bit n: part n of the block is there
    crcs BLOB NOT NULL,        -- 4 bytes a part, little-endian
    PRIMARY KEY(content, idx)) WITHOUT ROWID;
CREATE TABLE sealed(
    content BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    life BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE fresh(          -- complete, perhaps not yet sealed; pruned by whoever reads it
    serial INTEGER PRIMARY KEY,
    content BLOB NOT NULL,
    size INTEGER NOT NULL);
INSERT INTO meta VALUES ('format', {FORMAT}), ('wiping', 1), ('clean', 0), ('next_segment', 1);
COMMIT;
"""  # noqa: S608 - a constant

_BLOCKS = "SELECT segment, offset, parts, crcs, idx FROM block WHERE content = ? AND idx BETWEEN ? AND ?"
_STAMP = "SELECT size, mtime_ns, ctime_ns, inode, life FROM sealed WHERE content = ?"
_STAMP_AND_LIFE = (
    "SELECT s.size, s.mtime_ns, s.ctime_ns, s.inode, s.life, m.value FROM sealed s, meta m"
    " WHERE s.content = ? AND m.name = 'life'"
)


class Placed(NamedTuple):
    """Where a block lies. `segment` 0 is the object's own file at the natural offset."""

    segment: int
    offset: int
    parts: int
    crcs: bytes

    def lacks(self, pieces: BlockPieces) -> list[int]:
        """Which of the pieces (part numbers of the object) are not there."""
        base = pieces.block * 8
        return [base + n for n in range(pieces.first, pieces.last + 1) if not self.parts >> n & 1]


NOWHERE = Placed(OWN_FILE, 0, 0, b"")


def connect(root: int, *, read_only: bool, timeout_s: float) -> sqlite3.Connection:
    """A connection in autocommit, usable from any thread under the caller's lock."""
    mode = "ro" if read_only else "rw"
    return sqlite3.connect(
        f"file:/proc/self/fd/{root}/{INDEX}?mode={mode}",
        uri=True,
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,
    )


def identity(root: int) -> tuple[int, int] | None:
    """Which file `index.db` is right now, None if there is none (or something that is no file)."""
    try:
        found = os.stat(INDEX, dir_fd=root, follow_symlinks=False)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_mode & 0o170000 == 0o100000 else None


def select_blocks(db: sqlite3.Connection, content: ContentId, first: int, last: int) -> dict[int, Placed]:
    """The rows of the blocks first … last; a row of the wrong shape (a damaged index) is left out."""
    rows = db.execute(_BLOCKS, (content, first, last)).fetchall()
    return {row[4]: Placed(*row[:4]) for row in rows if _well_formed(row)}


def select_stamp(db: sqlite3.Connection, content: ContentId) -> Stamp | None:
    row = db.execute(_STAMP, (content,)).fetchone()
    return None if row is None else Stamp(*row)


def _well_formed(row: Sequence[object]) -> bool:
    segment, offset, parts, crcs, _ = row
    if not (isinstance(segment, int) and isinstance(offset, int) and isinstance(parts, int)):
        return False
    if not isinstance(crcs, bytes) or len(crcs) % 4 or offset < 0:
        return False
    return 0 <= parts < 256 and 4 * parts.bit_length() <= len(crcs) <= 32


class IndexView:
    """A reader's view of the index: an index that is missing, damaged or just being replaced is an empty one.

    Thread-safe. Sees what was committed before the call; blocks at most for one lookup (a busy index is a miss).
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._seen: tuple[int, int] | None = None

    def blocks(self, content: ContentId, first: int, last: int) -> dict[int, Placed]:
        with self._lock:
            db = self._current()
            if db is not None:
                try:
                    return select_blocks(db, content, first, last)
                except sqlite3.Error:
                    self._disconnect()
        return {}

    def stamp(self, content: ContentId) -> tuple[Stamp, bytes] | None:
        """The seal of the object and the life the mover is in now."""
        with self._lock:
            db = self._current()
            if db is not None:
                try:
                    row = db.execute(_STAMP_AND_LIFE, (content,)).fetchone()
                except sqlite3.Error:
                    self._disconnect()
                else:
                    return None if row is None else (Stamp(*row[:5]), row[5])
        return None

    def has_stamps(self) -> bool:
        """Whether any object is sealed."""
        return bool(self._rows("SELECT 1 FROM sealed LIMIT 1"))

    def stamped_among(self, contents: list[ContentId]) -> set[ContentId]:
        """Which of these objects, at most some hundreds, are sealed."""
        places = ",".join("?" * len(contents))
        return {row[0] for row in self._rows(f"SELECT content FROM sealed WHERE content IN ({places})", contents)}  # noqa: S608

    def _rows(self, sql: str, values: Sequence[ContentId] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            db = self._current()
            if db is not None:
                try:
                    return db.execute(sql, values).fetchall()
                except sqlite3.Error:
                    self._disconnect()
        return []

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _current(self) -> sqlite3.Connection | None:
        now = identity(self._root)
        if self._db is not None and now == self._seen:
            return self._db
        self._disconnect()
        if now is None:
            return None
        try:
            self._db = connect(self._root, read_only=True, timeout_s=0.1)
            # Opens the WAL too, so that it belongs to the file whose identity is compared below.
            row = self._db.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
        except sqlite3.Error:
            row = None
        if row != (FORMAT,) or identity(self._root) != now:
            self._disconnect()
            return None
        self._seen = now
        return self._db

    def _disconnect(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
        self._db = None
        self._seen = None
