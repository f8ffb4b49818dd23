"""The read-only file system over a real catalog and cache; the mover is the writers' side, called at once."""

from __future__ import annotations

import errno
import json
from types import SimpleNamespace
from typing import Any

import pytest

from mountkit.cache.content import PART_BYTES, content_id
from mountkit.cache.reader import CacheReader
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import ObjectRow
from mountkit.catalog.view import CatalogView
from mountkit.errors import MountkitError
from mountkit.ipc import Message
from mountkit.serve import input_listing, input_names
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.shared import ServerCounters
from mountkit.serve.values import ROOT, FileSystemError, Presentation
from mountkit.store.api import ObjectInfo, Page
from tests.unit.cache.harness import LIFE, NEXT_LIFE, PLENTY
from tests.unit.catalog.bucket import Clock


class FakeMover(MoverLink):
    """Answers from `bucket` by writing into catalog and cache, as the mover does."""

    def __init__(self, catalog: Catalog, cache: CacheWriter) -> None:
        super().__init__("nowhere")
        self.catalog, self.cache = catalog, cache
        self.bucket: dict[bytes, tuple[ObjectInfo, bytes]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.error: MountkitError | None = None
        self.keeps = True
        """Whether what it fetches reaches the cache."""
        self.hands_over = True
        """Whether it sends bytes when asked to."""
        self.stale = False
        self._number = 0

    def put(self, key: bytes, data: bytes, storage_class: str = "STANDARD") -> None:
        self._number += 1
        info = ObjectInfo(key, len(data), f'"{self._number}"', 1_700_000_000_123_456_789, storage_class)
        self.bucket[key] = info, data

    def ops(self) -> list[str]:
        return [op for op, _ in self.asked]

    async def call(self, op: str, *, budget_s: float, **arguments: Any) -> Message:
        json.dumps(arguments, allow_nan=False)
        self.asked.append((op, {**arguments, "budget_s": budget_s}))
        if self.error is not None:
            raise self.error
        answer: Message = getattr(self, f"_{op}")(**arguments)
        return answer

    async def tell(self, op: str, **arguments: Any) -> None:
        self.asked.append((op, arguments))

    def _lookup(self, parent: int, name: str, fresh: float) -> Message:
        if self.stale:
            return Message({"stale": True})
        directory = self.catalog.directory(parent)
        assert directory is not None
        raw = name.encode("latin-1")
        key = directory.prefix + raw
        if any(other.startswith(key + b"/") for other in self.bucket):
            self.catalog.record_directory(parent, raw)
        elif key in self.bucket:
            self.catalog.record_object(parent, raw, self.bucket[key][0])
        else:
            self.catalog.record_absent(parent, raw)
        return Message({"stale": False})

    def _list(self, directory: int, cookie: int, fresh: float) -> Message:
        if self.stale:
            return Message({"stale": True})
        listing = self.catalog.begin_listing(directory)
        objects = tuple(info for key, (info, _) in sorted(self.bucket.items()) if b"/" not in key)
        prefixes = tuple(sorted({key.split(b"/")[0] + b"/" for key in self.bucket if b"/" in key}))
        listing.add(Page(objects, prefixes, ""))
        listing.finish()
        return Message({"stale": False})

    def _row(self, ident: int) -> ObjectRow:
        row = self.catalog.object(ident)
        assert row is not None
        return row

    def _bring(self, row: ObjectRow, first: int, last: int) -> bytes:
        data = self.bucket[row.key][1]
        content = content_id(row.key, row.etag, row.size)
        for run in self.cache.missing(content, row.size, first, last) if self.keeps else ():
            piece = data[run.start * PART_BYTES : run.stop * PART_BYTES]
            self.cache.commit(self.cache.write(content, row.size, run.start, piece))
        return data

    def _open(self, object: int) -> Message:  # noqa: A002 - a word of the protocol
        self._bring(self._row(object), 0, 7)
        return Message({})

    def _fetch(self, object: int, offset: int, length: int, bad: bool, inline: bool) -> Message:  # noqa: A002 - a word of the protocol
        row = self._row(object)
        first, last = offset // PART_BYTES, (offset + length - 1) // PART_BYTES
        if bad:
            self.cache.recheck(content_id(row.key, row.etag, row.size), row.size, first, last)
        data = self._bring(row, first, last)
        return Message({}, data[offset : offset + length] if inline and self.hands_over else b"")

    def _verify(self, object: int) -> Message:  # noqa: A002 - a word of the protocol
        row = self._row(object)
        return Message({"good": self.cache.verify(content_id(row.key, row.etag, row.size))})


class Bench:
    def __init__(self, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fd = fd
        self.time = Clock()
        self.time.now = 1_700_000_000.0
        for module in (input_names, input_listing):
            monkeypatch.setattr(module, "time", SimpleNamespace(time=self.time))
        self.catalog = Catalog.open(fd, b"", clock=self.time)
        self.writer = CacheWriter.open(fd, PLENTY, LIFE)
        self.mover = FakeMover(self.catalog, self.writer)
        self.view = CatalogView.open(fd, clock=self.time)
        self.reader = CacheReader.open(fd)
        self.root = self.catalog.root

    def files(self, *, ttl_s: float = 60.0, passthrough: bool = True, **options: Any) -> InputFileSystem:
        show = Presentation(1000, 100, 0o027, ttl_s, passthrough, **options)
        return InputFileSystem(self.view, self.reader, self.mover, show, ServerCounters())

    def next_life(self) -> None:
        """Another mover, and another server: what `files` gives from here on."""
        self.writer.close()
        self.writer = self.mover.cache = CacheWriter.open(self.fd, PLENTY, NEXT_LIFE)
        self.reader.close()
        self.reader = CacheReader.open(self.fd)

    def close(self) -> None:
        self.reader.close()
        self.view.close()
        self.writer.close()
        self.catalog.close()


async def inode_of(files: InputFileSystem, name: bytes) -> int:
    found = await files.names.lookup(ROOT, name)
    assert found.attributes is not None
    return found.attributes.inode


def fails(number: int) -> Any:
    return pytest.raises(FileSystemError, match=errno.errorcode[number])


async def sealed(b: Bench, files: InputFileSystem, name: bytes) -> int:
    """The sealed inode of a file that was read and sealed."""
    inode = await inode_of(files, name)
    await files.prepare_open(inode)
    row = b.catalog.object(inode)
    assert row is not None
    await files.read(inode, 0, row.size)
    assert b.writer.seal(content_id(row.key, row.etag, row.size), row.size)
    return await inode_of(files, name)
