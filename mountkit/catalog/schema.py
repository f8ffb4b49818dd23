"""The catalog's file: its tables, and how it is opened, checked, replaced.

Ids inside the file are small (2-4 bytes instead of 8-9, a third of the file); callers see `generation + id`.
The file is a cache: one that is damaged, foreign or of another format is deleted and begun anew, in a new generation.
SQLite is asked for WAL without syncs: a killed process loses nothing, a crashed machine may lose the last seconds or
tear the file, which is why the boot id of an open file is kept in it (`_survived_crash`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from mountkit.catalog.values import GENERATION_SIZE

FILE: Final = "catalog.db"
FORMAT: Final = 1
ROOT, HIDDEN, KEYS, FIRST_FREE_ID = 1, 2, 3, 16

PLAIN, HIDDEN_TOP, HIDDEN_KEYS = 0, 1, 2
"""`directory.hidden`: of the bucket; `.mountkit`; `.mountkit/keys` and the continuation directories below it."""

_LOST_IDS: Final = 1 << 24
"""How many ids an unclean end of the machine may have given out without a trace: far more than are made in 30 s."""
_LOST_PASSES: Final = 1 << 20
_PATIENCE_S: Final = 10.0

# entry.name:  directories end in `/`, so names sort as S3 lists them and `a` and `a/` are two rows.
# entry.inode: object or directory; a tombstone (kind 0) keeps its own (0 = never had one), so a name can come back.
# entry.checked_at: when a single lookup last settled both `a` and `a/`; NULL where only listings speak.
# entry.seen:  a listing changes the row only if its number is larger: older listings know less than the row.
# object.etag: 16 bytes for "<32 hex digits>", else the text. version_id, storage_class: NULL for "" and STANDARD.
# Readdir cookies need no column: a cookie is the entry's inode, and an object or directory row tells the name.
_TABLES: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE object (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL, etag NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    version_id TEXT, storage_class TEXT, superseded_at REAL);
CREATE INDEX object_superseded ON object (superseded_at) WHERE superseded_at IS NOT NULL;
CREATE TABLE directory (
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL, prefix BLOB UNIQUE, mtime_ns INTEGER NOT NULL,
    hidden INTEGER NOT NULL DEFAULT 0, pass INTEGER NOT NULL DEFAULT 0, listed_at REAL, listing_started REAL,
    listing_through BLOB);
CREATE TABLE entry (
    parent INTEGER NOT NULL, name BLOB NOT NULL, kind INTEGER NOT NULL, inode INTEGER NOT NULL,
    seen INTEGER NOT NULL, checked_at REAL, PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE INDEX entry_negative ON entry (checked_at) WHERE kind = 0 AND inode = 0;
"""


@dataclass(frozen=True, slots=True)
class Meta:
    """What the file says of itself."""

    generation: int
    prefix: bytes
    next_id: int
    passes: int
    boot_id: str


def boot_id() -> str:
    """A name of this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def identity(directory_fd: int) -> tuple[int, int] | None:
    """Which file is the catalog now; None if there is none."""
    try:
        status = os.stat(FILE, dir_fd=directory_fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def connect_reader(directory_fd: int) -> sqlite3.Connection:
    """A read-only connection; each statement is its own short read transaction. Raises sqlite3.Error."""
    db = _connect(directory_fd, "ro", timeout_s=2.0)
    # a miss costs one pread from the page cache; more memory would be paid once per server
    db.execute("PRAGMA cache_size = -4096")
    return db


def read_meta(db: sqlite3.Connection) -> Meta:
    """What the file says of itself. Raises sqlite3.Error or ValueError on a file that is no catalog of this format."""
    (format_number,) = db.execute("PRAGMA user_version").fetchone()
    if format_number != FORMAT:
        raise ValueError(f"it has format {format_number}, not {FORMAT}")
    values: dict[str, Any] = dict(db.execute("SELECT name, value FROM meta").fetchall())
    try:
        return Meta(**values)
    except TypeError as exc:
        raise ValueError("its meta table is not whole") from exc


def open_writer(directory_fd: int, prefix: bytes, boot: str) -> tuple[sqlite3.Connection, Meta, list[str]]:
    """The one writing connection, and warnings about what was found. Raises sqlite3.Error or OSError (full disk)."""
    warnings: list[str] = []
    if identity(directory_fd) is not None:
        db = _connect(directory_fd, "rwc", _PATIENCE_S)
        try:
            _tune(db)
            meta = _inspect(db, prefix, boot, warnings)
            return db, meta, warnings
        except (sqlite3.DatabaseError, ValueError) as exc:
            db.close()
            if isinstance(exc, sqlite3.OperationalError) and not is_damage(exc):
                raise
            warnings.append(f"the catalog was begun anew: {exc}")
    delete(directory_fd)
    db = _connect(directory_fd, "rwc", _PATIENCE_S)
    try:
        _tune(db)
        return db, _create(db, prefix, boot), warnings
    except BaseException:
        db.close()
        raise


def delete(directory_fd: int) -> None:
    """Takes the file away; readers go on with the deleted one until they look. A kill in between leaves no mixture:
    without the first file the others are deleted before a new one is made."""
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(FILE + suffix, dir_fd=directory_fd)


def carry_over(from_fd: int, to_fd: int) -> bool:
    """Copies the catalog of one directory into another, ids and all; False where there is none that can be read.

    Whoever opens the copy checks it. Nobody may have the target open.
    """
    if identity(from_fd) is None:
        return False
    try:
        with contextlib.closing(connect_reader(from_fd)) as source:
            read_meta(source)
            delete(to_fd)
            with contextlib.closing(_connect(to_fd, "rwc", _PATIENCE_S)) as target:
                source.backup(target)
    except (sqlite3.Error, OSError, ValueError):
        delete(to_fd)
        return False
    return True


def close_writer(db: sqlite3.Connection) -> None:
    """Closes, and notes in the file that it is whole on disk, unless a reader was in the way."""
    with contextlib.suppress(sqlite3.Error):
        db.execute("PRAGMA busy_timeout = 200")
        db.execute("PRAGMA synchronous = FULL")
        (busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            db.execute("UPDATE meta SET value = '' WHERE name = 'boot_id'")
    db.close()


def damage(directory_fd: int) -> str:
    """What is wrong with the file that is the catalog now, as SQLite's own check says it; empty if nothing is."""
    try:
        with contextlib.closing(connect_reader(directory_fd)) as db:
            read_meta(db)
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            return "" if verdict == "ok" else str(verdict)
    except sqlite3.Error as exc:
        return str(exc) if is_damage(exc) else ""
    except ValueError as exc:
        return str(exc)


