"""What single lookups, doubts and purges do to what is known."""

from __future__ import annotations

import pytest

from mountkit import names
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import (
    GENERATION_SIZE,
    SEALED_BIT,
    CatalogLost,
    Change,
    Kind,
    Known,
    ObjectRow,
    PurgedVersion,
    StaleCookie,
)
from mountkit.catalog.view import CatalogView
from mountkit.store.api import Page
from tests.unit.catalog.bucket import Bucket, Clock, info


def list_whole(catalog: Catalog, directory: int, bucket: Bucket, limit: int = 1000) -> list[Change]:
    found = catalog.directory(directory)
    assert found is not None
    listing = catalog.begin_listing(directory)
    changes = [change for page in bucket.pages(found.prefix, limit) for change in listing.add(page)]
    return changes + listing.finish()


def file_at(view: CatalogView, parent: int, name: bytes) -> ObjectRow:
    known = view.lookup(parent, name)
    assert known is not None
    assert known.object is not None
    return known.object


def test_nothing_is_known_of_a_name_nobody_asked_for(view: CatalogView) -> None:
    assert view.lookup(view.root, b"a") is None


def test_a_single_lookup_is_known_as_of_its_time(catalog: Catalog, view: CatalogView, clock: Clock) -> None:
    answer = catalog.record_object(catalog.root, b"a", info(b"a"))
    clock.tick(5)
    assert view.lookup(view.root, b"a") == answer
    assert answer.as_of == clock.now - 5


def test_an_absent_name_is_known_to_be_absent(catalog: Catalog, view: CatalogView, clock: Clock) -> None:
    catalog.record_absent(catalog.root, b"a")
    assert view.lookup(view.root, b"a") == Known(Kind.ABSENT, None, None, clock.now)


def test_ids_are_inodes_in_the_range_of_one_generation(catalog: Catalog) -> None:
    object_id = catalog.record_object(catalog.root, b"a", info(b"a")).inode
    directory = catalog.record_directory(catalog.root, b"d").inode
    assert object_id is not None
    assert directory is not None
    assert len({catalog.root, object_id, directory}) == 3
    for inode in (catalog.root, object_id, directory):
        assert catalog.generation < inode < catalog.generation + GENERATION_SIZE
    assert catalog.generation % GENERATION_SIZE == 0
    assert GENERATION_SIZE <= catalog.generation <= SEALED_BIT - GENERATION_SIZE


def test_ids_of_another_generation_or_with_the_sealed_bit_are_unknown(catalog: Catalog, view: CatalogView) -> None:
    object_id = file_id(catalog)
    for inode in (1, 0, -1, object_id + GENERATION_SIZE, object_id | SEALED_BIT, (1 << 64) - 1):
        assert view.object(inode) is None
        assert view.directory(inode) is None
        assert view.lookup(inode, b"a") is None
        assert view.path_of(inode) is None
        assert view.key_at(inode, b"a") is None


def file_id(catalog: Catalog, key: bytes = b"a", version: str = "1") -> int:
    found = catalog.record_object(catalog.root, key, info(key, version)).inode
    assert found is not None
    return found


def test_a_replaced_object_is_a_new_inode_and_the_old_one_stays_readable(catalog: Catalog, view: CatalogView) -> None:
    old, new = file_id(catalog, version="1"), file_id(catalog, version="2")
    assert old != new
    superseded = view.object(old)
    assert superseded is not None
    assert superseded.superseded_at is not None
    assert superseded.etag == info(b"a", "1").etag
    assert file_at(view, view.root, b"a").id == new


def test_the_same_version_keeps_its_inode_and_takes_the_new_time(catalog: Catalog, view: CatalogView) -> None:
    old = file_id(catalog)
    catalog.record_object(catalog.root, b"a", info(b"a", mtime_ns=5))
    assert (file_at(view, view.root, b"a").id, file_at(view, view.root, b"a").mtime_ns) == (old, 5)


def test_a_directory_wins_over_a_file_of_its_name(catalog: Catalog, view: CatalogView) -> None:
    list_whole(catalog, catalog.root, Bucket(b"a", b"a/b", b"a-"))
    known = view.lookup(view.root, b"a")
    assert known is not None
    assert known.kind is Kind.DIRECTORY
    assert [(e.name, e.kind) for e in view.page(view.root, 0, 10, 0).entries] == [
        (b"a-", Kind.FILE),
        (b"a", Kind.DIRECTORY),
    ]


