"""The file: other processes, kills, damage, other formats, power cuts."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountkit.catalog import schema
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import GENERATION_SIZE, CatalogUnavailable
from mountkit.catalog.view import CatalogView
from mountkit.store.api import Page
from tests.unit.catalog.bucket import Bucket, info
from tests.unit.catalog.test_tree import file_at, list_whole

READER = """
import os, sys
from mountkit.catalog.view import CatalogView
view = CatalogView.open(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY))
for line in sys.stdin:
    page = view.page(view.root, 0, 1000, 0)
    print(",".join(e.name.decode() for e in page.entries), page.done, flush=True)
"""
WRITER = """
import os, sys
from mountkit.catalog.tree import Catalog
from mountkit.store.api import ObjectInfo, Page
catalog = Catalog.open(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY), b"")
listing = catalog.begin_listing(catalog.root)
for number in range(10**9):
    listing.add(Page((ObjectInfo(b"%012d" % number, 1, '"x"', 1),), (), "more"))
    print(number, flush=True)
"""


def run(script: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def reader(catalog: Catalog, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with run(READER, tmp_path) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def ask(reader: subprocess.Popen[str]) -> str:
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write("\n")
    reader.stdin.flush()
    return reader.stdout.readline().rstrip("\n")


def test_another_process_sees_each_page_at_once(catalog: Catalog, reader: subprocess.Popen[str]) -> None:
    listing = catalog.begin_listing(catalog.root)
    assert ask(reader) == " False"
    listing.add(Page((info(b"a"), info(b"b")), (), "more"))
    assert ask(reader) == "a False"
    listing.add(Page((info(b"c"),), (), ""))
    assert ask(reader) == "a,b False"
    listing.finish()
    assert ask(reader) == "a,b,c True"


def test_no_reader_keeps_the_log_from_being_emptied(catalog: Catalog, reader: subprocess.Popen[str]) -> None:
    list_whole(catalog, catalog.root, Bucket(b"a"))
    ask(reader)
    assert catalog.checkpoint()


def test_a_writer_killed_in_mid_listing_leaves_whole_pages(tmp_path: Path, directory_fd: int) -> None:
    generations = set()
    pages = 0
    for _ in range(3):
        with run(WRITER, tmp_path) as writer:
            assert writer.stdout is not None
            for _ in range(50):
                pages = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
        view = CatalogView.open(directory_fd)
        assert view.lookup(view.root, b"%012d" % (pages - 1)) is not None, "readers need no writer"
        catalog = Catalog.open(directory_fd, b"")
        assert catalog.warnings == []
        generations.add(catalog.generation)
        found = catalog.directory(catalog.root)
        assert found is not None
        assert found.listing_started is None
        unfinished = view.lookup(view.root, b"%012d" % pages)
        assert unfinished is None or unfinished.as_of == 0, "the unfinished listing of a dead writer says nothing"
        list_whole(catalog, catalog.root, Bucket(*(b"%012d" % n for n in range(40))))
        assert [entry.name for entry in view.page(view.root, 0, 100, 0).entries] == [b"%012d" % n for n in range(40)]
        catalog.expire()
        view.close()
        catalog.close()
    assert len(generations) == 1


def test_what_was_known_is_known_after_a_restart(directory_fd: int) -> None:
    catalog = Catalog.open(directory_fd, b"p/")
    list_whole(catalog, catalog.root, Bucket(b"p/a", b"p/b"))
    first, generation = file_at(catalog, catalog.root, b"a"), catalog.generation
    catalog.close()
    catalog.close()
    again = Catalog.open(directory_fd, b"p/")
    assert (again.generation, again.warnings) == (generation, [])
    assert file_at(again, again.root, b"a") == first
    new = again.record_object(again.root, b"c", info(b"p/c")).inode
    assert new is not None
    assert new > file_at(again, again.root, b"b").id
    again.close()


def test_a_file_of_another_prefix_is_begun_anew(directory_fd: int) -> None:
    first = Catalog.open(directory_fd, b"p/")
    generation = first.generation
    first.close()
    second = Catalog.open(directory_fd, b"q/")
    assert second.generation != generation
    assert second.warnings == ["the catalog was begun anew: it is of the prefix b'p/'"]
    second.close()


def test_a_file_of_another_format_is_begun_anew(directory_fd: int, tmp_path: Path) -> None:
    Catalog.open(directory_fd, b"").close()
    db = sqlite3.connect(tmp_path / schema.FILE)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(CatalogUnavailable):
        _ = CatalogView.open(directory_fd).root
    catalog = Catalog.open(directory_fd, b"")
    assert catalog.warnings == [f"the catalog was begun anew: it has format 99, not {schema.FORMAT}"]
    catalog.close()


@pytest.mark.parametrize("content", [b"", b"no database at all" * 1000])
def test_a_file_that_is_no_catalog_is_begun_anew(directory_fd: int, tmp_path: Path, content: bytes) -> None:
    (tmp_path / schema.FILE).write_bytes(content)
    catalog = Catalog.open(directory_fd, b"")
    assert len(catalog.warnings) == 1
    assert catalog.record_absent(catalog.root, b"a")
    catalog.close()


def test_a_machine_that_went_down_with_a_whole_file_keeps_ids_and_lists_again(directory_fd: int) -> None:
    catalog = Catalog.open(directory_fd, b"", boot_id="one")
    list_whole(catalog, catalog.root, Bucket(b"a"))
    before = file_at(catalog, catalog.root, b"a")
    assert catalog._db is not None
    catalog._db.close()  # as a kill leaves it: without the note that it is whole
    after = Catalog.open(directory_fd, b"", boot_id="two")
    assert len(after.warnings) == 1
    known = after.lookup(after.root, b"a")
    assert known is not None
    assert (known.inode, known.as_of) == (before.id, 0)
    new = after.record_object(after.root, b"b", info(b"b")).inode
    assert new is not None
    assert new > before.id + (1 << 23), "ids given out and lost are not given out again"
    after.close()
    clean = Catalog.open(directory_fd, b"", boot_id="three")
    assert clean.warnings == []
    clean.close()


def test_a_machine_that_went_down_and_tore_the_file_begins_anew(directory_fd: int, tmp_path: Path) -> None:
    catalog = Catalog.open(directory_fd, b"", boot_id="one")
    list_whole(catalog, catalog.root, Bucket(*(b"%04d" % n for n in range(2000))))
    generation = catalog.generation
    catalog.checkpoint()
    assert catalog._db is not None
    catalog._db.close()
    with (tmp_path / schema.FILE).open("r+b") as file:
        file.seek(4096 * 12)
        file.write(b"\xa5" * 4096 * 5)
    after = Catalog.open(directory_fd, b"", boot_id="two")
    assert after.generation != generation
    assert "begun anew" in after.warnings[0]
    after.close()


def test_damage_met_while_writing_ends_the_file(directory_fd: int, tmp_path: Path) -> None:
    catalog = Catalog.open(directory_fd, b"", boot_id="one")
    list_whole(catalog, catalog.root, Bucket(*(b"%04d" % n for n in range(2000))))
    catalog.close()
    with (tmp_path / schema.FILE).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096 * 8)
        file.write(b"\xa5" * (size - 4096 * 8))
    catalog = Catalog.open(directory_fd, b"", boot_id="one")
    with pytest.raises(CatalogUnavailable):
        list_whole(catalog, catalog.root, Bucket(*(b"%04d" % n for n in range(2000))))
    catalog.close()
    fresh = Catalog.open(directory_fd, b"", boot_id="one")
    list_whole(fresh, fresh.root, Bucket(b"a"))
    fresh.close()


def test_a_reader_follows_when_the_catalog_is_deleted_and_made_anew(directory_fd: int) -> None:
    catalog = Catalog.open(directory_fd, b"")
    view = CatalogView.open(directory_fd)
    list_whole(catalog, catalog.root, Bucket(b"a"))
    old_root, old_file = view.root, file_at(view, view.root, b"a")
    cookie = view.page(view.root, 0, 10, 0).entries[0].cookie
    schema.delete(directory_fd)
    with pytest.raises(CatalogUnavailable):
        view.lookup(old_root, b"a")
    catalog.close()
    again = Catalog.open(directory_fd, b"")
    assert view.root == again.root != old_root
    assert abs(again.generation - catalog._base) >= GENERATION_SIZE
    assert (view.directory(old_root), view.object(old_file.id), view.lookup(old_root, b"a")) == (None, None, None)
    with pytest.raises(Exception, match=str(cookie)):
        view.page(view.root, cookie, 10, 0)
    view.close()
    again.close()


def test_a_reader_without_a_catalog_says_so(directory_fd: int) -> None:
    view = CatalogView.open(directory_fd)
    with pytest.raises(CatalogUnavailable, match="no catalog"):
        view.lookup(1, b"a")
    catalog = Catalog.open(directory_fd, b"")
    assert view.lookup(view.root, b"a") is None
    catalog.close()
    view.close()


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    fd = os.open(gone, os.O_RDONLY | os.O_DIRECTORY)
    gone.rmdir()
    with pytest.raises(CatalogUnavailable):
        Catalog.open(fd, b"")
    os.close(fd)


def test_used_up_ids_begin_anew(directory_fd: int) -> None:
    catalog = Catalog.open(directory_fd, b"")
    generation = catalog.generation
    catalog._writer._next_id = GENERATION_SIZE - 1
    catalog.record_object(catalog.root, b"a", info(b"a"))
    with pytest.raises(CatalogUnavailable):
        catalog.record_object(catalog.root, b"b", info(b"b"))
    catalog.close()
    again = Catalog.open(directory_fd, b"")
    assert again.generation != generation
    again.close()
