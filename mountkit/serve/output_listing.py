"""Listings of a writable mount: readdir over the overlay and what lies under it. Knows no FUSE and no network.

First come the overlay's own entries in the order they were made, then the catalog's, less what was shown or is hidden.
What is not known freshly enough raises MustAsk (see `asking`).
"""

from __future__ import annotations

import errno
import functools
import stat
import sys
import time
from typing import NamedTuple

from mountkit import names
from mountkit.catalog.values import Kind
from mountkit.serve.input_listing import InputListing
from mountkit.serve.messages import Attributes
from mountkit.serve.output_names import Names, Place, changed_here
from mountkit.serve.values import DirectoryEntry, FileSystemError, Presentation
from mountkit.staging.tree import ROOT_NODE, Entry, Node, NodeKind, Tree

LISTED_BIT = 1 << 62
"""Set in the readdir cookie of an entry of the overlay; the catalog's cookies are smaller."""
_PAGE = 512


class Reading(NamedTuple):
    """A readdir under way: entries above `mark` came later, `started` is when."""

    mark: int
    started: float


class OutputListing:
    """Lists what the mount shows."""

    def __init__(self, names: Names, tree: Tree, bucket: InputListing, show: Presentation) -> None:
        self._names, self._tree, self._bucket, self._show = names, tree, bucket, show
        self._asking, self._underlay = names.asking, names.underlay
        self._readings: dict[int, Reading] = {}
        """What is open in each directory, by handle."""

    def open_directory(self, handle: int) -> None:
        """A program starts to read a directory, under this number."""
        self._readings[handle] = Reading(self._tree.newest_entry(), time.time())

    def close_directory(self, handle: int) -> None:
        self._readings.pop(handle, None)

    def entries(self, directory: Node, handle: int, cookie: int) -> list[DirectoryEntry]:
        """Entries after `cookie`, the empty list at the end. Raises MustAsk, FileSystemError.

        First the overlay's in the order they were made, then the catalog's, less what the overlay has shown or hides.
        """
        if cookie == 0 and handle in self._readings:
            self.open_directory(handle)  # rewinddir
        reading = self._readings.get(handle) or Reading((1 << 62) - 1, 0.0)
        consults = self._underlay.consults(directory)
        if cookie == 0 or cookie & LISTED_BIT:
            after = cookie & ~LISTED_BIT
            while True:
                stretch = self._tree.children(directory.id, after, _PAGE)
                shown = [self._listed(e, n) for e, n in stretch if n and self._is_first(e, n, reading, consults)]
                if shown:
                    return shown
                if len(stretch) < _PAGE:
                    break
                after = stretch[-1][0].id
            cookie = 0
        return self._bucket_entries(directory, reading, cookie) if consults else []

    def names(self, directory: Node, limit: int = sys.maxsize) -> list[bytes]:
        """The names in a directory, at least `limit` of them where there are so many. Raises MustAsk."""
        handle, cookie = -time.time_ns(), 0
        found: list[bytes] = []
        self.open_directory(handle)
        try:
            while len(found) < limit and (page := self.entries(directory, handle, cookie)):
                found += [entry.name for entry in page]
                cookie = page[-1].cookie
        finally:
            self.close_directory(handle)
        return found

    def is_empty(self, directory: Node) -> bool:
        """Whether a directory has no names. Raises MustAsk."""
        if any(child is not None and not child.derived for _, child in self._tree.children(directory.id)):
            return False
        return not self.names(directory, limit=1)

    def _is_first(self, entry: Entry, node: Node, reading: Reading, consults: bool) -> bool:
        """Whether an entry is listed with the overlay's own, not where the catalog has its name."""
        if entry.id > reading.mark or (entry.parent == ROOT_NODE and entry.name == names.RUNS):
            return False
        if not consults:
            return True
        if node.kind == NodeKind.DIRECTORY:
            return not node.derived
        return node.seq is not None or node.done_at is None or node.done_at > reading.started - self._show.ttl_s

    def _listed(self, entry: Entry, node: Node) -> DirectoryEntry:
        cookie = LISTED_BIT | entry.id
        row = self._underlay.row(node.object) if node.kind == NodeKind.OBJECT else None
        if node.kind == NodeKind.OBJECT and row is None:
            return DirectoryEntry(entry.name, cookie, _bare(node), -1.0)
        place = Place(entry.parent, entry.name, entry, node, row, self._show.ttl_s)
        shown, entry_s, attributes_s = self._names.shown_at(place)
        return DirectoryEntry(entry.name, cookie, shown, min(entry_s, attributes_s))

    def _bucket_entries(self, directory: Node, reading: Reading, cookie: int) -> list[DirectoryEntry]:
        above = self._underlay.catalog_id(directory)
        if above is None:
            return []
        fresh_after = self._show.fresh_after(reading.started or time.time())
        while True:
            page = self._bucket.entries_now(above, cookie, fresh_after=fresh_after)
            if page is None:
                ask = functools.partial(self._bucket.entries, above, cookie, fresh_after=fresh_after)
                self._asking.need(("list", above, cookie), ask)
                fresh_after = 0.0
                page = self._bucket.entries_now(above, cookie, fresh_after=fresh_after)
                if page is None:
                    raise FileSystemError(errno.EIO)
            if not page:
                return []
            found = [shown for e in page if (shown := self._merged(directory, reading, e)) is not None]
            if found:
                return found
            cookie = page[-1].cookie

    def _merged(self, directory: Node, reading: Reading, listed: DirectoryEntry) -> DirectoryEntry | None:
        """A name the catalog lists, as the overlay lets it show; None where it was listed already, or is hidden."""
        is_directory = stat.S_ISDIR(listed.attributes.mode)
        found = self._tree.find(directory.id, listed.name)
        if found is None:
            kind = Kind.DIRECTORY if is_directory else Kind.FILE
            if self._names.is_being_deleted(directory, listed.name, kind):
                return None
            return self._as_listed(listed, self._names.derive(directory, listed.name)) if is_directory else listed
        entry, node = found
        if node is None:
            if entry.since is None:
                return None
            place = self._names.gone_or_back(directory, listed.name, entry)
            if not place.exists or place.is_directory is not is_directory:
                return None
            return self._as_listed(listed, place.node) if place.node else listed
        if entry.id <= reading.mark and self._is_first(entry, node, reading, True):
            return None
        if node.kind == NodeKind.OBJECT:
            return DirectoryEntry(listed.name, listed.cookie, changed_here(listed.attributes, node), listed.timeout_s)
        return self._as_listed(listed, node)

    def _as_listed(self, listed: DirectoryEntry, node: Node) -> DirectoryEntry:
        """A node under a name where the catalog lists it."""
        shown, _ = self._names.shown(node)
        return DirectoryEntry(listed.name, listed.cookie, shown, listed.timeout_s)


def _bare(node: Node) -> Attributes:
    return Attributes(node.inode, node.mode, node.size, max(0, node.mtime_ns), 1, node.uid, node.gid)
