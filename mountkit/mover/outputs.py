"""What the mover does for a writable mount: each request a method; the journal is opened once there is one.

A mover that finds a journal goes on with what is in it, whoever mounts: what a program has closed was promised.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import trio

from mountkit.catalog.lister import Lister
from mountkit.catalog.tree import Catalog
from mountkit.errors import MountkitError, ObjectChanged
from mountkit.ipc import Message, Progress
from mountkit.mover.fetch import Wanted
from mountkit.mover.fetcher import Fetcher
from mountkit.mover.stager import TreeLister, stage
from mountkit.mover.upload_jobs import in_directory
from mountkit.mover.uploads import Uploads
from mountkit.staging import schema
from mountkit.staging.queue import UploadJournal
from mountkit.store.retry import RetryingStore

log = logging.getLogger(__name__)
_AGAIN_S = 1.0
_LINKED_S = 5.0

Handler = Callable[[dict[str, Any], Progress], Awaitable[Message | dict[str, Any]]]


class Outputs:
    """One state directory's outputs. `run` must run in the mover's trio thread."""

    def __init__(
        self,
        state_fd: int,
        store: RetryingStore,
        catalog: Catalog,
        lister: Lister,
        fetcher: Fetcher,
    ) -> None:
        self._state_fd, self._store = state_fd, store
        self._catalog, self._lister, self._fetcher = catalog, lister, fetcher
        self._wanted = trio.Event()
        self._there = trio.Event()
        self._uploads: Uploads | None = None
        self._trouble = ""
        self._staging_fd = -1
        self.operations: dict[str, Handler] = {
            "staged": self._staged,
            "commit": self._commit,
            "stage": self._stage,
            "tree": self._tree,
            "drain": self._drain,
        }

    async def run(self) -> None:
        """Uploads what the journal holds, from its first operation on; begins anew where the journal's disk failed."""
        await self._wait_for_journal()
        while True:
            try:
                await self._run_once()
            except (sqlite3.Error, ValueError, OSError) as exc:
                self._trouble = f"the journal of outputs cannot be used: {exc}"
                log.error("%s; trying again", self._trouble)
            self._uploads = None
            self._there = trio.Event()
            await trio.sleep(_AGAIN_S)

    async def _wait_for_journal(self) -> None:
        """Returns once there is one, or one is wanted. A disk that fails says neither: it is asked again."""
        while not self._wanted.is_set():
            try:
                if schema.exists(self._state_fd):
                    return
            except OSError:
                with trio.move_on_after(_AGAIN_S):
                    await self._wanted.wait()
            else:
                await self._wanted.wait()

    async def _run_once(self) -> None:
        journal = UploadJournal(self._state_fd)
        try:
            staging_fd = os.open(schema.STAGING, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._state_fd)
        except FileNotFoundError:
            os.mkdir(schema.STAGING, 0o700, dir_fd=self._state_fd)
            staging_fd = os.open(schema.STAGING, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._state_fd)
        try:
            async with trio.open_nursery() as nursery:
                self._staging_fd = staging_fd
                uploads = Uploads(journal, in_directory(staging_fd), self._store, self._catalog)
                await nursery.start(uploads.run)
                self._uploads, self._trouble = uploads, ""
                self._there.set()
        except* (sqlite3.Error, OSError) as group:
            raise group.exceptions[0] from group
        finally:
            os.close(staging_fd)
            journal.close()

    def statistics(self) -> tuple[dict[str, Any], list[str]]:
        """For `status`, and why the mount is degraded."""
        found = self._uploads.statistics() if self._uploads is not None else None
        reasons = [text for text in (self._trouble, found.trouble if found else "") if text]
        return asdict(found) if found else {}, reasons

    # ---- requests ------------------------------------------------------------------------------------------
    async def _ready(self) -> Uploads:
        self._wanted.set()
        with trio.move_on_after(_LINKED_S):
            await self._there.wait()
        if self._uploads is None:
            raise MountkitError(self._trouble or "the journal of outputs is not there yet", "try again")
        return self._uploads

    async def _staged(self, _body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        (await self._ready()).staged()
        return {}

    async def _commit(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        return await (await self._ready()).commit(body["seqs"])

    async def _drain(self, body: dict[str, Any], progress: Progress) -> dict[str, Any]:
        with contextlib.suppress(OSError):  # who cannot know whether there is a journal shall say so
            if not schema.exists(self._state_fd):
                return {"left": 0, "failed": 0, "errors": {}}
        return await (await self._ready()).drain(progress, retry=body.get("retry", True))

    async def _stage(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        uploads = await self._ready()
        row = self._catalog.object(body["object"])
        if row is None:
            raise ObjectChanged("that object version is not known any more")
        asked = body.get("size")
        size = row.size if asked is None else min(row.size, int(asked))
        await stage(self._fetcher, uploads.journal, self._staging_fd, Wanted.of(row), body["file"], size)
        return {}

    async def _tree(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        fresh_after = time.time() - body["mount"].ttl_s
        return {"objects": await TreeLister(self._catalog, self._lister, fresh_after).run(body["directory"])}
