"""Listing ahead: directories that a walk will enter are listed before it does, many at once.

A walk asks for one directory after the other, and each costs a round trip; `walks` finds out that one is going on and
how far ahead to look. Listings ahead never occupy all of the lister's requests, and a failure concerns nobody.
"""

from __future__ import annotations

import logging
from functools import partial

import trio

from mountkit.catalog.lister import Lister
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import CatalogUnavailable
from mountkit.errors import MountkitError
from mountkit.mover.walks import Walk, Walks

log = logging.getLogger(__name__)
_AT_ONCE = 32


class ListingAhead:
    """Told of the directories that are read by the service, from its trio thread."""

    def __init__(self, catalog: Catalog, lister: Lister) -> None:
        self._catalog, self._lister = catalog, lister
        self._walks = Walks(catalog.next_directory)
        self._limiter = trio.CapacityLimiter(_AT_ONCE)
        self._under_way: set[int] = set()

    def __repr__(self) -> str:
        return f"<ListingAhead {len(self._under_way)} directories>"

    def entered(self, directory: int, fresh_after: float) -> None:
        """Somebody begins to read this directory, to whom a listing from before `fresh_after` is too old."""
        try:
            found = self._catalog.directory(directory)
            if found is not None and not found.hidden:
                walk = self._walks.entered(found.prefix)
                if walk is not None:
                    self._look_ahead(walk, fresh_after)
        except CatalogUnavailable as exc:
            log.debug("nothing can be listed ahead: %s", exc)

    def _look_ahead(self, walk: Walk, fresh_after: float) -> None:
        for ident, listed_at in self._catalog.directories_after(walk.last, walk.top, walk.window):
            if (listed_at is None or listed_at < fresh_after) and ident not in self._under_way:
                self._under_way.add(ident)
                self._lister.start_soon(partial(self._list, ident, fresh_after, walk))

    async def _list(self, directory: int, fresh_after: float, walk: Walk) -> None:
        try:
            async with self._limiter:
                await self._lister.list_whole(directory, fresh_after)
        except (MountkitError, CatalogUnavailable) as exc:
            log.debug("a directory cannot be listed ahead: %s", exc)
            return
        finally:
            self._under_way.discard(directory)
        if not self._under_way:
            self._look_ahead(walk, fresh_after)  # what lies below those that were listed is known now
