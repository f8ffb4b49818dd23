"""The overlay of a writable mount: its nodes and names, their staged bytes, and what the bucket shall become of them.

Holds what every change needs, and the steps that several kinds of change have in common. A change is one turn on what
this machine knows, inside one transaction of the journal; it raises MustAsk (see `asking`) where the bucket has to be
asked first, before it has changed anything. What the bucket shall become is queued in the same transaction
(`staging.publishing`). Knows no FUSE and no network.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import trio

from mountkit.catalog.view import CatalogView
from mountkit.config import OutputSettings
from mountkit.errors import MountkitError
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.output_listing import OutputListing
from mountkit.serve.output_names import Names, Place
from mountkit.serve.values import FileSystemError, Presentation
from mountkit.staging.files import StagingFiles
from mountkit.staging.journal import Journal
from mountkit.staging.publishing import Publisher
from mountkit.staging.tree import ROOT_NODE, Node, NodeKind

_TICK_NS = 4_000_000
STAGE_S = 7 * 86400.0
"""Budget of what takes as long as it takes: the mover gives up by itself when the bucket does not answer."""


class Overlay:
    """One writable mount's. All methods belong to one trio thread."""

    def __init__(
        self,
        journal: Journal,
        staging: StagingFiles,
        bucket: InputFileSystem,
        view: CatalogView,
        mover: MoverLink,
        show: Presentation,
        settings: OutputSettings,
    ) -> None:
        self.journal, self.tree, self.staging = journal, journal.tree, staging
        self.names = Names(journal, staging, bucket.names, view, show)
        self.listing = OutputListing(self.names, journal.tree, bucket.listing, show)
        self.publisher = Publisher(journal, staging, view.prefix, clobber=settings.clobber)
        self.show, self.settings = show, settings
        self.used_bytes = 0
        """What staging takes on the disk, as upkeep last saw it, and what was written through us since."""
        self._mover = mover

    # ---- nodes ---------------------------------------------------------------------------------------------
    def become_object(self, node: Node) -> None:
        """A clean file's bytes are dropped; its dates and attributes stay known while the bucket has that object."""
        assert node.file is not None
        key = self.publisher.key_of(node.id)
        self.tree.change(
            node.id,
            kind=int(NodeKind.OBJECT),
            file=None,
            mtime_ns=node.put_mtime_ns,
            size=node.put_size,
            source_key=key,
            source_etag=node.etag,
            object=None,
        )
        self.journal.forget_file(node.file)
        self.staging.remove(node.file)

    def fresh(self, ident: int) -> Node:
        """The node as it is now."""
        node = self.tree.node(ident)
        assert node is not None
        return node

    def object_node(self, place: Place) -> Node:
        """The node of an object that is to have another name or other attributes than in the bucket."""
        row = place.row
        assert row is not None
        shown, _, _ = self.names.shown_at(place)
        ident = self.tree.add(
            NodeKind.OBJECT,
            mode=shown.mode,
            uid=shown.uid,
            gid=shown.gid,
            size=row.size,
            mtime_ns=row.mtime_ns,
            object=row.id,
            source_key=row.key,
            source_etag=row.etag,
            in_bucket=1,
        )
        return self.fresh(ident)

    def touch(self, directory: Node, *, thinned: bool = False) -> None:
        """Something in a directory was changed: its mtime, and whether it needs a marker."""
        if not thinned and directory.seq is not None:
            self.publisher.needs_no_marker(directory)
        now_ns = time.time_ns()
        # A local file system's times are no finer; many files made at once need not each write the directory's row.
        if directory.thinned != thinned or not 0 <= now_ns - directory.mtime_ns < _TICK_NS:
            self.tree.change(directory.id, mtime_ns=now_ns, thinned=int(thinned))
        self.make_explicit(directory)

    def make_explicit(self, directory: Node) -> None:
        """The directory stays, whatever becomes of it in the bucket, and so do those above it."""
        while directory.derived and directory.id != ROOT_NODE:
            self.tree.change(directory.id, derived=0)
            entry = self.tree.entry_of(directory.id)
            if entry is None:
                return
            directory = self.fresh(entry.parent)

    # ---- what is under a name ------------------------------------------------------------------------------
    def vacate(self, place: Place) -> bool:
        """Takes away what is under a name. Whether the bucket has, or may get, an object there."""
        node = place.node
        if node is None:
            return place.row is not None
        in_bucket = self.publisher.detach(node)
        self.tree.change(node.id, names=0, seq=None)
        return in_bucket

    def leave(self, directory: Node, name: bytes, key: bytes) -> None:
        """Nothing is under a name any more that the bucket never had."""
        under_way = self.journal.open_of_key(key)
        if under_way:
            self.tree.put(directory.id, name, None, seq=under_way[-1].seq)
        elif directory.made_at is not None:
            self.tree.forget(directory.id, name)
        else:
            self.tree.put(directory.id, name, None)
            self.mark_gone(directory, name)

    def mark_gone(self, directory: Node, name: bytes) -> None:
        """From now on the bucket may say that the name is there again."""
        self.journal.db.execute(
            "UPDATE entry SET since = ? WHERE parent = ? AND name = ?", (time.time(), directory.id, name)
        )

    # ---- room, and the mover -------------------------------------------------------------------------------
    def check_room(self) -> None:
        """Raises FileSystemError where nothing more may be staged."""
        if self.used_bytes >= self.settings.staging_size_bytes:
            raise FileSystemError(errno.ENOSPC)

    def free_bytes(self) -> int:
        """How much more may be staged."""
        disk = os.statvfs(self.staging.directory_fd)
        return max(0, min(self.settings.staging_size_bytes - self.used_bytes, disk.f_bavail * disk.f_frsize))

    async def call(self, op: str, *, budget_s: float, **arguments: object) -> dict[str, Any]:
        """The mover's answer. Raises FileSystemError."""
        try:
            with trio.fail_after(budget_s):
                return (await self._mover.call(op, budget_s=budget_s, **arguments)).body
        except MountkitError as exc:
            raise FileSystemError(exc.errno) from exc
