"""The journal's file: the seam between the output server, which stages, and the mover, which uploads.

`journal.db` lies in the state directory beside `staging/`, which holds the bytes: `staging/N` are the bytes of file N.
Both processes write the journal, each its own columns, in short transactions; whoever is killed leaves none behind.

The server makes files and queues operations; it may cancel one that is PENDING. The mover claims an operation
(PENDING to RUNNING), and ends it (DONE or FAILED, with the columns from `etag` on). A RUNNING operation of a mover that
died is PENDING again for the next one: each may be done twice.

Order. Operations of one key are done one after another, as queued; so is a COPY with those of its source. An operation
that is `ordered` waits until everything queued before it is DONE or CANCELLED, also behind a FAILED one: a marker file
never names what is not in the bucket, and nothing is deleted that the bucket's `latest` still names.

What a PUT promises is a stamp: the bytes [0, size) of a staging file whose size, mtime and ctime are those of the
stamp. If they are others when the bytes were read, nothing is published: a later PUT of the same file is queued, or
will be with its next close. Only of a `live` PUT the file may have grown.

The file is not a cache: it is never deleted or rebuilt while an operation in it is not DONE.
"""

from __future__ import annotations

import os
import sqlite3
from enum import IntEnum
from typing import Final

FILE: Final = "journal.db"
STAGING: Final = "staging"
FORMAT: Final = 1
_PATIENCE_S: Final = 10.0


class OperationKind(IntEnum):
    """What is to be done in the bucket."""

    PUT = 1
    """`key` becomes the bytes of staging file `file`, with `metadata`."""
    COPY = 2
    """`key` becomes what `source_key` holds (as version `source_etag`, if given), copied by the store itself.

    With `metadata` it gets that instead of the source's; `source_key` may be `key`: then only metadata changes.
    """
    DELETE = 3
    """`key` goes; done also if it was not there."""


class OperationState(IntEnum):
    PENDING = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3
    """For good, as `error` says; `drain` and the next mount try again."""
    CANCELLED = 4
    """By the server, before the mover began: something later made it needless."""


# setting.value: JSON; the options of the writable mount that the mover needs (config.OutputSettings).
# file.base_*: the object version its bytes were taken from, when an object is opened to be changed; digests: 16 bytes
#   (of the SHA-256) for each `base_part_bytes` of it: parts which did not change are copied inside the bucket. The
#   mover writes them, also of what it has put itself.
# operation.metadata: JSON: mtime_ns, mode, uid, gid, symlink (true), content_type, xattrs {name: hex}; with
#   --no-clobber if_match: the ETag that the mount showed under this name, "" for none.
# operation.file: NULL for the marker of a directory, which has no bytes.
# operation.checksum: as the store confirmed it, `crc32c:BASE64`.
# operation.upload_id: "" while a multipart upload is about to be begun: there may be one that nobody knows.
# operation.queued_at: time.time(); the mover lets a PUT lie for a moment, because much is replaced within a second.
# operation.started_at: when a mover last began it. It stays while the operation is PENDING again: what that mover had
#   sent may be in the bucket. NULL again for what had failed and is tried once more.
# operation.error: MountkitError.to_json().
# part: of a multipart upload that is under way, as the store has confirmed them.
_TABLES: Final = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE file (
    id INTEGER PRIMARY KEY AUTOINCREMENT, base_key BLOB, base_etag TEXT, base_size INTEGER, base_part_bytes INTEGER,
    base_digests BLOB);
CREATE TABLE operation (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, key BLOB NOT NULL, file INTEGER,
    size INTEGER NOT NULL DEFAULT 0, mtime_ns INTEGER NOT NULL DEFAULT 0, ctime_ns INTEGER NOT NULL DEFAULT 0,
    live INTEGER NOT NULL DEFAULT 0, metadata TEXT, source_key BLOB, source_etag TEXT,
    ordered INTEGER NOT NULL DEFAULT 0, queued_at REAL NOT NULL, state INTEGER NOT NULL DEFAULT 0,
    etag TEXT, version_id TEXT, checksum TEXT, error TEXT, started_at REAL, finished_at REAL,
    sent_bytes INTEGER NOT NULL DEFAULT 0, upload_id TEXT, upload_part_bytes INTEGER);
CREATE INDEX operation_open ON operation (seq) WHERE state IN (0, 1, 3);
CREATE INDEX operation_key ON operation (key, seq);
CREATE TABLE part (
    operation INTEGER NOT NULL, number INTEGER NOT NULL, etag TEXT NOT NULL, size INTEGER NOT NULL, checksum TEXT,
    PRIMARY KEY (operation, number)) WITHOUT ROWID;
"""


def open_journal(directory_fd: int, more_tables: str = "") -> sqlite3.Connection:
    """A connection to the journal of the state directory, made if there is none; `more_tables` are the server's own.

    The mover may have made the file first: then the server's tables are added to it.

    Raises sqlite3.Error; ValueError on a journal of another format.
    """
    uri = f"file:/proc/self/fd/{directory_fd}/{FILE}?mode=rwc"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_PATIENCE_S)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # In WAL mode no commit syncs: the server does, together with the staging files, once a second (`checkpoint`).
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("BEGIN IMMEDIATE")
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found == 0:
            _make(db, _TABLES)
            db.execute(f"PRAGMA user_version = {FORMAT}")
        elif found != FORMAT:
            raise ValueError(f"the journal has format {found}, not {FORMAT}")
        if more_tables and not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'node'").fetchone():
            _make(db, more_tables)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def checkpoint(db: sqlite3.Connection) -> None:
    """Moves what is in the write-ahead log into the file, both synced. A connection of its own: it may take a while."""
    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _make(db: sqlite3.Connection, statements: str) -> None:
    for statement in filter(str.strip, statements.split(";")):
        db.execute(statement)


def exists(directory_fd: int) -> bool:
    """Whether the state directory has a journal."""
    try:
        os.stat(FILE, dir_fd=directory_fd)
    except FileNotFoundError:
        return False
    return True
