"""The bytes of files: opened, sealed, read, and what is fetched for that."""

from __future__ import annotations

import errno
import os
from typing import Any

from mountkit.cache.checked import Missing, WouldBlock
from mountkit.cache.content import BLOCK_BYTES, PART_BYTES, content_id
from mountkit.cache.files import object_name
from mountkit.catalog.values import SEALED_BIT
from mountkit.errors import AccessDenied, ObjectChanged
from mountkit.serve.values import ROOT
from tests.fakes.memory_store import content
from tests.unit.cache.harness import flip
from tests.unit.mover.harness import in_trio
from tests.unit.serve.inputs import Bench, fails, inode_of, sealed


def test_unknown_ids_are_estale(b: Bench) -> None:
    files = b.files()
    for unknown in (b.root + 1000, 12345, (b.root + 1000) | SEALED_BIT):
        for ask in (files.names.attributes_now, files.can_open_now, files.sealed_now, files.names.extended_attributes):
            with fails(errno.ESTALE):
                ask(unknown)
        with fails(errno.ESTALE):
            files.read_now(unknown, 0, 10)
    with fails(errno.ESTALE):
        files.listing.entries_now(12345, 0, fresh_after=0.0)
    with fails(errno.ESTALE):
        files.listing.entries_now(ROOT, 12345, fresh_after=0.0)


def test_without_a_catalog_nothing_is_known_and_nothing_breaks(b: Bench) -> None:
    files = b.files()
    files.names.lookup_now(ROOT, b"a")
    for name in os.listdir(b.fd):
        if name.startswith("catalog.db"):
            os.unlink(name, dir_fd=b.fd)
    assert files.names.lookup_now(ROOT, b"a") is None
    assert files.listing.entries_now(ROOT, 0, fresh_after=0.0) is None
    for ask in (files.names.attributes_now, files.can_open_now, files.names.extended_attributes):
        with fails(errno.EIO):
            ask(b.root + 5)


# ---- sealed files ---------------------------------------------------------------------------------------------------


@in_trio
async def test_a_sealed_file_is_handed_out_once_its_checksums_were_checked_in_this_life(b: Bench) -> None:
    b.mover.put(b"a", content(1000))
    files = b.files()
    inode = await sealed(b, files, b"a")
    found = files.sealed_now(inode)
    assert found is not None
    assert os.pread(found.fd, 2000, 0) == content(1000)
    os.close(found.fd)
    b.next_life()
    files = b.files()
    assert files.sealed_now(inode) is None
    await files.verify_sealed(inode)
    found = files.sealed_now(inode)
    assert found is not None
    os.close(found.fd)


@in_trio
async def test_a_server_checks_small_files_itself_and_has_the_mover_check_large_ones(b: Bench) -> None:
    """After a remount each file is checked when it is opened; small ones without a call to the mover."""
    sizes = {b"small": BLOCK_BYTES, b"large": BLOCK_BYTES + 1}
    files = b.files()
    for name, size in sizes.items():
        b.mover.put(name, content(size))
    inodes = {name: await sealed(b, files, name) for name in sizes}
    b.next_life()
    files = b.files()
    for name, size in sizes.items():
        b.mover.asked.clear()
        assert files.sealed_now(inodes[name]) is None
        await files.verify_sealed(inodes[name])
        found = files.sealed_now(inodes[name])
        assert found is not None
        assert os.pread(found.fd, size + 1, 0) == content(size)
        os.close(found.fd)
        assert ("verify" in b.mover.ops()) == (name == b"large")


@in_trio
async def test_a_sealed_file_with_altered_bytes_is_estale(b: Bench, tmp_path: Any) -> None:
    """[bytes-4]"""
    b.mover.put(b"a", content(1000))
    files = b.files()
    inode = await sealed(b, files, b"a")
    row = b.catalog.object(inode & ~SEALED_BIT)
    assert row is not None
    flip(tmp_path / object_name(content_id(row.key, row.etag, row.size)), 10)
    assert files.sealed_now(inode) is None
    with fails(errno.ESTALE):
        await files.verify_sealed(inode)
    assert not await inode_of(files, b"a") & SEALED_BIT


@in_trio
async def test_a_version_that_was_replaced_a_moment_ago_is_estale_though_it_was_looked_up_before(b: Bench) -> None:
    """[bytes-2] What is remembered of the catalog is forgotten with its next change."""
    b.mover.put(b"a", content(1000))
    b.mover.put(b"b", content(10))
    files = b.files()
    inode = await inode_of(files, b"a")
    await files.prepare_open(inode)
    assert files.can_open_now(inode)
    b.mover.put(b"a", content(1000, 1))
    assert files.can_open_now(inode), "nobody has told the catalog"
    b.catalog.record_object(b.root, b"a", b.mover.bucket[b"a"][0])
    with fails(errno.ESTALE):
        files.can_open_now(inode)
    with fails(errno.ESTALE):
        files.sealed_now(inode | SEALED_BIT)


# ---- open and read --------------------------------------------------------------------------------------------------


