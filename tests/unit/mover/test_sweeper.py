"""The sweeper over a small bucket: what it fetches, what that costs, and when it stops."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from mountkit.cache.content import BLOCK_BYTES
from mountkit.cache.policy import Limits
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.lister import Lister
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import ObjectRow
from mountkit.errors import AccessDenied
from mountkit.mover.fetch import Wanted
from mountkit.mover.queue import Priority
from mountkit.mover.sweeper import Sweeper
from tests.fakes.memory_store import content
from tests.unit.cache.harness import LIFE
from tests.unit.mover.harness import in_trio
from tests.unit.mover.test_fetcher import Bench, running, until

SIZE = 1000


class Reader:
    """Opens and reads files as a mount's servers would."""

    def __init__(self, bench: Bench, catalog: Catalog, lister: Lister) -> None:
        self.bench, self.catalog = bench, catalog
        self.now = 0.0
        self.lister = lister
        self.sweeper = Sweeper(catalog, lister, bench.fetcher, clock=lambda: self.now)

    async def row(self, path: str) -> ObjectRow:
        current: int = self.catalog.root
        for word in path.encode().split(b"/"):
            await self.lister.lookup(current, word, 0.0)
            known = self.catalog.lookup(current, word)
            assert known is not None and known.inode is not None
            current = known.inode
        assert known.object is not None
        return known.object

    async def open(self, path: str) -> bool:
        """Whether its bytes were there already."""
        row = await self.row(path)
        wanted = Wanted.of(row)
        cold = bool(self.bench.fetcher.lacking_bytes(wanted, wanted.parts[:8]))
        self.sweeper.opened(row, cold=cold)
        if cold:
            await self.bench.fetcher.need(wanted, wanted.parts[:8], Priority.DEMAND)
        return not cold

    async def quiet(self) -> None:
        """Until nothing more comes."""
        before = -1
        while before != len(self.bench.store.gets):
            before = len(self.bench.store.gets)
            await until(lambda: not self.bench.fetcher.busy)
            await trio.testing.wait_all_tasks_blocked(0.01)

    @property
    def fetched(self) -> int:
        return sum(length for _, _, length in self.bench.store.gets)


@asynccontextmanager
async def reading(catalog: Catalog, cache: CacheWriter, keys: dict[str, int]) -> AsyncIterator[Reader]:
    async with running(cache, threads=16) as bench, trio.open_nursery() as nursery:
        for key, size in keys.items():
            bench.store.put(key.encode(), content(size))
        lister = Lister(catalog, bench.store)
        await nursery.start(lister.run)
        yield Reader(bench, catalog, lister)
        nursery.cancel_scope.cancel()


def tree(count: int, size: int = SIZE) -> dict[str, int]:
    return {f"train/c{n % 4}/{n:05d}": size for n in range(count)}


@in_trio
async def test_a_shuffled_epoch_is_fetched_ahead_with_one_get_a_file(catalog: Catalog, cache: CacheWriter) -> None:
    keys = tree(800)
    async with reading(catalog, cache, keys) as reader:
        shuffled = random.Random(1).sample(sorted(keys), len(keys))
        hits = 0
        for path in shuffled:
            hits += await reader.open(path)
            await trio.sleep(0)
        assert hits > 0.5 * len(keys)
        assert len(reader.bench.store.gets) <= 1.05 * len(keys)
        assert repr(reader.sweeper).startswith("<Sweeper 0 GETs under way")


@in_trio
async def test_a_hundred_random_files_and_then_nothing_cost_little(catalog: Catalog, cache: CacheWriter) -> None:
    keys = tree(2000)
    async with reading(catalog, cache, keys) as reader:
        for path in random.Random(1).sample(sorted(keys), 100):
            await reader.open(path)
            await reader.quiet()
        assert 200 * SIZE <= reader.fetched <= 400 * SIZE


