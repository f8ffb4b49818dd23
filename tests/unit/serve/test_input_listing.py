"""What a readdir shows, how fresh, and what the kernel may keep of it."""

from __future__ import annotations

import errno
from typing import Any

from mountkit.catalog.values import SEALED_BIT
from mountkit.errors import StoreUnavailable
from mountkit.serve import input_listing
from mountkit.serve.values import ROOT
from tests.unit.mover.harness import in_trio
from tests.unit.serve.inputs import Bench, fails, sealed


@in_trio
async def test_entries_come_in_order_and_end_with_none(b: Bench) -> None:
    for key in (b"b", b"a", b"d/x"):
        b.mover.put(key, b"abc")
    files = b.files(passthrough=False)
    fresh = files.listing.fresh_after()
    assert files.listing.entries_now(ROOT, 0, fresh_after=fresh) is None
    found = await files.listing.entries(ROOT, 0, fresh_after=fresh)
    assert [e.name for e in found] == [b"a", b"b", b"d"]
    assert {e.timeout_s for e in found} == {60.0}
    assert files.listing.entries_now(ROOT, found[-1].cookie, fresh_after=fresh) == []
    rest = files.listing.entries_now(ROOT, found[0].cookie, fresh_after=fresh)
    assert rest is not None and [e.name for e in rest] == [b"b", b"d"]
    b.time.tick(20)
    later = files.listing.entries_now(ROOT, 0, fresh_after=fresh)
    assert later is not None and {e.timeout_s for e in later} == {40.0}


@in_trio
async def test_names_are_those_of_the_entries_whatever_the_size_of_a_page(b: Bench, monkeypatch: Any) -> None:
    for key in (b"b", b"a", b"a/x", b"a!", b"d/x", b"c"):
        b.mover.put(key, b"abc")
    files = b.files(passthrough=False)
    fresh = files.listing.fresh_after()
    assert files.listing.names_now(ROOT, 0, fresh_after=fresh) is None
    whole = await files.listing.names(ROOT, 0, fresh_after=fresh)
    shown = await files.listing.entries(ROOT, 0, fresh_after=fresh)
    assert [(e.name, e.cookie, e.inode) for e in whole] == [(e.name, e.cookie, e.attributes.inode) for e in shown]
    assert [e.name for e in whole] == [b"a!", b"a", b"b", b"c", b"d"], "the directory a/ hides the file a"
    for limit in (1, 2, 3):
        monkeypatch.setattr(input_listing, "_NAMES", limit)
        paged, cookie = [], 0
        while page := files.listing.names_now(ROOT, cookie, fresh_after=fresh):
            paged += page
            cookie = page[-1].cookie
        assert paged == whole


@in_trio
async def test_the_kernel_keeps_the_names_of_a_directory_while_its_listing_is_valid(b: Bench) -> None:
    """[fresh-1]"""
    b.mover.put(b"a", b"abc")
    files = b.files()
    assert not files.listing.open_directory(ROOT), "nothing is listed"
    await files.listing.names(ROOT, 0, fresh_after=files.listing.fresh_after())
    assert not files.listing.open_directory(ROOT), "what the kernel has may be of an earlier listing"
    assert files.listing.open_directory(ROOT)
    assert not b.files().listing.open_directory(ROOT), "another server cannot know"
    b.catalog.expire()
    assert not files.listing.open_directory(ROOT)
    b.time.tick()
    await files.listing.names(ROOT, 0, fresh_after=files.listing.fresh_after())
    assert not files.listing.open_directory(ROOT)
    assert files.listing.open_directory(ROOT)
    b.time.tick(61)
    assert not files.listing.open_directory(ROOT), "the TTL has run out"
    with fails(errno.ESTALE):
        files.listing.open_directory(b.root + 5000)


@in_trio
async def test_listed_files_stay_known_for_a_minute_and_sealed_ones_for_the_whole_ttl(b: Bench) -> None:
    b.mover.put(b"a", b"abc")
    b.mover.put(b"b", b"abc")
    files = b.files(ttl_s=3600.0)
    await sealed(b, files, b"b")
    found = await files.listing.entries(ROOT, 0, fresh_after=files.listing.fresh_after())
    assert {e.name: e.timeout_s for e in found} == {b"a": 60.0, b"b": 3600.0}
    assert [bool(e.attributes.inode & SEALED_BIT) for e in found] == [False, True]


@in_trio
async def test_entries_of_an_unreachable_bucket_are_the_last_known_for_no_time(b: Bench) -> None:
    """[fresh-3]"""
    b.mover.put(b"a", b"abc")
    files = b.files(passthrough=False)
    await files.listing.entries(ROOT, 0, fresh_after=files.listing.fresh_after())
    b.time.tick(100)
    b.mover.stale = True
    found = await files.listing.entries(ROOT, 0, fresh_after=files.listing.fresh_after())
    assert [(e.name, e.timeout_s) for e in found] == [(b"a", 0.0)]
    b.catalog.expire()  # a refresh that could not reach the bucket
    found = await files.listing.entries(ROOT, 0, fresh_after=files.listing.fresh_after())
    assert [(e.name, e.timeout_s) for e in found] == [(b"a", 0.0)]


@in_trio
async def test_entries_that_do_not_come_are_eio(b: Bench) -> None:
    files = b.files()
    b.mover.stale = True
    with fails(errno.EIO):
        await files.listing.entries(ROOT, 0, fresh_after=files.listing.fresh_after())
    b.mover.error = StoreUnavailable("down")
    with fails(errno.EIO):
        await files.listing.entries(ROOT, 0, fresh_after=files.listing.fresh_after())
