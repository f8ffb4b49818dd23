"""Fetching: each part once, block by block, errors to all who wait, and bytes also where the cache takes none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from mountkit.cache.content import BLOCK_BYTES, PART_BYTES
from mountkit.cache.faults import CacheBroken, DiskFull, cache_broken, cache_full, disk_full
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.values import ObjectId, ObjectRow
from mountkit.errors import BadAnswer, MountkitError, ObjectChanged, StoreUnavailable
from mountkit.mover.fetch import Fetch, Wanted, parts_of
from mountkit.mover.fetcher import Fetcher
from mountkit.mover.queue import FetchQueue, Priority
from mountkit.store.api import ObjectInfo
from tests.fakes.memory_store import content
from tests.unit.mover.harness import SteppedStore, in_trio, settled

MIB = BLOCK_BYTES
DEMAND, READAHEAD, SWEEP = Priority.DEMAND, Priority.READAHEAD, Priority.SWEEP


class Bench:
    """A fetcher over a store, and what it reported."""

    def __init__(self, cache: CacheWriter, threads: int = 8) -> None:
        self.store = SteppedStore()
        self.queue = FetchQueue[Fetch](max_threads=threads)
        self.failures: list[tuple[bytes, MountkitError]] = []
        self.versions: list[tuple[int, str]] = []
        self.trouble: list[Exception] = []
        self.fetcher = Fetcher(
            self.store,
            cache,
            self.queue,
            on_failure=lambda row, error: self.failures.append((row.key, error)),
            on_version=lambda ident, version: self.versions.append((ident, version)),
            on_cache_trouble=self.trouble.append,
        )
        self._ids = 0

    def put(self, key: bytes, size: int) -> Wanted:
        info = self.store.put(key, content(size))
        self._ids += 1
        return wanted(info, self._ids)


def wanted(info: ObjectInfo, ident: int = 1) -> Wanted:
    version = ""
    return Wanted.of(
        ObjectRow(ObjectId(ident), info.key, info.etag, info.size, info.mtime_ns, version, "STANDARD", None)
    )


@asynccontextmanager
async def running(cache: CacheWriter, threads: int = 8) -> AsyncIterator[Bench]:
    bench = Bench(cache, threads)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.fetcher.run)
        try:
            yield bench
            while bench.fetcher.busy:
                await bench.fetcher.idle.wait()
        finally:
            bench.store.gate.set()
            bench.store.bodies.open()
            bench.queue.close()
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Turns of the trio loop until threads have brought it about."""
    while not condition():
        await trio.sleep(0.001)


def cached(cache: CacheWriter, it: Wanted) -> bytes | None:
    return cache.read(it.content, it.row.size, 0, it.row.size)


@in_trio
async def test_many_askers_of_overlapping_parts_cause_each_part_to_be_fetched_once(cache: CacheWriter) -> None:
    async with running(cache) as bench:
        it = bench.put(b"a", 3 * MIB)
        bench.store.gate.clear()
        async with trio.open_nursery() as nursery:
            for parts in (range(8), range(4, 12), range(4, 12), range(24), range(20, 24)):
                nursery.start_soon(bench.fetcher.need, it, parts, DEMAND)
            await settled()
            bench.store.gate.set()
        asked = [part for _, offset, length in bench.store.gets for part in parts_of(offset, length)]
        assert sorted(asked) == list(range(24))
        assert cached(cache, it) == content(3 * MIB)
        await bench.fetcher.need(it, it.parts, DEMAND)
        assert len(bench.store.gets) == len({offset for _, offset, _ in bench.store.gets})
        assert bench.fetcher.landed_bytes == 3 * MIB
        assert repr(bench.fetcher) == "<Fetcher 0 parts in flight>"


@in_trio
async def test_a_large_get_lands_block_by_block(cache: CacheWriter) -> None:
    async with running(cache) as bench:
        it = bench.put(b"a", 3 * MIB - 5)
        bench.store.bodies.close()
        bench.fetcher.start(it, it.parts, SWEEP)
        bench.store.bodies.allow()
        await bench.fetcher.need(it, range(8), DEMAND)
        assert cache.read(it.content, it.row.size, 0, MIB) == content(MIB)
        assert cache.missing(it.content, it.row.size, 0, 23) == [range(8, 24)]
        assert bench.fetcher.busy
        bench.store.bodies.open()
        await bench.fetcher.need(it, it.parts, DEMAND)
        assert cached(cache, it) == content(3 * MIB - 5)
        assert bench.store.gets == [(b"a", 0, 3 * MIB - 5)]


