"""What listings do while they run, when they end, and when they do not."""

from __future__ import annotations

import pytest

from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import Change, Kind
from mountkit.catalog.view import CatalogView
from mountkit.store.api import Page
from tests.unit.catalog.bucket import Bucket, Clock, info
from tests.unit.catalog.test_tree import file_at, list_whole


def names_in(view: CatalogView, directory: int, fresh_after: float = 0) -> list[bytes]:
    return [entry.name for entry in view.page(directory, 0, 1000, fresh_after).entries]


def test_each_page_is_seen_at_once_and_names_passed_are_known(
    catalog: Catalog, view: CatalogView, clock: Clock
) -> None:
    listing = catalog.begin_listing(catalog.root)
    listing.add(Page((info(b"a"), info(b"c")), (), "more"))
    a, b, c, d = (view.lookup(view.root, name) for name in (b"a", b"b", b"c", b"d"))
    assert a is not None
    assert a.kind is Kind.FILE
    assert b is not None
    assert (b.kind, b.as_of) == (Kind.ABSENT, clock.now)
    assert c is None, "`c/` may follow"
    assert d is None
    assert names_in(view, view.root, clock.now) == [b"a"]


def test_receipts_of_runs_are_found_by_name_and_not_listed_at_the_root(catalog: Catalog, view: CatalogView) -> None:
    """[names-6]"""
    listing = catalog.begin_listing(catalog.root)
    listing.add(Page((info(b"a"), info(b".mountkit-runs")), (b".mountkit-runs/", b"d/"), ""))
    listing.finish()
    assert names_in(view, view.root) == [b"a", b"d"]
    found = view.lookup(view.root, b".mountkit-runs")
    assert found is not None
    assert found.kind is Kind.DIRECTORY
    below = catalog.begin_listing(found.inode)
    below.add(Page((), (b".mountkit-runs/.mountkit-runs/",), ""))
    below.finish()
    assert names_in(view, found.inode) == [b".mountkit-runs"], "elsewhere `rm -r` must meet it"


def test_a_file_is_held_back_until_no_directory_of_its_name_can_follow(catalog: Catalog, view: CatalogView) -> None:
    listing = catalog.begin_listing(catalog.root)
    listing.add(Page((info(b"a"), info(b"a-1"), info(b"a.2")), (), "more"))
    assert names_in(view, view.root) == []
    listing.add(Page((info(b"b"),), (b"a/",), "more"))
    assert names_in(view, view.root) == [b"a-1", b"a.2", b"a"]
    assert listing.finish() == []
    assert names_in(view, view.root) == [b"a-1", b"a.2", b"a", b"b"]


def test_a_name_not_seen_is_gone_as_soon_as_it_is_passed(catalog: Catalog, view: CatalogView) -> None:
    list_whole(catalog, catalog.root, Bucket(b"a", b"b", b"c", b"z"))
    listing = catalog.begin_listing(catalog.root)
    assert listing.add(Page((info(b"a"), info(b"c")), (), "more")) == [Change(view.root, b"b")]
    assert listing.finish() == [Change(view.root, b"z")]
    assert names_in(view, view.root) == [b"a", b"c"]


def test_changes_name_what_the_kernel_may_believe_wrongly(catalog: Catalog, view: CatalogView) -> None:
    bucket = Bucket(b"same", b"replaced", b"removed", b"d/x")
    assert list_whole(catalog, catalog.root, bucket) == [], "nobody was told anything before"
    bucket.objects[b"replaced"] = info(b"replaced", "2")
    bucket.objects[b"new"] = info(b"new")
    del bucket.objects[b"removed"], bucket.objects[b"d/x"]
    changes = list_whole(catalog, catalog.root, bucket)
    assert {change.name for change in changes} == {b"replaced", b"new", b"removed", b"d"}


def test_a_name_answered_as_absent_is_a_change_when_it_appears(catalog: Catalog) -> None:
    catalog.record_absent(catalog.root, b"a")
    assert list_whole(catalog, catalog.root, Bucket(b"a")) == [Change(catalog.root, b"a")]


def test_a_repeated_page_changes_nothing(catalog: Catalog, view: CatalogView) -> None:
    pages = list(Bucket(b"a", b"b", b"c/1", b"d").pages(b"", 2))
    listing = catalog.begin_listing(catalog.root)
    listing.add(pages[0])
    first = view.page(view.root, 0, 10, 1)
    assert listing.add(pages[0]) == []
    assert view.page(view.root, 0, 10, 1) == first
    listing.add(pages[1])
    listing.add(pages[0])
    listing.finish()
    assert names_in(view, view.root) == [b"a", b"b", b"c", b"d"]


def test_pages_out_of_order_still_add_up(catalog: Catalog, view: CatalogView) -> None:
    bucket = Bucket(b"a", b"b", b"c", b"d")
    list_whole(catalog, catalog.root, bucket)
    ids = [entry.inode for entry in view.page(view.root, 0, 10, 0).entries]
    listing = catalog.begin_listing(catalog.root)
    listing.add(Page((info(b"c"), info(b"d")), (), "more"))
    listing.add(Page((info(b"a"), info(b"b")), (), ""))
    listing.finish()
    assert [entry.inode for entry in view.page(view.root, 0, 10, 0).entries] == ids