def test_a_shadowed_file_is_found_below_keys_with_the_inode_it_has(catalog: Catalog, view: CatalogView) -> None:
    first = file_id(catalog)
    list_whole(catalog, catalog.root, Bucket(b"a", b"a/b"))
    assert view.lookup(view.keys_directory, b"a") is None
    catalog.record_key(b"a", info(b"a"))
    assert file_at(view, view.keys_directory, b"a").id == first


def test_mountkit_is_found_by_lookup_and_not_by_readdir(catalog: Catalog, view: CatalogView) -> None:
    list_whole(catalog, catalog.root, Bucket(b"a", b".mountkit/x"))
    assert [entry.name for entry in view.page(view.root, 0, 10, 0).entries] == [b"a"]
    hidden = view.lookup(view.root, b".mountkit")
    assert hidden is not None
    assert hidden.inode is not None
    keys = view.lookup(hidden.inode, b"keys")
    assert keys is not None
    assert keys.inode == view.keys_directory
    assert [entry.name for entry in view.page(hidden.inode, 0, 10, 0).entries] == [b"keys"]
    assert view.path_of(view.keys_directory) == b".mountkit/keys"
    other = view.lookup(hidden.inode, b"other")
    assert other is not None
    assert other.kind is Kind.ABSENT


@pytest.mark.parametrize("key", [b"/a", b"d//a", b"d/..", b"\xff", b"x" * 700, b".mountkit/a"])
def test_an_odd_key_a_listing_meets_is_found_below_keys(catalog: Catalog, view: CatalogView, key: bytes) -> None:
    catalog.begin_tree(catalog.root).add([info(key)])
    current: int = view.keys_directory
    for name in names.escape(key):
        known = view.lookup(current, name)
        assert known is not None
        assert known.inode is not None
        current = known.inode
    found = view.object(current)
    assert found is not None
    assert found.key == key
    assert view.path_of(current) == b"/".join((b".mountkit", b"keys", *names.escape(key)))


def test_a_name_no_key_can_have_is_absent_unasked(view: CatalogView) -> None:
    for name in (b"\xff", b"x" * 256):
        known = view.lookup(view.root, name)
        assert known is not None
        assert known.kind is Kind.ABSENT


def test_the_key_of_a_name(catalog: Catalog, view: CatalogView) -> None:
    directory = catalog.record_directory(catalog.root, b"d").inode
    assert directory is not None
    assert view.key_at(directory, b"a") == b"d/a"
    assert view.key_at(view.root, b".mountkit") is None
    assert view.key_at(view.keys_directory, b"d%2Fa") == b"d/a"
    assert view.key_at(view.keys_directory, b"d%2fa") is None


def test_a_412_makes_the_name_unknown_and_its_listing_old(catalog: Catalog, view: CatalogView, clock: Clock) -> None:
    list_whole(catalog, catalog.root, Bucket(b"a", b"b"))
    old = file_at(view, view.root, b"a").id
    assert catalog.supersede(old) == [Change(view.root, b"a")]
    assert view.lookup(view.root, b"a") is None
    other = view.lookup(view.root, b"b")
    assert other is not None
    assert other.as_of == 0
    assert view.page(view.root, 0, 10, clock.now) == view.page(view.root, 0, 0, 1)
    assert [entry.name for entry in view.page(view.root, 0, 10, 0).entries] == [b"a", b"b"]


def test_a_page_from_before_the_412_does_not_bring_the_version_back(catalog: Catalog, view: CatalogView) -> None:
    bucket = Bucket(b"a")
    list_whole(catalog, catalog.root, bucket)
    listing = catalog.begin_listing(catalog.root)
    catalog.supersede(file_at(view, view.root, b"a").id)
    for page in bucket.pages(b"", 10):
        listing.add(page)
    listing.finish()
    assert view.lookup(view.root, b"a") is None


