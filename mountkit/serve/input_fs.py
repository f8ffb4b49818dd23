"""The read-only file system: catalog and cache in, attributes and bytes out. Knows no FUSE and no network.

Each operation comes in two forms. `…_now` answers at once from what is on this machine, or returns None; the async
form asks the mover for what is missing and then answers. Inodes: 1 is the root, a directory is its catalog id, a file
is its object version's id, with SEALED_BIT once its bytes lie sealed in a file of their own (the two must be different
inodes: the kernel cannot read one inode through us and through a backing file at once).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import stat
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

import trio

from mountkit.cache.checked import Missing, WouldBlock
from mountkit.cache.content import BLOCK_BYTES, ContentId, content_id
from mountkit.cache.reader import CacheReader, SealedFile
from mountkit.catalog.values import (
    SEALED_BIT,
    CatalogUnavailable,
    Directory,
    DirectoryPage,
    Kind,
    ObjectRow,
    StaleCookie,
)
from mountkit.catalog.values import DirectoryEntry as NamedEntry
from mountkit.catalog.view import CatalogView
from mountkit.errors import MountkitError
from mountkit.ipc import Message
from mountkit.serve.messages import Attributes
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.shared import ServerCounters

log = logging.getLogger(__name__)
T = TypeVar("T")
ROOT = 1
_UNSEALED_TIMEOUT_S, _LISTED_TIMEOUT_S = 2.0, 60.0
"""How long the kernel may keep the way to a file that may soon be sealed: a later open should find the fast inode. Who
lists a directory with attributes wants those of all files at hand, and may not open any."""
_ROWS = 8192
_FIRST_PAGE, _PAGE, _NAMES = 64, 512, 2048
"""The first page is asked for with attributes always, the others only where somebody wants them."""
_ATTEMPTS = 4
_AGAIN_S, _DOUBT_S = 0.1, 0.5


class FileSystemError(Exception):
    """An operation that fails with `errno`."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


class NotNow(FileSystemError):
    """The catalog cannot be read at this moment: it is being begun anew, or moved. Ask again."""

    def __init__(self) -> None:
        super().__init__(errno.EIO)


class Found(NamedTuple):
    """Answer to a lookup: `attributes` is None where the name is known to be absent."""

    attributes: Attributes | None
    timeout_s: float


class DirectoryEntry(NamedTuple):
    name: bytes
    cookie: int
    attributes: Attributes
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Presentation:
    """How the mount shows what it holds."""

    uid: int
    gid: int
    umask: int
    ttl_s: float
    passthrough: bool
    data_budget_s: float = 60.0
    metadata_budget_s: float = 10.0
    writable: bool = False


class _Now(Protocol[T]):
    def __call__(self, inode: int, cookie: int, *, fresh_after: float) -> list[T] | None: ...


class _File(NamedTuple):
    row: ObjectRow
    content: ContentId


