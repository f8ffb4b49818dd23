"""Asking the bucket for names: how often, what a waiter waits for, what is shown when it cannot be asked."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from mountkit import names
from mountkit.catalog.lister import Lister
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import Kind
from mountkit.errors import AccessDenied, BadAnswer, ObjectChanged, StoreUnavailable
from mountkit.store.api import Page
from tests.unit.mover.harness import SteppedStore, in_trio, settled

DOWN = StoreUnavailable("down")


@asynccontextmanager
async def listing(catalog: Catalog, store: SteppedStore) -> AsyncIterator[Lister]:
    lister = Lister(catalog, store)
    async with trio.open_nursery() as nursery:
        await nursery.start(lister.run)
        try:
            yield lister
        finally:
            store.gate.set()
            store.pages.open()
        nursery.cancel_scope.cancel()


def bucket(*keys: bytes, page: int = 1000) -> SteppedStore:
    store = SteppedStore(page=page)
    for key in keys:
        store.put(key, key)
    return store


def kind(catalog: Catalog, name: bytes, parent: int | None = None) -> Kind | None:
    known = catalog.lookup(catalog.root if parent is None else parent, name)
    return None if known is None else known.kind


def entries(catalog: Catalog, directory: int) -> list[bytes]:
    return [entry.name for entry in catalog.page(directory, 0, 1000, 0.0).entries]


def recent() -> float:
    return time.time() - 60.0


@in_trio
async def test_two_lookups_ask_for_single_names_and_the_third_lists_the_directory(catalog: Catalog) -> None:
    store = bucket(b"a", b"b", b"c", b"d")
    async with listing(catalog, store) as lister:
        for name in (b"a", b"b"):
            assert await lister.lookup(catalog.root, name, recent()) is False
        singles = Counter([("head", b"a"), ("list_page", b"a/"), ("head", b"b"), ("list_page", b"b/")])
        assert Counter(store.calls) == singles
        store.gate.clear()
        async with trio.open_nursery() as nursery:
            for name in (b"c", b"d", b"none"):
                nursery.start_soon(lister.lookup, catalog.root, name, recent())
            await settled()
            store.gate.set()
        assert Counter(store.calls) - singles == Counter([("list_page", b"")])
        assert [kind(catalog, name) for name in (b"c", b"d", b"none")] == [Kind.FILE, Kind.FILE, Kind.ABSENT]


@in_trio
async def test_a_clock_set_back_in_the_middle_of_a_readdir_lists_once_more_and_not_for_ever(catalog: Catalog) -> None:
    """The reader asks for a listing as fresh as his readdir, which began an hour after now."""
    store = bucket(b"a", b"b")
    async with listing(catalog, store) as lister:
        assert await lister.list_beyond(catalog.root, 0, time.time() + 3600.0) is False
        assert Counter(store.calls) == Counter([("list_page", b"")])
        assert entries(catalog, catalog.root) == [b"a", b"b"]
        assert await lister.lookup(catalog.root, b"a", time.time() + 3600.0) is False


@pytest.mark.parametrize("age_s", [0.0, 60.0])
def test_concurrent_lookups_of_one_name_cause_one_pair_of_requests(catalog: Catalog, age_s: float) -> None:
    @in_trio
    async def run() -> None:
        store = bucket(b"a")
        async with listing(catalog, store) as lister:
            store.gate.clear()
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(lister.lookup, catalog.root, b"a", time.time() - age_s)
                await settled()
                store.gate.set()
        assert sorted(store.calls) == [("head", b"a"), ("list_page", b"a/")]

    run()


@in_trio
async def test_a_lookup_whose_asker_is_cancelled_is_asked_again_by_who_waits(catalog: Catalog) -> None:
    store = bucket(b"a")
    async with listing(catalog, store) as lister:
        store.gate.clear()
        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()
            nursery.start_soon(_under, first, lister, catalog.root)
            await settled()
            nursery.start_soon(lister.lookup, catalog.root, b"a", recent())
            await settled()
            first.cancel()
            await settled()
            store.gate.set()
        assert kind(catalog, b"a") is Kind.FILE


async def _under(scope: trio.CancelScope, lister: Lister, parent: int) -> None:
    with scope:
        await lister.lookup(parent, b"a", recent())


@in_trio
async def test_a_listing_under_way_answers_the_lookups_it_has_passed(catalog: Catalog) -> None:
    store = bucket(b"a", b"b", b"c", b"d", b"e", b"f", page=2)
    async with listing(catalog, store) as lister:
        store.pages.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lister.list_whole, catalog.root, recent())
            store.pages.allow()
            await lister.list_beyond(catalog.root, 0, recent())
            before = len(store.calls)
            assert await lister.lookup(catalog.root, b"a", recent()) is False
            assert len(store.calls) == before, "the first page told"
            assert kind(catalog, b"a") is Kind.FILE
            assert kind(catalog, b"f") is None
            store.pages.open()
        assert kind(catalog, b"f") is Kind.FILE


@in_trio
async def test_readers_of_a_directory_go_on_after_each_page(catalog: Catalog) -> None:
    """[fresh-4]"""
    store = bucket(*(b"%02d" % n for n in range(6)), page=2)
    async with listing(catalog, store) as lister:
        store.pages.close()
        cookie, seen, fresh = 0, list[bytes](), recent()
        for _ in range(3):
            store.pages.allow()
            assert await lister.list_beyond(catalog.root, cookie, fresh) is False
            page = catalog.page(catalog.root, cookie, 100, fresh)
            seen += [entry.name for entry in page.entries]
            cookie = page.entries[-1].cookie
            assert len(store.calls) <= len(seen) // 2 + 1
        await lister.list_beyond(catalog.root, cookie, fresh)
        assert catalog.page(catalog.root, cookie, 100, fresh).done
    assert seen == [b"%02d" % n for n in range(6)]
    assert len(store.calls) == 3


@in_trio
async def test_where_a_key_and_keys_below_it_exist_the_name_is_the_directory(catalog: Catalog) -> None:
    """[names-2]"""
    store = bucket(b"a", b"a/b")
    async with listing(catalog, store) as lister:
        await lister.lookup(catalog.root, b"a", recent())
        assert kind(catalog, b"a") is Kind.DIRECTORY
        await lister.list_whole(catalog.root, math.inf)
        assert kind(catalog, b"a") is Kind.DIRECTORY
        assert entries(catalog, catalog.root) == [b"a"]
        await lister.lookup(catalog.keys_directory, b"a", recent())
        assert kind(catalog, b"a", catalog.keys_directory) is Kind.FILE


@in_trio
async def test_that_a_name_does_not_exist_is_remembered(catalog: Catalog) -> None:
    """[fresh-2]"""
    store = bucket()
    async with listing(catalog, store) as lister:
        await lister.lookup(catalog.root, b"none", recent())
        asked = len(store.calls)
        await lister.lookup(catalog.root, b"none", recent())
        assert len(store.calls) == asked
        assert kind(catalog, b"none") is Kind.ABSENT
        store.put(b"none", b"now")
        await lister.lookup(catalog.root, b"none", time.time())
        assert kind(catalog, b"none") is Kind.FILE


@in_trio
async def test_a_name_no_key_can_have_is_absent_without_a_request(catalog: Catalog) -> None:
    store = bucket()
    async with listing(catalog, store) as lister:
        for name in (b"\xff", b"x" * 256):
            await lister.lookup(catalog.root, name, recent())
            assert kind(catalog, name) is Kind.ABSENT
    assert store.calls == []


@in_trio
async def test_an_unreachable_bucket_leaves_what_was_known(catalog: Catalog) -> None:
    """[fresh-3]"""
    store = bucket(b"a")
    async with listing(catalog, store) as lister:
        await lister.lookup(catalog.root, b"a", recent())
        store.down = True
        assert await lister.lookup(catalog.root, b"a", time.time()) is True
        assert lister.unreachable == "down"
        with pytest.raises(StoreUnavailable):
            await lister.lookup(catalog.root, b"unheard", recent())
        store.down = False
        await lister.list_whole(catalog.root, math.inf)
        assert lister.unreachable == ""
        store.fail_next(DOWN)
        assert await lister.list_beyond(catalog.root, 0, time.time()) is True
        await lister.list_whole(catalog.root, math.inf)
        store.fail_next(AccessDenied("no"))
        with pytest.raises(AccessDenied):
            await lister.list_beyond(catalog.root, 0, time.time())
        with pytest.raises(StoreUnavailable):
            store.fail_next(DOWN)
            await lister.list_whole(catalog.root, time.time())


@in_trio
async def test_one_forbidden_key_is_no_unreachable_bucket(catalog: Catalog) -> None:
    store = bucket(b"a")
    async with listing(catalog, store) as lister:
        store.fail_next(AccessDenied("no"), call="head")
        assert await lister.lookup(catalog.root, b"a", recent()) is False
        assert lister.unreachable == ""


@in_trio
async def test_a_head_that_is_refused_is_answered_by_the_listing(catalog: Catalog) -> None:
    """Credentials for a prefix alone get 403 for a key that is not there, as for one they may not read."""
    store = bucket(b"a", b"d/x")
    async with listing(catalog, store) as lister:
        for name, kind in ((b"d", Kind.DIRECTORY), (b"not-there", Kind.ABSENT), (b"a", Kind.FILE)):
            store.fail_next(AccessDenied("no"), call="head")
            assert await lister.lookup(catalog.root, name, time.time()) is False
            known = catalog.lookup(catalog.root, name)
            assert known is not None
            assert known.kind is kind


@in_trio
async def test_an_unreachable_bucket_is_asked_again_and_each_change_is_logged_once(
    catalog: Catalog, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """[fresh-3]"""
    store = bucket(b"a")
    async with listing(catalog, store) as lister:
        await lister.lookup(catalog.root, b"a", recent())
        store.down = True
        for _ in range(3):
            assert await lister.lookup(catalog.root, b"a", time.time() + 60) is True
        await settled()
        clock.jump(5.0)
        await settled(0.01)
        assert lister.unreachable == "down"
        store.down = False
        while lister.unreachable:
            clock.jump(5.0)
            await trio.sleep(0)
            await settled(0.0)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "answers again" in caplog.text


@in_trio
async def test_while_the_bucket_is_away_only_the_first_waits_and_a_probe_finds_it_back(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[fresh-3]"""
    monkeypatch.setattr("mountkit.catalog.lister._PROBE_S", 0.05)
    store, probe = bucket(b"a"), bucket()
    lister = Lister(catalog, store, probe=probe)
    async with trio.open_nursery() as nursery:
        await nursery.start(lister.run)
        await lister.list_whole(catalog.root, 0.0)
        store.down = probe.down = True
        assert await lister.list_beyond(catalog.root, 0, time.time()) is True
        store.calls.clear()
        for _ in range(50):
            assert await lister.lookup(catalog.root, b"a", time.time()) is True
            assert await lister.list_beyond(catalog.root, 0, time.time()) is True
        while len(probe.calls) < 3:
            await trio.sleep(0.01)
        assert store.calls == []
        assert lister.unreachable == "down"
        store.down = probe.down = False
        while lister.unreachable:  # nobody has to ask for that to be found out
            await trio.sleep(0.01)
        assert await lister.lookup(catalog.root, b"a", time.time()) is False
        nursery.cancel_scope.cancel()


