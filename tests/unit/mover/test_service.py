"""Requests to the mover as a server sends them: bytes also with a broken cache, failures told to the catalog."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from mountkit.cache.content import BLOCK_BYTES
from mountkit.cache.faults import cache_broken
from mountkit.cache.policy import Limits
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import ObjectRow
from mountkit.config import MountSettings
from mountkit.errors import ObjectChanged, UsageError
from mountkit.ipc import Message
from mountkit.mover.fetch import Wanted
from mountkit.mover.service import Service
from mountkit.sources import BucketURL
from mountkit.store.retry import RetryingStore
from tests.fakes.memory_store import content
from tests.unit.cache.harness import LIFE
from tests.unit.mover.harness import SteppedStore, in_trio


class Bench:
    def __init__(self, service: Service, store: SteppedStore, catalog: Catalog) -> None:
        self.service, self.store, self.catalog = service, store, catalog

    async def ask(self, op: str, **arguments: Any) -> Message:
        answer = await self.service.handle(Message({"op": op, **arguments}), _silent)
        return answer if isinstance(answer, Message) else Message(answer)

    async def put(self, name: bytes, data: bytes) -> int:
        """The number of an object that the bucket holds from now on."""
        self.store.put(name, data)
        return await self.object(name)

    async def object(self, name: bytes) -> int:
        fresh = time.time()
        await self.ask("lookup", parent=self.catalog.root, name=name.decode("latin-1"), fresh=fresh)
        known = self.catalog.lookup(self.catalog.root, name)
        assert known is not None and known.inode is not None
        return known.inode

    def row(self, ident: int) -> ObjectRow:
        row = self.catalog.object(ident)
        assert row is not None
        return row


async def _silent(_: dict[str, Any]) -> None:
    pass


def broken(*_: object) -> None:
    raise cache_broken("its disk")


@asynccontextmanager
async def serving(catalog: Catalog, cache: CacheWriter) -> AsyncIterator[Bench]:
    inner = SteppedStore()
    store = RetryingStore(inner)
    settings = MountSettings(BucketURL("b"), "/d", "/c", "i")
    with tempfile.TemporaryDirectory() as state:
        state_fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
        service = Service(settings, catalog, cache, store, "", state_fd)
        async with trio.open_nursery() as nursery:
            await nursery.start(service.lister.run)
            await nursery.start(service.fetcher.run)
            yield Bench(service, inner, catalog)
            nursery.cancel_scope.cancel()
        os.close(state_fd)


@in_trio
async def test_a_fetch_leaves_the_bytes_in_the_cache(catalog: Catalog, cache: CacheWriter) -> None:
    async with serving(catalog, cache) as bench:
        ident = await bench.put(b"a", content(1000))
        answer = await bench.ask("fetch", object=ident, offset=10, length=20, bad=False, inline=False)
        assert answer.payload == b""
        answer = await bench.ask("fetch", object=ident, offset=10, length=20, bad=False, inline=True)
        assert answer.payload == content(1000)[10:30]


@in_trio
async def test_a_report_of_bad_bytes_to_a_broken_cache_is_still_answered(
    catalog: Catalog, cache: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[failures-3]"""
    async with serving(catalog, cache) as bench:
        ident = await bench.put(b"a", content(1000))
        for method in ("recheck", "missing", "read", "write", "commit"):
            monkeypatch.setattr(cache, method, broken)
        monkeypatch.setattr(cache, "works", lambda: False)
        answer = await bench.ask("fetch", object=ident, offset=10, length=20, bad=True, inline=True)
        assert answer.payload == content(1000)[10:30]
        assert (await bench.ask("stats")).body["degraded"]


