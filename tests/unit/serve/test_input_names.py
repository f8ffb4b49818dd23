"""What names and inodes are: fresh as the TTL asks, stable, sealed or not."""

from __future__ import annotations

import errno
import math
import stat

import pytest
import trio

from mountkit.catalog.values import SEALED_BIT
from mountkit.errors import AccessDenied, ObjectChanged, StoreUnavailable
from mountkit.ipc import Message
from mountkit.serve.values import ROOT, Found
from tests.unit.mover.harness import in_trio
from tests.unit.serve.inputs import Bench, fails, inode_of, sealed


@in_trio
async def test_a_lookup_holds_for_what_is_left_of_the_ttl(b: Bench) -> None:
    """[fresh-1]"""
    b.mover.put(b"d/x", b"abc")
    files = b.files()
    assert files.names.lookup_now(ROOT, b"d") is None
    found = await files.names.lookup(ROOT, b"d")
    assert found.timeout_s == 60.0
    b.time.tick(45)
    again = files.names.lookup_now(ROOT, b"d")
    assert again is not None and again.timeout_s == 15.0
    b.time.tick(15)
    again = files.names.lookup_now(ROOT, b"d")
    assert again is not None and again.timeout_s == 0.0
    b.time.tick(1)
    assert files.names.lookup_now(ROOT, b"d") is None
    assert b.mover.ops() == ["lookup"]


@in_trio
async def test_that_a_name_is_absent_holds_as_long(b: Bench) -> None:
    """[fresh-2]"""
    files = b.files()
    assert await files.names.lookup(ROOT, b"none") == Found(None, 60.0)
    b.time.tick(50)
    assert files.names.lookup_now(ROOT, b"none") == Found(None, 10.0)


@in_trio
async def test_with_ttl_zero_each_lookup_asks_and_holds_for_nothing(b: Bench) -> None:
    """[fresh-1]"""
    b.mover.put(b"a", b"abc")
    files = b.files(ttl_s=0.0)
    assert (await files.names.lookup(ROOT, b"a")).timeout_s == 0.0
    b.time.tick(0.001)
    assert files.names.lookup_now(ROOT, b"a") is None
    assert b.mover.asked[0][1]["fresh"] == 1_700_000_000.0


@in_trio
async def test_with_an_indefinite_ttl_nothing_is_asked_twice(b: Bench) -> None:
    """[fresh-1]"""
    b.mover.put(b"d/x", b"abc")
    files = b.files(ttl_s=math.inf)
    assert (await files.names.lookup(ROOT, b"d")).timeout_s == math.inf
    b.time.tick(1e9)
    assert files.names.lookup_now(ROOT, b"d") is not None


@in_trio
async def test_what_a_refresh_declared_void_is_asked_for_anew_whatever_the_ttl(b: Bench) -> None:
    """[fresh-1] Also what no listing shows: a name looked up in a directory that was never listed."""
    b.mover.put(b"d/x", b"abc")
    files = b.files(ttl_s=math.inf)
    await files.names.lookup(ROOT, b"d")
    b.catalog.expire()
    assert files.names.lookup_now(ROOT, b"d") is None
    await files.names.lookup(ROOT, b"d")
    assert b.mover.asked[-1][1]["fresh"] > 0.0


@in_trio
async def test_stale_knowledge_is_shown_for_no_time(b: Bench) -> None:
    """[fresh-3]"""
    b.mover.put(b"d/x", b"abc")
    files = b.files()
    await files.names.lookup(ROOT, b"d")
    b.time.tick(100)
    b.mover.stale = True
    found = await files.names.lookup(ROOT, b"d")
    assert found.attributes is not None
    assert found.timeout_s == 0.0


