"""The mover's half of the journal: claiming operations, keeping what is known of uploads under way, ending operations.

Every call is one short transaction, on the mover's trio thread; what a call has returned holds also after a kill. The
mover's own changes are no news to it: `changed` tells of the server's.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from mountkit.staging import schema
from mountkit.staging.schema import OperationKind, OperationState
from mountkit.store.api import Part

_KEPT_S: Final = 7 * 86400.0
_COLUMNS: Final = (
    "seq, kind, key, file, size, mtime_ns, ctime_ns, live, metadata, source_key, source_etag, ordered, queued_at,"
    " state, error, upload_id, upload_part_bytes"
)
_OPEN: Final = "state IN (0, 1, 3)"


@dataclass(frozen=True, slots=True)
class Operation:
    """A row of the journal."""

    seq: int
    kind: OperationKind
    key: bytes
    file: int | None
    size: int
    mtime_ns: int
    ctime_ns: int
    live: bool
    metadata: dict[str, Any] | None
    source_key: bytes | None
    source_etag: str
    ordered: bool
    queued_at: float
    state: OperationState = OperationState.PENDING
    error: dict[str, Any] | None = None
    upload_id: str | None = None
    upload_part_bytes: int = 0

    @property
    def keys(self) -> tuple[bytes, ...]:
        """What it writes, and what it reads."""
        if self.source_key is None or self.source_key == self.key:
            return (self.key,)
        return self.key, self.source_key


@dataclass(frozen=True, slots=True)
class Ending:
    """How an operation ended."""

    seq: int
    state: OperationState
    etag: str = ""
    version_id: str = ""
    checksum: str = ""
    error: dict[str, Any] | None = None
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Base:
    """The object version that a staging file's bytes were taken from or put as."""

    key: bytes
    etag: str
    size: int
    part_bytes: int = 0
    digests: bytes = field(default=b"", repr=False)
    """16 bytes for each `part_bytes` of it; empty if nobody computed them."""


