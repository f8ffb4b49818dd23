"""Opening after whatever happened; readers while it happens."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from mountkit.cache import recovery
from mountkit.cache.checked import Missing
from mountkit.cache.faults import CacheBroken
from mountkit.cache.writer import CacheWriter
from tests.unit.cache.harness import BLOCK, PART, Box, Thing, get, put

SMALL = Thing(1, 300_000)
LARGE = Thing(2, 2 * BLOCK + 3 * PART + 17)
THINGS = [SMALL, LARGE, *(Thing(n, 1000 + n) for n in range(10, 400))]


def abandoned(writer: CacheWriter) -> None:
    """Without the clean flag. (SQLite still checkpoints at its last close; test_crash.py kills for real.)"""
    stock = writer._stock
    stock.index.close(clean=False)
    stock.segments.close()
    stock.objects.close()
    stock.files.close()
    os.close(stock.root)


def test_a_new_directory_needs_no_word(box: Box) -> None:
    reader = box.reader()
    assert get(reader, SMALL) == Missing(0, 2)
    assert reader.sealed(SMALL.content) is None
    writer = box.writer()
    assert writer.warnings == ()
    put(writer, SMALL)
    assert get(reader, SMALL) == SMALL.data()
    assert {p.name for p in box.path.iterdir()} >= {"index.db", "segments", "objects"}
    assert (box.path / "index.db").stat().st_mode & 0o777 == 0o600
    writer.close()
    reader.close()


@pytest.mark.parametrize("clean", [True, False])
def test_the_cache_survives_a_reopen(box: Box, clean: bool) -> None:
    writer = box.writer()
    put(writer, *THINGS)
    writer.close() if clean else abandoned(writer)
    writer = box.writer()
    assert writer.warnings == ()
    reader = box.reader()
    for thing in THINGS:
        assert get(reader, thing) == thing.data()
    reader.close()
    writer.close()


def test_segment_numbers_are_never_used_again(box: Box) -> None:
    seen: list[str] = []
    for round_ in range(6):
        writer = box.writer()
        thing = Thing(round_, 1000)
        put(writer, thing)
        seen.append(box.segments()[-1].name)
        writer.housekeep([thing.content])
        if round_ == 3:
            abandoned(writer)
            (box.path / "index.db").unlink()
        elif round_ == 4:
            writer.close()
            for path in box.segments():
                path.unlink()
        else:
            writer.close()
    assert seen == sorted(set(seen))


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 1000)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _scramble(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(2, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(bytes([7]) * 200)


def _other_format(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = 99 WHERE name = 'format'")
    db.close()


DAMAGE = [_garbage, _cut, _empty, _scramble, _other_format, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("clean", [True, False])
def test_a_damaged_index_is_replaced_by_an_empty_cache_and_said(
    box: Box, damage: Callable[[Path], None], clean: bool
) -> None:
    writer = box.writer()
    put(writer, *THINGS)
    writer.seal(SMALL.content, SMALL.size)
    last = box.segments()[-1]
    writer.close() if clean else abandoned(writer)
    damage(box.path / "index.db")
    writer = box.writer()
    assert len(writer.warnings) == 1
    assert "emptied" in writer.warnings[0]
    assert not box.own_file(LARGE).exists()
    assert [p.stat().st_size for p in box.segments()] == [0]
    put(writer, *THINGS)
    assert box.segments()[-1].name > last.name
    reader = box.reader()
    for thing in THINGS:
        assert get(reader, thing) == thing.data()
    reader.close()
    writer.close()
    assert box.writer().warnings == ()


@pytest.mark.parametrize("damage", [d for d in DAMAGE if d is not _other_format])
def test_readers_survive_damage_to_the_index_under_them(box: Box, damage: Callable[[Path], None]) -> None:
    writer, reader = box.writer(), box.reader()
    put(writer, *THINGS)
    assert get(reader, SMALL) == SMALL.data()
    writer.close()
    damage(box.path / "index.db")
    for thing in THINGS:
        assert get(reader, thing) == thing.data() or isinstance(get(reader, thing), Missing)
        reader.sealed(thing.content)
    writer = box.writer()
    assert writer.warnings
    put(writer, *THINGS)
    for thing in THINGS:
        assert get(reader, thing) == thing.data()
    writer.close()
    reader.close()


def test_a_writer_whose_index_was_deleted_says_so_and_opening_again_repairs(box: Box) -> None:
    writer, reader = box.writer(), box.reader()
    put(writer, LARGE)
    (box.path / "index.db").unlink()
    with pytest.raises(CacheBroken, match="deleted or replaced"):
        put(writer, SMALL)
    assert isinstance(get(reader, LARGE), Missing)
    writer.close()
    writer = box.writer()
    put(writer, SMALL)
    assert get(reader, SMALL) == SMALL.data()
    writer.close()
    reader.close()


def test_damage_the_checks_did_not_look_for_is_found_by_reading(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "CHEAP_CHECK_BYTES", 0)
    writer = box.writer()
    put(writer, *THINGS)
    writer.close()
    _scramble(box.path / "index.db")
    writer = box.writer()
    assert "damaged" in writer.warnings[0]
    put(writer, *THINGS)
    writer.close()


def test_damage_met_at_work_makes_the_next_open_rebuild(box: Box) -> None:
    writer = box.writer()
    put(writer, *THINGS)
    with sqlite3.connect(box.path / "index.db") as db:
        db.execute("DROP TABLE block")
    db.close()
    with pytest.raises(CacheBroken):
        put(writer, SMALL)
    abandoned(writer)
    writer = box.writer()
    assert "found its index damaged" in writer.warnings[0]
    put(writer, *THINGS)
    writer.close()


def test_an_unclean_boot_is_checked(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "CHEAP_CHECK_BYTES", 0)
    writer = box.writer()
    put(writer, *THINGS)
    writer.close()
    writer = box.writer()
    abandoned(writer)
    _scramble(box.path / "index.db")
    monkeypatch.setattr(recovery, "_boot_id", lambda: "another boot")
    assert "damaged" in box.writer().warnings[0]


def test_a_rebuild_that_was_killed_is_taken_up_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = box.writer()
    put(writer, *THINGS)
    writer.close()
    (box.path / "index.db").unlink()

    def killed(_: int) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(recovery, "wipe_segments", killed)
    with pytest.raises(KeyboardInterrupt):
        box.writer()
    monkeypatch.undo()
    last = box.segments()[-1]
    writer = box.writer()
    assert [p.stat().st_size for p in box.segments()] == [0]
    put(writer, SMALL)
    assert box.segments()[-1].name > last.name
    writer.close()


def test_segments_deleted_between_two_runs_are_missed_not_mourned(box: Box) -> None:
    writer = box.writer()
    put(writer, SMALL, LARGE)
    writer.close()
    box.segments()[0].unlink()
    writer = box.writer()
    assert len(writer.warnings) == 1
    assert writer.missing(SMALL.content, SMALL.size, 0, 2) == [range(3)]
    assert writer.is_complete(LARGE.content, LARGE.size)
    writer.close()


def test_an_index_that_is_a_link_is_not_opened(box: Box, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("elsewhere") / "file"
    target.write_bytes(b"precious")
    (box.path / "index.db").symlink_to(target)
    writer = box.writer()
    put(writer, SMALL)
    writer.close()
    assert target.read_bytes() == b"precious"


def test_a_directory_that_cannot_be_written_is_named(box: Box) -> None:
    (box.path / "segments").write_text("a file")
    with pytest.raises(CacheBroken):
        box.writer()
