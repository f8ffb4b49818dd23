"""The underlay of a writable mount: what the bucket has under the overlay's directories, as the catalog knows it.

A directory of the overlay is a node with a path of its own; which directory of the catalog lies under it, if any, is
found here. What is not known freshly enough is asked for (see `asking`). Knows no FUSE and no network.
"""

from __future__ import annotations

import errno
import time

from mountkit.catalog.values import SEALED_BIT, CatalogUnavailable, Kind, Known, ObjectRow
from mountkit.catalog.view import CatalogView
from mountkit.serve.asking import Asking, MustAsk
from mountkit.serve.input_names import InputNames
from mountkit.serve.values import ROOT, FileSystemError, NotNow, Presentation
from mountkit.staging.tree import ROOT_NODE, Node, Tree


class Underlay:
    """What the overlay covers, or lets through. All methods belong to one trio thread."""

    def __init__(self, tree: Tree, bucket: InputNames, view: CatalogView, show: Presentation, asking: Asking) -> None:
        self._tree, self._bucket, self._view, self._show, self._asking = tree, bucket, view, show, asking
        self.prefix = view.prefix
        """What all keys of the mount begin with."""
        self._catalog_ids: dict[int, int] = {}
        self._root = 0

    def consults(self, directory: Node) -> bool:
        """Whether the bucket may have names in a directory that the overlay does not know."""
        return directory.made_at is None or time.time() - directory.made_at >= self._show.ttl_s

    def catalog_id(self, directory: Node) -> int | None:
        """The catalog's number of a directory; None where the bucket has no such directory. Raises MustAsk, NotNow."""
        root = self._bucket.directory_id(ROOT)
        if directory.id == ROOT_NODE:
            return root
        if root != self._root:  # a catalog that was begun anew has other numbers for all
            self._catalog_ids.clear()
            self._root = root
        found = self._catalog_ids.get(directory.id)
        if found is not None:
            return found
        entry = self._tree.entry_of(directory.id)
        above = self._tree.node(entry.parent) if entry else None
        if entry is None or above is None:
            return None
        known, _ = self.known(above, entry.name, or_nothing=directory.made_at is not None)
        if known is None or known.kind is not Kind.DIRECTORY or known.inode is None:
            return None
        self._catalog_ids[directory.id] = known.inode
        return known.inode

    def is_known_by(self, node: Node) -> bool:
        """Whether the catalog shows a clean file as it is, so that nothing is lost when it is dropped."""
        entry = self._tree.entry_of(node.id)
        directory = self._tree.node(entry.parent) if entry else None
        if entry is None or directory is None:
            return True
        known = self.known_now(directory, entry.name)
        return known is not None and known.object is not None and known.object.etag == node.etag

    def forget_catalog_ids(self) -> None:
        """After a directory was moved."""
        self._catalog_ids.clear()

    def known_now(self, directory: Node, name: bytes) -> Known | None:
        """What the catalog has, however old."""
        try:
            above = self.catalog_id(directory)
            return None if above is None else self._view.lookup(above, name)
        except (CatalogUnavailable, NotNow, MustAsk):
            return None

    def known(self, directory: Node, name: bytes, *, or_nothing: bool = False) -> tuple[Known | None, float]:
        """What the bucket has under a name, and for how long that holds; None: nothing, for want of the directory.

        With `or_nothing` None also where the bucket cannot be asked. Raises MustAsk, FileSystemError.
        """
        ttl = self._show.ttl_s
        if not self.consults(directory):
            return None, ttl
        above = self.catalog_id(directory)
        if above is None:
            return None, ttl
        try:
            known = self._view.lookup(above, name)
        except CatalogUnavailable:
            self._bucket.doubts.note()
            known = None
        now = time.time()
        if known is not None and known.as_of >= now - ttl:
            return known, max(0.0, min(ttl, known.as_of + ttl - now))
        excused = or_nothing or directory.made_at is not None
        self._asking.need(("name", above, name), lambda: self._ask(above, name, excused=excused))
        if known is None and not excused:
            raise FileSystemError(errno.EIO)
        return known, 0.0

    def row(self, object_id: int | None) -> ObjectRow | None:
        """The object version of that number, if the catalog can say."""
        try:
            return None if object_id is None else self._view.object(object_id & ~SEALED_BIT)
        except CatalogUnavailable:
            self._bucket.doubts.note()
            return None

    async def _ask(self, above: int, name: bytes, *, excused: bool) -> None:
        try:
            await self._bucket.lookup(above, name)
        except FileSystemError:
            if not excused:
                raise