@pytest.mark.parametrize("chunk", [1000, PART_BYTES + 1, 3 * MIB])
def test_chunks_of_any_size_are_put_together(cache: CacheWriter, chunk: int) -> None:
    @in_trio
    async def run() -> None:
        async with running(cache) as bench:
            bench.store.chunk_bytes = chunk
            it = bench.put(b"a", 2 * MIB + 77)
            await bench.fetcher.need(it, range(3, 13), DEMAND)
            await bench.fetcher.need(it, it.parts, DEMAND)
            assert cached(cache, it) == content(2 * MIB + 77)

    run()


@in_trio
async def test_an_error_reaches_all_who_wait_and_the_next_ask_tries_again(cache: CacheWriter) -> None:
    errors = list[MountkitError]()

    async def ask(bench: Bench, it: Wanted) -> None:
        with pytest.raises(StoreUnavailable) as raised:
            await bench.fetcher.need(it, it.parts, DEMAND)
        errors.append(raised.value)

    async with running(cache) as bench:
        it = bench.put(b"a", 1000)
        bench.store.gate.clear()
        bench.store.fail_next(StoreUnavailable("down"))
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, bench, it)
            await settled()
            bench.store.gate.set()
        assert len(errors) == 3
        assert [key for key, _ in bench.failures] == [b"a"]
        await bench.fetcher.need(it, it.parts, DEMAND)
        assert cached(cache, it) == content(1000)


@in_trio
async def test_who_has_his_parts_does_not_hear_that_the_rest_failed(cache: CacheWriter) -> None:
    async with running(cache, threads=1) as bench:
        it = bench.put(b"a", 4 * MIB)
        bench.store.bodies.close()
        bench.store.truncate_next(MIB)  # of the first GET one block comes, then it breaks off
        bench.fetcher.start(it, range(8, 24), DEMAND)
        await until(lambda: len(bench.store.gets) == 1)
        bench.fetcher.start(it, range(8), DEMAND)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.fetcher.need, it, range(4, 12), DEMAND)
            await settled()
            bench.store.bodies.open()
        assert [key for key, _ in bench.failures] == [b"a"]
        assert [offset for _, offset, _ in bench.store.gets] == [MIB, 0]
        with pytest.raises(StoreUnavailable):
            bench.store.fail_next(StoreUnavailable("down"))
            await bench.fetcher.need(it, range(4, 24), DEMAND)


@in_trio
async def test_a_changed_object_is_reported(cache: CacheWriter) -> None:
    async with running(cache) as bench:
        it = bench.put(b"a", 1000)
        bench.put(b"a", 2000)
        with pytest.raises(ObjectChanged):
            await bench.fetcher.need(it, it.parts, DEMAND)
        [(key, error)] = bench.failures
        assert key == b"a"
        assert isinstance(error, ObjectChanged)
        assert cached(cache, it) is None


@in_trio
async def test_the_version_an_answer_tells_is_reported(cache: CacheWriter) -> None:
    async with running(cache) as bench:
        bench.store.versioned = True
        it = bench.put(b"a", 1000)
        await bench.fetcher.need(it, it.parts, DEMAND)
        assert bench.versions == [(1, "v1")]


