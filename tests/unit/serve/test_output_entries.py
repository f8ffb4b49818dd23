"""What making and removing names queues for the bucket."""

from __future__ import annotations

import errno
import os

from tests.unit.serve.outputs import ME, RW, Outputs, refused


def test_an_unlinked_file_that_was_never_sent_leaves_no_trace(out: Outputs) -> None:
    out.write("a", b"x")
    out.do(out.fs.entries.unlink, 1, b"a")
    assert out.queued() == []
    assert out.names() == []
    out.upkeep.look()
    assert set(out.staging.numbers()) == out.staging.take_doomed()


def test_an_unlinked_open_file_keeps_its_bytes_until_it_is_released(out: Outputs) -> None:
    node, handle = out.do(out.fs.entries.create, 1, b"a", 0o644, RW, ME)
    out.fs.files.write(node.inode, 0, memoryview(b"x"))
    out.do(out.fs.entries.unlink, 1, b"a")
    out.upkeep.look()
    assert os.pread(out.fs.files.descriptor(node.inode), 9, 0) == b"x"
    out.do(out.fs.files.flush, handle, dying=lambda: False)
    out.do(out.fs.files.release, handle)
    assert set(out.staging.numbers()) == out.staging.take_doomed()
    assert out.queued() == []


def test_a_file_made_where_one_is_being_deleted_is_put_after_that(out: Outputs) -> None:
    out.holds("x")
    out.do(out.fs.entries.unlink, 1, b"x")
    out.begin()
    out.write("x", b"new")
    assert out.queued() == ["DELETE x", "PUT x"]


def test_a_file_made_where_one_was_to_be_deleted_just_replaces_it(out: Outputs) -> None:
    out.holds("x")
    out.do(out.fs.entries.unlink, 1, b"x")
    out.write("x", b"new")
    assert out.queued() == ["PUT x"]


def test_receipts_of_runs_that_are_written_here_are_not_listed_at_the_root(out: Outputs) -> None:
    """[names-6]"""
    inode = out.mkdir(".mountkit-runs")
    out.write("receipt.json", b"{}", inode)
    assert out.names() == []
    assert out.names(inode) == ["receipt.json"]
    assert out.names(out.mkdir("d")) == []


def test_an_empty_directory_gets_a_marker_and_a_full_one_does_not(out: Outputs) -> None:
    inode = out.mkdir("d")
    assert out.queued() == ["PUT d/"]
    out.write("f", b"x", inode)
    assert out.queued() == ["PUT d/f"]


def test_a_directory_made_and_removed_leaves_nothing_to_do(out: Outputs) -> None:
    out.mkdir("d")
    out.do(out.fs.entries.remove_directory, 1, b"d")
    assert out.queued() == []
    assert out.names() == []


def test_a_full_directory_is_not_removed_and_a_file_is_no_directory(out: Outputs) -> None:
    inode = out.mkdir("d")
    out.write("f", b"x", inode)
    refused(errno.ENOTEMPTY, out, out.fs.entries.remove_directory, 1, b"d")
    refused(errno.EISDIR, out, out.fs.entries.unlink, 1, b"d")
    refused(errno.ENOTDIR, out, out.fs.entries.remove_directory, inode, b"f")