@in_trio
async def test_pages_that_do_not_advance_end_the_listing(catalog: Catalog) -> None:
    """Each under a token of its own, so that only their keys betray them."""
    store = bucket(*(b"%d" % n for n in range(9)), page=3)
    real, count = store.list_page, 0

    def repeating(prefix: bytes, *, delimiter: bytes = b"/", token: str = "", limit: int = 1000) -> Page:
        nonlocal count
        count += 1
        return replace(real(prefix, delimiter=delimiter, limit=limit), next_token=f"another{count}")

    store.list_page = repeating  # type: ignore[method-assign]
    store.pages.open()
    async with listing(catalog, store) as lister:
        with pytest.raises(BadAnswer):
            await lister.list_whole(catalog.root, math.inf)


@in_trio
async def test_with_ttl_zero_nothing_old_is_shown(catalog: Catalog) -> None:
    """[fresh-3]"""
    store = bucket(b"a")
    async with listing(catalog, store) as lister:
        await lister.list_whole(catalog.root, math.inf)
        store.down = True
        with pytest.raises(StoreUnavailable):
            await lister.lookup(catalog.root, b"a", time.time(), stale=False)
        with pytest.raises(StoreUnavailable):
            await lister.list_beyond(catalog.root, 0, time.time(), stale=False)