@in_trio
async def test_with_a_full_cache_bytes_come_from_memory(cache: CacheWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """[failures-3]"""

    def refuse(*_: object) -> None:
        raise cache_full("its size limit")

    monkeypatch.setattr(cache, "write", refuse)
    async with running(cache) as bench:
        it = bench.put(b"a", 2 * MIB + 5)
        await bench.fetcher.need(it, it.parts, DEMAND)
        assert cached(cache, it) is None
        assert bench.fetcher.gather(it, 0, it.row.size) == content(it.row.size)
        assert bench.fetcher.gather(it, MIB - 3, 7) == content(it.row.size)[MIB - 3 : MIB + 4]
        assert bench.fetcher.gather(it, 2 * MIB, 1000) == content(it.row.size)[2 * MIB :]
        await bench.fetcher.need(it, it.parts, DEMAND)
        assert len(bench.store.gets) == 1
        assert bench.trouble == []


@pytest.mark.parametrize("fault", [cache_full("its limit"), disk_full("no byte left"), cache_broken("writing")])
def test_where_the_cache_refuses_bytes_they_come_from_memory(
    cache: CacheWriter, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """[failures-3]"""

    def refuse(*_: object) -> None:
        raise fault

    monkeypatch.setattr(cache, "write", refuse)

    @in_trio
    async def run() -> None:
        async with running(cache) as bench:
            it = bench.put(b"a", MIB + 5)
            await bench.fetcher.need(it, it.parts, DEMAND)
            assert bench.fetcher.gather(it, 0, it.row.size) == content(it.row.size)
            assert (fault in bench.trouble) == isinstance(fault, CacheBroken | DiskFull), "a full cache is no trouble"

    run()


@pytest.mark.parametrize("fault", [cache_full("the index"), cache_broken("the index")])
def test_where_the_index_takes_no_rows_bytes_come_from_memory(
    cache: CacheWriter, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """[failures-3]"""

    def refuse(*_: object) -> None:
        raise fault

    monkeypatch.setattr(cache, "commit", refuse)

    @in_trio
    async def run() -> None:
        async with running(cache) as bench:
            it = bench.put(b"a", MIB + 5)
            await bench.fetcher.need(it, it.parts, DEMAND)
            assert bench.fetcher.gather(it, 0, it.row.size) == content(it.row.size)
            assert fault in bench.trouble
            assert len(bench.store.gets) == 1

    run()


@in_trio
async def test_where_the_index_cannot_be_asked_bytes_come_from_memory(
    cache: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[failures-3]"""
    fault = cache_broken("the index")

    def refuse(*_: object) -> None:
        raise fault

    for method in ("missing", "read", "write", "commit"):
        monkeypatch.setattr(cache, method, refuse)
    async with running(cache) as bench:
        it = bench.put(b"a", MIB + 5)
        await bench.fetcher.need(it, it.parts, DEMAND)
        assert bench.fetcher.gather(it, 3, MIB) == content(it.row.size)[3 : MIB + 3]
        other = bench.put(b"b", 5)
        assert bench.fetcher.gather(other, 0, 5) is None
        assert fault in bench.trouble


@in_trio
async def test_a_cache_that_loses_everything_is_an_error_not_a_loop(
    cache: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "commit", lambda rows: None)
    async with running(cache) as bench:
        it = bench.put(b"a", 1000)
        with pytest.raises(MountkitError, match="does not keep"):
            await bench.fetcher.need(it, it.parts, DEMAND)


@in_trio
async def test_cancelling_who_waits_does_not_cancel_the_fetch(cache: CacheWriter) -> None:
    async with running(cache) as bench:
        it = bench.put(b"a", 1000)
        bench.store.gate.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.fetcher.need, it, it.parts, DEMAND)
            await settled()
            nursery.cancel_scope.cancel()
        assert bench.fetcher.busy
        bench.store.gate.set()
        await bench.fetcher.need(it, it.parts, DEMAND)
        assert len(bench.store.gets) == 1


@in_trio
async def test_a_reader_makes_the_readahead_he_needs_urgent(cache: CacheWriter) -> None:
    async with running(cache, threads=1) as bench:
        blocker, early, late = (bench.put(key, 1000) for key in (b"blocker", b"early", b"late"))
        bench.store.gate.clear()
        bench.fetcher.start(blocker, blocker.parts, DEMAND)
        await until(lambda: len(bench.store.gets) == 1)
        bench.fetcher.start(early, early.parts, READAHEAD)
        bench.fetcher.start(late, late.parts, READAHEAD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.fetcher.need, late, late.parts, DEMAND)
            await settled()
            bench.store.gate.set()
        await bench.fetcher.need(early, early.parts, DEMAND)
        assert [key for key, _, _ in bench.store.gets] == [b"blocker", b"late", b"early"]


@in_trio
async def test_a_body_too_short_is_a_bad_answer_and_only_whole_parts_stay(cache: CacheWriter) -> None:
    """[bytes-1]"""
    async with running(cache) as bench:
        it = bench.put(b"a", 2 * MIB)
        bench.store.shorten_next = 10
        with pytest.raises(BadAnswer):
            await bench.fetcher.need(it, it.parts, DEMAND)
        assert cache.missing(it.content, it.row.size, 0, 15) == [range(15, 16)]
        assert cache.read(it.content, it.row.size, 0, 15 * PART_BYTES) == content(15 * PART_BYTES)


@in_trio
async def test_a_body_too_long_is_a_bad_answer_and_nothing_beyond_is_kept(cache: CacheWriter) -> None:
    """[bytes-1]"""
    async with running(cache) as bench:
        it = bench.put(b"a", 4 * MIB)
        bench.store.lengthen_next = MIB
        with pytest.raises(BadAnswer):
            await bench.fetcher.need(it, range(8, 20), DEMAND)
        assert cache.missing(it.content, it.row.size, 20, 31) == [range(20, 32)]


@in_trio
async def test_an_empty_object_needs_no_request(cache: CacheWriter) -> None:
    async with running(cache) as bench:
        it = bench.put(b"a", 0)
        await bench.fetcher.need(it, it.parts, DEMAND)
        assert bench.fetcher.gather(it, 0, 100) == b""
        assert bench.store.gets == []


@in_trio
async def test_an_unforeseen_failure_reaches_who_waits(cache: CacheWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async with running(cache) as bench:
        it = bench.put(b"a", 1000)
        monkeypatch.setattr(bench.store, "get", surprise)
        with pytest.raises(MountkitError, match="ZeroDivisionError"):
            await bench.fetcher.need(it, it.parts, DEMAND)
