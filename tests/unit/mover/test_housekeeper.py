"""Housekeeping: sealing begins when nobody fetches and stops when somebody does; trouble ends nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mountkit.cache.content import ContentId, content_id
from mountkit.cache.faults import cache_broken, cache_full
from mountkit.catalog.values import CatalogUnavailable, PurgedVersion
from mountkit.config import MountSettings
from mountkit.mover.housekeeper import Housekeeper
from mountkit.sources import BucketURL
from tests.unit.mover.harness import in_trio, settled


class FakeFetcher:
    def __init__(self) -> None:
        self.busy = False
        self.idle = trio.Event()

    def rest(self) -> None:
        self.busy = False
        self.idle.set()
        self.idle = trio.Event()


class FakeCache:
    """Says what to seal, and notes what was sealed; called from threads as the real one is."""

    def __init__(self, count: int) -> None:
        self.waiting = [ContentId(b"%016d" % n) for n in range(count)]
        self.sealed: list[ContentId] = []
        self.superseded: list[ContentId] = []
        self.cleanings = 0
        self.error: Exception | None = None
        self.on_seal: Callable[[], None] = lambda: None

    def unsealed(self, limit: int) -> list[tuple[ContentId, int]]:
        self._check()
        return [(content, 1) for content in self.waiting[:limit]]

    def seal_some(self, objects: Iterable[tuple[ContentId, int]], *, stop: Callable[[], bool]) -> None:
        self._check()
        for content, _size in objects:
            if stop():
                break
            self.waiting.remove(content)
            self.sealed.append(content)
            self.on_seal()

    def housekeep(self, superseded: Iterable[ContentId]) -> int:
        self._check()
        self.superseded += superseded
        self.cleanings += 1
        return 0

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


class FakeCatalog:
    def __init__(self) -> None:
        self.purges: list[list[PurgedVersion]] = []
        self.error: Exception | None = None

    def purge(self, _older_than_s: float) -> list[PurgedVersion]:
        if self.error is not None:
            raise self.error
        return self.purges.pop(0) if self.purges else []


@asynccontextmanager
async def keeping(cache: FakeCache, **options: Any) -> AsyncIterator[SimpleNamespace]:
    settings = MountSettings(BucketURL("b"), "/d", "/c", "i", **options)
    fetcher, catalog = FakeFetcher(), FakeCatalog()
    async with trio.open_nursery() as nursery:
        keeper = Housekeeper(settings, catalog, cache, fetcher)  # type: ignore[arg-type]
        yield SimpleNamespace(
            fetcher=fetcher, catalog=catalog, begin=lambda: nursery.start_soon(keeper.run), scope=nursery.cancel_scope
        )
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await settled(0.001)


@in_trio
async def test_sealing_begins_when_nothing_was_fetched_for_a_while(clock: MockClock) -> None:
    cache = FakeCache(100)
    async with keeping(cache) as kept:
        kept.begin()
        await until(lambda: cache.cleanings)
        assert cache.sealed == []
        clock.jump(0.4)
        await settled()
        assert cache.sealed == []
        clock.jump(0.2)
        await until(lambda: len(cache.sealed) == 100)


@in_trio
async def test_each_fetch_begins_the_quiet_time_anew(clock: MockClock) -> None:
    cache = FakeCache(1)
    async with keeping(cache) as kept:
        kept.fetcher.busy = True
        kept.begin()
        await until(lambda: cache.cleanings)
        clock.jump(10)
        await settled()
        kept.fetcher.rest()
        await settled()
        clock.jump(0.4)
        await settled()
        kept.fetcher.rest()
        await settled()
        clock.jump(0.4)
        await settled()
        assert cache.sealed == []
        clock.jump(0.2)
        await until(lambda: cache.sealed)


@in_trio
async def test_sealing_stops_while_somebody_fetches(clock: MockClock) -> None:
    cache = FakeCache(10)
    async with keeping(cache) as kept:

        def reader_comes() -> None:
            if len(cache.sealed) == 3:
                kept.fetcher.busy = True

        cache.on_seal = reader_comes
        kept.begin()
        await until(lambda: cache.cleanings)
        clock.jump(0.6)
        await until(lambda: len(cache.sealed) == 3)
        await settled()
        clock.jump(60)
        await settled()
        assert len(cache.sealed) == 3
        kept.fetcher.rest()
        await settled()
        clock.jump(0.6)
        await until(lambda: len(cache.sealed) == 10)


@pytest.mark.parametrize("fault", [cache_full("x"), cache_broken("x")])
def test_trouble_with_the_cache_ends_nothing(clock: MockClock, fault: Exception) -> None:
    """[failures-3]"""

    @in_trio
    async def run(clock: MockClock) -> None:
        cache = FakeCache(5)
        async with keeping(cache) as kept:
            cache.error = fault
            kept.begin()
            await settled(0.001)
            clock.jump(0.6)
            await settled(0.001)
            cache.error = None
            kept.fetcher.rest()
            await settled()
            clock.jump(0.6)
            await until(lambda: len(cache.sealed) == 5)

    run(clock=clock)


@in_trio
async def test_what_the_catalog_purged_leaves_the_cache(clock: MockClock) -> None:
    cache = FakeCache(0)
    async with keeping(cache) as kept:
        kept.catalog.purges = [[PurgedVersion(b"a", '"1"', 3)], [PurgedVersion(b"b", '"2"', 4)]]
        kept.begin()
        await until(lambda: cache.cleanings == 1)
        assert cache.superseded == [content_id(b"a", '"1"', 3), content_id(b"b", '"2"', 4)]
        clock.jump(86400.0)
        await until(lambda: cache.cleanings == 2)


@in_trio
async def test_a_catalog_that_cannot_be_written_ends_nothing(clock: MockClock) -> None:
    """[failures-3]"""
    cache = FakeCache(0)
    async with keeping(cache) as kept:
        kept.catalog.error = CatalogUnavailable("full")
        kept.begin()
        await settled()
        kept.catalog.error = None
        clock.jump(86400.0)
        await until(lambda: cache.cleanings)


@in_trio
async def test_nothing_is_sealed_where_passthrough_is_off(clock: MockClock) -> None:
    cache = FakeCache(1)
    async with keeping(cache, passthrough=False) as kept:
        kept.begin()
        await until(lambda: cache.cleanings)
        clock.jump(10)
        await settled()
        assert cache.sealed == []
