"""Names of a writable mount: the overlay over the catalog, read side. Knows no FUSE and no network.

All questions are answered from this machine at once. What is not known freshly enough raises MustAsk, which says whom
to ask; the same question is then put again with that answer granted (`Asking.settle`).
"""

from __future__ import annotations

import errno
import functools
import stat
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeVar

from mountkit import names
from mountkit.catalog.values import SEALED_BIT, CatalogUnavailable, Kind, Known, ObjectRow
from mountkit.catalog.view import CatalogView
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.messages import Attributes
from mountkit.serve.values import ROOT, DirectoryEntry, FileSystemError, Presentation
from mountkit.staging.files import StagingFiles
from mountkit.staging.journal import Journal
from mountkit.staging.schema import OperationKind
from mountkit.staging.tree import NODE_BIT, ROOT_NODE, Entry, Node, NodeKind

LISTED_BIT = 1 << 62
"""Set in the readdir cookie of an entry of the overlay; the catalog's cookies are smaller."""
KEY_MAX = 1024
_WRITTEN_S = 1.0
"""How long the kernel may keep the times of a file that is open for writing: of writes through a mapping, which change
them, it tells nobody. Sizes it knows best."""
_ATTEMPTS = 64
_PAGE = 512
T = TypeVar("T")


class MustAsk(Exception):
    """The answer is not on this machine: await `ask()`, grant `about`, and put the question again."""

    def __init__(self, about: Hashable, ask: Callable[[], Awaitable[object]]) -> None:
        super().__init__(about)
        self.about, self.ask = about, ask


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


class Reading(NamedTuple):
    """A readdir under way: entries above `mark` came later, `started` is when."""

    mark: int
    started: float


class Asking:
    """What has been asked for the question that is being answered now."""

    def __init__(self) -> None:
        self.granted: set[Hashable] = set()

    def need(self, about: Hashable, ask: Callable[[], Awaitable[object]]) -> None:
        """Raises MustAsk unless that was asked."""
        if about not in self.granted:
            raise MustAsk(about, ask)

    async def settle(self, need: MustAsk, question: Callable[[], T]) -> T:
        """The answer to a question that raised `need`. Raises FileSystemError."""
        granted: set[Hashable] = set()
        for _ in range(_ATTEMPTS):
            await need.ask()
            granted.add(need.about)
            self.granted = granted
            try:
                return question()
            except MustAsk as more:
                need = more
            finally:
                self.granted = set()
        raise FileSystemError(errno.EIO)


