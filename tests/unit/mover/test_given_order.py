"""A given order: the window ahead of the reader, and the files it has the mover fetch."""

from __future__ import annotations

import trio
import trio.testing

from mountkit.cache.writer import CacheWriter
from mountkit.catalog.tree import Catalog
from mountkit.mover.given_order import Window
from mountkit.order import below_mount
from tests.fakes.memory_store import content
from tests.unit.mover.harness import in_trio
from tests.unit.mover.test_fetcher import until
from tests.unit.mover.test_service import Bench, serving

KEYS = [b"%d" % n for n in range(10)]


def test_the_window_opens_when_the_reader_comes_and_is_taken_to_have_passed_all_before() -> None:
    window = Window(KEYS, 3)
    for place in range(3):
        assert window.open
        window.fetched(place)
    assert not window.open
    window.opened(b"something else")
    assert not window.open
    window.opened(b"1")
    assert repr(window) == "<Window 1 of 3 ahead, read up to 1>"


def test_a_reader_who_is_ahead_himself_is_not_counted() -> None:
    window = Window(KEYS, 1)
    window.opened(b"5")
    window.fetched(3)
    assert window.open


def test_without_a_bound_the_window_is_always_open() -> None:
    window = Window(KEYS, None)
    for place in range(10):
        window.fetched(place)
    assert window.open


def test_paths_are_absolute_or_relative_and_those_outside_are_left_out() -> None:
    paths = ["a/b", "/mnt/train/c", "/etc/passwd", "../train/d"]
    assert below_mount("/mnt/train", "/mnt/train", paths) == ["a/b", "c", "d"]
    assert below_mount("/mnt/train/sub", "/mnt/train", ["a"]) == ["sub/a"]


async def fetched(bench: Bench, count: int) -> list[bytes]:
    await until(lambda: len(bench.store.gets) >= count and not bench.service.fetcher.busy)
    await trio.testing.wait_all_tasks_blocked(0.02)
    return [key for key, _, _ in bench.store.gets]


@in_trio
async def test_files_are_fetched_in_order_and_only_so_far_ahead(catalog: Catalog, cache: CacheWriter) -> None:
    async with serving(catalog, cache) as bench, trio.open_nursery() as nursery:
        for key in KEYS:
            bench.store.put(key, content(100))
        paths = [key.decode() for key in reversed(KEYS)] + ["unheard"]
        nursery.start_soon(lambda: bench.ask("warm_order", paths=paths, ahead=4))
        assert sorted(await fetched(bench, 4)) == [b"6", b"7", b"8", b"9"]
        await bench.ask("opened", objects=[await bench.object(b"8")])
        assert sorted(await fetched(bench, 6)) == [b"4", b"5", b"6", b"7", b"8", b"9"]
        await bench.ask("opened", objects=[await bench.object(b"0")])
        assert len(await fetched(bench, 10)) == 10


@in_trio
async def test_an_announcement_is_answered_at_once_and_fetched_meanwhile(catalog: Catalog, cache: CacheWriter) -> None:
    async with serving(catalog, cache) as bench:
        for key in KEYS:
            bench.store.put(key, content(100))
        bench.store.bodies.close()
        assert (await bench.ask("announce", paths=["3", "unheard", "4"])).body == {}
        bench.store.bodies.open()
        assert sorted(await fetched(bench, 2)) == [b"3", b"4"]
