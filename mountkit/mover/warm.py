"""Warming: a whole tree into the cache, with progress, at the lowest priority. Cancelling it stops it at once.

What the cache would not keep is not fetched but counted apart.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass

import trio

from mountkit import names
from mountkit.cache.content import BLOCK_BYTES, PART_BYTES
from mountkit.catalog.lister import Lister
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import DirectoryEntry, Kind, ObjectRow, StaleCookie
from mountkit.errors import MountkitError
from mountkit.ipc import Progress
from mountkit.mover.fetch import Wanted
from mountkit.mover.fetcher import Fetcher
from mountkit.mover.given_order import Window
from mountkit.mover.queue import Priority
from mountkit.mover.transfer_progress import TransferProgress

log = logging.getLogger(__name__)
_FILES_AT_ONCE, _DIRECTORIES_AT_ONCE = 192, 16
_GET_BYTES = 8 * BLOCK_BYTES
_PAGE = 1000
_REPORT_S = 0.2

Resolve = Callable[[str], Awaitable[tuple[int | None, ObjectRow | None]]]
"""The directory or the object at a path below the mount."""


@dataclass(slots=True)
class WarmProgress(TransferProgress):
    """`files_left` and `bytes_left` did not fit."""

    files_left: int = 0
    bytes_left: int = 0


class Warmer:
    """One request to warm the tree below a directory, one file, or files in a given order."""

    def __init__(self, catalog: Catalog, lister: Lister, fetcher: Fetcher, fresh_after: float) -> None:
        self._catalog, self._lister, self._fetcher, self._fresh_after = catalog, lister, fetcher, fresh_after
        self.progress = WarmProgress()
        self._directories = trio.CapacityLimiter(_DIRECTORIES_AT_ONCE)
        self._files = trio.CapacityLimiter(_FILES_AT_ONCE)
        self._window = Window((), None)
        self._moved = trio.Event()

    async def run(self, *, directory: int | None, row: ObjectRow | None, report: Progress) -> WarmProgress:
        """Fetches everything below `directory`, or the one object; reports five times a second."""
        async with self._reporting(report), trio.open_nursery() as work:
            if row is not None:
                self.progress.found(row.size)
                await self._fetch(row)
            elif directory is not None:
                async with trio.open_nursery() as listing:
                    listing.start_soon(self._list, directory, listing, work)
            self.progress.listing = False
        return self.progress

    async def run_order(
        self, paths: list[str], *, resolve: Resolve, ahead: int | None, report: Progress
    ) -> WarmProgress:
        """Fetches these files in this order, at most `ahead` of those it fetched not opened yet."""
        self._window = Window([self._catalog.prefix + os.fsencode(path) for path in paths], ahead)
        async with self._reporting(report), trio.open_nursery() as work:
            for place, path in enumerate(paths):
                while not self._window.open:
                    await self._moved.wait()
                try:
                    _, row = await resolve(path)
                except MountkitError as exc:
                    self._failed(str(exc))
                    continue
                if row is None:
                    self._failed(f"{path} is a directory")
                    continue
                self.progress.found(row.size)
                if self._fetcher.lacking_bytes(wanted := Wanted.of(row), wanted.parts):
                    self._window.fetched(place)
                await self._files.acquire_on_behalf_of(row)
                work.start_soon(self._fetch_acquired, row)
            self.progress.listing = False
        return self.progress

    def opened(self, key: bytes) -> None:
        """Somebody opened this file: the window of a given order moves."""
        self._window.opened(key)
        moved, self._moved = self._moved, trio.Event()
        moved.set()

    @asynccontextmanager
    async def _reporting(self, report: Progress) -> AsyncGenerator[None, None]:
        async with trio.open_nursery() as reporting:
            reporting.start_soon(self._report, report)
            yield
            reporting.cancel_scope.cancel()

    async def _report(self, report: Progress) -> None:
        while True:
            await trio.sleep(_REPORT_S)
            await report(asdict(self.progress))

    async def _list(self, directory: int, listing: trio.Nursery, work: trio.Nursery) -> None:
        async with self._directories:
            try:
                await self._lister.list_whole(directory, self._fresh_after)
            except MountkitError as exc:
                self._failed(f"listing: {exc}")
                return
        async with aclosing(self._entries(directory)) as entries:
            async for entry in entries:
                if entry.kind is Kind.DIRECTORY:
                    listing.start_soon(self._list, entry.inode, listing, work)
                elif entry.object is not None:
                    self.progress.found(entry.object.size)
                    await self._files.acquire_on_behalf_of(entry.object)
                    work.start_soon(self._fetch_acquired, entry.object)

    async def _entries(self, directory: int) -> AsyncGenerator[DirectoryEntry, None]:
        """Each name of the directory once, in order, also where the entry paged from vanishes meanwhile."""
        cookie, last = 0, b""
        while True:
            try:
                page = self._catalog.page(directory, cookie, _PAGE, 0.0)
            except KeyError:
                return
            except StaleCookie:
                cookie = 0
                continue
            for entry in page.entries:
                cookie = entry.cookie
                name = entry.name + names.SEPARATOR if entry.kind is Kind.DIRECTORY else entry.name
                if name > last:
                    last = name
                    yield entry
            if not page.entries:
                return
            await trio.lowlevel.checkpoint()

    async def _fetch_acquired(self, row: ObjectRow) -> None:
        try:
            await self._fetch(row)
        finally:
            self._files.release_on_behalf_of(row)

    async def _fetch(self, row: ObjectRow) -> None:
        wanted = Wanted.of(row)
        step = _GET_BYTES // PART_BYTES
        try:
            for start in range(0, len(wanted.parts), step):
                parts = range(start, min(start + step, len(wanted.parts)))
                if not await self._kept(wanted, parts):
                    self.progress.files_left += 1
                    self.progress.bytes_left += row.size - start * PART_BYTES
                    return
                self.progress.bytes_done += min(parts.stop * PART_BYTES, row.size) - start * PART_BYTES
        except MountkitError as exc:
            self._failed(f"{row.key.decode('utf-8', 'replace')}: {exc}")
        else:
            self.progress.files_done += 1

    async def _kept(self, wanted: Wanted, parts: range) -> bool:
        """Has the parts cached; False if the cache has no room for what it lacks of them."""
        lacking = self._fetcher.lacking_bytes(wanted, parts)
        if lacking and not self._fetcher.room_for(lacking):
            return False
        await self._fetcher.need(wanted, parts, Priority.SWEEP)
        return not self._fetcher.keeps_apart(wanted, parts)

    def _failed(self, sentence: str) -> None:
        log.warning("warm: %s", sentence)
        self.progress.fail(sentence)