def test_a_page_from_before_a_lookup_does_not_undo_it(catalog: Catalog, view: CatalogView) -> None:
    stale = Bucket(b"a")
    listing = catalog.begin_listing(catalog.root)
    new = file_id(catalog, b"a", "2")
    catalog.record_object(catalog.root, b"b", info(b"b"))
    for page in stale.pages(b"", 10):
        listing.add(page)
    listing.finish()
    assert file_at(view, view.root, b"a").id == new
    assert file_at(view, view.root, b"b").key == b"b"


def test_expired_knowledge_is_very_old_but_still_an_answer(catalog: Catalog, view: CatalogView) -> None:
    list_whole(catalog, catalog.root, Bucket(b"a", b"d/b"))
    catalog.record_object(catalog.root, b"c", info(b"c"))
    catalog.expire()
    for name in (b"a", b"c", b"d", b"absent"):
        known = view.lookup(view.root, name)
        assert known is not None
        assert known.as_of == 0
    assert view.page(view.root, 0, 10, 0).done
    assert not view.page(view.root, 0, 10, 1).done


def test_expiring_a_directory_leaves_its_neighbours_alone(catalog: Catalog, view: CatalogView, clock: Clock) -> None:
    bucket = Bucket(b"a/x/1", b"b/1")
    tree = catalog.begin_tree(catalog.root)
    tree.add(bucket.below(b""))
    tree.finish()
    a, b = view.lookup(view.root, b"a"), view.lookup(view.root, b"b")
    assert a is not None
    assert b is not None
    assert a.inode is not None
    assert b.inode is not None
    catalog.expire(a.inode)
    deeper, neighbour = view.lookup(a.inode, b"x"), view.lookup(b.inode, b"1")
    assert deeper is not None
    assert neighbour is not None
    assert (deeper.as_of, neighbour.as_of) == (0, clock.now)


def test_evidence_from_the_future_is_very_old(catalog: Catalog, view: CatalogView, clock: Clock) -> None:
    list_whole(catalog, catalog.root, Bucket(b"a"))
    clock.tick(-100)
    known = view.lookup(view.root, b"a")
    assert known is not None
    assert known.as_of == 0
    assert view.page(view.root, 0, 10, 0).as_of == 0


def test_a_directory_that_comes_back_keeps_its_inode_and_nothing_else(catalog: Catalog, view: CatalogView) -> None:
    bucket = Bucket(b"d/a")
    tree = catalog.begin_tree(catalog.root)
    tree.add(bucket.below(b""))
    tree.finish()
    before = view.lookup(view.root, b"d")
    list_whole(catalog, catalog.root, Bucket())
    gone = view.lookup(view.root, b"d")
    list_whole(catalog, catalog.root, bucket)
    after = view.lookup(view.root, b"d")
    assert before is not None
    assert gone is not None
    assert after is not None
    assert gone.kind is Kind.ABSENT
    assert before.inode == after.inode
    assert after.inode is not None
    assert view.lookup(after.inode, b"a") is None


def test_a_marker_tells_the_time_of_its_directory(catalog: Catalog, view: CatalogView) -> None:
    directory = catalog.record_directory(catalog.root, b"d").inode
    assert directory is not None
    bucket = Bucket()
    bucket.objects[b"d/"] = info(b"d/", mtime_ns=77)
    list_whole(catalog, directory, bucket)
    found = view.directory(directory)
    assert found is not None
    assert found.mtime_ns == 77
    assert view.page(directory, 0, 10, 0).entries == []


def test_a_version_id_can_be_told_later(catalog: Catalog, view: CatalogView) -> None:
    object_id = file_id(catalog)
    catalog.set_version(object_id, "v7")
    list_whole(catalog, catalog.root, Bucket(b"a"))
    found = view.object(object_id)
    assert found is not None
    assert found.version_id == "v7"


def test_a_purge_tells_which_versions_no_key_holds_any_more(catalog: Catalog, clock: Clock) -> None:
    file_id(catalog, b"a", "1")
    file_id(catalog, b"b", "1")
    clock.tick()
    current = file_id(catalog, b"a", "2")
    catalog.record_absent(catalog.root, b"b")
    clock.tick(100)
    assert catalog.purge(101) == []
    purged = catalog.purge(99)
    assert set(purged) == {PurgedVersion(b"a", info(b"a", "1").etag, 3), PurgedVersion(b"b", info(b"b", "1").etag, 3)}
    assert catalog.purge(99) == []
    assert catalog.object(current) is not None


