"""What the mover does when nobody waits: seals complete files for passthrough, drops what the bucket has replaced."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from functools import partial

import trio

from mountkit.cache.content import content_id
from mountkit.cache.faults import CacheBroken, CacheFull
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import CatalogUnavailable
from mountkit.config import MountSettings
from mountkit.mover.fetcher import Fetcher

log = logging.getLogger(__name__)
_IDLE_S = 0.5
"""Fetches come in bursts; sealing starts once none came for this long, so that a first epoch keeps both cores."""
_BATCH = 64
_SUPERSEDED_S = 86400.0
_DAY_S = 86400.0


class Housekeeper:
    """Two idle tasks of one mover."""

    def __init__(
        self,
        settings: MountSettings,
        catalog: Catalog,
        cache: CacheWriter,
        fetcher: Fetcher,
        *,
        traced_since: Callable[[], float | None] = lambda: None,
    ) -> None:
        """`traced_since`: whose versions somebody will ask for, though they be superseded."""
        self._catalog, self._cache, self._fetcher = catalog, cache, fetcher
        self._traced_since = traced_since
        self._somebody_wants_seals = trio.Event()
        self.serve(settings)

    def serve(self, mount: MountSettings) -> None:
        """This mount is one of ours: files are sealed from the first on that can open them in passthrough."""
        if mount.passthrough and os.getuid() == 0:
            self._somebody_wants_seals.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._clean)
            nursery.start_soon(self._seal)

    async def _seal(self) -> None:
        await self._somebody_wants_seals.wait()
        while True:
            await self._until_quiet()
            some = True
            while some and not self._fetcher.busy:
                began = trio.current_time()
                some = await self._seal_some()
                await trio.sleep(trio.current_time() - began)  # somebody reads perhaps: not more than half of a core
            if not some:
                await self._fetcher.idle.wait()

    async def _until_quiet(self) -> None:
        quiet = False
        while not quiet:
            if self._fetcher.busy:
                await self._fetcher.idle.wait()
            with trio.move_on_after(_IDLE_S) as waited:
                await self._fetcher.idle.wait()
            quiet = waited.cancelled_caught and not self._fetcher.busy

    async def _seal_some(self) -> bool:
        """Seals one batch, stopping when somebody fetches; False if there was nothing to do."""
        try:
            waiting = self._cache.unsealed(_BATCH)
            await trio.to_thread.run_sync(partial(self._cache.seal_some, waiting, stop=lambda: self._fetcher.busy))
        except (CacheFull, CacheBroken) as exc:
            log.warning("cannot seal cached files: %s", exc)
            return False
        return bool(waiting)

    async def _clean(self) -> None:
        while True:
            try:
                await self._clean_once()
            except (CacheFull, CacheBroken, CatalogUnavailable) as exc:
                log.warning("cannot clean the cache: %s", exc)
            await trio.sleep(_DAY_S)

    async def _clean_once(self) -> None:
        superseded = []
        kept_s = max(_SUPERSEDED_S, time.time() - (self._traced_since() or math.inf))
        while some := self._catalog.purge(kept_s):
            superseded += some
            await trio.lowlevel.checkpoint()
        contents = [content_id(version.key, version.etag, version.size) for version in superseded]
        freed = await trio.to_thread.run_sync(self._cache.housekeep, contents)
        if freed:
            log.info("freed %d bytes of the cache", freed)
