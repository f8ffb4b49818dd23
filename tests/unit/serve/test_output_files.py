"""What opening, closing and releasing a file make of its bytes, and what is queued."""

from __future__ import annotations

import os

from tests.unit.serve.outputs import ME, RW, Outputs, W


def test_a_closed_file_is_queued_and_an_open_one_is_not(out: Outputs) -> None:
    node, handle = out.do(out.fs.entries.create, 1, b"a", 0o644, W, ME)
    out.fs.files.write(node.inode, 0, memoryview(b"x"))
    assert out.queued() == []
    out.do(out.fs.files.flush, handle, dying=lambda: False)
    assert out.queued() == ["PUT a"]


def test_a_file_closed_again_before_it_was_sent_is_sent_once(out: Outputs) -> None:
    inode = out.write("a", b"one")
    _, handle = out.do(out.fs.files.open, inode, W)
    out.fs.files.write(inode, 0, memoryview(b"two"))
    out.do(out.fs.files.flush, handle, dying=lambda: False)
    assert out.queued() == ["PUT a"]
    assert out.journal.db.execute("SELECT count(*) FROM operation").fetchone() == (1,)


def test_a_marker_that_is_written_over_comes_after_what_it_may_name_by_now(out: Outputs) -> None:
    """[uploads-4] In place, before its first version was sent."""
    out.write("one", b"1")
    latest = out.write("latest", b"one")
    out.journal.db.execute("UPDATE operation SET queued_at = 5 WHERE key = ?", (b"p/latest",))
    out.write("two", b"2")
    for _ in range(2):
        _, handle = out.do(out.fs.files.open, latest, W | os.O_TRUNC)
        out.fs.files.write(latest, 0, memoryview(b"two"))
        out.do(out.fs.files.flush, handle, dying=lambda: False)
        assert out.queued() == ["PUT one", "PUT two", "PUT latest"]
    since = out.journal.db.execute("SELECT queued_at FROM operation ORDER BY seq DESC LIMIT 1").fetchone()
    assert since == (5,), "it does not wait for a pause of its writer"


def test_a_file_that_is_being_sent_is_queued_anew_when_it_changes(out: Outputs) -> None:
    inode = out.write("a", b"one")
    out.begin()
    _, handle = out.do(out.fs.files.open, inode, W)
    out.fs.files.write(inode, 0, memoryview(b"2"))
    out.do(out.fs.files.flush, handle, dying=lambda: False)
    assert out.queued() == ["PUT a", "PUT a"]


def test_a_file_closed_unchanged_is_not_sent_again(out: Outputs) -> None:
    inode = out.write("a", b"one")
    out.finish()
    _, handle = out.do(out.fs.files.open, inode, RW)
    out.do(out.fs.files.flush, handle, dying=lambda: False)
    out.do(out.fs.files.release, handle)
    assert out.queued() == []


def test_what_is_written_through_a_mapping_after_close_is_sent_at_release(out: Outputs) -> None:
    node, handle = out.do(out.fs.entries.create, 1, b"a", 0o644, RW, ME)
    out.do(out.fs.files.flush, handle, dying=lambda: False)
    out.finish()
    os.pwrite(out.fs.files.descriptor(node.inode), b"mapped", 0)
    out.do(out.fs.files.release, handle)
    assert out.queued() == ["PUT a"]


def test_a_killed_writer_of_a_new_file_publishes_nothing(out: Outputs) -> None:
    inode = out.write("a", b"half", dying=True)
    assert out.queued() == []
    assert out.fs.attributes.extended_attributes(inode)[b"user.mountkit.state"] == b"abandoned"
    assert out.names() == ["a"]


def test_an_abandoned_file_is_published_when_somebody_closes_it_well(out: Outputs) -> None:
    inode = out.write("a", b"half", dying=True)
    _, handle = out.do(out.fs.files.open, inode, W)
    out.do(out.fs.files.flush, handle, dying=lambda: False)
    assert out.queued() == ["PUT a"]