def test_a_purge_keeps_the_last_version_known_of_a_name(catalog: Catalog, view: CatalogView, clock: Clock) -> None:
    list_whole(catalog, catalog.root, Bucket(b"a"))
    catalog.supersede(file_at(view, view.root, b"a").id)
    clock.tick(100)
    assert catalog.purge(10) == []
    assert [entry.name for entry in view.page(view.root, 0, 10, 0).entries] == [b"a"]


def test_cookies_of_replaced_and_removed_files_stay_valid(catalog: Catalog, view: CatalogView, clock: Clock) -> None:
    bucket = Bucket(b"a", b"b", b"c", b"d")
    list_whole(catalog, catalog.root, bucket)
    cookies = [entry.cookie for entry in view.page(view.root, 0, 10, 0).entries]
    bucket.objects[b"a"] = info(b"a", "2")
    del bucket.objects[b"b"]
    list_whole(catalog, catalog.root, bucket)
    assert [e.name for e in view.page(view.root, cookies[0], 10, 0).entries] == [b"c", b"d"]
    assert [e.name for e in view.page(view.root, cookies[1], 10, 0).entries] == [b"c", b"d"]
    clock.tick(100)
    catalog.purge(10)
    with pytest.raises(StaleCookie):
        view.page(view.root, cookies[1], 10, 0)


def test_a_cookie_of_another_directory_is_stale(catalog: Catalog, view: CatalogView) -> None:
    list_whole(catalog, catalog.root, Bucket(b"a", b"d/b"))
    cookies = {entry.name: entry.cookie for entry in view.page(view.root, 0, 10, 0).entries}
    with pytest.raises(StaleCookie):
        view.page(cookies[b"d"], cookies[b"a"], 10, 0)


def test_a_page_of_an_unknown_directory_is_a_key_error(view: CatalogView) -> None:
    with pytest.raises(KeyError):
        view.page(view.root + 77, 0, 10, 0)


def test_a_failed_call_changes_nothing(catalog: Catalog, view: CatalogView) -> None:
    with pytest.raises(KeyError):
        catalog.record_object(catalog.root + 77, b"a", info(b"a"))
    with pytest.raises(KeyError):
        catalog.begin_listing(catalog.keys_directory)
    assert view.lookup(view.root, b"a") is None


def test_the_writer_notices_that_its_file_was_taken_away(catalog: Catalog, directory_fd: int, tmp_path: object) -> None:
    import os

    os.unlink("catalog.db", dir_fd=directory_fd)
    with pytest.raises(CatalogLost):
        catalog.record_absent(catalog.root, b"a")


def test_a_directory_replaced_by_a_file_is_gone_with_all_below(catalog: Catalog, view: CatalogView) -> None:
    directory = catalog.record_directory(catalog.root, b"d").inode
    assert directory is not None
    list_whole(catalog, directory, Bucket(b"d/a"))
    below = file_at(view, directory, b"a").id
    answer = catalog.record_object(catalog.root, b"d", info(b"d"))
    assert view.lookup(view.root, b"d") == answer
    assert view.lookup(directory, b"a") is None
    gone = view.object(below)
    assert gone is not None
    assert gone.superseded_at is not None


def test_what_was_found_below_a_directory_keeps_it_from_an_older_page(catalog: Catalog, view: CatalogView) -> None:
    directory = catalog.record_directory(catalog.root, b"d").inode
    assert directory is not None
    listing = catalog.begin_listing(catalog.root)
    answer = catalog.record_object(directory, b"new", info(b"d/new"))
    listing.add(Page((), (), ""))
    listing.finish()
    known = view.lookup(view.root, b"d")
    assert known is not None
    assert known.inode == directory
    assert view.lookup(directory, b"new") == answer


def test_what_is_found_below_a_directory_believed_gone_brings_it_back(catalog: Catalog, view: CatalogView) -> None:
    directory = catalog.record_directory(catalog.root, b"d").inode
    assert directory is not None
    catalog.record_absent(catalog.root, b"d")
    catalog.record_object(directory, b"new", info(b"d/new"))
    known = view.lookup(view.root, b"d")
    assert known is not None
    assert known.inode == directory