@in_trio
async def test_with_ttl_zero_a_failure_reaches_all_who_wait_for_the_name(catalog: Catalog) -> None:
    """[fresh-3] Another mount of the same mover, whose TTL is another, is shown what is known."""
    store = bucket(b"a")
    outcomes = list[str]()

    async def ask(lister: Lister) -> None:
        try:
            outcomes.append(f"stale={await lister.lookup(catalog.root, b'a', time.time(), stale=False)}")
        except StoreUnavailable:
            outcomes.append("error")

    async with listing(catalog, store) as lister:

        async def content_with_old() -> None:
            outcomes.append("old" if await lister.lookup(catalog.root, b"a", time.time()) else "new")

        await lister.lookup(catalog.root, b"a", recent())
        store.gate.clear()
        store.down = True
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, lister)
            nursery.start_soon(content_with_old)
            await settled()
            store.gate.set()
    assert sorted(outcomes) == [*["error"] * 3, "old"]


@in_trio
async def test_refresh_reports_replaced_added_deleted_and_singly_looked_up_names(catalog: Catalog) -> None:
    """[fresh-1]"""
    store = bucket(b"same", b"replaced", b"deleted", b"single/x", b"listed/y", b"listed/gone")
    async with listing(catalog, store) as lister:
        root = catalog.root
        await lister.list_whole(root, recent())
        directories = {n: known.inode for n in (b"single", b"listed") if (known := catalog.lookup(root, n))}
        single, listed = directories[b"single"], directories[b"listed"]
        assert single is not None and listed is not None
        await lister.lookup(single, b"x", recent())
        await lister.list_whole(listed, recent())
        store.put(b"replaced", b"other bytes")
        store.put(b"added", b"new")
        store.delete(b"deleted")
        store.delete(b"listed/gone")
        changes = {(change.parent, change.name) for change in await lister.refresh(None)}
        assert changes == {(root, b"replaced"), (root, b"added"), (root, b"deleted"), (single, b"x"), (listed, b"gone")}
        assert entries(catalog, root) == [b"added", b"listed", b"replaced", b"same", b"single"]
        store.put(b"listed/z", b"new")
        store.put(b"elsewhere", b"new")
        assert [change.name for change in await lister.refresh(listed)] == [b"z"]


