"""Names and inodes of the read-only file system: the catalog in, attributes out. Knows no FUSE and no network.

A lookup comes in two forms: `lookup_now` answers at once from what is on this machine, or returns None; `lookup` asks
the mover for what is missing and then answers. Inodes: 1 is the root, a directory is its catalog id, a file is its
object version's id, with SEALED_BIT once its bytes lie sealed in a file of their own (the two must be different inodes:
the kernel cannot read one inode through us and through a backing file at once).
"""

from __future__ import annotations

import contextlib
import errno
import math
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import trio

from mountkit.cache.content import ContentId, content_id
from mountkit.cache.reader import CacheReader
from mountkit.catalog.values import SEALED_BIT, CatalogUnavailable, Directory, Kind, ObjectRow
from mountkit.catalog.view import CatalogView
from mountkit.errors import MountkitError
from mountkit.ipc import Message
from mountkit.serve.doubts import AGAIN_S, Doubts
from mountkit.serve.messages import Attributes
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.values import ROOT, FileSystemError, Found, NotNow, Presentation

_UNSEALED_TIMEOUT_S = 2.0
"""How long the kernel may keep the way to a file that may soon be sealed: a later open should find the fast inode."""
_FILES = 16384


class File(NamedTuple):
    """The object version behind an inode, and the name of its bytes."""

    row: ObjectRow
    content: ContentId


