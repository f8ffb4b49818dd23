"""What the next server, and the next mount, find and settle."""

from __future__ import annotations

import os

import pytest

from mountkit.staging.tree import NODE_BIT
from tests.unit.serve.outputs import ME, Outputs, W


def test_a_new_server_goes_on_where_the_old_one_was_killed(out: Outputs) -> None:
    node, handle = out.do(out.fs.entries.create, 1, b"a", 0o644, W, ME)
    out.fs.files.write(node.inode, 0, memoryview(b"x"))
    after = out.again(first=False)
    after.fs.files.write(node.inode, 1, memoryview(b"y"))
    after.do(after.fs.files.flush, handle, dying=lambda: False)
    assert after.queued() == ["PUT a"]
    assert os.pread(after.fs.files.descriptor(node.inode), 9, 0) == b"xy"


def test_a_new_mount_publishes_what_was_closed_and_keeps_what_was_not(out: Outputs) -> None:
    inode = out.write("closed", b"x")
    out.finish()
    _, _ = out.do(out.fs.files.open, inode, W)
    out.fs.files.write(inode, 1, memoryview(b"y"))
    node, _ = out.do(out.fs.entries.create, 1, b"never", 0o644, W, ME)
    out.fs.files.write(node.inode, 0, memoryview(b"z"))
    after = out.again(first=True)
    after.holds()
    assert after.queued() == ["PUT closed"]
    assert after.names() == ["closed"]
    assert after.journal.db.execute("SELECT lost_path FROM node WHERE abandoned = 1").fetchall() == [(b"never",)]


def test_a_mount_whose_staged_bytes_are_lost_says_so_and_goes_on(
    out: Outputs, caplog: pytest.LogCaptureFixture
) -> None:
    inode = out.write("a", b"x")
    out.write("b", b"y")
    out.staging.remove(out.node_of(inode).file)
    after = out.again(first=True)
    after.holds()
    assert after.names() == ["b"]
    assert after.queued() == ["PUT b"]
    assert "are lost" in caplog.text


def test_a_file_that_is_closed_is_synced_after_that_however_long_it_was_open(out: Outputs) -> None:
    node, handle = out.do(out.fs.entries.create, 1, b"a", 0o644, W, ME)
    assert out.staging.take_changed() == {node.file}
    out.fs.files.write(node.inode, 0, memoryview(b"x"))
    out.do(out.fs.files.flush, handle, dying=lambda: False)
    assert out.staging.take_changed() == {node.file}


def _tear(out: Outputs, inode: int) -> None:
    """As a power cut leaves a file whose last bytes had not reached the disk."""
    out.journal.set_setting("boot", "another")
    out.journal.db.execute("UPDATE node SET put_ctime_ns = put_ctime_ns + 1 WHERE id = ?", (inode & ~NODE_BIT,))


def test_torn_bytes_are_kept_and_the_file_that_they_replaced_comes_back(out: Outputs) -> None:
    out.write("a", b"whole")
    torn = out.write("tmp", b"torn")
    out.do(out.fs.renames.rename, 1, b"tmp", 1, b"a", 0)
    out.upkeep.look()
    new = out.write("new", b"torn, too")
    link = out.do(out.fs.entries.make_symlink, 1, b"link", b"a", ME).inode
    for inode in (torn, new, link):
        _tear(out, inode)
    after = out.again(first=True)
    after.holds()
    assert after.names() == ["a", "link"]
    assert after.queued() == ["PUT link", "PUT a"]
    place = after.fs.names.lookup(1, b"a")
    assert place.node is not None
    assert os.pread(after.fs.files.descriptor(place.node.inode), 9, 0) == b"whole"
    kept = after.journal.db.execute("SELECT lost_path FROM node WHERE abandoned = 2 ORDER BY 1").fetchall()
    assert kept == [(b"a",), (b"new",)]
    later = after.again(first=True)
    later.holds()
    assert later.names() == ["a", "link"], "and so they stay"


def test_what_was_promised_to_come_after_torn_bytes_does_not_come_without_them(out: Outputs) -> None:
    """[uploads-4] Nothing names what was lost, and nothing is deleted for it."""
    out.holds("deleted", "old", "moved")
    shard = out.write("shard", b"torn")
    out.write("beside", b"whole")
    out.write("latest", b"shard")
    tmp = out.write("tmp", b"whole")
    out.do(out.fs.renames.rename, 1, b"tmp", 1, b"old", 0)
    out.do(out.fs.renames.rename, 1, b"moved", 1, b"elsewhere", 0)
    out.do(out.fs.entries.unlink, 1, b"deleted")
    _tear(out, shard)
    after = out.again(first=True)
    after.holds("deleted", "old", "moved")
    assert after.queued() == ["PUT beside"]
    assert after.names() == ["beside", "deleted", "moved", "old"]
    assert [after.fs.names.lookup(1, name).row is not None for name in (b"old", b"moved")] == [True] * 2
    kept = after.journal.db.execute("SELECT lost_path, abandoned FROM node WHERE lost_path IS NOT NULL ORDER BY 1")
    assert kept.fetchall() == [(b"latest", 3), (b"old", 3), (b"shard", 2)]
    assert os.pread(after.fs.files.descriptor(tmp), 9, 0) == b"whole"