@in_trio
async def test_refresh_of_an_unreachable_bucket_fails_with_the_stores_own_error(catalog: Catalog) -> None:
    store = bucket(b"a", b"d/a")
    async with listing(catalog, store) as lister:
        await lister.list_whole(catalog.root, recent())
        known = catalog.lookup(catalog.root, b"d")
        assert known is not None and known.inode is not None
        await lister.list_whole(known.inode, recent())
        store.down = True
        with pytest.raises(StoreUnavailable):
            await lister.refresh(None)


@in_trio
async def test_odd_keys_are_found_below_mountkit_keys(catalog: Catalog) -> None:
    """[names-3]"""
    long = b"x" * 300
    store = bucket(b"x//y", b"/lead", long, b".mountkit/z")
    async with listing(catalog, store) as lister:
        for key in (b"x//y", b"/lead", long, b".mountkit/z"):
            parent = catalog.keys_directory
            *continued, last = names.escape(key)
            for name in continued:
                await lister.lookup(parent, name, recent())
                known = catalog.lookup(parent, name)
                assert known is not None and known.inode is not None
                parent = known.inode  # type: ignore[assignment]
            await lister.lookup(parent, last, recent())
            known = catalog.lookup(parent, last)
            assert known is not None and known.object is not None
            assert known.object.key == key
        await lister.lookup(catalog.keys_directory, b"x%2F%2Fz", recent())
        assert kind(catalog, b"x%2F%2Fz", catalog.keys_directory) is Kind.ABSENT
        await lister.lookup(catalog.keys_directory, b"%zz", recent())
        assert kind(catalog, b"%zz", catalog.keys_directory) is Kind.ABSENT
    assert {call for call, _ in store.calls} == {"head"}


