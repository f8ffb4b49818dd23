"""What the mover may rely on: admission, merging, discards, housekeeping."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mountkit.cache.checked import Missing
from mountkit.cache.faults import CacheBroken, CacheFull
from mountkit.cache.index_writer import BlockRow
from mountkit.cache.policy import Limits
from mountkit.cache.reader import CacheReader
from mountkit.cache.writer import CacheWriter
from tests.unit.cache.harness import BLOCK, PART, PLENTY, Box, Thing, get, opened, put, put_parts

SMALL = Thing(1, 300_000)
LARGE = Thing(2, 2 * BLOCK + 3 * PART + 17)
LONG_AGO = 1_000_000_000


def test_bytes_that_are_not_whole_parts_are_refused(writer: CacheWriter) -> None:
    for first, data in ((0, bytes(PART + 1)), (19, bytes(18)), (20, b"x"), (-1, bytes(PART))):
        with pytest.raises(ValueError, match="not whole parts"):
            writer.write(LARGE.content, LARGE.size, first, data)


def test_any_buffer_can_be_written(writer: CacheWriter, reader: CacheReader) -> None:
    for kind in (bytes, bytearray, memoryview):
        writer.commit(writer.write(SMALL.content, SMALL.size, 0, kind(SMALL.data())))
        assert get(reader, SMALL) == SMALL.data()


def test_a_small_object_goes_to_a_segment_and_a_large_one_to_its_own_file(box: Box, writer: CacheWriter) -> None:
    put(writer, SMALL)
    assert not box.own_file(SMALL).exists()
    put(writer, LARGE)
    assert box.own_file(LARGE).stat().st_mode & 0o777 == 0o600
    assert box.own_file(LARGE).stat().st_size == LARGE.size


def test_a_piece_never_replaces_a_whole_record(writer: CacheWriter, reader: CacheReader) -> None:
    put(writer, SMALL)
    put_parts(writer, SMALL, [1])
    assert get(reader, SMALL) == SMALL.data()


def test_a_whole_record_completes_an_object_of_pieces(writer: CacheWriter, reader: CacheReader) -> None:
    put_parts(writer, SMALL, [1])
    put(writer, SMALL)
    assert get(reader, SMALL) == SMALL.data()
    assert writer.unsealed(9) == [(SMALL.content, SMALL.size)]


def test_one_commit_may_carry_many_rows_of_one_block(writer: CacheWriter, reader: CacheReader) -> None:
    order = [7, 3, 19, 0, 3, 8, 1, 2, 4, 5, 6, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9]
    rows = [row for n in order for row in writer.write(LARGE.content, LARGE.size, n, LARGE.parts(n, n))]
    writer.commit(rows)
    assert LARGE.last_part == 19
    assert get(reader, LARGE) == Missing(19, 19) or get(reader, LARGE) == LARGE.data()
    assert writer.is_complete(LARGE.content, LARGE.size)
    assert writer.unsealed(9) == [(LARGE.content, LARGE.size)]


def test_complete_unsealed_objects_are_listed_oldest_first(writer: CacheWriter) -> None:
    things = [Thing(n, 1000 * n) for n in (5, 3, 4, 1)]
    put(writer, *things)
    put_parts(writer, LARGE, [0])
    put(writer, things[0])
    expected = [(t.content, t.size) for t in things]
    assert writer.unsealed(2) == expected[:2]
    assert writer.unsealed(10) == expected
    assert writer.seal(*expected[0])
    writer.discard(expected[2][0])
    assert writer.unsealed(10) == [expected[1], expected[3]]
    put(writer, things[2])
    assert writer.unsealed(10) == [expected[1], expected[3], expected[2]]


def test_what_was_written_before_a_discard_cannot_be_committed_after_it(
    writer: CacheWriter, reader: CacheReader
) -> None:
    early = writer.write(LARGE.content, LARGE.size, 0, LARGE.data())
    writer.discard(LARGE.content)
    writer.commit(early)
    assert get(reader, LARGE) == Missing(0, LARGE.last_part)
    put(writer, LARGE)
    assert get(reader, LARGE) == LARGE.data()


def test_a_discarded_object_is_gone_from_the_disk(box: Box, writer: CacheWriter) -> None:
    put(writer, SMALL, LARGE)
    used = writer.usage().bytes_used
    writer.discard(LARGE.content)
    assert not box.own_file(LARGE).exists()
    assert writer.usage().bytes_used <= used - LARGE.size
    assert writer.missing(LARGE.content, LARGE.size, 0, 99) == [range(20)]


def test_superseded_objects_and_their_empty_segments_are_deleted(box: Box, reader: CacheReader) -> None:
    writer = box.writer(segment_bytes=1 << 20)
    things = [Thing(n, 300_000) for n in range(30)]
    put(writer, *things)
    assert len(box.segments()) == 10
    kept = things[13]
    freed = writer.housekeep(t.content for t in things if t is not kept)
    assert freed > 8 * 900_000
    assert len(box.segments()) == 2, "the one with a live record, and the highest number"
    assert get(reader, kept) == kept.data()
    assert writer.usage().objects == 1
    writer.close()


def test_the_space_of_deleted_segments_is_given_back_by_readers(box: Box) -> None:
    writer, reader = box.writer(segment_bytes=1 << 20), box.reader()
    things = [Thing(n, 900_000) for n in range(3)]
    put(writer, *things)
    for thing in things:
        get(reader, thing)
    assert "3 files open" in repr(reader)
    writer.housekeep(t.content for t in things)
    reader.drop_deleted()
    assert "1 files open" in repr(reader)
    reader.close()
    writer.close()


def test_a_segment_with_uncommitted_records_is_kept(box: Box) -> None:
    writer, reader = box.writer(segment_bytes=1 << 20), box.reader()
    waiting = writer.write(SMALL.content, SMALL.size, 0, SMALL.data())
    others = [Thing(n, 900_000) for n in (5, 6, 7)]
    put(writer, *others)
    writer.housekeep(t.content for t in others)
    writer.commit(waiting)
    assert get(reader, SMALL) == SMALL.data()
    reader.close()
    writer.close()


def test_the_size_limit_admits_until_full_and_keeps_what_is_there(box: Box, reader: CacheReader) -> None:
    writer = box.writer(limits=Limits(5 * BLOCK, 0.0))
    things = [Thing(n, BLOCK) for n in range(10)]
    stored = []
    for thing in things:
        try:
            put(writer, thing)
            stored.append(thing)
        except CacheFull:
            assert not writer.admits(BLOCK)
    assert stored == things[: len(stored)]
    assert len(stored) == 4
    assert writer.usage().full
    assert writer.housekeep([]) == 0
    for thing in stored:
        assert get(reader, thing) == thing.data()
    writer.close()


def test_the_free_share_of_the_disk_is_left_alone(box: Box) -> None:
    writer = box.writer(limits=Limits(1 << 40, 1.0))
    assert not writer.admits(1)
    with pytest.raises(CacheFull):
        writer.write(SMALL.content, SMALL.size, 0, SMALL.data())
    writer.close()


def test_only_what_nobody_touched_for_long_is_evicted_when_over_the_limit(box: Box, reader: CacheReader) -> None:
    writer = box.writer(segment_bytes=1 << 20)
    idle, used = Thing(20, 2 * BLOCK), Thing(21, 2 * BLOCK)
    small = [Thing(n, 900_000) for n in range(4)]
    put(writer, idle, used, *small)
    os.utime(box.own_file(idle), (LONG_AGO, LONG_AGO))
    os.utime(box.segments()[1], (LONG_AGO - 5, LONG_AGO - 5))
    writer.close()
    writer = box.writer(limits=Limits(1 << 20, 0.0))
    assert writer.housekeep([]) >= 2 * BLOCK + 900_000
    assert isinstance(get(reader, idle), Missing)
    assert isinstance(get(reader, small[1]), Missing)
    for thing in (used, small[0], small[2], small[3]):
        assert get(reader, thing) == thing.data()
    assert writer.housekeep([]) == 0
    writer.close()


def test_files_nobody_refers_to_are_deleted_once_they_are_old(box: Box, writer: CacheWriter) -> None:
    writer.write(LARGE.content, LARGE.size, 0, LARGE.data())
    assert writer.housekeep([]) == 0
    assert box.own_file(LARGE).exists()
    os.utime(box.own_file(LARGE), (LONG_AGO, LONG_AGO))
    assert writer.housekeep([]) >= LARGE.size
    assert not box.own_file(LARGE).exists()


def test_usage_follows_what_is_stored_and_survives_a_reopen(box: Box) -> None:
    writer = box.writer()
    put(writer, SMALL, LARGE, LARGE)
    put_parts(writer, Thing(3, 5 * PART), [1, 3, 1, 1])
    usage = writer.usage()
    on_disk = sum(p.stat().st_blocks * 512 for d in ("segments", "objects") for p in (box.path / d).rglob("*.*"))
    on_disk += sum(p.stat().st_blocks * 512 for p in (box.path / "objects").rglob("*") if p.is_file())
    assert usage.objects == 3
    assert abs(usage.bytes_used - on_disk) < PART
    writer.close()
    again = box.writer()
    assert abs(again.usage().bytes_used - on_disk) < 2 * PART
    again.housekeep([])
    assert abs(again.usage().bytes_used - on_disk) < PART
    again.close()


def test_a_segment_file_deleted_by_somebody_is_not_written_any_more(
    box: Box, writer: CacheWriter, reader: CacheReader
) -> None:
    put(writer, SMALL)
    box.segments()[0].unlink()
    assert not writer.recheck(SMALL.content, SMALL.size, 0, 2)
    put(writer, SMALL)
    assert len(box.segments()) == 1
    assert get(reader, SMALL) == SMALL.data()


def test_few_files_are_open_for_writing(writer: CacheWriter) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for n in range(200):
        put_parts(writer, Thing(n, 2 * PART), [0])
    assert len(os.listdir("/proc/self/fd")) - before <= 65


def test_a_broken_disk_is_named(writer: CacheWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwritev(*_: object) -> int:
        raise OSError(5, "broken")

    monkeypatch.setattr(os, "pwritev", pwritev)
    for thing in (SMALL, LARGE):
        with pytest.raises(CacheBroken, match="Input/output error"):
            put(writer, thing)


def test_a_write_that_the_disk_takes_in_pieces_is_whole(
    writer: CacheWriter, reader: CacheReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = os.pwritev

    def pwritev(fd: int, pieces: list[memoryview], position: int) -> int:
        return honest(fd, [pieces[0][:7_001]], position)

    monkeypatch.setattr(os, "pwritev", pwritev)
    put(writer, SMALL)
    assert get(reader, SMALL) == SMALL.data()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Box]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", tmp_path], capture_output=True, check=True)
    try:
        with opened(tmp_path) as box:
            yield box
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_full_disk_leaves_what_is_there_readable_and_nothing_half_written(small_disk: Box) -> None:
    writer, reader = small_disk.writer(limits=PLENTY), small_disk.reader()
    stored, refused = [], 0
    for n in range(40):
        thing = Thing(n, 250_000 + 40_000 * n)
        try:
            put(writer, thing)
            stored.append(thing)
        except CacheFull:
            refused += 1
            assert get(reader, thing) == Missing(0, thing.last_part)
    assert len(stored) > 3
    assert refused > 10
    for thing in stored:
        assert get(reader, thing) == thing.data()
    writer.discard(stored[0].content)
    writer.close()
    reader.close()


def test_the_index_may_be_the_first_to_find_the_disk_full(small_disk: Box) -> None:
    writer, reader = small_disk.writer(), small_disk.reader()
    put(writer, SMALL)
    rows = writer.write(LARGE.content, LARGE.size, 0, LARGE.data())
    filler = small_disk.path / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    with pytest.raises(CacheFull):
        for n in range(10_000):
            writer.commit([*rows, *_renamed(rows, n)])
    assert get(reader, SMALL) == SMALL.data()
    filler.unlink()
    writer.commit(rows)
    assert get(reader, LARGE) == LARGE.data()
    writer.close()
    reader.close()


def _renamed(rows: tuple[BlockRow, ...], n: int) -> list[BlockRow]:
    return [replace(row, content=Thing(1000 + n, LARGE.size).content) for row in rows]