def test_an_abandoned_listing_leaves_the_old_one_complete(catalog: Catalog, view: CatalogView, clock: Clock) -> None:
    list_whole(catalog, catalog.root, Bucket(b"a", b"b"))
    listed_at = clock.now
    clock.tick()
    listing = catalog.begin_listing(catalog.root)
    listing.add(Page((info(b"a"),), (), "more"))
    listing.abandon()
    found = view.directory(view.root)
    assert found is not None
    assert (found.complete, found.listed_at, found.listing_started) == (True, listed_at, None)
    known = view.lookup(view.root, b"b")
    assert known is not None
    assert (known.kind, known.as_of) == (Kind.FILE, listed_at)
    assert listing.add(Page((info(b"zz"),), (), "")) == []
    assert listing.finish() == []
    assert names_in(view, view.root) == [b"a", b"b"]


def test_a_newer_listing_makes_the_older_one_void(catalog: Catalog) -> None:
    older, newer = catalog.begin_listing(catalog.root), catalog.begin_listing(catalog.root)
    assert (older.alive, newer.alive) == (False, True)
    assert (repr(older), repr(newer)) == ("<Listing b'' through=b'' void>", "<Listing b'' through=b'' alive>")


def test_an_expired_listing_is_void(catalog: Catalog, view: CatalogView) -> None:
    listing = catalog.begin_listing(catalog.root)
    listing.add(Page((info(b"a"),), (), "more"))
    catalog.expire()
    assert not listing.alive
    listing.finish()
    found = view.directory(view.root)
    assert found is not None
    assert not found.complete


def test_a_listing_is_dated_by_its_start(catalog: Catalog, view: CatalogView, clock: Clock) -> None:
    listing = catalog.begin_listing(catalog.root)
    started = clock.now
    clock.tick(30)
    listing.finish()
    known = view.lookup(view.root, b"a")
    assert known is not None
    assert known.as_of == started


def test_a_complete_listing_is_read_while_the_next_one_runs(catalog: Catalog, view: CatalogView, clock: Clock) -> None:
    list_whole(catalog, catalog.root, Bucket(b"a", b"b", b"c"))
    first_at = clock.now
    clock.tick()
    listing = catalog.begin_listing(catalog.root)
    listing.add(Page((info(b"a"), info(b"b")), (), "more"))
    assert names_in(view, view.root, first_at) == [b"a", b"b", b"c"]
    assert names_in(view, view.root, clock.now) == [b"a"]


def test_a_listing_without_ids_of_a_directory_it_does_not_know_is_refused(catalog: Catalog) -> None:
    with pytest.raises(KeyError):
        catalog.begin_listing(catalog.root + 99)


def test_odd_names_are_counted_and_no_directories(catalog: Catalog, view: CatalogView) -> None:
    listing = catalog.begin_listing(catalog.root)
    for page in Bucket(b"/x", b"./y", b".mountkit/z", b"\xff", b"a", b"..").pages(b"", 10):
        listing.add(page)
    listing.finish()
    assert listing.odd == 5
    assert names_in(view, view.root) == [b"a"]
    assert file_at(view, view.keys_directory, b"%2E.").key == b".."


def test_a_tree_listing_makes_every_directory_below_complete(catalog: Catalog, view: CatalogView) -> None:
    bucket = Bucket(b"a", b"d/1", b"d/e/2", b"d/e/f/", b"g/3")
    tree = catalog.begin_tree(catalog.root)
    tree.add(bucket.below(b""))
    assert view.lookup(view.root, b"zz") is None
    tree.finish()
    current: int = view.root
    for name, expected in ((b"d", [b"a", b"d", b"g"]), (b"e", [b"1", b"e"]), (b"f", [b"2", b"f"]), (b"", [])):
        assert names_in(view, current) == expected
        known = view.lookup(current, name)
        if name:
            assert known is not None
            assert known.inode is not None
            current = known.inode


def test_a_tree_listing_finds_what_is_gone(catalog: Catalog, view: CatalogView) -> None:
    bucket = Bucket(b"a", b"d/1", b"d/2", b"e/f/3")
    for _ in range(2):
        tree = catalog.begin_tree(catalog.root)
        changes = tree.add(bucket.below(b"")) + tree.finish()
        bucket = Bucket(b"a", b"d/1", b"d/4")
    d = view.lookup(view.root, b"d")
    assert d is not None
    assert d.inode is not None
    assert sorted((change.parent == view.root, change.name) for change in changes) == [
        (False, b"2"),
        (False, b"4"),
        (True, b"e"),
    ]
    assert names_in(view, d.inode) == [b"1", b"4"]


def test_a_tree_listing_takes_batches_in_any_order(catalog: Catalog, view: CatalogView) -> None:
    tree = catalog.begin_tree(catalog.root)
    tree.add([info(b"d/%d" % n) for n in range(5, 9)])
    tree.add([info(b"e/1"), info(b"d/0")])
    tree.add([info(b"d/%d" % n) for n in range(5)])
    tree.finish()
    d = view.lookup(view.root, b"d")
    assert d is not None
    assert d.inode is not None
    assert names_in(view, d.inode) == [b"%d" % n for n in range(9)]


def test_a_tree_listing_leaves_a_directory_to_the_listing_it_has(catalog: Catalog, view: CatalogView) -> None:
    directory = catalog.record_directory(catalog.root, b"d").inode
    assert directory is not None
    tree = catalog.begin_tree(catalog.root)
    listing = catalog.begin_listing(directory)
    tree.add([info(b"d/1", "1"), info(b"d/e/2")])
    tree.finish()
    found = view.directory(directory)
    assert found is not None
    assert not found.complete
    listing.add(Page((info(b"d/1", "2"),), (b"d/e/",), ""))
    listing.finish()
    assert file_at(view, directory, b"1").etag == info(b"", "2").etag
    assert names_in(view, directory) == [b"1", b"e"]
