"""A writable file system over a real catalog, cache and journal, without kernel, bucket or mover."""

from __future__ import annotations

import os
from typing import Any

from mountkit.cache.reader import CacheReader
from mountkit.catalog.tree import Catalog
from mountkit.catalog.view import CatalogView
from mountkit.config import OutputSettings
from mountkit.ipc import Message
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.output_fs import OutputFileSystem
from mountkit.serve.output_upkeep import Upkeep
from mountkit.serve.outputs import open_outputs
from mountkit.serve.shared import ServerCounters
from mountkit.serve.values import Presentation
from mountkit.staging.schema import OperationKind, OperationState
from mountkit.staging.tree import NODE_BIT
from mountkit.store.api import ObjectInfo, Page

ME = (0, 0)
W, RW = os.O_WRONLY, os.O_RDWR


class Silent(MoverLink):
    """A mover that answers nothing: whatever needs it fails the test."""

    def __init__(self) -> None:
        super().__init__("nowhere")

    async def call(self, op: str, *, budget_s: float, **arguments: Any) -> Message:
        raise AssertionError(f"the mover was asked to {op}")


class Outputs:
    """One server's life on a state directory; `again` is the next one's."""

    def __init__(self, directory_fd: int, *, first: bool = True, **settings: Any) -> None:
        self.fd, self._settings = directory_fd, settings
        self.catalog = Catalog.open(directory_fd, b"p/")
        view = CatalogView.open(directory_fd)
        show = Presentation(0, 0, 0o022, 60.0, False, writable=True)
        mover = Silent()
        bucket = InputFileSystem(view, CacheReader.open(directory_fd), mover, show, ServerCounters())
        self.fs: OutputFileSystem
        self.upkeep: Upkeep
        from mountkit.serve import writer_lock

        writer_lock_take, writer_lock.take = writer_lock.take, lambda _fd: None
        try:
            self.fs, self.upkeep = open_outputs(
                directory_fd,
                bucket,
                view,
                mover,
                show,
                OutputSettings(**settings),
                directory="/m",
                source="s3://b/p",
                first=first,
            )
        finally:
            writer_lock.take = writer_lock_take

    def again(self, *, first: bool) -> Outputs:
        self.fs.journal.close()
        self.fs.staging.close()
        self.catalog.close()
        return Outputs(self.fd, first=first, **self._settings)

    def holds(self, *names: str) -> None:
        """The bucket's root was listed just now, and holds these."""
        listing = self.catalog.begin_listing(self.catalog.root)
        infos = [ObjectInfo(b"p/" + n.encode(), 3, f'"{n}"', 10**18, "STANDARD") for n in sorted(names)]
        listing.add(Page(infos, [], ""))
        listing.finish()

    def do(self, operation: Any, *arguments: Any, **named: Any) -> Any:
        """An operation in its transaction."""
        with self.fs.journal.transaction():
            return getattr(self.fs, operation)(*arguments, **named)

    def write(self, name: str, data: bytes, parent: int = 1, *, dying: bool = False) -> int:
        """create, write, close; returns the inode."""
        node, handle = self.do("create", parent, name.encode(), 0o644, W, ME)
        self.fs.write(node.inode, 0, memoryview(data))
        self.do("flush", handle, dying=lambda: dying)
        self.do("release", handle)
        return int(node.inode)

    def mkdir(self, name: str, parent: int = 1) -> int:
        return int(self.do("make_directory", parent, name.encode(), 0o755, ME).inode)

    def queued(self) -> list[str]:
        """What is still to be done, in order: `PUT key`, `COPY source key`, `DELETE key`."""
        rows = self.fs.journal.db.execute(
            "SELECT kind, source_key, key FROM operation WHERE state IN (0, 1) ORDER BY seq"
        )
        return [
            " ".join([OperationKind(kind).name, *(each.decode().removeprefix("p/") for each in (source, key) if each)])
            for kind, source, key in rows
        ]

    def finish(self, etag: str = '"new"') -> None:
        """The mover does everything that is queued."""
        self.fs.journal.db.execute(
            "UPDATE operation SET state = ?, etag = ?, finished_at = unixepoch('subsec') WHERE state = 0",
            (int(OperationState.DONE), etag),
        )
        self.upkeep.look()

    def begin(self) -> None:
        """The mover has begun everything that is queued."""
        self.fs.journal.db.execute("UPDATE operation SET state = 1 WHERE state = 0")

    def names(self, parent: int = 1) -> list[str]:
        node = self.fs.names.node(parent)
        assert node is not None
        self.fs.listing.open_directory(7)
        found, cookie = [], 0
        while page := self.fs.listing.entries(node, 7, cookie):
            found += [entry.name.decode() for entry in page]
            cookie = page[-1].cookie
        return sorted(found)

    def node_of(self, inode: int) -> Any:
        return self.fs.journal.tree.node(inode & ~NODE_BIT)
