"""The server's half of the journal: transactions, operations queued and cancelled, and what repeated requests get.

A mutation and the answer to it are committed together, under the kernel's number of the request. A request that the
kernel hands out a second time, because a server died before its answer, is answered from here and not done again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from mountkit.staging import schema, tree
from mountkit.staging.files import Stamp
from mountkit.staging.schema import OperationKind, OperationState

_REPLIES: Final = 4096
_RESERVE_BYTES: Final = 4 << 20
_TABLES: Final = (
    tree.TABLES
    + """
CREATE TABLE reply (request INTEGER PRIMARY KEY, opcode INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX operation_failed ON operation (seq) WHERE state = 3;
CREATE INDEX operation_source ON operation (source_key) WHERE source_key IS NOT NULL;
CREATE INDEX operation_file ON operation (file) WHERE file IS NOT NULL AND state IN (0, 1, 3);
"""
)
# Written out, so that SQLite sees that the partial indexes hold all such rows: PENDING, RUNNING, FAILED.
_OPEN: Final = "state IN (0, 1, 3)"


class Operation(NamedTuple):
    """What the server looks at of one operation."""

    seq: int
    kind: int
    key: bytes
    file: int | None
    state: int
    etag: str | None
    error: str | None
    finished_at: float | None


_COLUMNS: Final = ", ".join(Operation._fields)


def _keep_room(db: sqlite3.Connection) -> None:
    """Makes database and log longer than they need to be, so that a disk that fills up still takes what removes files.

    SQLite writes over both and gives neither back: the pages stay free in the one, the other begins anew after a
    checkpoint. Where the disk is full now, there is no such room.
    """
    with contextlib.suppress(sqlite3.OperationalError):
        db.execute("CREATE TABLE IF NOT EXISTS reserve (bytes BLOB)")
        db.execute("INSERT INTO reserve VALUES (zeroblob(?))", (_RESERVE_BYTES,))
        db.execute("DROP TABLE reserve")
        schema.checkpoint(db)


class Journal:
    """The output server's connection. `changed` is called after each transaction that queued something."""

    def __init__(self, state_fd: int, changed: Callable[[], None] = lambda: None) -> None:
        self.db = schema.open_journal(state_fd, _TABLES)
        if os.stat(f"{schema.FILE}-wal", dir_fd=state_fd).st_size < _RESERVE_BYTES:
            _keep_room(self.db)
        self.tree = tree.Tree(self.db)
        self._next_file = self._first_free_file()
        self._changed = changed
        self._queued = False
        self._when_committed: list[Callable[[], object]] = []
        self._when_undone: list[Callable[[], object]] = []
        self._replies = 0
        self.commits = 0
        """How many transactions were committed; tells whether there is something to sync."""

    def close(self) -> None:
        self.db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; may not be nested. Raises sqlite3.Error."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            self.tree.settle_handles()
            yield
            self.db.execute("COMMIT")
            self.tree.committed()
        except BaseException:
            self._queued = False
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            self.tree.undone()
            self._end(self._when_undone)
            raise
        self._end(self._when_committed)
        self.commits += 1
        if self._queued:
            self._queued = False
            self._changed()

    def when_committed(self, act: Callable[[], object]) -> None:
        """Has something done once the transaction that is open is in the file."""
        self._when_committed.append(act)

    def when_undone(self, act: Callable[[], object]) -> None:
        """Has something done if the transaction that is open comes to nothing: what it did beside the journal."""
        self._when_undone.append(act)

    def _end(self, acts: list[Callable[[], object]]) -> None:
        self._when_committed, self._when_undone = [], []
        for act in acts:
            act()

    # ---- replies -------------------------------------------------------------------------------------------
    def remember_reply(self, request: int, opcode: int, body: bytes) -> None:
        self.db.execute("INSERT OR REPLACE INTO reply VALUES (?, ?, ?)", (request, opcode, body))
        self._replies += 1
        if self._replies >= _REPLIES:
            self._replies = 0
            self.db.execute("DELETE FROM reply WHERE request < ?", (request - 4 * _REPLIES,))

    def reply(self, request: int, opcode: int) -> bytes | None:
        """What was answered, or would have been, to this request."""
        row = self.db.execute("SELECT opcode, body FROM reply WHERE request = ?", (request,)).fetchone()
        return row[1] if row and row[0] == opcode else None

    def forget_replies(self) -> None:
        """Another session of the kernel begins, which counts its requests anew."""
        self.db.execute("DELETE FROM reply")

    # ---- operations ----------------------------------------------------------------------------------------
    def queue_put(
        self,
        key: bytes,
        file: int | None,
        stamp: Stamp,
        metadata: dict[str, Any],
        *,
        ordered: bool,
        live: bool = False,
        queued_at: float | None = None,
    ) -> int:
        """`key` shall become these bytes; `file` None: an empty object. `queued_at`: of one whose place this takes."""
        return self._queue(
            "kind, key, file, size, mtime_ns, ctime_ns, live, metadata, ordered, queued_at",
            (
                int(OperationKind.PUT),
                key,
                file,
                *stamp,
                int(live),
                json.dumps(metadata),
                int(ordered),
                queued_at or time.time(),
            ),
        )

    def replace_put(
        self, seq: int, key: bytes, file: int | None, stamp: Stamp, metadata: dict[str, Any], *, live: bool
    ) -> bool:
        """Has a PUT that has not begun send other bytes of its file; it keeps its place. False if it cannot."""
        pending, put = int(OperationState.PENDING), int(OperationKind.PUT)
        done = self.db.execute(
            "UPDATE operation SET size = ?, mtime_ns = ?, ctime_ns = ?, metadata = ?, live = ?"
            " WHERE seq = ? AND state = ? AND kind = ? AND key = ? AND file IS ?",
            (*stamp, json.dumps(metadata), int(live), seq, pending, put, key, file),
        )
        self._queued = True
        return done.rowcount > 0

    def queue_copy(
        self, key: bytes, source_key: bytes, source_etag: str | None, metadata: dict[str, Any] | None, *, ordered: bool
    ) -> int:
        text = None if metadata is None else json.dumps(metadata)
        return self._queue(
            "kind, key, source_key, source_etag, metadata, ordered, queued_at",
            (int(OperationKind.COPY), key, source_key, source_etag, text, int(ordered), time.time()),
        )

    def replace_copy(self, seq: int, key: bytes, metadata: dict[str, Any]) -> bool:
        """Has a COPY that has not begun give other metadata; it keeps its place. False if it cannot."""
        done = self.db.execute(
            "UPDATE operation SET metadata = ? WHERE seq = ? AND state = ? AND kind = ? AND key = ?",
            (json.dumps(metadata), seq, int(OperationState.PENDING), int(OperationKind.COPY), key),
        )
        self._queued = True
        return done.rowcount > 0

    def queue_delete(self, key: bytes) -> int:
        """`key` shall go, after everything queued so far."""
        return self._queue("kind, key, ordered, queued_at", (int(OperationKind.DELETE), key, 1, time.time()))

    def cancel(self, seq: int | None) -> bool:
        """Whether the operation will not be done any more: it had not begun, or had failed."""
        done = self.db.execute(
            "UPDATE operation SET state = ? WHERE seq = ? AND state IN (?, ?)",
            (int(OperationState.CANCELLED), seq, int(OperationState.PENDING), int(OperationState.FAILED)),
        )
        return done.rowcount > 0

    def may_be_done(self, seq: int | None) -> bool:
        """Whether the bucket has, or may get, what this operation was to do, although it may be cancelled by now.

        It may have what a mover had begun: that one died, or met trouble, perhaps before the answer only. Not what
        failed for good: the bucket refused that.
        """
        row = self.db.execute("SELECT state, started_at, error FROM operation WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            return seq is not None  # long over
        state, started_at, error = row
        begun = started_at is not None and error is None
        return begun if state in (OperationState.PENDING, OperationState.CANCELLED) else state != OperationState.FAILED

    def give_up(self, seq: int | None) -> None:
        """The operation can never be done: what it needs is lost. A mover that has begun it finds that out, too."""
        self.db.execute(
            f"UPDATE operation SET state = ? WHERE seq = ? AND {_OPEN}",  # noqa: S608
            (int(OperationState.CANCELLED), seq),
        )

    def give_up_file(self, file: int | None) -> None:
        """As `give_up`, everything that was to send this staging file: also its bytes of before, which nobody has."""
        self.db.execute(
            f"UPDATE operation SET state = ? WHERE file = ? AND {_OPEN}",  # noqa: S608
            (int(OperationState.CANCELLED), file),
        )

    def operation(self, seq: int) -> Operation | None:
        row = self.db.execute(f"SELECT {_COLUMNS} FROM operation WHERE seq = ?", (seq,)).fetchone()  # noqa: S608
        return Operation._make(row) if row else None

    def pending_since(self, seq: int) -> float | None:
        """When the operation was queued; None once it has begun."""
        row = self.db.execute("SELECT queued_at FROM operation WHERE seq = ? AND state = 0", (seq,)).fetchone()
        return row[0] if row else None

    def is_newest(self, seq: int) -> bool:
        """Whether nothing was queued after this operation."""
        (newest,) = self.db.execute("SELECT max(seq) FROM operation").fetchone()
        return bool(newest == seq)

    def open_of_key(self, key: bytes) -> list[Operation]:
        """What is still to be done to a key, in order."""
        rows = self.db.execute(
            f"SELECT {_COLUMNS} FROM operation WHERE key = ? AND {_OPEN} ORDER BY seq",  # noqa: S608
            (key,),
        ).fetchall()
        return [Operation._make(row) for row in rows]

    def open_below(self, prefix: bytes) -> list[int]:
        """The numbers of everything still to be done to keys that begin with `prefix`."""
        rows = self.db.execute(
            f"SELECT seq FROM operation INDEXED BY operation_key WHERE key >= ? AND key < ? AND {_OPEN}",  # noqa: S608
            (prefix, _after_all(prefix)),
        ).fetchall()
        return [seq for (seq,) in rows]

    def is_deleted_below(self, prefix: bytes) -> bool:
        """Whether a key that begins with `prefix` is still to be deleted."""
        row = self.db.execute(
            f"SELECT 1 FROM operation INDEXED BY operation_key WHERE key >= ? AND key < ? AND kind = 3 AND {_OPEN}"  # noqa: S608
            " LIMIT 1",
            (prefix, _after_all(prefix)),
        ).fetchone()
        return row is not None

    def open_in_directory(self, prefix: bytes) -> list[int]:
        """The numbers of everything still to be done to keys right below `prefix`, and to its own marker."""
        rows = self.db.execute(
            f"SELECT seq, key FROM operation INDEXED BY operation_key WHERE key >= ? AND key < ? AND {_OPEN}",  # noqa: S608
            (prefix, _after_all(prefix)),
        ).fetchall()
        return [seq for seq, key in rows if b"/" not in key[len(prefix) :].rstrip(b"/")]

    def open_count(self) -> int:
        (count,) = self.db.execute(f"SELECT count(*) FROM operation WHERE {_OPEN}").fetchone()  # noqa: S608
        return int(count)

    def is_written_after(self, seq: int, key: bytes) -> bool:
        """Whether an operation after this one is still to put something under a key."""
        return any(each.seq > seq and each.kind != OperationKind.DELETE for each in self.open_of_key(key))

    def has_metadata(self, seq: int | None) -> bool:
        """Whether this operation gives, or gave, metadata of its own."""
        row = self.db.execute("SELECT 1 FROM operation WHERE seq = ? AND metadata IS NOT NULL", (seq,)).fetchone()
        return row is not None

    def is_source(self, key: bytes) -> bool:
        """Whether something still to be done copies from this key."""
        row = self.db.execute(
            f"SELECT 1 FROM operation WHERE source_key = ? AND key <> source_key AND {_OPEN} LIMIT 1",  # noqa: S608
            (key,),
        ).fetchone()
        return row is not None

    def first_failed(self) -> Operation | None:
        """The oldest operation that failed for good."""
        row = self.db.execute(
            f"SELECT {_COLUMNS} FROM operation WHERE state = 3 ORDER BY seq LIMIT 1"  # noqa: S608
        ).fetchone()
        return Operation._make(row) if row else None

    def file_in_use(self, file: int) -> bool:
        """Whether an operation still needs the bytes of this staging file."""
        row = self.db.execute(f"SELECT 1 FROM operation WHERE file = ? AND {_OPEN} LIMIT 1", (file,)).fetchone()  # noqa: S608
        return row is not None

    def new_file(self) -> int:
        """The number of a new staging file."""
        number = self._next_file
        self._next_file += 1
        return number

    def _first_free_file(self) -> int:
        (number,) = self.db.execute(
            "SELECT max(coalesce((SELECT max(id) FROM file), 0), coalesce((SELECT max(file) FROM node), 0),"
            " coalesce((SELECT max(file) FROM operation), 0)) + 1"
        ).fetchone()
        return int(number)

    def enter_file(self, file: int) -> None:
        """Gives a file the row in which the mover notes what its bytes were taken from."""
        self.db.execute("INSERT OR IGNORE INTO file (id) VALUES (?)", (file,))

    def forget_file(self, file: int) -> None:
        self.db.execute("DELETE FROM file WHERE id = ?", (file,))

    def set_setting(self, name: str, value: Any) -> None:
        self.db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, json.dumps(value)))

    def setting(self, name: str) -> Any:
        row = self.db.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def _queue(self, columns: str, values: tuple[Any, ...]) -> int:
        marks = ", ".join("?" * len(values))
        seq = self.db.execute(f"INSERT INTO operation ({columns}) VALUES ({marks})", values).lastrowid  # noqa: S608
        assert seq is not None
        self._queued = True
        return seq


def _after_all(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`, which is empty or ends in `/`."""
    return prefix[:-1] + b"0" if prefix else b"\xff"