@in_trio
async def test_an_open_fetches_the_first_bytes_unless_they_are_here(b: Bench) -> None:
    b.mover.put(b"a", content(3 * BLOCK_BYTES))
    b.mover.put(b"empty", b"")
    files = b.files(data_budget_s=30.0)
    inode = await inode_of(files, b"a")
    assert not files.can_open_now(inode)
    assert files.can_open_now(await inode_of(files, b"empty"))
    await files.prepare_open(inode)
    assert files.can_open_now(inode)
    op, arguments = b.mover.asked[-1]
    assert (op, arguments["budget_s"]) == ("open", 32.0)
    b.mover.error = AccessDenied("no")
    with fails(errno.EACCES):
        await files.prepare_open(inode)


@in_trio
async def test_a_superseded_version_is_estale_at_open_and_readable_by_who_has_it_open(b: Bench) -> None:
    """[bytes-2]"""
    b.mover.put(b"a", content(1000))
    files = b.files()
    inode = await inode_of(files, b"a")
    await files.prepare_open(inode)
    b.mover.put(b"a", content(1000, 1))
    b.time.tick(100)
    newer = await inode_of(files, b"a")
    assert newer != inode
    with fails(errno.ESTALE):
        files.can_open_now(inode)
    with fails(errno.ESTALE):
        files.sealed_now(inode | SEALED_BIT)
    assert await files.read(inode, 0, 1000) == content(1000)
    assert await files.read(newer, 0, 1000) == content(1000, 1)


@in_trio
async def test_missing_parts_are_asked_for(b: Bench) -> None:
    size = 2 * BLOCK_BYTES + 77
    b.mover.put(b"a", content(size))
    files = b.files()
    inode = await inode_of(files, b"a")
    assert isinstance(files.read_now(inode, 0, 100), Missing)
    assert await files.read(inode, BLOCK_BYTES - 10, 20) == content(size)[BLOCK_BYTES - 10 : BLOCK_BYTES + 10]
    op, asked = b.mover.asked[-1]
    assert op == "fetch"
    assert (asked["offset"], asked["length"], asked["bad"], asked["inline"]) == (BLOCK_BYTES - 10, 20, False, False)
    count = len(b.mover.asked)
    assert await files.read(inode, BLOCK_BYTES - 10, 20) == content(size)[BLOCK_BYTES - 10 : BLOCK_BYTES + 10]
    assert len(b.mover.asked) == count
    now = files.read_now(inode, BLOCK_BYTES, 5)
    assert isinstance(now, WouldBlock) or now == content(size)[BLOCK_BYTES : BLOCK_BYTES + 5]
    assert await files.read(inode, size - 5, 100) == content(size)[-5:]
    assert await files.read(inode, size + 5, 100) == b""
    assert files.read_now(inode, size, 100) == b""


@in_trio
async def test_bad_parts_are_reported_and_fetched_again(b: Bench, tmp_path: Any) -> None:
    """[bytes-4]"""
    size = 2 * BLOCK_BYTES
    b.mover.put(b"a", content(size))
    files = b.files()
    inode = await inode_of(files, b"a")
    await files.read(inode, 0, size)
    row = b.catalog.object(inode)
    assert row is not None
    flip(tmp_path / object_name(content_id(row.key, row.etag, row.size)), PART_BYTES + 3)
    assert await files.read(inode, 0, size) == content(size)
    assert b.mover.asked[-1][1]["bad"] is True
    count = len(b.mover.asked)
    assert await files.read(inode, 0, size) == content(size)
    assert len(b.mover.asked) == count


@in_trio
async def test_where_the_cache_keeps_nothing_the_last_attempts_take_the_bytes_themselves(b: Bench) -> None:
    """[failures-3]"""
    b.mover.put(b"a", content(1000))
    files = b.files()
    inode = await inode_of(files, b"a")
    b.mover.keeps = False
    assert await files.read(inode, 10, 50) == content(1000)[10:60]
    assert [asked["inline"] for op, asked in b.mover.asked if op == "fetch"] == [False, False, True]


@in_trio
async def test_a_read_the_mover_gives_nothing_for_is_eio(b: Bench) -> None:
    b.mover.put(b"a", content(1000))
    files = b.files()
    inode = await inode_of(files, b"a")
    b.mover.keeps = b.mover.hands_over = False
    with fails(errno.EIO):
        await files.read(inode, 0, 50)
    assert b.mover.ops().count("fetch") == 4
    b.mover.error = ObjectChanged("another")
    with fails(errno.ESTALE):
        await files.read(inode, 0, 50)


@in_trio
async def test_the_mover_is_told_once_a_block_how_a_large_file_is_read(b: Bench) -> None:
    b.mover.put(b"large", content(3 * BLOCK_BYTES))
    b.mover.put(b"small", content(1000))
    files = b.files()
    large, small = await inode_of(files, b"large"), await inode_of(files, b"small")
    assert files.note_read(small, 0, 1000) is None
    assert files.note_read(large, 0, PART_BYTES) == (large, 0)
    assert files.note_read(large, PART_BYTES, PART_BYTES) is None
    assert files.note_read(large, BLOCK_BYTES, PART_BYTES) == (large, BLOCK_BYTES)
    await files.tell_read(large, BLOCK_BYTES, PART_BYTES)
    assert b.mover.asked[-1] == ("hint", {"object": large, "offset": BLOCK_BYTES, "length": PART_BYTES})
