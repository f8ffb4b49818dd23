"""Warming: a tree's files and bytes counted, failures named, nothing after it was cancelled."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mountkit.cache.content import BLOCK_BYTES
from mountkit.cache.policy import Limits
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.lister import Lister
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import DirectoryPage, StaleCookie
from mountkit.errors import StoreUnavailable
from mountkit.mover.warm import Warmer
from tests.fakes.memory_store import content
from tests.unit.cache.harness import LIFE
from tests.unit.mover.harness import SteppedStore, in_trio, settled
from tests.unit.mover.test_fetcher import Bench, running

MIB = BLOCK_BYTES
TREE = {b"a": 10, b"d/b": 1000, b"d/e/c": 9 * MIB, b"d/e/empty": 0, b"f/g": 5}


@dataclass
class Setting:
    bench: Bench
    catalog: Catalog
    lister: Lister

    @property
    def store(self) -> SteppedStore:
        return self.bench.store

    def warmer(self, fresh_after: float = math.inf) -> Warmer:
        return Warmer(self.catalog, self.lister, self.bench.fetcher, fresh_after)


@asynccontextmanager
async def setting(catalog: Catalog, cache: CacheWriter) -> AsyncIterator[Setting]:
    async with running(cache) as bench, trio.open_nursery() as nursery:
        for key, size in TREE.items():
            bench.put(key, size)
        lister = Lister(catalog, bench.store)
        await nursery.start(lister.run)
        yield Setting(bench, catalog, lister)
        nursery.cancel_scope.cancel()


async def silent(_: dict[str, Any]) -> None:
    pass


@in_trio
async def test_a_whole_tree_is_fetched_and_counted(catalog: Catalog, cache: CacheWriter) -> None:
    async with setting(catalog, cache) as s:
        done = await s.warmer().run(directory=catalog.root, row=None, report=silent)
        assert (done.files, done.files_done, done.failed, done.listing) == (5, 5, 0, False)
        assert done.bytes == done.bytes_done == sum(TREE.values())
        assert cache.usage().objects == 4, "the empty one has no bytes"
        asked = sorted(s.store.gets)
        assert asked == [
            (b"a", 0, 10),
            (b"d/b", 0, 1000),
            (b"d/e/c", 0, 8 * MIB),
            (b"d/e/c", 8 * MIB, MIB),
            (b"f/g", 0, 5),
        ]
        again = await s.warmer(0.0).run(directory=catalog.root, row=None, report=silent)
        assert again.files_done == 5
        assert len(s.store.gets) == 5


@in_trio
async def test_what_does_not_fit_is_counted_apart_and_not_fetched(catalog: Catalog, directory_fd: int) -> None:
    small = CacheWriter.open(directory_fd, Limits(2 * MIB, 0.0), LIFE)
    async with setting(catalog, small) as s:
        done = await s.warmer().run(directory=catalog.root, row=None, report=silent)
        assert (done.files, done.files_done, done.files_left, done.failed) == (5, 4, 1, 0)
        assert (done.bytes_done, done.bytes_left) == (1015, 9 * MIB)
        assert sorted(s.store.gets) == [(b"a", 0, 10), (b"d/b", 0, 1000), (b"f/g", 0, 5)]
    small.close()


@in_trio
async def test_a_listing_goes_on_where_the_entry_it_stood_at_has_vanished(
    catalog: Catalog, cache: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, stale = catalog.page, [True]

    def stumbling(parent: int, cookie: int, limit: int, fresh: float) -> DirectoryPage:
        if cookie and stale:
            stale.clear()
            raise StaleCookie(cookie)
        return page(parent, cookie, 1, fresh)

    monkeypatch.setattr(catalog, "page", stumbling)
    async with setting(catalog, cache) as s:
        done = await s.warmer().run(directory=catalog.root, row=None, report=silent)
        assert (done.files, done.files_done, done.failed) == (5, 5, 0)


@in_trio
async def test_one_object_is_fetched_alone(catalog: Catalog, cache: CacheWriter) -> None:
    async with setting(catalog, cache) as s:
        await s.lister.lookup(catalog.root, b"a", 0.0)
        known = catalog.lookup(catalog.root, b"a")
        assert known is not None
        done = await s.warmer().run(directory=None, row=known.object, report=silent)
        assert (done.files, done.files_done, done.bytes_done, done.listing) == (1, 1, 10, False)


@in_trio
async def test_failures_are_counted_and_the_first_are_named(catalog: Catalog, cache: CacheWriter) -> None:
    async with setting(catalog, cache) as s:
        for number in range(9):
            s.bench.put(b"bad/%d" % number, 10)
        await s.lister.list_whole(catalog.root, math.inf)
        known = catalog.lookup(catalog.root, b"bad")
        assert known is not None and known.inode is not None
        await s.lister.list_whole(known.inode, math.inf)
        for number in range(9):
            s.store.put(b"bad/%d" % number, content(11))
        done = await s.warmer(0.0).run(directory=catalog.root, row=None, report=silent)
        assert (done.files, done.files_done, done.failed) == (14, 5, 9)
        assert len(done.failures) == 5
        assert all(sentence.startswith("bad/") for sentence in done.failures)


@in_trio
async def test_a_directory_that_cannot_be_listed_is_a_failure_too(catalog: Catalog, cache: CacheWriter) -> None:
    async with setting(catalog, cache) as s:
        s.store.fail_next(StoreUnavailable("down"))
        done = await s.warmer().run(directory=catalog.root, row=None, report=silent)
        assert (done.files, done.failed, done.failures) == (0, 1, ["listing: down"])


@in_trio
async def test_files_are_counted_although_the_listing_was_expired_meanwhile(
    catalog: Catalog, cache: CacheWriter
) -> None:
    async with setting(catalog, cache) as s:
        s.store.page = 1
        s.store.pages.close()
        async with trio.open_nursery() as nursery:
            warmer = s.warmer()
            nursery.start_soon(lambda: warmer.run(directory=catalog.root, row=None, report=silent))
            await settled()
            catalog.expire()
            s.store.pages.open()
        assert warmer.progress.files_done == 5


@in_trio
async def test_cancelling_stops_at_once_and_starts_no_further_fetch(catalog: Catalog, cache: CacheWriter) -> None:
    async with setting(catalog, cache) as s:
        await s.warmer().run(directory=catalog.root, row=None, report=silent)
        s.store.put(b"d/e/c", content(33 * MIB, 1))
        before = len(s.store.gets)
        s.store.bodies.close()
        warmer = s.warmer()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: warmer.run(directory=catalog.root, row=None, report=silent))
            while len(s.store.gets) == before or warmer.progress.files_done < 4:
                await settled(0.001)
            nursery.cancel_scope.cancel()
        s.store.bodies.open()
        while s.bench.fetcher.busy:
            await s.bench.fetcher.idle.wait()
        assert s.store.gets[before:] == [(b"d/e/c", 0, 8 * MIB)]
        assert warmer.progress.files_done == 4


@in_trio
async def test_progress_is_reported_five_times_a_second(catalog: Catalog, cache: CacheWriter, clock: MockClock) -> None:
    reports = list[dict[str, Any]]()
    told = trio.Event()

    async def report(progress: dict[str, Any]) -> None:
        reports.append(progress)
        told.set()

    async with setting(catalog, cache) as s:
        s.store.pages.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: s.warmer().run(directory=catalog.root, row=None, report=report))
            await settled()
            clock.jump(0.2)
            await told.wait()
            s.store.pages.open()
        assert reports[0]["listing"] is True
        assert reports[0]["files"] == 0
