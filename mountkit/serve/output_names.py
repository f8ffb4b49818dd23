"""Names and inodes of a writable mount: the overlay over the catalog, read side. Knows no FUSE and no network.

All questions are answered from this machine at once; what is not known freshly enough raises MustAsk (see `asking`).
An entry of the overlay wins over the catalog until the bucket was heard of later than the overlay was done with it;
then the entry goes, in whatever turn finds that out.
"""

from __future__ import annotations

import errno
import stat
import time
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from mountkit import names
from mountkit.catalog.values import SEALED_BIT, Kind, ObjectRow
from mountkit.catalog.view import CatalogView
from mountkit.serve.asking import Asking
from mountkit.serve.input_names import InputNames
from mountkit.serve.messages import Attributes
from mountkit.serve.underlay import Underlay
from mountkit.serve.values import ROOT, FileSystemError, Presentation
from mountkit.staging.files import StagingFiles
from mountkit.staging.journal import Journal
from mountkit.staging.schema import OperationKind
from mountkit.staging.tree import NODE_BIT, ROOT_NODE, Entry, Node, NodeKind

KEY_MAX = 1024
_WRITTEN_S = 1.0
"""How long the kernel may keep the times of a file that is open for writing: of writes through a mapping, which change
them, it tells nobody. Sizes it knows best."""


class Place(NamedTuple):
    """What a name leads to: a node of the overlay, else an object of the bucket, else nothing."""

    parent: int
    name: bytes
    entry: Entry | None
    node: Node | None
    row: ObjectRow | None
    timeout_s: float

    @property
    def exists(self) -> bool:
        return self.node is not None or self.row is not None

    @property
    def is_directory(self) -> bool:
        return self.node is not None and self.node.kind == NodeKind.DIRECTORY


