"""What a server may rely on: right bytes or none, whatever happens to the files under it."""

from __future__ import annotations

import errno
import os

import pytest

from mountkit.cache.checked import Missing, WouldBlock
from mountkit.cache.content import content_id
from mountkit.cache.reader import REMEMBERED_ROWS, CacheReader
from mountkit.cache.segments import HEADER_BYTES
from mountkit.cache.writer import CacheWriter
from tests.unit.cache.harness import BLOCK, PART, Box, Thing, flip, get, put, put_parts

SMALL = Thing(1, 300_000)
LARGE = Thing(2, 2 * BLOCK + 3 * PART + 17)


@pytest.mark.parametrize("size", [1, PART - 1, PART, PART + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_any_range_of_a_cached_object_reads_as_written(writer: CacheWriter, reader: CacheReader, size: int) -> None:
    thing = Thing(size, size)
    put(writer, thing)
    for start in {0, 1, PART - 1, PART, BLOCK - 1, BLOCK, size - 1, size, size + 5}:
        for length in (0, 1, PART, BLOCK + 3, 5 * BLOCK):
            assert get(reader, thing, start, length) == thing.data(start, start + length)
            assert writer.read(thing.content, size, start, length) == thing.data(start, start + length)


def test_an_empty_object_needs_nothing(writer: CacheWriter, reader: CacheReader) -> None:
    empty = Thing(3, 0)
    assert writer.write(empty.content, 0, 0, b"") == ()
    assert writer.is_complete(empty.content, 0)
    assert writer.missing(empty.content, 0, 0, 0) == []
    assert get(reader, empty, 0, 10) == b""


def test_what_was_never_written_is_missing_but_not_bad(writer: CacheWriter, reader: CacheReader) -> None:
    assert get(reader, LARGE, PART + 1, 2 * PART) == Missing(1, 3)


def test_only_the_absent_parts_are_missing(writer: CacheWriter, reader: CacheReader) -> None:
    put_parts(writer, LARGE, [0, 1, 7, 8, 12])
    assert get(reader, LARGE, 0, 2 * PART) == LARGE.parts(0, 1)
    assert get(reader, LARGE, 7 * PART, 2 * PART) == LARGE.parts(7, 8)
    assert get(reader, LARGE, 0, 10 * PART) == Missing(2, 9)
    assert writer.missing(LARGE.content, LARGE.size, 0, 10**6) == [range(2, 7), range(9, 12), range(13, 20)]


def test_a_reader_sees_rows_as_soon_as_they_are_committed(writer: CacheWriter, reader: CacheReader) -> None:
    for part in range(LARGE.last_part + 1):
        assert get(reader, LARGE, part * PART, PART) == Missing(part, part)
        rows = writer.write(LARGE.content, LARGE.size, part, LARGE.parts(part, part))
        assert get(reader, LARGE, part * PART, PART) == Missing(part, part)
        writer.commit(rows)
        assert get(reader, LARGE, part * PART, PART) == LARGE.parts(part, part)


def test_parts_of_a_small_object_arrive_in_any_order(writer: CacheWriter, reader: CacheReader) -> None:
    put_parts(writer, SMALL, [2, 0])
    assert get(reader, SMALL) == Missing(1, 1)
    put_parts(writer, SMALL, [1, 1])
    assert get(reader, SMALL) == SMALL.data()
    assert writer.is_complete(SMALL.content, SMALL.size)


def test_two_versions_of_a_key_never_mix(writer: CacheWriter, reader: CacheReader) -> None:
    old, new = content_id(b"k", "v1", SMALL.size), content_id(b"k", "v2", SMALL.size)
    assert len({old, new, content_id(b"k", "v1", 7), content_id(b"kv", "1", SMALL.size)}) == 4
    writer.commit(writer.write(old, SMALL.size, 0, SMALL.data()))
    assert reader.read(new, SMALL.size, 0, PART, wait=True) == Missing(0, 0)
    writer.commit(writer.write(new, SMALL.size, 0, Thing(9, SMALL.size).data()))
    assert reader.read(old, SMALL.size, 0, SMALL.size, wait=True) == SMALL.data()
    assert reader.read(new, SMALL.size, 0, SMALL.size, wait=True) == Thing(9, SMALL.size).data()


@pytest.mark.parametrize("where", [0, 5, 22, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + PART, -1])
def test_a_flipped_byte_in_a_segment_is_never_given_out(
    box: Box, writer: CacheWriter, reader: CacheReader, where: int
) -> None:
    put(writer, SMALL)
    assert get(reader, SMALL) == SMALL.data()
    flip(box.segments()[0], where if where >= 0 else HEADER_BYTES + SMALL.size - 1)
    answer = get(reader, SMALL)
    assert isinstance(answer, Missing)
    assert answer.bad
    assert writer.read(SMALL.content, SMALL.size, 0, SMALL.size) is None
    assert not writer.recheck(SMALL.content, SMALL.size, 0, SMALL.last_part)
    assert writer.missing(SMALL.content, SMALL.size, 0, 2) == [range(3)]
    put(writer, SMALL)
    assert get(reader, SMALL) == SMALL.data()


def test_a_flipped_byte_in_an_own_file_costs_that_part_only(box: Box, writer: CacheWriter, reader: CacheReader) -> None:
    put(writer, LARGE)
    flip(box.own_file(LARGE), 5 * PART + 99)
    assert get(reader, LARGE) == Missing(5, 5, bad=True)
    assert get(reader, LARGE, 6 * PART) == LARGE.data(6 * PART)
    assert not writer.recheck(LARGE.content, LARGE.size, 0, LARGE.last_part)
    assert writer.missing(LARGE.content, LARGE.size, 0, LARGE.last_part) == [range(5, 6)]
    put_parts(writer, LARGE, [5])
    assert get(reader, LARGE) == LARGE.data()
    assert writer.recheck(LARGE.content, LARGE.size, 0, LARGE.last_part)


@pytest.mark.parametrize("thing", [SMALL, LARGE])
@pytest.mark.parametrize("damage", ["truncated", "deleted", "emptied and replaced"])
def test_files_may_vanish_under_a_live_reader(
    box: Box, writer: CacheWriter, reader: CacheReader, thing: Thing, damage: str
) -> None:
    put(writer, thing)
    assert get(reader, thing) == thing.data()
    path = box.own_file(thing) if thing is LARGE else box.segments()[0]
    if damage == "truncated":
        os.truncate(path, 1000)
    else:
        path.unlink()
        if damage != "deleted":
            path.write_bytes(bytes(10))
    answer = get(box.reader(), thing)
    assert isinstance(answer, Missing)
    assert answer.bad
    # A reader that holds the deleted file may go on reading it, as long as the CRCs are right.
    assert get(reader, thing) == thing.data() or get(reader, thing) == answer
    assert not writer.recheck(thing.content, thing.size, 0, thing.last_part)
    put(writer, thing)
    assert get(box.reader(), thing) == thing.data()
    assert get(reader, thing) == thing.data()


def test_a_remembered_row_is_dropped_when_the_object_has_moved(
    box: Box, writer: CacheWriter, reader: CacheReader
) -> None:
    put(writer, SMALL)
    assert get(reader, SMALL) == SMALL.data()
    assert writer.seal(SMALL.content, SMALL.size)
    os.truncate(box.segments()[0], 0)
    assert get(reader, SMALL) == SMALL.data()


def test_more_objects_than_rows_and_files_are_remembered_read_right(writer: CacheWriter, reader: CacheReader) -> None:
    things = [Thing(n, 100 + n) for n in range(REMEMBERED_ROWS + 50)]
    put(writer, *things)
    for thing in (*things, *things[:60]):
        assert get(reader, thing) == thing.data()
    assert f"{REMEMBERED_ROWS} rows" in repr(reader)


def test_at_most_128_files_stay_open(writer: CacheWriter, reader: CacheReader) -> None:
    things = [Thing(n, PART + n + 1) for n in range(200)]
    for thing in things:
        put_parts(writer, thing, [1, 0])
    for thing in (*things, *things):
        assert get(reader, thing) == thing.data()
    assert "128 files open" in repr(reader)


def test_what_is_not_in_memory_is_not_waited_for(box: Box, writer: CacheWriter, reader: CacheReader) -> None:
    put(writer, LARGE)
    with box.own_file(LARGE).open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    first = reader.read(LARGE.content, LARGE.size, 0, PART, wait=False)
    assert first in (WouldBlock(), LARGE.parts(0, 0))  # the bytes where the filesystem keeps them (tmpfs)
    assert reader.read(LARGE.content, LARGE.size, 0, PART, wait=True) == LARGE.parts(0, 0)
    assert reader.read(LARGE.content, LARGE.size, 0, PART, wait=False) == LARGE.parts(0, 0)


@pytest.mark.parametrize("answer", [BlockingIOError(errno.EAGAIN, "not cached"), 100])
def test_a_read_that_stops_early_would_block(
    writer: CacheWriter, reader: CacheReader, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    put(writer, LARGE)
    honest = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if not flags:
            return honest(fd, buffers, offset, flags)
        if isinstance(answer, OSError):
            raise answer
        return honest(fd, [buffers[0][:100]], offset)  # a file system may not know the flag

    monkeypatch.setattr(os, "preadv", preadv)
    assert reader.read(LARGE.content, LARGE.size, 0, PART, wait=False) == WouldBlock()
    assert reader.read(LARGE.content, LARGE.size, 0, PART, wait=True) == LARGE.parts(0, 0)


def test_a_filesystem_without_nowait_is_waited_for(
    writer: CacheWriter, reader: CacheReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(writer, SMALL)
    honest = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no")
        return honest(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    assert reader.read(SMALL.content, SMALL.size, 0, SMALL.size, wait=False) == SMALL.data()


def test_a_disk_error_is_bad_bytes(writer: CacheWriter, reader: CacheReader, monkeypatch: pytest.MonkeyPatch) -> None:
    put(writer, SMALL)

    def preadv(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "preadv", preadv)
    assert get(reader, SMALL) == Missing(0, 2, bad=True)


def test_a_symbolic_link_is_not_followed(box: Box, writer: CacheWriter, reader: CacheReader) -> None:
    put(writer, LARGE)
    path = box.own_file(LARGE)
    path.rename(box.path / "elsewhere")
    path.symlink_to(box.path / "elsewhere")
    assert get(reader, LARGE) == Missing(0, LARGE.last_part, bad=True)