@in_trio
async def test_a_listing_voided_by_expire_is_begun_anew(catalog: Catalog) -> None:
    store = bucket(b"a", b"b", b"c", page=1)
    async with listing(catalog, store) as lister:
        store.pages.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lister.list_whole, catalog.root, recent())
            store.pages.allow(2)  # `a` is no file for sure before the listing is past `a/`
            await lister.list_beyond(catalog.root, 0, recent())
            catalog.expire()
            store.pages.open()
            await lister.list_beyond(catalog.root, 0, time.time())
        directory = catalog.directory(catalog.root)
        assert directory is not None and directory.complete
        assert entries(catalog, catalog.root) == [b"a", b"b", b"c"]


@in_trio
async def test_who_waits_for_a_whole_listing_that_is_voided_waits_for_the_next(catalog: Catalog) -> None:
    store = bucket(b"a", b"b", b"c", page=1)
    async with listing(catalog, store) as lister:
        store.pages.close()

        async def whole() -> None:
            await lister.list_whole(catalog.root, recent())
            assert entries(catalog, catalog.root) == [b"a", b"b", b"c"]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(whole)
            store.pages.allow(2)
            await lister.list_beyond(catalog.root, 0, recent())
            catalog.expire()
            store.pages.open()


@in_trio
async def test_an_unknown_directory_is_object_changed(catalog: Catalog) -> None:
    store = bucket()
    stranger = catalog.root + 1000
    async with listing(catalog, store) as lister:
        with pytest.raises(ObjectChanged):
            await lister.lookup(stranger, b"a", recent())
        with pytest.raises(ObjectChanged):
            await lister.list_whole(stranger, recent())
        with pytest.raises(ObjectChanged):
            await lister.list_beyond(stranger, 0, recent())
        with pytest.raises(ObjectChanged):
            await lister.list_beyond(catalog.root, stranger, recent())
    assert store.calls == []


@in_trio
async def test_cancelled_waiters_do_not_cancel_the_listing(catalog: Catalog) -> None:
    store = bucket(b"a")
    async with listing(catalog, store) as lister:
        store.pages.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lister.list_beyond, catalog.root, 0, recent())
            nursery.start_soon(lister.list_whole, catalog.root, recent())
            await settled()
            nursery.cancel_scope.cancel()
        store.pages.open()
        await lister.list_whole(catalog.root, recent())
    assert store.calls == [("list_page", b"")]


@in_trio
async def test_a_failed_listing_is_tried_again_by_the_next_who_asks(catalog: Catalog) -> None:
    store = bucket(b"a")
    async with listing(catalog, store) as lister:
        store.fail_next(DOWN)
        with pytest.raises(StoreUnavailable):
            await lister.list_beyond(catalog.root, 0, recent())
        assert await lister.list_beyond(catalog.root, 0, recent()) is False
        assert repr(lister) == "<Lister 0 listings, 0 lookups under way>"