def is_damage(exc: sqlite3.Error) -> bool:
    """Whether the file itself is broken, rather than the disk full or the moment wrong."""
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _connect(directory_fd: int, mode: str, timeout_s: float) -> sqlite3.Connection:
    uri = f"file:/proc/self/fd/{directory_fd}/{FILE}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=timeout_s)


def _tune(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA synchronous = OFF")
    db.execute("PRAGMA cache_size = -16384")
    db.execute("PRAGMA journal_size_limit = 67108864")
    db.execute("PRAGMA wal_autocheckpoint = 4000")


def _inspect(db: sqlite3.Connection, prefix: bytes, boot: str, warnings: list[str]) -> Meta:
    """The meta of a file that can be used, made ready for use. Raises ValueError or sqlite3.DatabaseError otherwise."""
    meta = read_meta(db)
    if meta.prefix != prefix:
        raise ValueError(f"it is of the prefix {meta.prefix!r}")
    db.execute("BEGIN IMMEDIATE")
    try:
        if meta.boot_id not in ("", boot):
            meta = _survived_crash(db, meta, warnings)
        if meta.next_id > GENERATION_SIZE - _LOST_IDS:
            raise ValueError("its ids are used up")
        db.execute("UPDATE directory SET listing_started = NULL, listing_through = NULL WHERE listing_started NOT NULL")
        db.execute("UPDATE meta SET value = ? WHERE name = 'boot_id'", (boot,))
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    return meta


def _survived_crash(db: sqlite3.Connection, meta: Meta, warnings: list[str]) -> Meta:
    """Checks the file after the machine went down with it open, and trusts only what cannot be out of date.

    Pages may be older than others: objects never change, entries may name objects whose row is lost (readers take that
    for unknown), so it is enough to skip the numbers that may have been given out and lost, and to list all again.
    """
    problems = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
    if problems != ["ok"]:
        raise ValueError(f"it is damaged: {problems[0]}")
    warnings.append("the machine went down with the catalog open; it is intact and everything is listed again")
    next_id = meta.next_id + _LOST_IDS
    passes = meta.passes + _LOST_PASSES
    db.executemany("UPDATE meta SET value = ? WHERE name = ?", [(next_id, "next_id"), (passes, "passes")])
    db.execute("UPDATE directory SET listed_at = 0 WHERE listed_at > 0")
    db.execute("UPDATE entry SET checked_at = 0 WHERE checked_at > 0")
    return Meta(meta.generation, meta.prefix, next_id, passes, meta.boot_id)


def _create(db: sqlite3.Connection, prefix: bytes, boot: str) -> Meta:
    generation = GENERATION_SIZE * (1 + secrets.randbelow((1 << 30) - 1))
    meta = Meta(generation, prefix, FIRST_FREE_ID, 0, boot)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {FORMAT};")
    values = [(name, getattr(meta, name)) for name in Meta.__slots__]
    db.executemany("INSERT INTO meta VALUES (?, ?)", values)
    db.executemany(
        "INSERT INTO directory (id, parent, name, prefix, mtime_ns, hidden) VALUES (?, ?, ?, ?, 0, ?)",
        [
            (ROOT, ROOT, b"", prefix, PLAIN),
            (HIDDEN, ROOT, b".mountkit", None, HIDDEN_TOP),
            (KEYS, HIDDEN, b"keys", None, HIDDEN_KEYS),
        ],
    )
    db.execute("COMMIT")
    return meta