class InputNames:
    """What one server knows of the bucket's names. All methods belong to one trio thread."""

    def __init__(self, view: CatalogView, cache: CacheReader, mover: MoverLink, show: Presentation) -> None:
        self._view, self._cache, self._mover, self._show = view, cache, mover, show
        self.doubts = Doubts(mover, show.metadata_budget_s)
        self._files: OrderedDict[int, File] = OrderedDict()
        self._current: set[int] = set()
        """Of these files the version was what the bucket is known to have, in the state `_state` of the catalog."""
        self._state: object = None
        self.is_barred: Callable[[int], bool] = lambda _: False
        """Whether a sealed file's inode must not be opened natively for now."""
        write = 0o200 if show.writable else 0
        self._file_mode = stat.S_IFREG | ((0o444 | write) & ~show.umask)
        self._directory_mode = stat.S_IFDIR | ((0o555 | write) & ~show.umask)

    @property
    def shows_sealed(self) -> bool:
        """Whether files that are sealed show as such."""
        return self._show.passthrough

    def show_sealed(self, really: bool) -> None:
        """Whether files that are sealed show as such from now on, to be opened natively."""
        self._show = replace(self._show, passthrough=really)

    # ---- lookup, getattr -----------------------------------------------------------------------------------
    def lookup_now(self, parent: int, name: bytes, *, fresh_after: float | None = None) -> Found | None:
        """What `name` in `parent` is, if it is known freshly enough; by default as the TTL asks."""
        now = time.time()
        if fresh_after is None:
            fresh_after = self._show.fresh_after(now)
        try:
            self._note_state()
            known = self._view.lookup(self.directory_id(parent), name)
        except (CatalogUnavailable, NotNow):
            self.doubts.note()
            return None
        if known is None or known.as_of < fresh_after:
            return None
        timeout = max(0.0, min(self._show.ttl_s, known.as_of + self._show.ttl_s - now))
        if known.kind is Kind.ABSENT:
            return Found(None, timeout)
        if known.object is None:
            assert known.inode is not None
            return Found(self.directory_attributes(known.inode), timeout)
        file = self._remember(known.object, current=True)
        return self._found_file(file, timeout, sealed=self._is_sealed(file))

    async def lookup(self, parent: int, name: bytes) -> Found:
        """As lookup_now, asking the bucket where need be. Raises FileSystemError."""
        # The mover answers once the name is known as of `fresh`, or says that what is known is all there is.
        text, fresh = name.decode("latin-1"), self._show.fresh_after(time.time())
        with trio.move_on_after(self._show.metadata_budget_s):
            while True:
                with contextlib.suppress(NotNow):
                    await self.ask("lookup", parent=self.directory_id(parent), name=text, fresh=fresh)
                    found = self.lookup_now(parent, name, fresh_after=0.0)
                    if found is not None:
                        return found
                await trio.sleep(AGAIN_S)  # the catalog is being begun anew
        if self._show.ttl_s:  # what is known outlasts a bucket, and a mover, that is late
            found = self.lookup_now(parent, name, fresh_after=0.0)
            if found is not None:
                return found
        raise FileSystemError(errno.EIO)

    def attributes_now(self, inode: int) -> tuple[Attributes, float]:
        """Attributes of an inode the kernel knows, and for how long they hold. Raises FileSystemError."""
        try:
            if inode & SEALED_BIT:
                return self.file_attributes(self.file(inode).row, sealed=True), math.inf
            directory = self._view.directory(self.directory_id(inode))
            if directory is not None:
                return self.directory_attributes(directory.id, directory), self._show.ttl_s
            return self.file_attributes(self.file(inode).row, sealed=False), math.inf
        except CatalogUnavailable:
            raise self.doubts.not_now() from None

    def found_of(self, row: ObjectRow, timeout_s: float) -> Found:
        """What a lookup of this object version answers."""
        file = self._remember(row)
        return self._found_file(file, timeout_s, sealed=self._is_sealed(file))

    def extended_attributes(self, inode: int) -> dict[bytes, bytes]:
        """`user.s3.*` of a file: which object version it is. Raises FileSystemError."""
        try:
            if self._view.directory(self.directory_id(inode)) is not None:
                return {}
        except CatalogUnavailable:
            raise self.doubts.not_now() from None
        row = self.file(inode).row
        found = {
            b"user.s3.key": row.key,
            b"user.s3.etag": row.etag.encode(),
            b"user.s3.version": row.version_id.encode(),
        }
        found[b"user.s3.storage_class"] = row.storage_class.encode()
        return {name: value for name, value in found.items() if value}

    # ---- what an inode stands for --------------------------------------------------------------------------
    def file(self, inode: int) -> File:
        """The object version of an inode, also one that was replaced. Raises FileSystemError."""
        ident = inode & ~SEALED_BIT
        file = self._files.get(ident)
        if file is None:
            try:
                row = self._view.object(ident)
            except CatalogUnavailable:
                raise self.doubts.not_now() from None
            if row is None:
                raise FileSystemError(errno.ESTALE)
            file = self._remember(row)
        return file

    def current(self, inode: int) -> File:
        """As `file`, but a version the bucket is known to have replaced is ESTALE: the kernel then looks up anew."""
        ident = inode & ~SEALED_BIT
        try:
            self._note_state()
            if ident in self._current:
                return self._files[ident]
            row = self._view.object(ident)
        except CatalogUnavailable:
            raise self.doubts.not_now() from None
        if row is None or row.superseded_at is not None:
            raise FileSystemError(errno.ESTALE)
        return self._remember(row, current=True)

    def _note_state(self) -> None:
        """Forgets what may have changed in the catalog. Before each question whose answer is to be remembered."""
        state = self._view.state
        if state != self._state:
            self._state = state
            self._current.clear()

    def _remember(self, row: ObjectRow, *, current: bool = False) -> File:
        file = self._files.get(row.id)
        if file is None or (file.row is not row and file.row != row):
            file = self._files[row.id] = File(row, content_id(row.key, row.etag, row.size))
            if len(self._files) > _FILES:
                forgotten, _ = self._files.popitem(last=False)
                self._current.discard(forgotten)
        if current:
            self._current.add(row.id)
        return file

    def directory_id(self, inode: int) -> int:
        """The catalog's number of a directory."""
        if inode != ROOT:
            return inode
        try:
            return self._view.root
        except CatalogUnavailable:
            raise self.doubts.not_now() from None

    async def ask(self, op: str, *, data: bool = False, **arguments: object) -> Message:
        """The mover's answer, within the metadata budget, or that for `data`. Raises FileSystemError."""
        # The mover keeps to the same budgets and knows why it failed: give it a moment to say so.
        budget = (self._show.data_budget_s if data else self._show.metadata_budget_s) + 2.0
        try:
            return await self._mover.call(op, budget_s=budget, **arguments)
        except MountkitError as exc:
            raise FileSystemError(exc.errno) from exc

    # ---- how it is shown -----------------------------------------------------------------------------------
    def sealed_among(self, rows: list[ObjectRow]) -> set[int]:
        """The ids of those that are sealed; costs next to nothing while nothing is."""
        if not self.shows_sealed or not self._cache.holds_sealed():
            return set()
        contents = {content_id(row.key, row.etag, row.size): row.id for row in rows if row.size}
        found = {contents[content] for content in self._cache.sealed_among(list(contents))}
        return {ident for ident in found if not self.is_barred(ident | SEALED_BIT)}

    def _is_sealed(self, file: File) -> bool:
        if not self.shows_sealed or file.row.size == 0 or not self._cache.is_sealed(file.content):
            return False
        return not self.is_barred(file.row.id | SEALED_BIT)

    def _found_file(self, file: File, timeout_s: float, *, sealed: bool) -> Found:
        if self.shows_sealed and not sealed and file.row.size > 0:
            timeout_s = min(timeout_s, _UNSEALED_TIMEOUT_S)
        return Found(self.file_attributes(file.row, sealed=sealed), timeout_s)

    def file_attributes(self, row: ObjectRow, *, sealed: bool) -> Attributes:
        """What stat shows of an object version, as its sealed inode or the other."""
        inode = row.id | SEALED_BIT if sealed else row.id
        return Attributes(inode, self._file_mode, row.size, row.mtime_ns, 1, self._show.uid, self._show.gid)

    def directory_attributes(self, ident: int, directory: Directory | None = None) -> Attributes:
        """What stat shows of a directory of the catalog."""
        if directory is None:
            directory = self._view.directory(ident)
        inode = ROOT if ident == self._view.root else ident
        mtime_ns = directory.mtime_ns if directory else 0
        return Attributes(inode, self._directory_mode, 4096, mtime_ns, 2, self._show.uid, self._show.gid)
