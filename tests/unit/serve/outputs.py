"""A writable file system over a real catalog, cache and journal, without kernel, bucket or mover."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from mountkit.cache.reader import CacheReader
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import DirectoryId
from mountkit.catalog.view import CatalogView
from mountkit.config import OutputSettings
from mountkit.ipc import Message
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.output_fs import OutputFileSystem
from mountkit.serve.output_messages import Changes
from mountkit.serve.output_upkeep import Upkeep
from mountkit.serve.outputs import open_outputs
from mountkit.serve.shared import ServerCounters
from mountkit.serve.values import FileSystemError, Presentation
from mountkit.staging.schema import OperationKind, OperationState
from mountkit.staging.tree import NODE_BIT
from mountkit.store.api import ObjectInfo, Page

ME = (0, 0)
W, RW = os.O_WRONLY, os.O_RDWR
NOTHING = Changes(None, None, None, None, None, None, None)
T = TypeVar("T")


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

        writer_lock_take, writer_lock.take = writer_lock.take, lambda state_fd: None
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
        self.journal, self.staging = self.fs.overlay.journal, self.fs.overlay.staging

    def again(self, *, first: bool) -> Outputs:
        self.journal.close()
        self.staging.close()
        self.catalog.close()
        return Outputs(self.fd, first=first, **self._settings)

    def holds(self, *names: str, below: str = "") -> None:
        """A directory of the bucket was listed just now, and holds these: files, and directories with a slash."""
        directory = self.catalog.root
        for word in below.split("/")[:-1]:
            known = self.catalog.lookup(directory, word.encode())
            assert known is not None and known.inode is not None
            directory = DirectoryId(known.inode)
        paths = sorted(below + name for name in names)
        infos = [ObjectInfo(b"p/" + p.encode(), 3, f'"{p}"', 10**18, "STANDARD") for p in paths if p[-1] != "/"]
        listing = self.catalog.begin_listing(directory)
        listing.add(Page(tuple(infos), tuple(b"p/" + p.encode() for p in paths if p[-1] == "/"), ""))
        listing.finish()

    def lists(self, infos: list[ObjectInfo]) -> None:
        """The root was listed just now, and holds these."""
        listing = self.catalog.begin_listing(self.catalog.root)
        listing.add(Page(tuple(infos), (), ""))
        listing.finish()

    def do(self, operation: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """An operation in its transaction."""
        with self.journal.transaction():
            return operation(*arguments, **named)

    def write(self, name: str, data: bytes, parent: int = 1, *, dying: bool = False) -> int:
        """create, write, close; returns the inode."""
        node, handle = self.do(self.fs.entries.create, parent, name.encode(), 0o644, W, ME)
        self.fs.files.write(node.inode, 0, memoryview(data))
        self.do(self.fs.files.flush, handle, dying=lambda: dying)
        self.do(self.fs.files.release, handle)
        return int(node.inode)

    def mkdir(self, name: str, parent: int = 1) -> int:
        return int(self.do(self.fs.entries.make_directory, parent, name.encode(), 0o755, ME).inode)

    def queued(self) -> list[str]:
        """What is still to be done, in order: `PUT key`, `COPY source key`, `DELETE key`."""
        rows = self.journal.db.execute("SELECT kind, source_key, key FROM operation WHERE state IN (0, 1) ORDER BY seq")
        return [
            " ".join([OperationKind(kind).name, *(each.decode().removeprefix("p/") for each in (source, key) if each)])
            for kind, source, key in rows
        ]

    def finish(self, etag: str = '"new"') -> None:
        """The mover does everything that is queued."""
        self.journal.db.execute(
            "UPDATE operation SET state = ?, etag = ?, finished_at = unixepoch('subsec') WHERE state = 0",
            (int(OperationState.DONE), etag),
        )
        self.upkeep.look()

    def begin(self) -> None:
        """The mover has begun everything that is queued."""
        self.journal.db.execute("UPDATE operation SET state = 1, started_at = 1.0 WHERE state = 0")

    def recover(self) -> None:
        """Another mover has taken its place."""
        self.journal.db.execute("UPDATE operation SET state = 0 WHERE state = 1")

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
        return self.journal.tree.node(inode & ~NODE_BIT)


def refused(number: int, out: Outputs, operation: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(FileSystemError) as caught:
        out.do(operation, *arguments)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


def lose_catalog(out: Outputs) -> None:
    """The catalog is away, as between two of them."""
    for name in os.listdir(out.fd):
        if name.startswith("catalog.db"):
            os.unlink(name, dir_fd=out.fd)
