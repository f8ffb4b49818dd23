"""An output server by hand: staging files and operations as a test says, and an uploader that works on them.

async with uploading(directory_fd, catalog) as bench:
    bench.stage(b"a", content(1000))
    await bench.drained()
    assert bench.store.data(b"a") == content(1000)
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from mountkit.catalog.tree import Catalog
from mountkit.mover.upload_jobs import in_directory
from mountkit.mover.uploads import Uploads
from mountkit.staging import schema
from mountkit.staging.queue import UploadJournal
from mountkit.staging.schema import OperationKind, OperationState
from mountkit.store.retry import RetryingStore
from tests.fakes.memory_store import MemoryStore

PUT, COPY, DELETE = OperationKind.PUT, OperationKind.COPY, OperationKind.DELETE
PENDING, RUNNING, DONE = OperationState.PENDING, OperationState.RUNNING, OperationState.DONE
FAILED, CANCELLED = OperationState.FAILED, OperationState.CANCELLED


class HandServer:
    """The server's side of a journal."""

    def __init__(self, directory_fd: int) -> None:
        self._fd = directory_fd
        self.db = schema.open_journal(directory_fd)
        with suppress(FileExistsError):
            os.mkdir(schema.STAGING, 0o700, dir_fd=directory_fd)
        self.staging_fd = os.open(schema.STAGING, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory_fd)

    def close(self) -> None:
        self.db.close()
        os.close(self.staging_fd)

    def set(self, **settings: Any) -> None:
        rows = [(name, json.dumps(value)) for name, value in settings.items()]
        self.db.executemany("REPLACE INTO setting (name, value) VALUES (?, ?)", rows)

    def file(self, data: bytes) -> int:
        ident = self.db.execute("INSERT INTO file DEFAULT VALUES").lastrowid
        assert ident is not None
        self.write(ident, data)
        return ident

    def write(self, file: int, data: bytes) -> None:
        fd = os.open(str(file), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=self.staging_fd)
        with open(fd, "wb") as stream:
            stream.write(data)

    def queue(
        self,
        kind: OperationKind,
        key: bytes,
        *,
        file: int | None = None,
        ordered: bool = False,
        old: bool = False,
        **columns: Any,
    ) -> int:
        """Queues an operation; a PUT with the file's stamp. `old`: long ago, so that it does not linger."""
        row: dict[str, Any] = {"kind": kind, "key": key, "file": file, "ordered": ordered}
        row["queued_at"] = time.time() - (100 if old else 0)
        if file is not None:
            status = os.stat(str(file), dir_fd=self.staging_fd)
            row |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
        row |= columns
        if isinstance(row.get("metadata"), dict):
            row["metadata"] = json.dumps(row["metadata"])
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        seq = self.db.execute(f"INSERT INTO operation ({names}) VALUES ({marks})", tuple(row.values())).lastrowid
        assert seq is not None
        return seq

    def stage(self, key: bytes, data: bytes, **columns: Any) -> int:
        return self.queue(PUT, key, file=self.file(data), **columns)

    def state(self, seq: int) -> OperationState:
        return OperationState(self.db.execute("SELECT state FROM operation WHERE seq = ?", (seq,)).fetchone()[0])

    def column(self, seq: int, name: str) -> Any:
        return self.db.execute(f"SELECT {name} FROM operation WHERE seq = ?", (seq,)).fetchone()[0]

    def cancel(self, seq: int) -> bool:
        return bool(self.db.execute("UPDATE operation SET state = 4 WHERE seq = ? AND state = 0", (seq,)).rowcount)


class Bench(HandServer):
    """A server by hand and an uploader."""

    def __init__(self, directory_fd: int, store: MemoryStore) -> None:
        super().__init__(directory_fd)
        self.store = store
        self.uploads: Uploads

    async def drained(self, *, retry: bool = True) -> dict[str, Any]:
        """What a drain says at its end."""
        return await self.uploads.drain(_silent, retry=retry)

    async def until(self, seq: int, *states: OperationState) -> OperationState:
        """The operation's state, once it is one of these."""
        while self.state(seq) not in states:
            await trio.sleep(0.01)
        return self.state(seq)


async def _silent(_: dict[str, Any]) -> None:
    pass


@asynccontextmanager
async def uploading(
    directory_fd: int, catalog: Catalog, store: MemoryStore | None = None, *, budget_s: float = 0.3
) -> AsyncIterator[Bench]:
    """An uploader that runs; cancelled at the end, as a kill would: with threads wherever they are."""
    bench = Bench(directory_fd, store or MemoryStore())
    journal = UploadJournal(directory_fd)
    retrying = RetryingStore(bench.store, budget_s=budget_s, metadata_budget_s=budget_s)
    bench.uploads = Uploads(journal, in_directory(bench.staging_fd), retrying, catalog)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.uploads.run)
            yield bench
            nursery.cancel_scope.cancel()
    finally:
        journal.close()
        bench.close()