class Names:
    """Looks up, lists and describes what the mount shows."""

    def __init__(
        self, journal: Journal, files: StagingFiles, bucket: InputFileSystem, view: CatalogView, show: Presentation
    ) -> None:
        self.asking = Asking()
        self.readings: dict[int, Reading] = {}
        """What is open in each directory, by handle."""
        self._journal, self._tree, self._files = journal, journal.tree, files
        self._bucket, self._view, self._show = bucket, view, show
        self._catalog_ids: dict[int, int] = {}
        self._generation = 0
        self._directory_mode = stat.S_IFDIR | (0o755 & ~show.umask)

    def transaction(self) -> AbstractContextManager[object]:
        """A transaction, or the one that is open."""
        from contextlib import nullcontext

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
        found, timeout = self._bucket.names.attributes_now(inode)
        if overridden is not None:
            found = _with(found, overridden)
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
            found = self._bucket.names.found_of(row, place.timeout_s)
            assert found.attributes is not None
            shown = found.attributes if node is None else _with(found.attributes, node)
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
            return self._gone_or_back(directory, name, entry)
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

    def _gone_or_back(self, directory: Node, name: bytes, entry: Entry) -> Place:
        """A name that was removed here: absent until the bucket was heard of later than it was removed there."""
        absent = Place(directory.id, name, entry, None, None, self._show.ttl_s)
        if entry.since is None:
            return absent
        if time.time() - entry.since < self._show.ttl_s:
            known = self.known_now(directory, name)
            if known is None or known.as_of <= entry.since:
                return absent
        return self._in_bucket(directory, name, entry)

    def _derived_place(self, directory: Node, entry: Entry, node: Node) -> Place:
        known, timeout = self._known(directory, entry.name)
        if known is not None and known.kind is Kind.DIRECTORY:
            return Place(directory.id, entry.name, entry, node, None, timeout)
        with self.transaction():
            self._tree.forget(directory.id, entry.name)
        return self._in_bucket(directory, entry.name, None)

    def _object_place(self, directory: Node, entry: Entry, node: Node) -> Place:
        """An object under another name, or with other attributes, than the bucket shows."""
        if node.seq is not None:
            row = self._row(node.object)
            if row is None:
                raise FileSystemError(errno.EIO)
            return Place(directory.id, entry.name, entry, node, row, self._show.ttl_s)
        known, timeout = self._known(directory, entry.name)
        row = known.object if known else None
        if row is None or row.etag != node.etag:
            if known is not None and node.done_at is not None and known.as_of > node.done_at:
                self.drop(entry, node)
                return self._in_bucket(directory, entry.name, None)
            row = self._row(node.object)
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
        if self._tree.handles(node.id) or not self._consults(directory):
            return True
        known, _ = self._known(directory, entry.name, or_nothing=True)
        if known is None or known.as_of <= node.done_at:
            return True
        return known.object is not None and known.object.etag == node.etag

    def drop(self, entry: Entry, node: Node) -> None:
        """The overlay says nothing more of this name: the bucket's word counts."""
        with self.transaction():
            self._tree.forget(entry.parent, entry.name)
            self._tree.change(node.id, names=0)

    def _in_bucket(self, directory: Node, name: bytes, entry: Entry | None) -> Place:
        known, timeout = self._known(directory, name)
        if known is None or known.kind is Kind.ABSENT or self._is_being_deleted(directory, name):
            return Place(directory.id, name, entry, None, None, timeout)
        if known.kind is Kind.DIRECTORY:
            node = self.derive(directory, name)
            return Place(directory.id, name, None, node, None, timeout)
        return Place(directory.id, name, entry, None, known.object, timeout)

    def _is_being_deleted(self, directory: Node, name: bytes) -> bool:
        """A directory that was made where another was removed: what was in that one may still have to go."""
        if directory.made_at is None:
            return False
        path = self._tree.path(directory.id)
        operations = self._journal.open_of_key(self._view.prefix + (path or b"") + name)
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

    # ---- what the catalog says -----------------------------------------------------------------------------
    def _consults(self, directory: Node) -> bool:
        """Whether the bucket may have names in a directory that the overlay does not know."""
        return directory.made_at is None or time.time() - directory.made_at >= self._show.ttl_s

    def catalog_id(self, directory: Node) -> int | None:
        """The catalog's number of a directory; None where the bucket has no such directory. Raises MustAsk."""
        if directory.id == ROOT_NODE:
            return self._view.root
        if self._view.generation != self._generation:
            self._catalog_ids.clear()
            self._generation = self._view.generation
        found = self._catalog_ids.get(directory.id)
        if found is not None:
            return found
        entry = self._tree.entry_of(directory.id)
        above = self._tree.node(entry.parent) if entry else None
        if entry is None or above is None:
            return None
        known, _ = self._known(above, entry.name, or_nothing=directory.made_at is not None)
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
        except (CatalogUnavailable, MustAsk):
            return None

    def _known(self, directory: Node, name: bytes, *, or_nothing: bool = False) -> tuple[Known | None, float]:
        """What the bucket has under a name, and for how long that holds; None: nothing, for want of the directory.

        With `or_nothing` None also where the bucket cannot be asked. Raises MustAsk, FileSystemError.
        """
        ttl = self._show.ttl_s
        if not self._consults(directory):
            return None, ttl
        above = self.catalog_id(directory)
        if above is None:
            return None, ttl
        try:
            known = self._view.lookup(above, name)
        except CatalogUnavailable:
            self._bucket.names.doubts.note()
            known = None
        now = time.time()
        if known is not None and known.as_of >= now - ttl:
            return known, max(0.0, min(ttl, known.as_of + ttl - now))
        excused = or_nothing or directory.made_at is not None
        self.asking.need(("name", above, name), lambda: self._ask(above, name, excused=excused))
        if known is None and not excused:
            raise FileSystemError(errno.EIO)
        return known, 0.0

    async def _ask(self, above: int, name: bytes, *, excused: bool) -> None:
        try:
            await self._bucket.names.lookup(above, name)
        except FileSystemError:
            if not excused:
                raise

    def _row(self, object_id: int | None) -> ObjectRow | None:
        try:
            return None if object_id is None else self._view.object(object_id & ~SEALED_BIT)
        except CatalogUnavailable:
            self._bucket.names.doubts.note()
            return None

    # ---- directories ---------------------------------------------------------------------------------------
    def open_directory(self, handle: int) -> None:
        """A program starts to read a directory, under this number."""
        self.readings[handle] = Reading(self._tree.newest_entry(), time.time())

    def entries(self, directory: Node, handle: int, cookie: int) -> list[DirectoryEntry]:
        """Entries after `cookie`, the empty list at the end. Raises MustAsk, FileSystemError.

        First the overlay's in the order they were made, then the catalog's, less what the overlay has shown or hides.
        """
        if cookie == 0 and handle in self.readings:
            self.open_directory(handle)  # rewinddir
        reading = self.readings.get(handle) or Reading((1 << 62) - 1, 0.0)
        consults = self._consults(directory)
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

    def _is_first(self, entry: Entry, node: Node, reading: Reading, consults: bool) -> bool:
        """Whether an entry is listed with the overlay's own, not where the catalog has its name."""
        if entry.id > reading.mark:
            return False
        if not consults:
            return True
        if node.kind == NodeKind.DIRECTORY:
            return not node.derived
        return node.seq is not None or node.done_at is None or node.done_at > reading.started - self._show.ttl_s

    def _listed(self, entry: Entry, node: Node) -> DirectoryEntry:
        cookie = LISTED_BIT | entry.id
        row = self._row(node.object) if node.kind == NodeKind.OBJECT else None
        if node.kind == NodeKind.OBJECT and row is None:
            return DirectoryEntry(entry.name, cookie, _bare(node), -1.0)
        place = Place(entry.parent, entry.name, entry, node, row, self._show.ttl_s)
        shown, entry_s, attributes_s = self.shown_at(place)
        return DirectoryEntry(entry.name, cookie, shown, min(entry_s, attributes_s))

    def _bucket_entries(self, directory: Node, reading: Reading, cookie: int) -> list[DirectoryEntry]:
        above = self.catalog_id(directory)
        if above is None:
            return []
        fresh_after = max(0.0, (reading.started or time.time()) - self._show.ttl_s)
        while True:
            page = self._bucket.listing.entries_now(above, cookie, fresh_after=fresh_after)
            if page is None:
                ask = functools.partial(self._bucket.listing.entries, above, cookie, fresh_after=fresh_after)
                self.asking.need(("list", above, cookie), ask)
                fresh_after = 0.0
                page = self._bucket.listing.entries_now(above, cookie, fresh_after=fresh_after)
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
            if self._is_being_deleted(directory, listed.name):
                return None
            if not is_directory:
                return listed
            shown, _ = self.shown(self.derive(directory, listed.name))
            return DirectoryEntry(listed.name, listed.cookie, shown, listed.timeout_s)
        entry, node = found
        if node is None:
            if entry.since is None or self._gone_or_back(directory, listed.name, entry).exists is False:
                return None
            return listed if not is_directory else None
        if entry.id <= reading.mark and self._is_first(entry, node, reading, True):
            return None
        if node.kind == NodeKind.OBJECT:
            return DirectoryEntry(listed.name, listed.cookie, _with(listed.attributes, node), listed.timeout_s)
        shown, _ = self.shown(node)
        return DirectoryEntry(listed.name, listed.cookie, shown, listed.timeout_s)


def _with(shown: Attributes, node: Node) -> Attributes:
    """An object's attributes with what was changed of them here."""
    return shown._replace(mode=node.mode, mtime_ns=max(0, node.mtime_ns), uid=node.uid, gid=node.gid)


def _bare(node: Node) -> Attributes:
    return Attributes(node.inode, node.mode, node.size, max(0, node.mtime_ns), 1, node.uid, node.gid)
