"""The sweeper: fetches what is likely to be opened next, as `sweep` and `in_order` find it out from the opens.

One task for each tree or large file being swept walks it in the bucket's order and starts a fetch whenever the
evidence allows one; fetches are at the lowest priority and never occupy all of the queue's threads, so that a reader
who waits finds one free. Nothing is fetched that the cache will not keep.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Protocol

import trio

from mountkit import names
from mountkit.cache.content import BLOCK_BYTES, PARTS_PER_BLOCK
from mountkit.catalog.lister import Lister
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import CatalogUnavailable, Kind, ObjectRow, StaleCookie
from mountkit.errors import MountkitError, ObjectChanged, ObjectMissing
from mountkit.mover.fetch import Wanted
from mountkit.mover.fetcher import Fetcher
from mountkit.mover.in_order import InOrder
from mountkit.mover.queue import SWEEP_THREADS, Priority
from mountkit.mover.sweep import BEGIN_FILES, LargeFile, LargeFiles, Sweeps, Tree

log = logging.getLogger(__name__)
_GETS_AT_ONCE, _BYTES_AT_ONCE = 2 * SWEEP_THREADS, 48 << 20
_WHOLE_FILE_BYTES = 16 * BLOCK_BYTES
"""A larger file is read ahead by itself when it is read; of one in order the first half of this is fetched."""
_GET_PARTS = 4 * PARTS_PER_BLOCK
_FAILURES = 16
_PAGE = 100
_DIRECTORIES = 4096
_ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")
_LISTENS_S, _EXPECTS_S = 5.0, 60.0
"""So long after a file had to be waited for, or was fetched because it follows another, all opens are of interest."""


class _Evidence(Protocol):
    """What a sweep is allowed by."""

    swept_bytes: int
    ended: bool

    def allowance(self, now: float) -> int: ...
    def at_once(self, most: int) -> int: ...


class Sweeper:
    """Told of opens and reads by the service, from its trio thread; sweeps run beside the lister's listings."""

    def __init__(
        self, catalog: Catalog, lister: Lister, fetcher: Fetcher, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalog, self._lister, self._fetcher, self._clock = catalog, lister, fetcher, clock
        self._sweeps, self._large = Sweeps(catalog.prefix), LargeFiles()
        self._in_order: InOrder[ObjectRow] = InOrder(self._following)
        self._directories: OrderedDict[bytes, int] = OrderedDict()
        self._listing: set[int] = set()
        self._moved = trio.Event()
        self._gets = self._bytes = self._failures = 0
        self._listens_until = 0.0

    def __repr__(self) -> str:
        return f"<Sweeper {self._gets} GETs under way, {self._sweeps!r}>"

    # ---- what is heard -------------------------------------------------------------------------------------
    def opened(self, row: ObjectRow, *, cold: bool) -> None:
        """Somebody opened this file; `cold` if its first bytes were not cached."""
        now = self._clock()
        if cold:
            self._listens_until = max(self._listens_until, now + _LISTENS_S)
        tree, begins = self._sweeps.opened(now, row.key, row.size)
        if tree is not None and begins:
            self._lister.start_soon(partial(self._sweep_tree, tree))
        elif tree is not None:
            tree.missed += cold
            self._wake()
        for ahead in self._in_order.opened(row, cold=cold):
            if self._worth(ahead) and self._fetcher.room_for(ahead.size):
                self._listens_until = now + _EXPECTS_S
                wanted = Wanted.of(ahead)
                parts = wanted.parts[: _WHOLE_FILE_BYTES // BLOCK_BYTES * PARTS_PER_BLOCK // 2]
                self._fetcher.start(wanted, parts, Priority.READAHEAD)

    @property
    def listens(self) -> bool:
        """Whether opens of files that are here already may tell what to fetch."""
        return self._clock() < self._listens_until

    def read(self, row: ObjectRow, offset: int, length: int) -> None:
        """Somebody read these bytes of a file of more than one block."""
        now = self._clock()
        tree = self._sweeps.tree_of(row.key)
        if tree is not None and now >= tree.last_at:
            tree.last_at = now
        file, begins = self._large.read(now, row.id, offset, length)
        if begins:
            self._lister.start_soon(partial(self._sweep_file, file, row))
        self._wake()

    def _wake(self) -> None:
        if not self._moved.is_set():
            self._moved.set()

    # ---- sweeps --------------------------------------------------------------------------------------------
    async def _sweep_tree(self, tree: Tree) -> None:
        log.info("sweeping %r: files of it are read in no order", tree.prefix)
        while not tree.ended:
            self._failures = 0
            try:
                whole = await self._sweep_once(tree)
            except (MountkitError, CatalogUnavailable) as exc:
                log.info("the sweep of %r ends: %s", tree.prefix, exc)
                self._sweeps.end(tree)
                return
            tree.missed = 0
            log.info("swept %r%s", tree.prefix, "" if whole else " as far as it can be read and kept")
            while not tree.ended and (not whole or tree.missed < BEGIN_FILES):
                await self._something()

    async def _sweep_once(self, tree: Tree) -> bool:
        """Fetches what the cache lacks of the tree; False if the cache would not keep all of it, or it fails."""
        async with aclosing(self._walk(tree.prefix)) as batches:
            async for rows in batches:
                files = [Wanted.of(row) for row in rows if row.size <= _WHOLE_FILE_BYTES and self._worth(row)]
                small = self._fetcher.lacking([file for file in files if file.row.size <= BLOCK_BYTES])
                for wanted in small + [file for file in files if file.row.size > BLOCK_BYTES]:
                    if not self._fetcher.room_for(wanted.row.size):
                        return False
                    if not await self._sweep(tree, wanted, wanted.parts):
                        return False
        return True

    async def _sweep_file(self, file: LargeFile, row: ObjectRow) -> None:
        log.info("sweeping %r: it is read here and there", row.key)
        wanted, self._failures = Wanted.of(row), 0
        for start in range(0, len(wanted.parts), _GET_PARTS):
            parts = wanted.parts[start : start + _GET_PARTS]
            if not self._fetcher.room_for(_GET_PARTS * BLOCK_BYTES // PARTS_PER_BLOCK):
                return
            if not await self._sweep(file, wanted, parts):
                return

    async def _sweep(self, evidence: _Evidence, wanted: Wanted, parts: range) -> bool:
        """Starts the fetches these parts need once that is allowed; False when the sweep has ended."""
        expected = min(wanted.row.size, len(parts) * BLOCK_BYTES // PARTS_PER_BLOCK)
        small = wanted.row.size <= BLOCK_BYTES
        if not small and not self._fetcher.lacking_bytes(wanted, parts):
            return True
        while not self._may_fetch(evidence, expected):
            await self._something()
        if evidence.ended or self._failures >= _FAILURES:
            return False
        sizes = self._fetcher.sweep(wanted, parts, self._ended(expected), known_missing=small)
        self._gets += len(sizes)
        self._bytes += len(sizes) * expected
        evidence.swept_bytes += sum(sizes)
        return True

    def _may_fetch(self, evidence: _Evidence, expected: int) -> bool:
        """Whether it is time for a fetch, or for the sweep to end."""
        if evidence.ended or self._failures >= _FAILURES:
            return True
        if self._gets >= evidence.at_once(_GETS_AT_ONCE) or self._bytes >= _BYTES_AT_ONCE:
            return False
        return evidence.allowance(self._clock()) >= expected

    def _ended(self, held: int) -> Callable[[MountkitError | None], None]:
        def ended(error: MountkitError | None) -> None:
            self._gets -= 1
            self._bytes -= held
            if error is None:
                self._failures = 0
            elif not isinstance(error, ObjectChanged | ObjectMissing):
                self._failures += 1
            self._wake()

        return ended

    async def _something(self) -> None:
        """Waits until something was opened or has arrived."""
        if self._moved.is_set():
            self._moved = trio.Event()
        await self._moved.wait()

    # ---- the tree ------------------------------------------------------------------------------------------
    async def _walk(self, prefix: bytes) -> AsyncGenerator[list[ObjectRow], None]:
        """Every file below the prefix in the order of the listing, in batches; lists what was never listed."""
        top = self._directory(prefix)
        below = [top] if top is not None else []
        while below:
            directory = below.pop()
            await self._lister.list_whole(directory, 0.0)
            children: list[int] = []
            cookie = 0
            while True:
                try:
                    page = self._catalog.page(directory, cookie, _PAGE, 0.0)
                except (KeyError, StaleCookie):
                    break  # it changed meanwhile; what is new there is fetched when it is asked for
                if not page.entries:
                    break
                cookie = page.entries[-1].cookie
                children += [entry.inode for entry in page.entries if entry.kind is Kind.DIRECTORY]
                yield [entry.object for entry in page.entries if entry.object is not None]
                await trio.lowlevel.checkpoint()
            below += reversed(children)

    def _following(self, row: ObjectRow, count: int) -> list[ObjectRow]:
        """Files after this one in its directory, then the first of the next directory, as far as they are listed."""
        directory = self._directory(row.key[: row.key.rfind(b"/") + 1])
        if directory is None:
            return []
        try:
            page = self._catalog.page(directory, row.id, count, 0.0)
            found = [entry.object for entry in page.entries if entry.object is not None]
            if len(found) < count and page.done and (after := self._next_directory(directory)) is not None:
                page = self._catalog.page(after, 0, count - len(found), 0.0)
                found += [entry.object for entry in page.entries if entry.object is not None]
                if not page.entries and not page.done and after not in self._listing:
                    self._listing.add(after)
                    self._lister.start_soon(partial(self._list, after))
        except (KeyError, StaleCookie, CatalogUnavailable):
            return []
        return found

    def _next_directory(self, directory: int) -> int | None:
        parent = self._catalog.parent_of(directory)
        if parent is None or parent == directory:
            return None
        page = self._catalog.page(parent, directory, 1, 0.0)
        return next((entry.inode for entry in page.entries if entry.kind is Kind.DIRECTORY), None)

    async def _list(self, directory: int) -> None:
        try:
            await self._lister.list_whole(directory, 0.0)
        except MountkitError as exc:
            log.debug("the next directory cannot be listed: %s", exc)
        finally:
            self._listing.discard(directory)

    def _directory(self, prefix: bytes) -> int | None:
        """The directory with this prefix, if the catalog has it."""
        found = self._directories.get(prefix)
        if found is not None:
            return found
        current: int = self._catalog.root
        for name in prefix[len(self._catalog.prefix) :].split(names.SEPARATOR)[:-1]:
            known = self._catalog.lookup(current, name)
            if known is None or known.kind is not Kind.DIRECTORY or known.inode is None:
                return None
            current = known.inode
        self._directories[prefix] = current
        if len(self._directories) > _DIRECTORIES:
            self._directories.popitem(last=False)
        return current

    def _worth(self, row: ObjectRow) -> bool:
        return row.size > 0 and row.superseded_at is None and row.storage_class not in _ARCHIVED
