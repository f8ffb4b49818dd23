"""What the mover does for servers, keepers and the command line: each request a method, all on one trio thread."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import trio

from mountkit import processes
from mountkit.cache.faults import CacheBroken, CacheFull, DiskFull
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.lister import Lister
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import CatalogLost, CatalogUnavailable, Kind, ObjectRow
from mountkit.config import MountSettings
from mountkit.errors import MountkitError, ObjectChanged, ObjectMissing, UsageError
from mountkit.ipc import Message, Progress
from mountkit.mover.ahead import ListingAhead
from mountkit.mover.fetch import Fetch, Wanted, parts_of
from mountkit.mover.fetcher import Fetcher
from mountkit.mover.inquiry import inquire
from mountkit.mover.joint import JointThread
from mountkit.mover.outputs import Outputs
from mountkit.mover.queue import FetchQueue, Priority
from mountkit.mover.readahead import MAX_WINDOW_BYTES, Readahead
from mountkit.mover.sweeper import Sweeper
from mountkit.mover.warm import Warmer
from mountkit.store.retry import RetryingStore

log = logging.getLogger(__name__)
_FIRST_PARTS = 8
_LOOK_S = 1.0
_ANNOUNCEMENTS = 16


class Service:
    """One state directory's mover. `check` is set by the process once the store was proved to answer."""

    def __init__(
        self,
        settings: MountSettings,
        catalog: Catalog,
        cache: CacheWriter,
        store: RetryingStore,
        region: str,
        state_fd: int,
    ) -> None:
        self._settings, self._catalog, self._cache, self._store = settings, catalog, cache, store
        self._region = region
        self._queue: FetchQueue[Fetch] = FetchQueue()
        self.lister = Lister(catalog, store, probe=store.inner)
        self.fetcher = Fetcher(
            store,
            cache,
            self._queue,
            on_failure=self._fetch_failed,
            on_version=catalog.set_version,
            on_cache_trouble=self._cache_trouble,
            on_landed=self._landed,
        )
        store.on_slow_down = self._queue.slow_down
        if (gets := store.many()) is not None:
            JointThread(self._queue, gets, after_batch=self._some_came).start()
        self.outputs = Outputs(state_fd, store, catalog, self.lister, self.fetcher)
        self._readahead = Readahead()
        self.sweeper = Sweeper(catalog, self.lister, self.fetcher)
        self.ahead = ListingAhead(catalog, self.lister)
        self._orders: list[Warmer] = []
        self._announcements = trio.CapacityLimiter(_ANNOUNCEMENTS)
        self._trouble = ""
        self._last_error = ""
        self._errors = 0
        self._examining = False
        self.goodbye = trio.Event()
        self.retired = trio.Event()
        """Set by a keeper that wants another mover, with the code that is installed now."""
        self.lost = trio.Event()
        """Set when catalog or cache cannot be used any more: the next mover begins them anew, or elsewhere."""
        self._operations: dict[str, Callable[[dict[str, Any], Progress], Awaitable[Message | dict[str, Any]]]] = {
            "lookup": self._lookup,
            "list": self._list,
            "open": self._open,
            "opened": self._opened,
            "entered": self._entered,
            "fetch": self._fetch,
            "hint": self._hint,
            "verify": self._verify,
            "refresh": self._refresh,
            "warm": self._warm,
            "warm_order": self._warm_order,
            "announce": self._announce,
            "check": self._check,
            "inquire": self._inquire,
            "limit": self._limit,
            "doubt": self._doubt,
            "stats": self._stats,
            **self.outputs.operations,
        }

    def _some_came(self) -> None:
        """On the joint thread."""
        self.fetcher.wake()
        self._store.works()

    async def handle(
        self, request: Message, progress: Progress, mount: MountSettings | None = None
    ) -> Message | dict[str, Any]:
        """Answers one request, as `mount` wants it (default: the one that started us). Raises MountkitError."""
        operation = self._operations.get(str(request.body.get("op")))
        if operation is None:
            raise UsageError(f"the mover does not know `{request.body.get('op')}`")
        try:
            return await operation({**request.body, "mount": mount or self._settings}, progress)
        except CatalogUnavailable as exc:
            self._lose(str(exc))
            # Not answered: we end, and whoever asked sends it again, to the mover that follows.
            return await trio.sleep_forever()

    # ---- the tree ------------------------------------------------------------------------------------------
    async def _lookup(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        name, may_be_old = body["name"].encode("latin-1"), body["mount"].ttl_s > 0
        return {"stale": await self.lister.lookup(body["parent"], name, body["fresh"], stale=may_be_old)}

    async def _list(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        directory, cookie, fresh, may_be_old = body["directory"], body["cookie"], body["fresh"], body["mount"].ttl_s > 0
        if cookie == 0:
            self.ahead.entered(directory, fresh)
        return {"stale": await self.lister.list_beyond(directory, cookie, fresh, stale=may_be_old)}

    async def _refresh(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        directory = await self._resolve_directory(body["path"]) if body["path"] else None
        changes = await self.lister.refresh(directory)
        root = self._catalog.root
        return {"changes": [[1 if c.parent == root else c.parent, c.name.decode("latin-1")] for c in changes]}

    # ---- bytes ---------------------------------------------------------------------------------------------
    async def _open(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        wanted = self._wanted(body["object"])
        self._note_open(wanted.row, body["mount"], cold=True)
        parts = range(min(_FIRST_PARTS, len(wanted.parts)))
        await self.fetcher.need(wanted, parts, Priority.DEMAND)
        return {}

    async def _opened(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        """Files that were opened without our help; whether we want to hear of more of them."""
        for ident in body["objects"]:
            row = self._catalog.object(ident)
            if row is not None:
                self._note_open(row, body["mount"], cold=False)
        return {"listens": bool(self._orders) or (body["mount"].sweep and self.sweeper.listens)}

    async def _entered(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        """Directories that somebody begins to read."""
        fresh_after = max(0.0, time.time() - body["mount"].ttl_s)
        for directory in body["directories"]:
            self.ahead.entered(directory, fresh_after)
        return {}

    def _note_open(self, row: ObjectRow, mount: MountSettings, *, cold: bool) -> None:
        if mount.sweep:
            self.sweeper.opened(row, cold=cold)
        for warmer in self._orders:
            warmer.opened(row.key)

    async def _fetch(self, body: dict[str, Any], _progress: Progress) -> Message | dict[str, Any]:
        wanted = self._wanted(body["object"])
        offset, length = body["offset"], body["length"]
        parts = parts_of(offset, length)
        around_cache = False
        if body.get("bad"):
            log.warning("cached bytes of %r are not what was written; fetching them again", wanted.row.key)
            self._errors += 1
            try:
                await trio.to_thread.run_sync(
                    self._cache.recheck, wanted.content, wanted.row.size, parts.start, parts.stop - 1
                )
            except (CacheFull, CacheBroken) as exc:
                self._cache_trouble(exc)
                around_cache = True  # it cannot even forget them
        if wanted.row.size > _FIRST_PARTS * 128 * 1024:
            self._read_ahead(wanted, body["mount"], offset, length)
        inline = body.get("inline")
        await self.fetcher.need(wanted, parts, Priority.DEMAND, around_cache=around_cache)
        if inline or self.fetcher.keeps_apart(wanted, parts):
            data = self.fetcher.gather(wanted, offset, length)
            if data is None and inline:  # the cache says that it has what it cannot give
                await self.fetcher.need(wanted, parts, Priority.DEMAND, around_cache=True)
                data = self.fetcher.gather(wanted, offset, length)
            if data is not None:
                return Message({}, data)
        return {}

    async def _hint(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        self._read_ahead(self._wanted(body["object"]), body["mount"], body["offset"], body["length"])
        return {}

    def _read_ahead(self, wanted: Wanted, mount: MountSettings, offset: int, length: int) -> None:
        if mount.sweep:
            self.sweeper.read(wanted.row, offset, length)
        kept = self.fetcher.room_for(MAX_WINDOW_BYTES)
        for parts in self._readahead.observe(wanted.row.id, wanted.row.size, offset, length, kept=kept):
            self.fetcher.start(wanted, parts, Priority.READAHEAD)

    async def _verify(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        wanted = self._wanted(body["object"])
        try:
            good = await trio.to_thread.run_sync(self._cache.verify, wanted.content)
        except (CacheFull, CacheBroken) as exc:
            self._cache_trouble(exc)
            good = False
        if not good:
            log.warning("the cached file of %r is not what was written; it will be fetched again", wanted.row.key)
            self._errors += 1
        return {"good": good}

    async def _warm(self, body: dict[str, Any], progress: Progress) -> dict[str, Any]:
        directory, row = await self._resolve(body["path"])
        warmer = Warmer(self._catalog, self.lister, self.fetcher, body["fresh"])
        return asdict(await warmer.run(directory=directory, row=row, report=progress))

    async def _warm_order(self, body: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return await self._in_order(body["paths"], body["ahead"], progress)

    async def _announce(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        """Begins to fetch these files and answers at once, or once fewer announcements are under way."""
        paths, turn = body["paths"], object()
        await self._announcements.acquire_on_behalf_of(turn)

        async def fetch() -> None:
            try:
                await self._in_order(paths, None, _silent)
            finally:
                self._announcements.release_on_behalf_of(turn)

        self.lister.start_soon(fetch)
        return {}

    async def _in_order(self, paths: list[str], ahead: int | None, progress: Progress) -> dict[str, Any]:
        warmer = Warmer(self._catalog, self.lister, self.fetcher, 0.0)
        self._orders.append(warmer)
        try:
            return asdict(await warmer.run_order(paths, resolve=self._resolve, ahead=ahead, report=progress))
        finally:
            self._orders.remove(warmer)

    def _wanted(self, ident: int) -> Wanted:
        row = self._catalog.object(ident)
        if row is None:
            raise ObjectChanged("that object version is not known any more")
        return Wanted.of(row)

    async def _resolve_directory(self, path: str) -> int:
        directory, _ = await self._resolve(path)
        if directory is None:
            raise UsageError(f"{path} is a file, not a directory")
        return directory

    async def _resolve(self, path: str) -> tuple[int | None, ObjectRow | None]:
        """The directory or object at a path below the mount. Raises UsageError if there is none."""
        current: int = self._catalog.root
        words = [word for word in os.fsencode(path).split(b"/") if word]
        for position, word in enumerate(words):
            await self.lister.lookup(current, word, 0.0)
            known = self._catalog.lookup(current, word)
            if known is None or known.kind is Kind.ABSENT:
                raise UsageError(f"there is no `{path}` in the mount")
            if known.object is not None:
                if position < len(words) - 1:
                    raise UsageError(f"there is no `{path}` in the mount")
                return None, known.object
            assert known.inode is not None
            current = known.inode
        return current, None

    # ---- about itself --------------------------------------------------------------------------------------
    async def _check(self, _body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        """Whether the bucket answers now, for a keeper that found this mover running."""
        await trio.to_thread.run_sync(lambda: self._store.list_page(self._settings.source.prefix, limit=1))
        return {"pid": os.getpid(), "region": self._region}

    async def _inquire(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        key = body["key"].encode("latin-1")
        return await trio.to_thread.run_sync(inquire, self._store, key)

    async def _limit(self, body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        """Shrinks the cache, also below what it was mounted with."""
        return {"freed": await trio.to_thread.run_sync(self._cache.shrink, body["bytes"])}

    async def _doubt(self, _body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        """A server could not read the catalog: is it whole?"""
        if not self._examining:
            self._examining = True
            try:
                await trio.to_thread.run_sync(self._catalog.examine)
            except CatalogLost as exc:
                self._lose(str(exc))
            finally:
                self._examining = False
        return {}

    async def watch_files(self) -> None:
        """Sees to it that catalog and index are where servers look for them; one look a second."""
        while True:
            await trio.sleep(_LOOK_S)
            if not self._catalog.is_there() or not self._cache.is_there():
                self._lose("catalog or index of the cache were deleted or replaced")

    def _lose(self, why: str) -> None:
        if not self.lost.is_set():
            log.warning("%s: another mover begins anew", why)
        self.lost.set()

    async def _stats(self, _body: dict[str, Any], _progress: Progress) -> dict[str, Any]:
        usage: dict[str, Any] = {}
        try:
            usage = asdict(await trio.to_thread.run_sync(self._cache.usage))
        except (CacheFull, CacheBroken) as exc:
            self._cache_trouble(exc)
        if self._trouble:
            works: bool = await trio.to_thread.run_sync(self._cache.works)
            if works:
                self._mended()
        queue = self._queue.statistics()
        reasons = [text for text in (self.lister.unreachable or self._store.trouble, self._trouble) if text]
        outputs, more = self.outputs.statistics()
        reasons += more
        return {
            "pid": os.getpid(),
            "pss_bytes": processes.pss_bytes(),
            "degraded": reasons,
            "cache": usage,
            "outputs": outputs,
            "requests": asdict(self._store.statistics()),
            "mover": {"queue": asdict(queue), "errors": self._errors, "last_error": self._last_error},
        }

    def _fetch_failed(self, row: ObjectRow, error: MountkitError) -> None:
        self._errors += 1
        self._last_error = f"{_shown(row)}: {error}"
        if isinstance(error, ObjectChanged | ObjectMissing):
            self._catalog.supersede(row.id)
            self._readahead.forget(row.id)
            log.info("%s changed in the bucket", _shown(row))
        else:
            log.warning("fetching failed: %s", self._last_error)

    def _cache_trouble(self, error: Exception) -> None:
        if isinstance(error, CacheBroken | DiskFull):
            if not self._trouble:
                log.warning("the cache takes no more: %s; reading goes on without it", error)
            self._trouble = f"the cache takes no more: {error}"

    def _landed(self, kept: bool) -> None:
        self.lister.answered()
        if kept:
            self._mended()

    def _mended(self) -> None:
        if self._trouble:
            log.warning("the cache works again")
        self._trouble = ""


async def _silent(_: dict[str, Any]) -> None:
    """Nobody wants to hear of the progress."""


def _shown(row: ObjectRow) -> str:
    return row.key.decode("utf-8", "backslashreplace")