class UploadJournal:
    """The journal of one state directory, as the mover sees it."""

    def __init__(self, directory_fd: int) -> None:
        """Makes the file if there is none. Raises sqlite3.Error, ValueError for another format."""
        self._fd = os.dup(directory_fd)
        self._db = schema.open_journal(self._fd)
        self._version = -1
        self.name = self._name()
        """Random and for ever: what we put says whose it is."""

    @classmethod
    def open_existing(cls, directory_fd: int) -> Self | None:
        """The journal, or None if there is none."""
        return cls(directory_fd) if schema.exists(directory_fd) else None

    def __repr__(self) -> str:
        return f"<UploadJournal {self.name}>"

    def close(self) -> None:
        self._db.close()
        os.close(self._fd)

    def _name(self) -> str:
        self._db.execute(
            "INSERT OR IGNORE INTO setting (name, value) VALUES ('journal', ?)", (json.dumps(secrets.token_hex(8)),)
        )
        return str(self.setting("journal", ""))

    def setting(self, name: str, default: Any) -> Any:
        """An option of the writable mount, as its server wrote it."""
        row = self._db.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else default

    def settings(self) -> dict[str, Any]:
        """All options that its server wrote."""
        return {name: json.loads(value) for name, value in self._db.execute("SELECT name, value FROM setting")}

    def changed(self) -> bool:
        """Whether somebody else has written since the last call."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        changed, self._version = version != self._version, version
        return bool(changed)

    # ---- reading

    def open_operations(self, after: int = 0) -> list[Operation]:
        """Everything that is not over, in order, from beyond `after` on."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM operation WHERE {_OPEN} AND seq > ? ORDER BY seq",  # noqa: S608
            (after,),
        )
        return [_operation(row) for row in rows]

    def open_seqs(self) -> dict[int, OperationState]:
        """The numbers of everything that is not over."""
        rows = self._db.execute(f"SELECT seq, state FROM operation WHERE {_OPEN}")  # noqa: S608
        return {seq: OperationState(state) for seq, state in rows}

    def states(self, seqs: Iterable[int]) -> dict[int, tuple[OperationState, dict[str, Any] | None]]:
        """State and error of each of these; numbers that nobody knows are left out."""
        found = {}
        for seq in seqs:
            row = self._db.execute("SELECT state, error FROM operation WHERE seq = ?", (seq,)).fetchone()
            if row:
                found[seq] = OperationState(row[0]), json.loads(row[1]) if row[1] else None
        return found

    def last_done(self, key: bytes, before: int) -> tuple[OperationKind, str, float] | None:
        """What was done last to this key by an operation before this one: kind, ETag and when."""
        row = self._db.execute(
            "SELECT kind, etag, finished_at FROM operation WHERE key = ? AND seq < ? AND state = 2"
            " ORDER BY seq DESC LIMIT 1",
            (key, before),
        ).fetchone()
        return (OperationKind(row[0]), row[1] or "", row[2] or 0.0) if row else None

    def base(self, file: int) -> Base | None:
        row = self._db.execute(
            "SELECT base_key, base_etag, base_size, base_part_bytes, base_digests FROM file WHERE id = ?", (file,)
        ).fetchone()
        if row is None or row[0] is None:
            return None
        return Base(row[0], row[1] or "", row[2] or 0, row[3] or 0, row[4] or b"")

    def parts(self, seq: int) -> list[Part]:
        """The parts of its upload that the store has confirmed."""
        rows = self._db.execute("SELECT number, etag, size, checksum FROM part WHERE operation = ? ORDER BY 1", (seq,))
        return [Part(number, etag, size, checksum or "") for number, etag, size, checksum in rows]

    def left_uploads(self) -> list[tuple[int, bytes, str]]:
        """Number, key and id of each multipart upload that nobody will complete: its operation was cancelled."""
        rows = self._db.execute(
            "SELECT seq, key, upload_id FROM operation WHERE state = 4 AND upload_id IS NOT NULL AND upload_id <> ''"
        )
        return [tuple(row) for row in rows]

    # ---- claiming

    def recover(self) -> int:
        """What a mover that died had claimed is to be done again; how much that is. Forgets what is long over."""
        with self._transaction():
            count = self._db.execute("UPDATE operation SET state = 0 WHERE state = 1").rowcount
            self._db.execute(
                "DELETE FROM operation WHERE state IN (2, 4) AND finished_at < ?", (time.time() - _KEPT_S,)
            )
        return count

    def retry_failed(self) -> int:
        """What failed for good is to be tried again; how much that is.

        But for what a later operation of the same key has made needless: that is cancelled.
        """
        with self._transaction():
            self._db.execute(
                "UPDATE operation SET state = 4, finished_at = ? WHERE state = 3 AND kind <> 2 AND EXISTS"
                " (SELECT 1 FROM operation AS later WHERE later.key = operation.key AND later.seq > operation.seq"
                " AND later.state = 2)",
                (time.time(),),
            )
            return self._db.execute(
                "UPDATE operation SET state = 0, error = NULL, started_at = NULL WHERE state = 3"
            ).rowcount

    def claim(self, seqs: Sequence[int]) -> list[Operation]:
        """Those of these that are still PENDING, as they are now, and RUNNING from here on."""
        marks = ",".join("?" * len(seqs))
        with self._transaction():
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM operation WHERE seq IN ({marks}) AND state = 0 ORDER BY seq",  # noqa: S608
                seqs,
            ).fetchall()
            self._db.execute(
                f"UPDATE operation SET state = 1, started_at = ? WHERE seq IN ({marks}) AND state = 0",  # noqa: S608
                (time.time(), *seqs),
            )
        return [_operation(row) for row in rows]

    def put_back(self, seqs: Iterable[int]) -> None:
        """Claimed operations are PENDING again."""
        with self._transaction():
            self._db.executemany("UPDATE operation SET state = 0 WHERE seq = ? AND state = 1", ((seq,) for seq in seqs))

    # ---- under way

    def note_upload(self, seq: int, upload_id: str | None, part_bytes: int) -> None:
        """The multipart upload of this operation: "" before it is begun, then its id; None: there is none."""
        with self._transaction():
            self._db.execute("DELETE FROM part WHERE operation = ?", (seq,))
            self._db.execute(
                "UPDATE operation SET upload_id = ?, upload_part_bytes = ? WHERE seq = ?", (upload_id, part_bytes, seq)
            )

    def note_parts(self, parts: Sequence[tuple[int, Part]], sent_bytes: dict[int, int]) -> None:
        """Parts that were confirmed, each with its operation; how far those operations have come."""
        with self._transaction():
            self._db.executemany(
                "REPLACE INTO part (operation, number, etag, size, checksum) VALUES (?, ?, ?, ?, ?)",
                ((seq, part.number, part.etag, part.size, part.checksum) for seq, part in parts),
            )
            self._db.executemany(
                "UPDATE operation SET sent_bytes = ? WHERE seq = ?",
                ((count, seq) for seq, count in sent_bytes.items()),
            )

    def set_base(self, file: int, base: Base) -> None:
        """What the staging file's bytes are from now on compared with."""
        with self._transaction():
            self._db.execute(
                "UPDATE file SET base_key = ?, base_etag = ?, base_size = ?, base_part_bytes = ?, base_digests = ?"
                " WHERE id = ?",
                (base.key, base.etag, base.size, base.part_bytes, base.digests, file),
            )

    # ---- the end

    def end(self, endings: Sequence[Ending]) -> None:
        """Writes down how operations ended. A DONE one cancels what failed before under its key."""
        now = time.time()
        with self._transaction():
            for each in endings:
                self._db.execute(
                    "UPDATE operation SET state = ?, etag = ?, version_id = ?, checksum = ?, error = ?,"
                    " sent_bytes = ?, finished_at = ?, upload_id = CASE WHEN ?1 = 2 THEN NULL ELSE upload_id END"
                    " WHERE seq = ? AND state <> 4",
                    (
                        each.state,
                        each.etag or None,
                        each.version_id or None,
                        each.checksum or None,
                        json.dumps(each.error) if each.error else None,
                        each.sent_bytes,
                        now,
                        each.seq,
                    ),
                )
                if each.state is OperationState.DONE:
                    self._db.execute("DELETE FROM part WHERE operation = ?", (each.seq,))
                    self._db.execute(
                        "UPDATE operation SET state = 4, finished_at = ? WHERE state = 3 AND kind <> 2 AND seq < ?"
                        " AND key = (SELECT key FROM operation WHERE seq = ?)",
                        (now, each.seq, each.seq),
                    )

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """All or nothing; the write lock from the start, so that no statement meets a change of the server's half-way."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, exc: object, tb: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _operation(row: Sequence[Any]) -> Operation:
    (seq, kind, key, file, size, mtime_ns, ctime_ns, live, metadata, source_key, source_etag, ordered, queued_at) = row[
        :13
    ]
    state, error, upload_id, part_bytes = row[13:]
    return Operation(
        seq=seq,
        kind=OperationKind(kind),
        key=key,
        file=file,
        size=size,
        mtime_ns=mtime_ns,
        ctime_ns=ctime_ns,
        live=bool(live),
        metadata=json.loads(metadata) if metadata else None,
        source_key=source_key,
        source_etag=source_etag or "",
        ordered=bool(ordered),
        queued_at=queued_at,
        state=OperationState(state),
        error=json.loads(error) if error else None,
        upload_id=upload_id,
        upload_part_bytes=part_bytes or 0,
    )