@in_trio
async def test_a_known_name_outlasts_a_mover_that_is_late(b: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """[fresh-3] Its own budget ends in the same moment: who is first must not matter."""

    async def never(*_: object, **__: object) -> Message:
        return await trio.sleep_forever()

    b.mover.put(b"a", b"abc")
    known = (await b.files().names.lookup(ROOT, b"a")).attributes
    b.time.tick(100)
    monkeypatch.setattr(b.mover, "call", never)
    found = await b.files(metadata_budget_s=0.02).names.lookup(ROOT, b"a")
    assert (found.attributes, found.timeout_s) == (known, 0.0)
    for name, ttl_s in ((b"a", 0.0), (b"unknown", 60.0)):
        with fails(errno.EIO):
            await b.files(metadata_budget_s=0.02, ttl_s=ttl_s).names.lookup(ROOT, name)


@in_trio
async def test_a_lookup_the_mover_cannot_answer_fails_with_its_errno(b: Bench) -> None:
    files = b.files(metadata_budget_s=7.0)
    for error in (StoreUnavailable("down"), AccessDenied("no"), ObjectChanged("gone")):
        b.mover.error = error
        with fails(error.errno):
            await files.names.lookup(ROOT, b"a")
    assert b.mover.asked[0][1]["budget_s"] == 9.0
    b.mover.error, b.mover.stale = None, True
    with fails(errno.EIO):
        await files.names.lookup(ROOT, b"a")


@in_trio
async def test_attributes_are_the_objects_and_the_mounts(b: Bench) -> None:
    """[attributes-1]"""
    b.mover.put(b"a", b"abc")
    b.mover.put(b"d/x", b"abc")
    files = b.files()
    file, timeout = files.names.attributes_now(await inode_of(files, b"a"))
    assert (file.size, file.mtime_ns, file.uid, file.gid, file.links) == (3, 1_700_000_000_123_456_789, 1000, 100, 1)
    assert file.mode == stat.S_IFREG | 0o440
    assert timeout == math.inf, "an inode is one version"
    directory, timeout = files.names.attributes_now(await inode_of(files, b"d"))
    assert directory.mode == stat.S_IFDIR | 0o550
    assert timeout == 60.0
    assert files.names.attributes_now(ROOT)[0].inode == ROOT


@in_trio
async def test_extended_attributes_name_the_version(b: Bench) -> None:
    """[attributes-2]"""
    b.mover.put(b"a", b"abc", "GLACIER_IR")
    files = b.files()
    expected = {b"user.s3.key": b"a", b"user.s3.etag": b'"1"', b"user.s3.storage_class": b"GLACIER_IR"}
    assert files.names.extended_attributes(await inode_of(files, b"a")) == expected
    assert files.names.extended_attributes(ROOT) == {}


@in_trio
async def test_unsealed_files_are_looked_up_anew_soon_and_sealed_ones_have_another_inode(b: Bench) -> None:
    """[attributes-3]"""
    b.mover.put(b"a", b"abc")
    b.mover.put(b"empty", b"")
    files = b.files()
    plain = await files.names.lookup(ROOT, b"a")
    assert plain.attributes is not None
    assert plain.timeout_s == 2.0
    assert (await files.names.lookup(ROOT, b"empty")).timeout_s == 60.0, "never sealed"
    assert (await b.files(passthrough=False).names.lookup(ROOT, b"a")).timeout_s == 60.0
    inode = await sealed(b, files, b"a")
    assert inode == plain.attributes.inode | SEALED_BIT
    found = files.names.lookup_now(ROOT, b"a")
    assert found is not None and found.timeout_s == 60.0
    without = b.files(passthrough=False).names.lookup_now(ROOT, b"a")
    assert without is not None and without.attributes == plain.attributes
    for number in (inode, plain.attributes.inode):
        assert files.names.attributes_now(number)[0].inode == number
    entries = {e.name: (e.attributes.inode, e.timeout_s) for e in await files.listing.entries(ROOT, 0, fresh_after=0.0)}
    assert entries[b"a"] == (inode, 60.0)
