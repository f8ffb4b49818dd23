"""Push: a local directory as operations of a journal of its own, done by the same uploader as a mount's outputs.

Nothing is copied: the journal names the files where they lie, each with its stamp, so that a later push of the same
directory sends what is new or was changed, and one that was interrupted goes on in the middle of a file.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from mountkit import names
from mountkit.config import OutputSettings
from mountkit.staging import schema
from mountkit.staging.schema import OperationKind, OperationState

_MORE: Final = "CREATE TABLE IF NOT EXISTS pushed (file INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE);"
_BATCH = 1000
_OPEN = (int(OperationState.PENDING), int(OperationState.RUNNING), int(OperationState.FAILED))


@dataclass(slots=True)
class Scan:
    """What a look at the directory found."""

    files: int = 0
    bytes: int = 0
    unchanged: int = 0
    passed_over: list[str] = field(default_factory=list)
    """What is no file a bucket can hold: sockets, devices, broken links, links to directories."""


class PushedDirectory:
    """One directory that is pushed, and the journal of it."""

    def __init__(self, journal_fd: int, directory_fd: int, prefix: bytes, settings: OutputSettings) -> None:
        self._directory_fd, self._prefix = directory_fd, prefix
        self._db = schema.open_journal(journal_fd, _MORE)
        rows = [(name, json.dumps(getattr(settings, name))) for name in OutputSettings.__dataclass_fields__]
        self._db.executemany("REPLACE INTO setting (name, value) VALUES (?, ?)", rows)
        self.scan = Scan()

    def close(self) -> None:
        self._db.close()

    def open_file(self, file: int) -> int:
        """A descriptor of a file by its number, for the uploader's threads. Raises OSError."""
        path = self._paths.get(file)
        if path is None:
            raise FileNotFoundError
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._directory_fd)

    def queue(self) -> Scan:
        """Queues what the bucket does not have yet by this journal; takes back what is not there any more."""
        known = self._known()
        found: set[bytes] = set()
        batch: list[tuple[bytes, os.stat_result | None]] = []
        for path, status in self._walk(b""):
            found.add(self._prefix + path)
            batch.append((path, status))
            if len(batch) == _BATCH:
                self._queue_some(batch, known)
                batch.clear()
        self._queue_some(batch, known)
        # also what is RUNNING: we hold the journal's lock, so that is what a push that was killed left
        gone = [(seq,) for key, (seq, state, *_) in known.items() if key not in found and state in _OPEN]
        self._db.executemany("UPDATE operation SET state = 4 WHERE seq = ?", gone)
        self._paths: dict[int, bytes] = dict(self._db.execute("SELECT file, path FROM pushed").fetchall())
        return self.scan

    def _known(self) -> dict[bytes, tuple[int, int, int, int, int]]:
        """The newest operation of each key: number, state and stamp."""
        rows = self._db.execute("SELECT key, seq, state, size, mtime_ns, ctime_ns FROM operation ORDER BY seq")
        return {key: tuple(rest) for key, *rest in rows}

    def _walk(self, directory: bytes) -> Iterator[tuple[bytes, os.stat_result | None]]:
        """Every file below, with what it is; None: an empty directory."""
        fd = os.open(directory or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory_fd)
        try:
            entries = sorted(os.listdir(fd))
        finally:
            os.close(fd)
        if not entries and directory:
            yield directory + b"/", None
        for entry in map(os.fsencode, entries):
            path = directory + b"/" + entry if directory else entry
            try:
                link = os.stat(path, dir_fd=self._directory_fd, follow_symlinks=False)
                status = os.stat(path, dir_fd=self._directory_fd)
            except OSError as exc:
                self.scan.passed_over.append(f"{os.fsdecode(path)}: {os.strerror(exc.errno or 0)}")
                continue
            if stat.S_ISDIR(link.st_mode):
                yield from self._walk(path)
            elif stat.S_ISREG(status.st_mode) and names.valid_name(entry):
                yield path, status
            else:
                self.scan.passed_over.append(f"{os.fsdecode(path)}: no plain file")

    def _queue_some(
        self, batch: list[tuple[bytes, os.stat_result | None]], known: dict[bytes, tuple[int, int, int, int, int]]
    ) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            for path, status in batch:
                self._queue_one(path, status, known.get(self._prefix + path))
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise

    def _queue_one(
        self, path: bytes, status: os.stat_result | None, known: tuple[int, int, int, int, int] | None
    ) -> None:
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns) if status else (0, 0, 0)
        self.scan.files += 1
        self.scan.bytes += stamp[0]
        if known is not None:
            seq, state, *before = known
            if tuple(before) == stamp and state != OperationState.CANCELLED:
                self.scan.unchanged += state == OperationState.DONE
                return
            if state in _OPEN:
                self._db.execute("UPDATE operation SET state = 4 WHERE seq = ?", (seq,))
        file = self._number(path) if status else None
        metadata: dict[str, Any] = {}
        if status is not None:
            metadata = {name: getattr(status, f"st_{name}") for name in ("mode", "uid", "gid", "mtime_ns")}
        self._db.execute(
            "INSERT INTO operation (kind, key, file, size, mtime_ns, ctime_ns, metadata, queued_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (OperationKind.PUT, self._prefix + path, file, *stamp, json.dumps(metadata), time.time()),
        )

    def _number(self, path: bytes) -> int:
        row = self._db.execute("SELECT file FROM pushed WHERE path = ?", (path,)).fetchone()
        if row is not None:
            return int(row[0])
        file = self._db.execute("INSERT INTO file DEFAULT VALUES").lastrowid
        assert file is not None
        self._db.execute("INSERT INTO pushed (file, path) VALUES (?, ?)", (file, path))
        return file