@in_trio
async def test_a_cache_that_says_it_has_what_it_cannot_give_is_gone_around(
    catalog: Catalog, cache: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[failures-3] Its disk can be neither read nor written: the index in memory still has all rows."""
    async with serving(catalog, cache) as bench:
        ident = await bench.put(b"a", content(1000))
        await bench.ask("open", object=ident)
        monkeypatch.setattr(cache, "recheck", broken)
        monkeypatch.setattr(cache, "read", lambda *_: None)
        for bad in (False, True):
            answer = await bench.ask("fetch", object=ident, offset=10, length=20, bad=bad, inline=True)
            assert answer.payload == content(1000)[10:30]


@in_trio
async def test_what_meets_a_lost_catalog_is_left_to_the_next_mover(catalog: Catalog, cache: CacheWriter) -> None:
    """[failures-7] It is not answered: the connection ends with the mover, and whoever asked asks again."""
    async with serving(catalog, cache) as bench:
        await bench.put(b"a", content(1000))
        catalog._db.execute("DROP TABLE entry")  # type: ignore[union-attr]
        with trio.move_on_after(1) as asked:
            await bench.ask("lookup", parent=catalog.root, name="a", fresh=0.0)
        assert asked.cancelled_caught
        assert bench.service.lost.is_set()


@in_trio
async def test_a_cache_that_works_again_is_no_reason_any_more(
    catalog: Catalog, cache: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(catalog, cache) as bench:
        ident = await bench.put(b"a", content(1000))
        with monkeypatch.context() as patch:
            for method in ("verify", "write", "usage"):
                patch.setattr(cache, method, broken)
            patch.setattr(cache, "works", lambda: False)
            assert (await bench.ask("verify", object=ident)).body == {"good": False}
            stats = (await bench.ask("stats")).body
            assert (len(stats["degraded"]), stats["cache"]) == (1, {})
            await bench.ask("open", object=ident)
            assert (await bench.ask("stats")).body["degraded"]
        assert (await bench.ask("stats")).body["degraded"] == [], "nobody has to read for that"


@in_trio
async def test_a_changed_object_is_superseded_in_the_catalog(catalog: Catalog, cache: CacheWriter) -> None:
    """[bytes-2]"""
    async with serving(catalog, cache) as bench:
        ident = await bench.put(b"a", content(1000))
        bench.store.put(b"a", content(1001))
        with pytest.raises(ObjectChanged):
            await bench.ask("open", object=ident)
        row = catalog.object(ident)
        assert row is not None and row.superseded_at is not None
        assert catalog.lookup(catalog.root, b"a") is None
        assert await bench.object(b"a") != ident


@in_trio
async def test_an_unknown_object_is_object_changed_and_an_unknown_word_an_error(
    catalog: Catalog, cache: CacheWriter
) -> None:
    async with serving(catalog, cache) as bench:
        with pytest.raises(ObjectChanged):
            await bench.ask("fetch", object=12345, offset=0, length=1)
        with pytest.raises(UsageError):
            await bench.ask("dance")


@pytest.mark.parametrize("readers", [3, 24, 60])
def test_sequential_readers_on_a_full_cache_fetch_each_byte_about_once(
    catalog: Catalog, directory_fd: int, readers: int
) -> None:
    """[failures-3]"""
    size = 16 * BLOCK_BYTES
    data = content(size)
    small = CacheWriter.open(directory_fd, Limits(8 * BLOCK_BYTES, 0.0), LIFE)

    async def read(bench: Bench, ident: int) -> None:
        for offset in range(0, size, BLOCK_BYTES):
            answer = await bench.ask("fetch", object=ident, offset=offset, length=BLOCK_BYTES, bad=False)
            cached = small.read(Wanted.of(bench.row(ident)).content, size, offset, BLOCK_BYTES)
            assert (answer.payload or cached) == data[offset : offset + BLOCK_BYTES]
            await trio.sleep(0)

    @in_trio
    async def run() -> None:
        async with serving(catalog, small) as bench:
            idents = []
            for number in range(readers):
                bench.store.put(b"f%d" % number, data)
                idents.append(await bench.object(b"f%d" % number))
            async with trio.open_nursery() as nursery:
                for ident in idents:
                    nursery.start_soon(read, bench, ident)
            fetched = sum(length for _, _, length in bench.store.gets)
            assert fetched <= 1.2 * readers * size

    run()
    small.close()
