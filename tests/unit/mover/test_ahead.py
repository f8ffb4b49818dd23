"""Listing ahead over a real catalog: a walk's listings overlap, and a failing one concerns nobody."""

from __future__ import annotations

import trio

from mountkit.catalog.lister import Lister
from mountkit.catalog.tree import Catalog
from mountkit.mover.ahead import ListingAhead
from tests.unit.mover.harness import SteppedStore, in_trio, settled
from tests.unit.mover.test_lister import bucket, listing, recent


def listed(calls: list[tuple[str, bytes]]) -> list[bytes]:
    return sorted(prefix for call, prefix in calls if call == "list_page")


async def until(store: SteppedStore, listings: int) -> None:
    while len(listed(store.calls)) < listings:
        await trio.sleep(0.01)


async def first_child(catalog: Catalog, lister: Lister, ahead: ListingAhead, name: bytes) -> int:
    """The directory that a walk enters after the root, which is listed."""
    ahead.entered(catalog.root, recent())
    await lister.list_whole(catalog.root, recent())
    first = catalog.lookup(catalog.root, name)
    assert first is not None and first.inode is not None
    return first.inode


@in_trio
async def test_the_first_child_of_a_listed_directory_has_its_siblings_listed_at_once(catalog: Catalog) -> None:
    store = bucket(*(b"d%02d/f" % n for n in range(30)))
    async with listing(catalog, store) as lister:
        ahead = ListingAhead(catalog, lister)
        first = await first_child(catalog, lister, ahead, b"d00")
        ahead.entered(first, recent())
        await until(store, 9)
        assert listed(store.calls) == [b"", *(b"d%02d/" % n for n in range(1, 9))]
        ahead.entered(first, recent())
        assert len(listed(store.calls)) == 9, "nothing is listed twice"


@in_trio
async def test_what_lies_below_is_listed_too_once_it_is_known(catalog: Catalog) -> None:
    store = bucket(*(b"d%d/a/b/f" % n for n in range(2)))
    async with listing(catalog, store) as lister:
        ahead = ListingAhead(catalog, lister)
        first = await first_child(catalog, lister, ahead, b"d0")
        await lister.list_whole(first, recent())
        ahead.entered(first, recent())
        await until(store, 7)
        assert listed(store.calls) == [b"", b"d0/", b"d0/a/", b"d0/a/b/", b"d1/", b"d1/a/", b"d1/a/b/"]


@in_trio
async def test_listings_that_fail_end_it_quietly(catalog: Catalog) -> None:
    store = bucket(*(b"d%02d/f" % n for n in range(5)))
    async with listing(catalog, store) as lister:
        ahead = ListingAhead(catalog, lister)
        first = await first_child(catalog, lister, ahead, b"d00")
        store.down = True
        ahead.entered(first, recent())
        await settled()
        ahead.entered(first + 1000, recent())  # a directory nobody knows
