"""Listings of the read-only file system: readdir over the catalog. Knows no FUSE and no network.

Each question comes in two forms. `…_now` answers at once from what is on this machine, or returns None; the async form
has the mover advance the listing and then answers. A readdir names how fresh its listing must be (`fresh_after`), the
same for all its pages; its cookies are the catalog's and hold over servers.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import time
from collections import OrderedDict
from typing import Protocol, TypeVar

import trio

from mountkit.catalog.values import CatalogUnavailable, DirectoryPage, StaleCookie
from mountkit.catalog.values import DirectoryEntry as NamedEntry
from mountkit.catalog.view import CatalogView
from mountkit.serve.doubts import AGAIN_S
from mountkit.serve.input_names import InputNames
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.values import DirectoryEntry, FileSystemError, NotNow, Presentation

T = TypeVar("T")
_LISTED_TIMEOUT_S = 60.0
"""How long the kernel may keep the way to a listed file that may soon be sealed (see `input_names`): who lists a
directory with attributes wants those of all files at hand, and may not open any."""
_FIRST_PAGE, _PAGE, _NAMES = 64, 512, 2048
"""The first page is asked for with attributes always, the others only where somebody wants them."""
_FILLED = 8192
_ATTEMPTS = 4


class _Now(Protocol[T]):
    def __call__(self, inode: int, cookie: int, *, fresh_after: float) -> list[T] | None: ...


class InputListing:
    """Lists what the bucket has. All methods belong to one trio thread."""

    def __init__(self, names: InputNames, view: CatalogView, mover: MoverLink, show: Presentation) -> None:
        self._names, self._view, self._mover, self._show = names, view, mover, show
        self._filled: OrderedDict[int, float] = OrderedDict()
        """Of which listing the names are that the kernel keeps of a directory."""

    def open_directory(self, inode: int) -> bool:
        """Whether the names the kernel keeps of the directory are those of the listing that is valid now.

        They are if no listing was finished since they were asked for under an earlier `open_directory`. Each server
        answers from its own memory, which is enough: what another let the kernel fill in between is no older. The mover
        hears of it, a moment later, as it lists ahead of walks. Raises FileSystemError.
        """
        ident = self._names.directory_id(inode)
        try:
            directory = self._view.directory(ident)
        except CatalogUnavailable:
            raise self._names.doubts.not_now() from None
        if directory is None:
            raise FileSystemError(errno.ESTALE)
        self._mover.note_entered(ident)
        listed_at = directory.listed_at
        if not listed_at or directory.hidden or listed_at < self.fresh_after():
            self._filled.pop(ident, None)
            return False
        kept = self._filled.get(ident) == listed_at
        self._filled[ident] = listed_at
        if len(self._filled) > _FILLED:
            self._filled.popitem(last=False)
        return kept

    def names_now(self, inode: int, cookie: int, *, fresh_after: float) -> list[NamedEntry] | None:
        """As entries_now, without attributes."""
        page = self._page(inode, cookie, _NAMES, fresh_after, objects=False)
        if page is None or not (page.entries or page.done):
            return None
        return page.entries

    async def names(self, inode: int, cookie: int, *, fresh_after: float) -> list[NamedEntry]:
        """As names_now, waiting for the listing to advance. Raises FileSystemError."""
        return await self._waited_for(self.names_now, inode, cookie, fresh_after)

    def entries_now(self, inode: int, cookie: int, *, fresh_after: float) -> list[DirectoryEntry] | None:
        """Entries after `cookie`, the empty list at the end; None if the listing has to advance first."""
        now = time.time()
        page = self._page(inode, cookie, _PAGE if cookie else _FIRST_PAGE, fresh_after, objects=True)
        if page is None:
            return None
        if not page.entries:
            return [] if page.done else None
        timeout = max(0.0, min(self._show.ttl_s, page.as_of + self._show.ttl_s - now))
        unsealed = min(timeout, _LISTED_TIMEOUT_S) if self._names.shows_sealed else timeout
        sealed = self._names.sealed_among([e.object for e in page.entries if e.object is not None])
        result = []
        for e in page.entries:
            if e.object is None:
                result.append(DirectoryEntry(e.name, e.cookie, self._names.directory_attributes(e.inode), timeout))
            else:
                is_sealed = e.inode in sealed
                shown = self._names.file_attributes(e.object, sealed=is_sealed)
                result.append(DirectoryEntry(e.name, e.cookie, shown, timeout if is_sealed else unsealed))
        return result

    async def entries(self, inode: int, cookie: int, *, fresh_after: float) -> list[DirectoryEntry]:
        """As entries_now, waiting for the listing to advance. Raises FileSystemError."""
        return await self._waited_for(self.entries_now, inode, cookie, fresh_after)

    def fresh_after(self) -> float:
        """The oldest listing a readdir that starts now may show."""
        return self._show.fresh_after(time.time())

    def _page(self, inode: int, cookie: int, limit: int, fresh_after: float, *, objects: bool) -> DirectoryPage | None:
        try:
            return self._view.page(self._names.directory_id(inode), cookie, limit, fresh_after, objects=objects)
        except (CatalogUnavailable, NotNow):
            self._names.doubts.note()
            return None
        except (StaleCookie, KeyError):
            raise FileSystemError(errno.ESTALE) from None

    async def _waited_for(self, now: _Now[T], inode: int, cookie: int, fresh_after: float) -> list[T]:
        with trio.move_on_after(self._show.metadata_budget_s):
            for attempt in itertools.count():
                if attempt >= _ATTEMPTS:
                    await trio.sleep(AGAIN_S)  # the catalog is being begun anew
                with contextlib.suppress(NotNow):
                    ident = self._names.directory_id(inode)
                    answer = await self._names.ask("list", directory=ident, cookie=cookie, fresh=fresh_after)
                    if answer.body.get("stale"):
                        fresh_after = 0.0
                    found = now(inode, cookie, fresh_after=fresh_after)
                    if found is not None:
                        return found
        if self._show.ttl_s:  # what is known outlasts a bucket, and a mover, that is late
            found = now(inode, cookie, fresh_after=0.0)
            if found is not None:
                return found
        raise FileSystemError(errno.EIO)
