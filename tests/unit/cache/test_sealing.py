"""Seals: what may be given to the kernel unread, and how trust in it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mountkit.cache import sealing
from mountkit.cache.checked import Missing
from mountkit.cache.faults import CacheFull
from mountkit.cache.policy import Limits, Policy
from mountkit.cache.reader import CacheReader, NotSealed, SealedFile
from mountkit.cache.writer import CacheWriter
from tests.unit.cache.harness import BLOCK, NEXT_LIFE, PART, Box, Thing, flip, get, put, put_parts

SMALL = Thing(1, 300_000)
LARGE = Thing(2, 2 * BLOCK + 3 * PART + 17)
both = pytest.mark.parametrize("thing", [SMALL, LARGE, Thing(3, 1), Thing(4, BLOCK), Thing(5, BLOCK + 1)])


def contents_of(found: SealedFile | NotSealed) -> bytes:
    assert isinstance(found, SealedFile), found
    with os.fdopen(found.fd, "rb") as file:
        return file.read()


@both
def test_a_sealed_object_is_a_read_only_file_of_its_own(
    box: Box, writer: CacheWriter, reader: CacheReader, thing: Thing
) -> None:
    put(writer, thing)
    assert reader.open_sealed(thing.content) is NotSealed.NO_SEAL
    assert writer.seal(thing.content, thing.size)
    assert contents_of(reader.open_sealed(thing.content)) == thing.data()
    found = box.own_file(thing).stat()
    assert found.st_mode & 0o777 == 0o400
    stamp = reader.sealed(thing.content)
    assert stamp is not None
    assert stamp[:4] == (thing.size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    assert get(reader, thing) == thing.data()
    assert writer.read(thing.content, thing.size, 0, thing.size) == thing.data()
    assert writer.seal(thing.content, thing.size)
    assert reader.sealed(thing.content) == stamp


def test_an_empty_object_can_be_sealed(writer: CacheWriter, reader: CacheReader) -> None:
    empty = Thing(6, 0)
    assert writer.seal(empty.content, 0)
    assert contents_of(reader.open_sealed(empty.content)) == b""
    assert writer.verify(empty.content)


def test_an_incomplete_object_is_not_sealed(writer: CacheWriter, reader: CacheReader) -> None:
    put_parts(writer, LARGE, [0, 1, 5])
    assert not writer.seal(LARGE.content, LARGE.size)
    assert get(reader, LARGE, 0, PART) == LARGE.parts(0, 0)


def test_an_object_assembled_from_pieces_is_sealed_where_it_is(
    box: Box, writer: CacheWriter, reader: CacheReader
) -> None:
    put_parts(writer, SMALL, [2, 1, 0])
    inode = box.own_file(SMALL).stat().st_ino
    assert writer.seal(SMALL.content, SMALL.size)
    assert box.own_file(SMALL).stat().st_ino == inode
    assert contents_of(reader.open_sealed(SMALL.content)) == SMALL.data()


def test_sealing_empties_segments_and_deletes_them(box: Box) -> None:
    writer = box.writer(segment_bytes=1 << 20)
    things = [Thing(n, 300_000) for n in range(9)]
    put(writer, *things)
    assert len(box.segments()) == 3
    for content, size in writer.unsealed(100):
        assert writer.seal(content, size)
    assert [path.name for path in box.segments()] == ["0003.seg"]
    for thing in things:
        assert writer.read(thing.content, thing.size, 0, thing.size) == thing.data()
    assert writer.unsealed(100) == []
    writer.close()


def test_a_bad_record_is_not_sealed_but_discarded(box: Box, writer: CacheWriter, reader: CacheReader) -> None:
    put(writer, SMALL)
    flip(box.segments()[0], 200_000)
    assert not writer.seal(SMALL.content, SMALL.size)
    assert get(reader, SMALL) == Missing(0, 2)


def test_a_bad_part_of_a_large_object_is_fetched_again_alone(
    box: Box, writer: CacheWriter, reader: CacheReader
) -> None:
    put(writer, LARGE)
    flip(box.own_file(LARGE), 9 * PART)
    assert not writer.seal(LARGE.content, LARGE.size)
    assert writer.missing(LARGE.content, LARGE.size, 0, 99) == [range(9, 10)]
    put_parts(writer, LARGE, [9])
    assert writer.unsealed(9) == [(LARGE.content, LARGE.size)]
    assert writer.seal(LARGE.content, LARGE.size)
    assert contents_of(reader.open_sealed(LARGE.content)) == LARGE.data()


def _overwrite_and_hide_the_time(path: Path) -> None:
    before = path.stat()
    flip(path, 0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    flip(other, 0)
    other.rename(path)


@both
@pytest.mark.parametrize("change", [_overwrite_and_hide_the_time, _append, _replace, Path.unlink])
def test_a_changed_sealed_file_is_distrusted_and_fetched_again(
    box: Box, writer: CacheWriter, reader: CacheReader, thing: Thing, change: Callable[[Path], None]
) -> None:
    put(writer, thing)
    assert writer.seal(thing.content, thing.size)
    change(box.own_file(thing))
    assert reader.open_sealed(thing.content) is NotSealed.NEEDS_VERIFY
    answer = get(reader, thing)
    assert answer == thing.data() or (isinstance(answer, Missing) and answer.bad)
    assert not writer.verify(thing.content)
    assert reader.open_sealed(thing.content) is NotSealed.NO_SEAL
    assert isinstance(get(box.reader(), thing), Missing)
    put(writer, thing)
    assert writer.seal(thing.content, thing.size)
    assert contents_of(reader.open_sealed(thing.content)) == thing.data()


@both
def test_a_touched_file_with_the_right_bytes_is_trusted_again_after_verify(
    box: Box, writer: CacheWriter, reader: CacheReader, thing: Thing
) -> None:
    put(writer, thing)
    assert writer.seal(thing.content, thing.size)
    os.utime(box.own_file(thing))
    box.own_file(thing).chmod(0o644)
    assert reader.open_sealed(thing.content) is NotSealed.NEEDS_VERIFY
    assert writer.verify(thing.content)
    assert contents_of(reader.open_sealed(thing.content)) == thing.data()
    assert box.own_file(thing).stat().st_mode & 0o777 == 0o400


def test_some_are_sealed_until_somebody_says_stop(writer: CacheWriter, reader: CacheReader) -> None:
    things = [LARGE, *sorted((Thing(n, 1000) for n in range(5)), key=lambda thing: thing.content)]
    put(writer, *things)
    stops = iter([False, False, False, True])
    writer.seal_some([(thing.content, thing.size) for thing in things], stop=lambda: next(stops))
    assert [reader.is_sealed(thing.content) for thing in things] == [False, True, True, True, False, False]
    writer.seal_some([(thing.content, thing.size) for thing in things], stop=lambda: False)
    assert [contents_of(reader.open_sealed(thing.content)) for thing in things] == [thing.data() for thing in things]
    assert writer.unsealed(10) == []


def test_a_small_object_that_came_in_pieces_is_sealed_with_the_others(writer: CacheWriter, reader: CacheReader) -> None:
    put_parts(writer, SMALL, [0, 1, 2])
    put(writer, Thing(3, 1000))
    writer.seal_some(writer.unsealed(10), stop=lambda: False)
    assert contents_of(reader.open_sealed(SMALL.content)) == SMALL.data()
    assert writer.unsealed(10) == []


def test_what_was_sealed_before_one_fails_stays_sealed(
    writer: CacheWriter, reader: CacheReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    things = sorted((Thing(n, 1000) for n in range(4)), key=lambda thing: thing.content)
    put(writer, *things)
    admits = iter([True, True, False])
    monkeypatch.setattr(Policy, "admits", lambda *_, **__: next(admits))
    with pytest.raises(CacheFull):
        writer.seal_some([(thing.content, thing.size) for thing in things], stop=lambda: False)
    assert [reader.is_sealed(thing.content) for thing in things] == [True, True, False, False]
    assert get(reader, things[2]) == things[2].data()


@both
def test_a_seal_of_another_life_is_verified_once(box: Box, reader: CacheReader, thing: Thing) -> None:
    writer = box.writer()
    put(writer, thing)
    assert writer.seal(thing.content, thing.size)
    writer.close()
    writer = box.writer()
    assert contents_of(reader.open_sealed(thing.content)) == thing.data(), "a new mover, the same life"
    writer.close()
    writer = box.writer(life=NEXT_LIFE)
    newer = box.reader()
    assert newer.open_sealed(thing.content) is NotSealed.NEEDS_VERIFY
    assert get(newer, thing) == thing.data()
    assert contents_of(reader.open_sealed(thing.content)) == thing.data(), "it has seen that nobody touched the file"
    assert writer.verify(thing.content)
    assert contents_of(newer.open_sealed(thing.content)) == thing.data()
    writer.close()


@both
def test_a_seal_that_was_seen_is_believed_only_while_the_file_is_as_it_was(
    box: Box, writer: CacheWriter, reader: CacheReader, thing: Thing
) -> None:
    """[bytes-4]"""
    put(writer, thing)
    assert not reader.is_sealed(thing.content)
    assert writer.seal(thing.content, thing.size)
    assert contents_of(reader.open_sealed(thing.content)) == thing.data()
    assert reader.is_sealed(thing.content)
    flip(box.own_file(thing), 0)
    assert reader.is_sealed(thing.content), "its seal is still there"
    assert reader.open_sealed(thing.content) is NotSealed.NEEDS_VERIFY
    writer.discard(thing.content)
    assert not reader.is_sealed(thing.content)
    assert reader.open_sealed(thing.content) is NotSealed.NO_SEAL


def test_sealing_again_in_another_life_verifies(box: Box, reader: CacheReader) -> None:
    writer = box.writer()
    put(writer, SMALL, LARGE)
    assert writer.seal(SMALL.content, SMALL.size)
    assert writer.seal(LARGE.content, LARGE.size)
    writer.close()
    flip(box.own_file(LARGE), 5)
    writer = box.writer(life=NEXT_LIFE)
    assert writer.seal(SMALL.content, SMALL.size)
    assert not writer.seal(LARGE.content, LARGE.size)
    assert contents_of(reader.open_sealed(SMALL.content)) == SMALL.data()
    assert reader.open_sealed(LARGE.content) is NotSealed.NO_SEAL
    writer.close()


def test_a_bad_part_of_a_sealed_file_discards_it(box: Box, writer: CacheWriter, reader: CacheReader) -> None:
    put(writer, LARGE)
    assert writer.seal(LARGE.content, LARGE.size)
    flip(box.own_file(LARGE), PART)
    assert get(reader, LARGE) == Missing(1, 1, bad=True)
    assert not writer.recheck(LARGE.content, LARGE.size, 1, 1)
    assert reader.sealed(LARGE.content) is None
    assert writer.missing(LARGE.content, LARGE.size, 0, 99) == [range(20)]


@both
def test_writing_a_sealed_object_again_changes_nothing(
    box: Box, writer: CacheWriter, reader: CacheReader, thing: Thing
) -> None:
    early = writer.write(thing.content, thing.size, 0, thing.data())
    put(writer, thing)
    assert writer.seal(thing.content, thing.size)
    writer.commit(early)
    put(writer, thing)
    put_parts(writer, thing, [0])
    assert contents_of(reader.open_sealed(thing.content)) == thing.data()
    assert get(reader, thing) == thing.data()


def test_a_full_cache_can_still_be_sealed(box: Box, reader: CacheReader, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = box.writer(limits=Limits(1 << 20, 0.0), segment_bytes=1 << 20)
    things = [Thing(n, 300_000) for n in range(3)]
    put(writer, *things)
    assert not writer.admits(300_000)
    assert all(writer.seal(t.content, t.size) for t in things[:2])
    monkeypatch.setattr(sealing, "SEGMENT_BYTES", 0)
    with pytest.raises(CacheFull):
        writer.seal(things[2].content, things[2].size)
    assert get(reader, things[2]) == things[2].data()
    writer.close()


@pytest.mark.parametrize("thing", [SMALL, LARGE])
def test_a_seal_killed_before_its_row_is_done_again(box: Box, reader: CacheReader, thing: Thing) -> None:
    writer = box.writer()
    put(writer, thing)
    path = box.own_file(thing)
    if thing is SMALL:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half a fi")
    path.chmod(0o400)
    assert get(reader, thing) == thing.data()
    assert writer.seal(thing.content, thing.size)
    assert contents_of(reader.open_sealed(thing.content)) == thing.data()
    writer.close()
