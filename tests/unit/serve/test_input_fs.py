"""The file system over a real catalog and cache; the mover is the writers' side, called at once."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mountkit.cache.checked import Missing, WouldBlock
from mountkit.cache.content import BLOCK_BYTES, PART_BYTES, content_id
from mountkit.cache.files import object_name
from mountkit.cache.reader import CacheReader
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import SEALED_BIT, ObjectRow
from mountkit.catalog.view import CatalogView
from mountkit.errors import AccessDenied, MountkitError, ObjectChanged, StoreUnavailable
from mountkit.ipc import Message
from mountkit.serve import input_fs
from mountkit.serve.input_fs import ROOT, FileSystemError, Found, InputFileSystem, Presentation
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.shared import ServerCounters
from mountkit.store.api import ObjectInfo, Page
from tests.fakes.memory_store import content
from tests.unit.cache.harness import LIFE, NEXT_LIFE, PLENTY, flip
from tests.unit.catalog.bucket import Clock
from tests.unit.mover.harness import in_trio


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
        monkeypatch.setattr(input_fs, "time", SimpleNamespace(time=self.time))
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
        self.writer.close()
        self.writer = self.mover.cache = CacheWriter.open(self.fd, PLENTY, NEXT_LIFE)

    def close(self) -> None:
        self.reader.close()
        self.view.close()
        self.writer.close()
        self.catalog.close()


@pytest.fixture
def b(directory_fd: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(directory_fd, monkeypatch)
    yield bench
    bench.close()


async def inode_of(files: InputFileSystem, name: bytes) -> int:
    found = await files.lookup(ROOT, name)
    assert found.attributes is not None
    return found.attributes.inode


def fails(number: int) -> Any:
    return pytest.raises(FileSystemError, match=errno.errorcode[number])


# ---- lookup, getattr ------------------------------------------------------------------------------------------------


@in_trio
async def test_a_lookup_holds_for_what_is_left_of_the_ttl(b: Bench) -> None:
    """[fresh-1]"""
    b.mover.put(b"d/x", b"abc")
    files = b.files()
    assert files.lookup_now(ROOT, b"d") is None
    found = await files.lookup(ROOT, b"d")
    assert found.timeout_s == 60.0
    b.time.tick(45)
    again = files.lookup_now(ROOT, b"d")
    assert again is not None and again.timeout_s == 15.0
    b.time.tick(15)
    again = files.lookup_now(ROOT, b"d")
    assert again is not None and again.timeout_s == 0.0
    b.time.tick(1)
    assert files.lookup_now(ROOT, b"d") is None
    assert b.mover.ops() == ["lookup"]


@in_trio
async def test_that_a_name_is_absent_holds_as_long(b: Bench) -> None:
    """[fresh-2]"""
    files = b.files()
    assert await files.lookup(ROOT, b"none") == Found(None, 60.0)
    b.time.tick(50)
    assert files.lookup_now(ROOT, b"none") == Found(None, 10.0)


@in_trio
async def test_with_ttl_zero_each_lookup_asks_and_holds_for_nothing(b: Bench) -> None:
    """[fresh-1]"""
    b.mover.put(b"a", b"abc")
    files = b.files(ttl_s=0.0)
    assert (await files.lookup(ROOT, b"a")).timeout_s == 0.0
    b.time.tick(0.001)
    assert files.lookup_now(ROOT, b"a") is None
    assert b.mover.asked[0][1]["fresh"] == 1_700_000_000.0


@in_trio
async def test_with_an_indefinite_ttl_nothing_is_asked_twice(b: Bench) -> None:
    """[fresh-1]"""
    b.mover.put(b"d/x", b"abc")
    files = b.files(ttl_s=math.inf)
    assert (await files.lookup(ROOT, b"d")).timeout_s == math.inf
    b.time.tick(1e9)
    assert files.lookup_now(ROOT, b"d") is not None
    assert files.fresh_after() == 0.0


@in_trio
async def test_stale_knowledge_is_shown_for_no_time(b: Bench) -> None:
    """[fresh-3]"""
    b.mover.put(b"d/x", b"abc")
    files = b.files()
    await files.lookup(ROOT, b"d")
    b.time.tick(100)
    b.mover.stale = True
    found = await files.lookup(ROOT, b"d")
    assert found.attributes is not None
    assert found.timeout_s == 0.0


@in_trio
async def test_a_lookup_the_mover_cannot_answer_fails_with_its_errno(b: Bench) -> None:
    files = b.files(metadata_budget_s=7.0)
    for error in (StoreUnavailable("down"), AccessDenied("no"), ObjectChanged("gone")):
        b.mover.error = error
        with fails(error.errno):
            await files.lookup(ROOT, b"a")
    assert b.mover.asked[0][1]["budget_s"] == 9.0
    b.mover.error, b.mover.stale = None, True
    with fails(errno.EIO):
        await files.lookup(ROOT, b"a")


@in_trio
async def test_attributes_are_the_objects_and_the_mounts(b: Bench) -> None:
    """[attributes-1]"""
    b.mover.put(b"a", b"abc")
    b.mover.put(b"d/x", b"abc")
    files = b.files()
    file, timeout = files.attributes_now(await inode_of(files, b"a"))
    assert (file.size, file.mtime_ns, file.uid, file.gid, file.links) == (3, 1_700_000_000_123_456_789, 1000, 100, 1)
    assert file.mode == stat.S_IFREG | 0o440
    assert timeout == math.inf, "an inode is one version"
    directory, timeout = files.attributes_now(await inode_of(files, b"d"))
    assert directory.mode == stat.S_IFDIR | 0o550
    assert timeout == 60.0
    assert files.attributes_now(ROOT)[0].inode == ROOT


def test_unknown_ids_are_estale(b: Bench) -> None:
    files = b.files()
    for unknown in (b.root + 1000, 12345, (b.root + 1000) | SEALED_BIT):
        for ask in (files.attributes_now, files.can_open_now, files.sealed_now, files.extended_attributes):
            with fails(errno.ESTALE):
                ask(unknown)
        with fails(errno.ESTALE):
            files.read_now(unknown, 0, 10)
    with fails(errno.ESTALE):
        files.entries_now(12345, 0, fresh_after=0.0)
    with fails(errno.ESTALE):
        files.entries_now(ROOT, 12345, fresh_after=0.0)


@in_trio
async def test_extended_attributes_name_the_version(b: Bench) -> None:
    """[attributes-2]"""
    b.mover.put(b"a", b"abc", "GLACIER_IR")
    files = b.files()
    expected = {b"user.s3.key": b"a", b"user.s3.etag": b'"1"', b"user.s3.storage_class": b"GLACIER_IR"}
    assert files.extended_attributes(await inode_of(files, b"a")) == expected
    assert files.extended_attributes(ROOT) == {}


# ---- sealed files ---------------------------------------------------------------------------------------------------


async def sealed(b: Bench, files: InputFileSystem, name: bytes) -> int:
    """The sealed inode of a file that was read and sealed."""
    inode = await inode_of(files, name)
    await files.prepare_open(inode)
    row = b.catalog.object(inode)
    assert row is not None
    assert b.writer.seal(content_id(row.key, row.etag, row.size), row.size)
    return await inode_of(files, name)


@in_trio
async def test_unsealed_files_are_looked_up_anew_soon_and_sealed_ones_have_another_inode(b: Bench) -> None:
    """[attributes-3]"""
    b.mover.put(b"a", b"abc")
    b.mover.put(b"empty", b"")
    files = b.files()
    plain = await files.lookup(ROOT, b"a")
    assert plain.attributes is not None
    assert plain.timeout_s == 2.0
    assert (await files.lookup(ROOT, b"empty")).timeout_s == 60.0, "never sealed"
    assert (await b.files(passthrough=False).lookup(ROOT, b"a")).timeout_s == 60.0
    inode = await sealed(b, files, b"a")
    assert inode == plain.attributes.inode | SEALED_BIT
    found = files.lookup_now(ROOT, b"a")
    assert found is not None and found.timeout_s == 60.0
    without = b.files(passthrough=False).lookup_now(ROOT, b"a")
    assert without is not None and without.attributes == plain.attributes
    for number in (inode, plain.attributes.inode):
        assert files.attributes_now(number)[0].inode == number
    entries = {e.name: (e.attributes.inode, e.timeout_s) for e in await files.entries(ROOT, 0, fresh_after=0.0)}
    assert entries[b"a"] == (inode, 60.0)


@in_trio
async def test_a_sealed_file_is_handed_out_once_its_checksums_were_checked_in_this_life(b: Bench) -> None:
    b.mover.put(b"a", content(1000))
    files = b.files()
    inode = await sealed(b, files, b"a")
    found = files.sealed_now(inode)
    assert found is not None
    assert os.pread(found.fd, 2000, 0) == content(1000)
    os.close(found.fd)
    b.next_life()
    assert files.sealed_now(inode) is None
    await files.verify_sealed(inode)
    found = files.sealed_now(inode)
    assert found is not None
    os.close(found.fd)


@in_trio
async def test_a_sealed_file_with_altered_bytes_is_estale(b: Bench, tmp_path: Any) -> None:
    """[bytes-4]"""
    b.mover.put(b"a", content(1000))
    files = b.files()
    inode = await sealed(b, files, b"a")
    row = b.catalog.object(inode & ~SEALED_BIT)
    assert row is not None
    flip(tmp_path / object_name(content_id(row.key, row.etag, row.size)), 10)
    assert files.sealed_now(inode) is None
    with fails(errno.ESTALE):
        await files.verify_sealed(inode)
    assert not await inode_of(files, b"a") & SEALED_BIT


# ---- open and read --------------------------------------------------------------------------------------------------


@in_trio
async def test_an_open_fetches_the_first_bytes_unless_they_are_here(b: Bench) -> None:
    b.mover.put(b"a", content(3 * BLOCK_BYTES))
    b.mover.put(b"empty", b"")
    files = b.files(data_budget_s=30.0)
    inode = await inode_of(files, b"a")
    assert not files.can_open_now(inode)
    assert files.can_open_now(await inode_of(files, b"empty"))
    await files.prepare_open(inode)
    assert files.can_open_now(inode)
    op, arguments = b.mover.asked[-1]
    assert (op, arguments["budget_s"]) == ("open", 32.0)
    b.mover.error = AccessDenied("no")
    with fails(errno.EACCES):
        await files.prepare_open(inode)


@in_trio
async def test_a_superseded_version_is_estale_at_open_and_readable_by_who_has_it_open(b: Bench) -> None:
    """[bytes-2]"""
    b.mover.put(b"a", content(1000))
    files = b.files()
    inode = await inode_of(files, b"a")
    await files.prepare_open(inode)
    b.mover.put(b"a", content(1000, 1))
    b.time.tick(100)
    newer = await inode_of(files, b"a")
    assert newer != inode
    with fails(errno.ESTALE):
        files.can_open_now(inode)
    with fails(errno.ESTALE):
        files.sealed_now(inode | SEALED_BIT)
    assert await files.read(inode, 0, 1000) == content(1000)
    assert await files.read(newer, 0, 1000) == content(1000, 1)


@in_trio
async def test_missing_parts_are_asked_for(b: Bench) -> None:
    size = 2 * BLOCK_BYTES + 77
    b.mover.put(b"a", content(size))
    files = b.files()
    inode = await inode_of(files, b"a")
    assert isinstance(files.read_now(inode, 0, 100), Missing)
    assert await files.read(inode, BLOCK_BYTES - 10, 20) == content(size)[BLOCK_BYTES - 10 : BLOCK_BYTES + 10]
    op, asked = b.mover.asked[-1]
    assert op == "fetch"
    assert (asked["offset"], asked["length"], asked["bad"], asked["inline"]) == (BLOCK_BYTES - 10, 20, False, False)
    count = len(b.mover.asked)
    assert await files.read(inode, BLOCK_BYTES - 10, 20) == content(size)[BLOCK_BYTES - 10 : BLOCK_BYTES + 10]
    assert len(b.mover.asked) == count
    now = files.read_now(inode, BLOCK_BYTES, 5)
    assert isinstance(now, WouldBlock) or now == content(size)[BLOCK_BYTES : BLOCK_BYTES + 5]
    assert await files.read(inode, size - 5, 100) == content(size)[-5:]
    assert await files.read(inode, size + 5, 100) == b""
    assert files.read_now(inode, size, 100) == b""


@in_trio
async def test_bad_parts_are_reported_and_fetched_again(b: Bench, tmp_path: Any) -> None:
    """[bytes-4]"""
    size = 2 * BLOCK_BYTES
    b.mover.put(b"a", content(size))
    files = b.files()
    inode = await inode_of(files, b"a")
    await files.read(inode, 0, size)
    row = b.catalog.object(inode)
    assert row is not None
    flip(tmp_path / object_name(content_id(row.key, row.etag, row.size)), PART_BYTES + 3)
    assert await files.read(inode, 0, size) == content(size)
    assert b.mover.asked[-1][1]["bad"] is True
    count = len(b.mover.asked)
    assert await files.read(inode, 0, size) == content(size)
    assert len(b.mover.asked) == count


@in_trio
async def test_where_the_cache_keeps_nothing_the_last_attempts_take_the_bytes_themselves(b: Bench) -> None:
    """[failures-3]"""
    b.mover.put(b"a", content(1000))
    files = b.files()
    inode = await inode_of(files, b"a")
    b.mover.keeps = False
    assert await files.read(inode, 10, 50) == content(1000)[10:60]
    assert [asked["inline"] for op, asked in b.mover.asked if op == "fetch"] == [False, False, True]


@in_trio
async def test_a_read_the_mover_gives_nothing_for_is_eio(b: Bench) -> None:
    b.mover.put(b"a", content(1000))
    files = b.files()
    inode = await inode_of(files, b"a")
    b.mover.keeps = b.mover.hands_over = False
    with fails(errno.EIO):
        await files.read(inode, 0, 50)
    assert b.mover.ops().count("fetch") == 4
    b.mover.error = ObjectChanged("another")
    with fails(errno.ESTALE):
        await files.read(inode, 0, 50)


@in_trio
async def test_the_mover_is_told_once_a_block_how_a_large_file_is_read(b: Bench) -> None:
    b.mover.put(b"large", content(3 * BLOCK_BYTES))
    b.mover.put(b"small", content(1000))
    files = b.files()
    large, small = await inode_of(files, b"large"), await inode_of(files, b"small")
    assert files.note_read(small, 0, 1000) is None
    assert files.note_read(large, 0, PART_BYTES) == (large, 0)
    assert files.note_read(large, PART_BYTES, PART_BYTES) is None
    assert files.note_read(large, BLOCK_BYTES, PART_BYTES) == (large, BLOCK_BYTES)
    await files.tell_read(large, BLOCK_BYTES, PART_BYTES)
    assert b.mover.asked[-1] == ("hint", {"object": large, "offset": BLOCK_BYTES, "length": PART_BYTES})


# ---- directories ----------------------------------------------------------------------------------------------------


@in_trio
async def test_entries_come_in_order_and_end_with_none(b: Bench) -> None:
    for key in (b"b", b"a", b"d/x"):
        b.mover.put(key, b"abc")
    files = b.files(passthrough=False)
    fresh = files.fresh_after()
    assert files.entries_now(ROOT, 0, fresh_after=fresh) is None
    found = await files.entries(ROOT, 0, fresh_after=fresh)
    assert [e.name for e in found] == [b"a", b"b", b"d"]
    assert {e.timeout_s for e in found} == {60.0}
    assert files.entries_now(ROOT, found[-1].cookie, fresh_after=fresh) == []
    rest = files.entries_now(ROOT, found[0].cookie, fresh_after=fresh)
    assert rest is not None and [e.name for e in rest] == [b"b", b"d"]
    b.time.tick(20)
    later = files.entries_now(ROOT, 0, fresh_after=fresh)
    assert later is not None and {e.timeout_s for e in later} == {40.0}


@in_trio
async def test_names_are_those_of_the_entries_whatever_the_size_of_a_page(b: Bench, monkeypatch: Any) -> None:
    for key in (b"b", b"a", b"a/x", b"a!", b"d/x", b"c"):
        b.mover.put(key, b"abc")
    files = b.files(passthrough=False)
    fresh = files.fresh_after()
    assert files.names_now(ROOT, 0, fresh_after=fresh) is None
    whole = await files.names(ROOT, 0, fresh_after=fresh)
    shown = await files.entries(ROOT, 0, fresh_after=fresh)
    assert [(e.name, e.cookie, e.inode) for e in whole] == [(e.name, e.cookie, e.attributes.inode) for e in shown]
    assert [e.name for e in whole] == [b"a!", b"a", b"b", b"c", b"d"], "the directory a/ hides the file a"
    for limit in (1, 2, 3):
        monkeypatch.setattr(input_fs, "_NAMES", limit)
        paged, cookie = [], 0
        while page := files.names_now(ROOT, cookie, fresh_after=fresh):
            paged += page
            cookie = page[-1].cookie
        assert paged == whole


@in_trio
async def test_the_kernel_keeps_the_names_of_a_directory_while_its_listing_is_valid(b: Bench) -> None:
    """[fresh-1]"""
    b.mover.put(b"a", b"abc")
    files = b.files()
    assert not files.open_directory(ROOT), "nothing is listed"
    await files.names(ROOT, 0, fresh_after=files.fresh_after())
    assert not files.open_directory(ROOT), "what the kernel has may be of an earlier listing"
    assert files.open_directory(ROOT)
    assert not b.files().open_directory(ROOT), "another server cannot know"
    b.catalog.expire()
    assert not files.open_directory(ROOT)
    b.time.tick()
    await files.names(ROOT, 0, fresh_after=files.fresh_after())
    assert not files.open_directory(ROOT)
    assert files.open_directory(ROOT)
    b.time.tick(61)
    assert not files.open_directory(ROOT), "the TTL has run out"
    with fails(errno.ESTALE):
        files.open_directory(b.root + 5000)


@in_trio
async def test_listed_files_stay_known_for_a_minute_and_sealed_ones_for_the_whole_ttl(b: Bench) -> None:
    b.mover.put(b"a", b"abc")
    b.mover.put(b"b", b"abc")
    files = b.files(ttl_s=3600.0)
    await sealed(b, files, b"b")
    found = await files.entries(ROOT, 0, fresh_after=files.fresh_after())
    assert {e.name: e.timeout_s for e in found} == {b"a": 60.0, b"b": 3600.0}
    assert [bool(e.attributes.inode & SEALED_BIT) for e in found] == [False, True]


@in_trio
async def test_entries_of_an_unreachable_bucket_are_the_last_known_for_no_time(b: Bench) -> None:
    """[fresh-3]"""
    b.mover.put(b"a", b"abc")
    files = b.files(passthrough=False)
    await files.entries(ROOT, 0, fresh_after=files.fresh_after())
    b.time.tick(100)
    b.mover.stale = True
    found = await files.entries(ROOT, 0, fresh_after=files.fresh_after())
    assert [(e.name, e.timeout_s) for e in found] == [(b"a", 0.0)]
    b.catalog.expire()  # a refresh that could not reach the bucket
    found = await files.entries(ROOT, 0, fresh_after=files.fresh_after())
    assert [(e.name, e.timeout_s) for e in found] == [(b"a", 0.0)]


@in_trio
async def test_entries_that_do_not_come_are_eio(b: Bench) -> None:
    files = b.files()
    b.mover.stale = True
    with fails(errno.EIO):
        await files.entries(ROOT, 0, fresh_after=files.fresh_after())
    b.mover.error = StoreUnavailable("down")
    with fails(errno.EIO):
        await files.entries(ROOT, 0, fresh_after=files.fresh_after())


def test_without_a_catalog_nothing_is_known_and_nothing_breaks(b: Bench) -> None:
    files = b.files()
    files.lookup_now(ROOT, b"a")
    for name in os.listdir(b.fd):
        if name.startswith("catalog.db"):
            os.unlink(name, dir_fd=b.fd)
    assert files.lookup_now(ROOT, b"a") is None
    assert files.entries_now(ROOT, 0, fresh_after=0.0) is None
    for ask in (files.attributes_now, files.can_open_now, files.extended_attributes):
        with fails(errno.EIO):
            ask(b.root + 5)