@in_trio
async def test_a_sweep_rests_when_nobody_opens_and_goes_on_after(catalog: Catalog, cache: CacheWriter) -> None:
    keys = tree(1500)
    async with reading(catalog, cache, keys) as reader:
        shuffled = random.Random(1).sample(sorted(keys), 500)
        reader.bench.store.bodies.close()  # nothing lands: what is under way is all that may come
        rows = [await reader.row(path) for path in shuffled]
        for row in rows:
            reader.sweeper.opened(row, cold=False)
        await trio.testing.wait_all_tasks_blocked(0.01)
        reader.now += 2.0
        reader.bench.store.bodies.open()
        await reader.quiet()
        rested = len(reader.bench.store.gets)
        assert 0 < rested <= 160
        reader.sweeper.opened(rows[0], cold=False)
        reader.sweeper.opened(await reader.row("train/c0/01400"), cold=False)
        await reader.quiet()
        assert len(reader.bench.store.gets) == 1500


@in_trio
async def test_opens_of_what_is_here_are_of_interest_while_somebody_waits_or_a_run_is_expected(
    catalog: Catalog, cache: CacheWriter
) -> None:
    async with reading(catalog, cache, tree(100) | {f"run/{n:03d}": SIZE for n in range(40)}) as reader:
        assert not reader.sweeper.listens
        await reader.open("train/c0/00000")
        assert reader.sweeper.listens
        reader.now += 4.9
        assert reader.sweeper.listens
        await reader.open("train/c0/00000")
        reader.now += 0.2
        assert not reader.sweeper.listens, "it was there already"
        await reader.lister.list_whole(catalog.root, 0.0)
        await reader.lister.list_whole(_directory(catalog, b"run"), 0.0)
        for n in range(4):
            await reader.open(f"run/{n:03d}")
            await reader.quiet()
        reader.now += 59
        assert reader.sweeper.listens, "some were fetched since they follow"
        reader.now += 2
        assert not reader.sweeper.listens


@in_trio
async def test_only_as_much_is_swept_as_the_cache_keeps(catalog: Catalog, directory_fd: int) -> None:
    small = CacheWriter.open(directory_fd, Limits(600 * 1200, 0.0), LIFE)
    keys = tree(1500)
    async with reading(catalog, small, keys) as reader:
        for path in random.Random(1).sample(sorted(keys), 500):
            reader.sweeper.opened(await reader.row(path), cold=False)
        await reader.quiet()
        assert 500 <= len(reader.bench.store.gets) <= 720000 // SIZE
    small.close()


@in_trio
async def test_files_opened_in_order_are_fetched_ahead_across_directories(catalog: Catalog, cache: CacheWriter) -> None:
    keys = {f"d{n // 15}/{n:03d}": SIZE for n in range(30)}
    async with reading(catalog, cache, keys) as reader:
        await reader.lister.list_whole(catalog.root, 0.0)
        await reader.lister.list_whole(_directory(catalog, b"d0"), 0.0)
        waited = 0
        for path in sorted(keys):
            waited += not await reader.open(path)
            await reader.quiet()
        assert waited == 3
        assert len(reader.bench.store.gets) == 30


def _directory(catalog: Catalog, name: bytes) -> int:
    known = catalog.lookup(catalog.root, name)
    assert known is not None and known.inode is not None
    return known.inode


@in_trio
async def test_random_reads_of_a_large_file_fetch_more_of_it_but_not_too_much(
    catalog: Catalog, cache: CacheWriter
) -> None:
    size = 64 * BLOCK_BYTES
    async with reading(catalog, cache, {"large": size}) as reader:
        row, read = await reader.row("large"), 0
        for offset in random.Random(1).sample(range(size - 131072), 60):
            reader.sweeper.read(row, offset, 131072)
            read += 131072
            await reader.quiet()
        assert 2 * read <= reader.fetched <= 6 * read


@in_trio
async def test_a_tree_that_may_not_be_read_is_given_up(
    catalog: Catalog, cache: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tree(1000)
    async with reading(catalog, cache, keys) as reader:
        rows = [await reader.row(path) for path in random.Random(1).sample(sorted(keys), 400)]
        reader.bench.store.fail_next(AccessDenied("no"), times=1000, call="get")
        for row in rows:
            reader.sweeper.opened(row, cold=False)
        await reader.quiet()
        assert len(reader.bench.store.gets) < 250