def test_what_was_promised_before_torn_bytes_were_written_comes(out: Outputs) -> None:
    """[uploads-4] A log that is written over keeps its place in the order; its last line is no news to a marker."""
    log = out.write("log", b"line\n")
    out.write("latest", b"1")
    out.journal.db.execute("UPDATE operation SET queued_at = queued_at - 9, ctime_ns = ctime_ns - 9000000000")
    node, handle = out.do(out.fs.files.open, log, W)
    out.fs.files.write(node.inode, 5, memoryview(b"line\n"))
    out.do(out.fs.files.flush, handle, dying=lambda: False)
    _tear(out, log)
    after = out.again(first=True)
    after.holds()
    assert after.queued() == ["PUT latest"]
    assert after.names() == ["latest"]


def test_a_marker_that_a_power_cut_takes_away_gives_way_to_the_one_before(out: Outputs) -> None:
    """[uploads-4] To the newest that does not name what was lost."""
    out.write("one", b"1")
    out.write("tmp", b"one")
    out.do(out.fs.renames.rename, 1, b"tmp", 1, b"latest", 0)
    torn = out.write("two", b"2")
    for _ in range(2):
        out.write("tmp", b"two")
        out.do(out.fs.renames.rename, 1, b"tmp", 1, b"latest", 0)
    out.upkeep.look()
    _tear(out, torn)
    after = out.again(first=True)
    after.holds()
    assert after.queued() == ["PUT one", "PUT latest"]
    place = after.fs.names.lookup(1, b"latest")
    assert place.node is not None
    assert os.pread(after.fs.files.descriptor(place.node.inode), 9, 0) == b"one"


def test_with_torn_bytes_all_is_given_up_that_was_to_send_that_file(out: Outputs) -> None:
    """Also what a mover had begun before the file was written anew: nobody can ever do it, and others wait for it."""
    inode = out.write("a", b"abc")
    out.begin()
    again, handle = out.do(out.fs.entries.create, 1, b"a", 0o644, W, ME)
    assert again.inode == inode
    out.fs.files.write(inode, 0, memoryview(b"longer"))
    out.do(out.fs.files.flush, handle, dying=lambda: False)
    out.do(out.fs.files.release, handle)
    assert out.queued() == ["PUT a", "PUT a"]
    _tear(out, inode)
    assert out.again(first=True).queued() == []


def test_torn_bytes_that_the_bucket_has_are_forgotten(out: Outputs) -> None:
    inode = out.write("a", b"abc")
    out.finish('"a"')
    _tear(out, inode)
    out.holds("a")
    after = out.again(first=True)
    after.holds("a")
    place = after.fs.names.lookup(1, b"a")
    assert place.row is not None
    assert place.row.etag == '"a"'
    assert after.queued() == []


def test_a_file_emptied_to_be_written_anew_is_not_published_empty_after_another_boot(out: Outputs) -> None:
    inode = out.write("a", b"abc")
    os.ftruncate(out.fs.files.descriptor(inode), 0)
    same_boot = out.again(first=True)
    assert same_boot.queued() == ["PUT a"], "as a local directory would show it"
    os.ftruncate(same_boot.fs.files.descriptor(same_boot.write("b", b"abc")), 0)
    same_boot.journal.set_setting("boot", "another")
    after = same_boot.again(first=True)
    after.holds()
    assert after.names() == ["a"]


def test_a_file_that_was_written_under_a_clock_set_back_is_published_if_the_machine_did_not_go_down(
    out: Outputs,
) -> None:
    """[writing-4] What was changed in it before everything died is whole; nothing that came after it is undone."""
    inode = out.write("a", b"in the bucket")
    out.finish('"a"')
    out.write("latest", b"a")
    os.pwrite(out.fs.files.descriptor(inode), b"rewritten", 0)
    out.journal.db.execute("UPDATE node SET put_ctime_ns = put_ctime_ns + 3600000000000 WHERE file IS NOT NULL")
    after = out.again(first=True)
    after.holds("a")
    assert sorted(after.queued()) == ["PUT a", "PUT latest"]
    assert after.names() == ["a", "latest"]
    assert os.pread(after.fs.files.descriptor(inode), 9, 0) == b"rewritten"


def test_files_that_a_killed_server_never_entered_are_removed(out: Outputs) -> None:
    out.staging.create(99)
    after = out.again(first=True)
    assert after.staging.numbers() == []