class InputFileSystem:
    """One server's view of one mount. All methods belong to one trio thread."""

    def __init__(
        self,
        view: CatalogView,
        cache: CacheReader,
        mover: MoverLink,
        show: Presentation,
        counters: ServerCounters,
        *,
        tracing: Callable[[], bool] = lambda: False,
    ) -> None:
        """`tracing`: whether the mover wants to hear of opens that need nothing of it."""
        self._view, self._cache, self._mover, self._show, self.counters = view, cache, mover, show, counters
        self._tracing = tracing
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._hinted: OrderedDict[int, int] = OrderedDict()
        self._filled: OrderedDict[int, float] = OrderedDict()
        """Of which listing the names are that the kernel keeps of a directory."""
        self._doubted = trio.Event()
        """Set when the catalog could not be read."""
        self.is_barred: Callable[[int], bool] = lambda _: False
        """Whether a sealed file's inode must not be opened natively for now."""
        write = 0o200 if show.writable else 0
        self._file_mode = stat.S_IFREG | ((0o444 | write) & ~show.umask)
        self._directory_mode = stat.S_IFDIR | ((0o555 | write) & ~show.umask)

    def show_sealed(self, really: bool) -> None:
        """Whether files that are sealed show as such from now on, to be opened natively."""
        self._show = replace(self._show, passthrough=really)

    # ---- lookup, getattr -----------------------------------------------------------------------------------
    def lookup_now(self, parent: int, name: bytes, *, fresh_after: float | None = None) -> Found | None:
        """What `name` in `parent` is, if it is known freshly enough; by default as the TTL asks."""
        now = time.time()
        if fresh_after is None:
            fresh_after = now - self._show.ttl_s
        try:
            known = self._view.lookup(self._directory_id(parent), name)
        except (CatalogUnavailable, NotNow):
            self._doubted.set()
            return None
        if known is None or known.as_of < fresh_after:
            return None
        timeout = max(0.0, min(self._show.ttl_s, known.as_of + self._show.ttl_s - now))
        if known.kind is Kind.ABSENT:
            return Found(None, timeout)
        if known.object is None:
            assert known.inode is not None
            return Found(self._directory_attributes(known.inode), timeout)
        file = self._remember(known.object)
        return self._found_file(file, timeout, sealed=self._is_sealed(file))

    async def lookup(self, parent: int, name: bytes) -> Found:
        """As lookup_now, asking the bucket where need be. Raises FileSystemError."""
        # The mover answers once the name is known as of `fresh`, or says that what is known is all there is.
        fresh = time.time() - self._show.ttl_s
        text, fresh = name.decode("latin-1"), max(0.0, fresh)
        with trio.move_on_after(self._show.metadata_budget_s):
            while True:
                with contextlib.suppress(NotNow):
                    await self._ask("lookup", parent=self._directory_id(parent), name=text, fresh=fresh)
                    found = self.lookup_now(parent, name, fresh_after=0.0)
                    if found is not None:
                        return found
                await trio.sleep(_AGAIN_S)  # the catalog is being begun anew
        raise FileSystemError(errno.EIO)

    async def voice_doubts(self) -> None:
        """Tells the mover, at most twice a second, when the catalog cannot be read: it may be damaged. For ever."""
        while True:
            await self._doubted.wait()
            await self._mover.tell("doubt")
            await trio.sleep(_DOUBT_S)
            self._doubted = trio.Event()

    def attributes_now(self, inode: int) -> tuple[Attributes, float]:
        """Attributes of an inode the kernel knows, and for how long they hold. Raises FileSystemError."""
        try:
            if inode & SEALED_BIT:
                return self._file_attributes(self._file(inode).row, sealed=True), math.inf
            directory = self._view.directory(self._directory_id(inode))
            if directory is not None:
                return self._directory_attributes(directory.id, directory), self._show.ttl_s
            return self._file_attributes(self._file(inode).row, sealed=False), math.inf
        except CatalogUnavailable:
            raise self._not_now() from None

    def found_of(self, row: ObjectRow, timeout_s: float) -> Found:
        """What a lookup of this object version answers."""
        file = self._remember(row)
        return self._found_file(file, timeout_s, sealed=self._is_sealed(file))

    def note_doubt(self) -> None:
        """The catalog could not be read: the mover shall look at it."""
        self._doubted.set()

    # ---- directories ---------------------------------------------------------------------------------------
    def open_directory(self, inode: int) -> bool:
        """Whether the names the kernel keeps of the directory are those of the listing that is valid now.

        They are if no listing was finished since they were asked for under an earlier `open_directory`. Each server
        answers from its own memory, which is enough: what another let the kernel fill in between is no older. The mover
        hears of it, a moment later, as it lists ahead of walks. Raises FileSystemError.
        """
        ident = self._directory_id(inode)
        try:
            directory = self._view.directory(ident)
        except CatalogUnavailable:
            raise self._not_now() from None
        if directory is None:
            raise FileSystemError(errno.ESTALE)
        self._mover.note_entered(ident)
        listed_at = directory.listed_at
        if not listed_at or directory.hidden or listed_at < self.fresh_after():
            self._filled.pop(ident, None)
            return False
        kept = self._filled.get(ident) == listed_at
        self._filled[ident] = listed_at
        if len(self._filled) > _ROWS:
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

    def _page(self, inode: int, cookie: int, limit: int, fresh_after: float, *, objects: bool) -> DirectoryPage | None:
        try:
            return self._view.page(self._directory_id(inode), cookie, limit, fresh_after, objects=objects)
        except (CatalogUnavailable, NotNow):
            self._doubted.set()
            return None
        except (StaleCookie, KeyError):
            raise FileSystemError(errno.ESTALE) from None

    def entries_now(self, inode: int, cookie: int, *, fresh_after: float) -> list[DirectoryEntry] | None:
        """Entries after `cookie`, the empty list at the end; None if the listing has to advance first."""
        now = time.time()
        page = self._page(inode, cookie, _PAGE if cookie else _FIRST_PAGE, fresh_after, objects=True)
        if page is None:
            return None
        if not page.entries:
            return [] if page.done else None
        timeout = max(0.0, min(self._show.ttl_s, page.as_of + self._show.ttl_s - now))
        unsealed = min(timeout, _LISTED_TIMEOUT_S) if self._show.passthrough else timeout
        sealed = self._sealed_among([e.object for e in page.entries if e.object is not None])
        result = []
        for e in page.entries:
            if e.object is None:
                result.append(DirectoryEntry(e.name, e.cookie, self._directory_attributes(e.inode), timeout))
            else:
                is_sealed = e.inode in sealed
                shown = self._file_attributes(e.object, sealed=is_sealed)
                result.append(DirectoryEntry(e.name, e.cookie, shown, timeout if is_sealed else unsealed))
        return result

    async def entries(self, inode: int, cookie: int, *, fresh_after: float) -> list[DirectoryEntry]:
        """As entries_now, waiting for the listing to advance. Raises FileSystemError."""
        return await self._waited_for(self.entries_now, inode, cookie, fresh_after)

    async def _waited_for(self, now: _Now[T], inode: int, cookie: int, fresh_after: float) -> list[T]:
        with trio.move_on_after(self._show.metadata_budget_s):
            for attempt in itertools.count():
                if attempt >= _ATTEMPTS:
                    await trio.sleep(_AGAIN_S)  # the catalog is being begun anew
                with contextlib.suppress(NotNow):
                    ident = self._directory_id(inode)
                    answer = await self._ask("list", directory=ident, cookie=cookie, fresh=fresh_after)
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

    def fresh_after(self) -> float:
        """The oldest listing a readdir that starts now may show."""
        return time.time() - self._show.ttl_s if math.isfinite(self._show.ttl_s) else 0.0

    # ---- files ---------------------------------------------------------------------------------------------
    def can_open_now(self, inode: int) -> bool:
        """Whether the first bytes are here, so that an open need not ask the bucket. Raises FileSystemError.

        The mover hears of such an open too, a moment later: what to fetch ahead is found from all opens.
        """
        file = self._current(inode)
        if file.row.size == 0:
            return True
        here = self._cache.has(file.content, file.row.size, 0)
        if here:
            self._mover.note_opened(file.row.id)
        return here

    async def prepare_open(self, inode: int) -> None:
        """Has the first bytes fetched, so that a changed or forbidden object shows at open. Raises FileSystemError."""
        await self._ask("open", data=True, object=self._file(inode).row.id)

    def sealed_now(self, inode: int) -> SealedFile | None:
        """The sealed file of a sealed inode, its descriptor the caller's; None if it must be checked first."""
        file = self._current(inode)
        found = self._cache.open_sealed(file.content)
        if isinstance(found, SealedFile):
            if self._tracing():
                self._mover.note_opened(file.row.id)
            return found
        return None

    async def verify_sealed(self, inode: int) -> None:
        """Has the sealed file's checksums checked. Raises FileSystemError: ESTALE if its bytes were bad."""
        answer = await self._ask("verify", data=True, object=self._file(inode).row.id)
        if not answer.body.get("good"):
            raise FileSystemError(errno.ESTALE)

    def read_now(self, inode: int, offset: int, size: int) -> bytes | WouldBlock | Missing:
        """Bytes that are cached and in memory; otherwise what is in the way. Raises FileSystemError."""
        file = self._file(inode)
        length = min(size, file.row.size - offset)
        if length <= 0:
            return b""
        return self._cache.read(file.content, file.row.size, offset, length, wait=False)

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        """The bytes [offset, offset + size), fewer only at the end of the file. Raises FileSystemError."""
        row, content = self._file(inode)
        length = min(size, row.size - offset)
        bad = False
        for attempt in range(_ATTEMPTS):
            data = await trio.to_thread.run_sync(
                lambda: self._cache.read(content, row.size, offset, length, wait=True), abandon_on_cancel=True
            )
            if isinstance(data, bytes):
                return data
            bad = bad or (isinstance(data, Missing) and data.bad)
            # The last attempts ask for the bytes themselves: a disk that loses what it was given must not stop us.
            inline = attempt >= _ATTEMPTS - 2
            answer = await self._ask(
                "fetch", data=True, object=row.id, offset=offset, length=length, bad=bad, inline=inline
            )
            if len(answer.payload) == length:
                return answer.payload
        raise FileSystemError(errno.EIO)

    def note_read(self, inode: int, offset: int, size: int) -> tuple[int, int] | None:
        """(object, offset) to tell the mover about when a reader of a large file enters another block."""
        file = self._file(inode)
        if file.row.size <= BLOCK_BYTES:
            return None
        block = (offset + size - 1) // BLOCK_BYTES
        if self._hinted.get(inode) == block:
            return None
        self._hinted[inode] = block
        if len(self._hinted) > 256:
            self._hinted.popitem(last=False)
        return file.row.id, offset

    async def tell_read(self, object_id: int, offset: int, size: int) -> None:
        """Tells the mover how a file is being read, so that it can fetch ahead."""
        await self._mover.tell("hint", object=object_id, offset=offset, length=size)

    def extended_attributes(self, inode: int) -> dict[bytes, bytes]:
        """`user.s3.*` of a file: which object version it is. Raises FileSystemError."""
        try:
            if self._view.directory(self._directory_id(inode)) is not None:
                return {}
        except CatalogUnavailable:
            raise self._not_now() from None
        row = self._file(inode).row
        found = {
            b"user.s3.key": row.key,
            b"user.s3.etag": row.etag.encode(),
            b"user.s3.version": row.version_id.encode(),
        }
        found[b"user.s3.storage_class"] = row.storage_class.encode()
        return {name: value for name, value in found.items() if value}

    # ---- inside --------------------------------------------------------------------------------------------
    async def _ask(self, op: str, *, data: bool = False, **arguments: object) -> Message:
        # The mover keeps to the same budgets and knows why it failed: give it a moment to say so.
        budget = (self._show.data_budget_s if data else self._show.metadata_budget_s) + 2.0
        try:
            return await self._mover.call(op, budget_s=budget, **arguments)
        except MountkitError as exc:
            raise FileSystemError(exc.errno) from exc

    def _directory_id(self, inode: int) -> int:
        if inode != ROOT:
            return inode
        try:
            return self._view.root
        except CatalogUnavailable:
            raise self._not_now() from None

    def _not_now(self) -> NotNow:
        self._doubted.set()
        return NotNow()

    async def patiently(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Repeats what fails only because the catalog cannot be read at this moment, within the metadata budget."""
        deadline = trio.current_time() + self._show.metadata_budget_s
        while True:
            try:
                return await wait()
            except NotNow:
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(_AGAIN_S)

    def _file(self, inode: int) -> _File:
        ident = inode & ~SEALED_BIT
        file = self._files.get(ident)
        if file is None:
            try:
                row = self._view.object(ident)
            except CatalogUnavailable:
                raise self._not_now() from None
            if row is None:
                raise FileSystemError(errno.ESTALE)
            file = self._remember(row)
        return file

    def _current(self, inode: int) -> _File:
        """As `_file`, but a version the bucket is known to have replaced is ESTALE: the kernel then looks up anew."""
        ident = inode & ~SEALED_BIT
        try:
            row = self._view.object(ident)
        except CatalogUnavailable:
            raise self._not_now() from None
        if row is None or row.superseded_at is not None:
            raise FileSystemError(errno.ESTALE)
        return self._remember(row)

    def _remember(self, row: ObjectRow) -> _File:
        file = self._files.get(row.id)
        if file is None or (file.row is not row and file.row != row):
            file = self._files[row.id] = _File(row, content_id(row.key, row.etag, row.size))
            if len(self._files) > _ROWS:
                self._files.popitem(last=False)
        return file

    def _sealed_among(self, rows: list[ObjectRow]) -> set[int]:
        """The ids of those that are sealed; costs next to nothing while nothing is."""
        if not self._show.passthrough or not self._cache.holds_sealed():
            return set()
        contents = {content_id(row.key, row.etag, row.size): row.id for row in rows if row.size}
        found = {contents[content] for content in self._cache.sealed_among(list(contents))}
        return {ident for ident in found if not self.is_barred(ident | SEALED_BIT)}

    def _is_sealed(self, file: _File) -> bool:
        if not self._show.passthrough or file.row.size == 0 or self._cache.sealed(file.content) is None:
            return False
        return not self.is_barred(file.row.id | SEALED_BIT)

    def _found_file(self, file: _File, timeout_s: float, *, sealed: bool) -> Found:
        if self._show.passthrough and not sealed and file.row.size > 0:
            timeout_s = min(timeout_s, _UNSEALED_TIMEOUT_S)
        return Found(self._file_attributes(file.row, sealed=sealed), timeout_s)

    def _file_attributes(self, row: ObjectRow, *, sealed: bool) -> Attributes:
        inode = row.id | SEALED_BIT if sealed else row.id
        return Attributes(inode, self._file_mode, row.size, row.mtime_ns, 1, self._show.uid, self._show.gid)

    def _directory_attributes(self, ident: int, directory: Directory | None = None) -> Attributes:
        if directory is None:
            directory = self._view.directory(ident)
        inode = ROOT if ident == self._view.root else ident
        mtime_ns = directory.mtime_ns if directory else 0
        return Attributes(inode, self._directory_mode, 4096, mtime_ns, 2, self._show.uid, self._show.gid)
