"""The read-only file system: its names, its listings and, here, the bytes of its files. Knows no FUSE and no network.

Each operation comes in two forms. `…_now` answers at once from what is on this machine, or returns None; the async
form asks the mover for what is missing and then answers.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable

import trio

from mountkit.cache.checked import Missing, WouldBlock
from mountkit.cache.content import BLOCK_BYTES
from mountkit.cache.reader import CacheReader, SealedFile
from mountkit.catalog.view import CatalogView
from mountkit.serve.input_listing import InputListing
from mountkit.serve.input_names import InputNames
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.shared import ServerCounters
from mountkit.serve.values import FileSystemError, Presentation

_ATTEMPTS = 4
_HINTED = 256


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
        trace: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`trace`: hears of every version whose open is about to be answered."""
        self.names = InputNames(view, cache, mover, show)
        self.listing = InputListing(self.names, view, mover, show)
        self.counters = counters
        self._cache, self._mover, self._trace = cache, mover, trace
        self._hinted: OrderedDict[int, int] = OrderedDict()

    # ---- open ----------------------------------------------------------------------------------------------
    def can_open_now(self, inode: int) -> bool:
        """Whether the first bytes are here, so that an open need not ask the bucket. Raises FileSystemError.

        While somebody has to wait now and then, the mover hears of such opens, too: what to fetch ahead is found from
        all of them.
        """
        file = self.names.current(inode)
        if file.row.size == 0:
            self._trace(file.row.id)
            return True
        here = self._cache.has(file.content, file.row.size, 0)
        if here:
            self._trace(file.row.id)
            self._mover.note_opened(file.row.id)
        return here

    async def prepare_open(self, inode: int) -> None:
        """Has the first bytes fetched, so that a changed or forbidden object shows at open. Raises FileSystemError."""
        row = self.names.file(inode).row
        self._mover.listens = True
        await self.names.ask("open", data=True, object=row.id)
        self._trace(row.id)

    def sealed_now(self, inode: int) -> SealedFile | None:
        """The sealed file of a sealed inode, its descriptor the caller's; None if it must be checked first."""
        file = self.names.current(inode)
        found = self._cache.open_sealed(file.content)
        if isinstance(found, SealedFile):
            self._trace(file.row.id)
            self._mover.note_opened(file.row.id)
            return found
        return None

    async def verify_sealed(self, inode: int) -> None:
        """Checks the sealed file's checksums, or has it done. Raises FileSystemError: ESTALE if its bytes were bad."""
        row, content = self.names.file(inode)
        if row.size <= BLOCK_BYTES and await trio.to_thread.run_sync(self._cache.check_seal, content, row.size):
            return
        answer = await self.names.ask("verify", data=True, object=row.id)
        if not answer.body.get("good"):
            raise FileSystemError(errno.ESTALE)

    # ---- read ----------------------------------------------------------------------------------------------
    def read_now(self, inode: int, offset: int, size: int) -> bytes | WouldBlock | Missing:
        """Bytes that are cached and in memory; otherwise what is in the way. Raises FileSystemError."""
        file = self.names.file(inode)
        length = min(size, file.row.size - offset)
        if length <= 0:
            return b""
        return self._cache.read(file.content, file.row.size, offset, length, wait=False)

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        """The bytes [offset, offset + size), fewer only at the end of the file. Raises FileSystemError."""
        row, content = self.names.file(inode)
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
            answer = await self.names.ask(
                "fetch", data=True, object=row.id, offset=offset, length=length, bad=bad, inline=inline
            )
            if len(answer.payload) == length:
                return answer.payload
        raise FileSystemError(errno.EIO)

    def note_read(self, inode: int, offset: int, size: int) -> tuple[int, int] | None:
        """(object, offset) to tell the mover about when a reader of a large file enters another block."""
        file = self.names.file(inode)
        if file.row.size <= BLOCK_BYTES:
            return None
        block = (offset + size - 1) // BLOCK_BYTES
        if self._hinted.get(inode) == block:
            return None
        self._hinted[inode] = block
        if len(self._hinted) > _HINTED:
            self._hinted.popitem(last=False)
        return file.row.id, offset

    async def tell_read(self, object_id: int, offset: int, size: int) -> None:
        """Tells the mover how a file is being read, so that it can fetch ahead."""
        await self._mover.tell("hint", object=object_id, offset=offset, length=size)
