"""What the next server, and the next mount, find and settle."""

from __future__ import annotations

import os

import pytest

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


def test_files_that_a_killed_server_never_entered_are_removed(out: Outputs) -> None:
    out.staging.create(99)
    after = out.again(first=True)
    assert after.staging.numbers() == []