class Names:
    """Looks up and describes what the mount shows. All methods belong to one trio thread."""

    def __init__(
        self, journal: Journal, files: StagingFiles, bucket: InputNames, view: CatalogView, show: Presentation
    ) -> None:
        self.asking = Asking()
        self.underlay = Underlay(journal.tree, bucket, view, show, self.asking)
        self._journal, self._tree, self._files, self._bucket, self._show = journal, journal.tree, files, bucket, show
        self._directory_mode = stat.S_IFDIR | (0o755 & ~show.umask)

    def transaction(self) -> AbstractContextManager[object]:
        """A transaction, or the one that is open."""
        return nullcontext() if self._journal.db.in_transaction else self._journal.transaction()

    # ---- inodes --------------------------------------------------------------------------------------------
    def node(self, inode: int) -> Node | None:
        """The node an inode number stands for; None for those of the bucket. Raises FileSystemError on a lost one."""
        if inode == ROOT:
            ident = ROOT_NODE
        elif inode & NODE_BIT:
            ident = inode & ~NODE_BIT
        else:
            return None
        found = self._tree.node(ident)
        if found is None:
            raise FileSystemError(errno.ESTALE)
        return found

    def directory(self, inode: int) -> Node:
        """The directory something shall be changed in. Raises FileSystemError."""
        found = self.node(inode)
        if found is None:  # below .mountkit
            raise FileSystemError(errno.EPERM)
        if found.kind != NodeKind.DIRECTORY:
            raise FileSystemError(errno.ENOTDIR)
        if not found.names:
            raise FileSystemError(errno.ENOENT)
        return found

    def attributes(self, inode: int) -> tuple[Attributes, float]:
        """Attributes of an inode and for how long they hold. Raises FileSystemError."""
        node = self.node(inode)
        if node is not None:
            return self.shown(node)
        overridden = self._tree.of_object(inode & ~SEALED_BIT)
        found, timeout = self._bucket.attributes_now(inode)
        if overridden is not None:
            found = changed_here(found, overridden)
        return found, min(timeout, self._show.ttl_s)

    def shown(self, node: Node) -> tuple[Attributes, float]:
        """What stat shows of a node that is no object, and for how long."""
        size, mtime_ns, timeout, links = node.size, node.mtime_ns, self._show.ttl_s, 1 if node.names else 0
        if node.kind == NodeKind.FILE:
            assert node.file is not None
            try:
                status = self._files.status(node.file)
            except FileNotFoundError:
                raise FileSystemError(errno.EIO) from None
            size, mtime_ns = status.st_size, status.st_mtime_ns
            if self._tree.has_writers(node.id):
                timeout = min(timeout, _WRITTEN_S)
        elif node.kind == NodeKind.DIRECTORY:
            size, links = 4096, 2 * links
        return Attributes(node.inode, node.mode, size, max(0, mtime_ns), links, node.uid, node.gid), timeout

    def shown_at(self, place: Place) -> tuple[Attributes, float, float]:
        """Attributes of what a name leads to, for how long the name and for how long the attributes hold."""
        node, row = place.node, place.row
        if row is not None:
            found = self._bucket.found_of(row, place.timeout_s)
            assert found.attributes is not None
            shown = found.attributes if node is None else changed_here(found.attributes, node)
            return shown, found.timeout_s, self._show.ttl_s
        assert node is not None
        shown, timeout = self.shown(node)
        return shown, place.timeout_s, min(timeout, self._show.ttl_s)

    # ---- one name ------------------------------------------------------------------------------------------
    def lookup(self, parent: int, name: bytes) -> Place:
        """What a name in a directory leads to. Raises FileSystemError, MustAsk."""
        if len(name) > names.NAME_MAX:
            raise FileSystemError(errno.ENAMETOOLONG)
        directory = self.node(parent)
        assert directory is not None, "the bucket's own directories are looked up there"
        if directory.kind != NodeKind.DIRECTORY:
            raise FileSystemError(errno.ENOTDIR)
        return self.find(directory, name)

    def is_hidden(self, parent: int, name: bytes) -> bool:
        """Whether the name is looked up in the bucket alone: `.mountkit` and what is below it."""
        return not (parent == ROOT or parent & NODE_BIT) or (parent == ROOT and name == names.HIDDEN)

    def find(self, directory: Node, name: bytes) -> Place:
        """What a name leads to, as fresh as the TTL asks."""
        found = self._tree.find(directory.id, name)
        entry, node = found or (None, None)
        if entry is not None and node is None:
            return self.gone_or_back(directory, name, entry)
        if entry is not None and node is not None:
            if node.kind == NodeKind.OBJECT:
                return self._object_place(directory, entry, node)
            if node.kind == NodeKind.DIRECTORY:
                if node.derived and node.id != ROOT_NODE:
                    return self._derived_place(directory, entry, node)
            elif not self._is_ours(directory, entry, node):
                self.drop(entry, node)
                return self._in_bucket(directory, name, None)
            return Place(directory.id, name, entry, node, None, self._show.ttl_s)
        return self._in_bucket(directory, name, None)

    def gone_or_back(self, directory: Node, name: bytes, entry: Entry) -> Place:
        """A name that was removed here: absent until the bucket was heard of later than it was removed there."""
        absent = Place(directory.id, name, entry, None, None, self._show.ttl_s)
        if entry.since is None:
            return absent
        if time.time() - entry.since < self._show.ttl_s:
            known = self.underlay.known_now(directory, name)
            if known is None or known.as_of <= entry.since:
                return absent
        return self._in_bucket(directory, name, entry)

    def _derived_place(self, directory: Node, entry: Entry, node: Node) -> Place:
        known, timeout = self.underlay.known(directory, entry.name)
        if known is not None and known.kind is Kind.DIRECTORY:
            return Place(directory.id, entry.name, entry, node, None, timeout)
        with self.transaction():
            self._tree.forget(directory.id, entry.name)
        return self._in_bucket(directory, entry.name, None)

    def _object_place(self, directory: Node, entry: Entry, node: Node) -> Place:
        """An object under another name, or with other attributes, than the bucket shows."""
        if node.seq is not None:
            row = self.underlay.row(node.object)
            if row is None:
                raise FileSystemError(errno.EIO)
            return Place(directory.id, entry.name, entry, node, row, self._show.ttl_s)
        known, timeout = self.underlay.known(directory, entry.name)
        row = known.object if known else None
        if row is None or row.etag != node.etag:
            if known is not None and node.done_at is not None and known.as_of > node.done_at:
                self.drop(entry, node)
                return self._in_bucket(directory, entry.name, None)
            row = self.underlay.row(node.object)
            if row is None:
                raise FileSystemError(errno.ESTALE)
        if node.object != row.id:
            with self.transaction():
                self._tree.change(node.id, object=row.id)
        return Place(directory.id, entry.name, entry, node, row, timeout)

    def _is_ours(self, directory: Node, entry: Entry, node: Node) -> bool:
        """Whether a staged file is still what the bucket has under its name, or will have."""
        if node.seq is not None or node.done_at is None or time.time() - node.done_at < self._show.ttl_s:
            return True
        if self._tree.handles(node.id) or not self.underlay.consults(directory):
            return True
        known, _ = self.underlay.known(directory, entry.name, or_nothing=True)
        if known is None or known.as_of <= node.done_at:
            return True
        return known.object is not None and known.object.etag == node.etag

    def drop(self, entry: Entry, node: Node) -> None:
        """The overlay says nothing more of this name: the bucket's word counts."""
        with self.transaction():
            self._tree.forget(entry.parent, entry.name)
            self._tree.change(node.id, names=0)

    def _in_bucket(self, directory: Node, name: bytes, entry: Entry | None) -> Place:
        known, timeout = self.underlay.known(directory, name)
        if known is None or known.kind is Kind.ABSENT or self.is_being_deleted(directory, name, known.kind):
            return Place(directory.id, name, entry, None, None, timeout)
        if known.kind is Kind.DIRECTORY:
            node = self.derive(directory, name)
            return Place(directory.id, name, None, node, None, timeout)
        return Place(directory.id, name, entry, None, known.object, timeout)

    def is_being_deleted(self, directory: Node, name: bytes, kind: Kind) -> bool:
        """A directory that was made where another was removed: what was in that one may still have to go."""
        if directory.made_at is None:
            return False
        key = self.underlay.prefix + (self._tree.path(directory.id) or b"") + name
        if kind is Kind.DIRECTORY:
            return self._journal.is_deleted_below(key + b"/")
        operations = self._journal.open_of_key(key)
        return bool(operations) and operations[-1].kind == OperationKind.DELETE

    def derive(self, directory: Node, name: bytes) -> Node:
        """The node of a directory the catalog has."""
        with self.transaction():
            ident = self._tree.add(
                NodeKind.DIRECTORY,
                mode=self._directory_mode,
                uid=self._show.uid,
                gid=self._show.gid,
                mtime_ns=0,
                derived=1,
            )
            self._tree.put(directory.id, name, ident)
        node = self._tree.node(ident)
        assert node is not None
        return node


def changed_here(shown: Attributes, node: Node) -> Attributes:
    """An object's attributes with what was changed of them here."""
    return shown._replace(mode=node.mode, mtime_ns=max(0, node.mtime_ns), uid=node.uid, gid=node.gid)
