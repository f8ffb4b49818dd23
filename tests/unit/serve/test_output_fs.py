"""What each operation makes of names and bytes, and what it queues for the bucket."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from mountkit.serve.asking import MustAsk
from mountkit.serve.output_messages import Changes
from mountkit.serve.values import FileSystemError
from tests.unit.serve.outputs import ME, RW, Outputs, W

NOTHING = Changes(None, None, None, None, None, None, None)


@pytest.fixture
def out(directory_fd: int) -> Iterator[Outputs]:
    made = Outputs(directory_fd)
    made.holds()
    yield made


def refused(number: int, out: Outputs, operation: str, *arguments: object) -> None:
    with pytest.raises(FileSystemError) as caught:
        out.do(operation, *arguments)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


def test_a_closed_file_is_queued_and_an_open_one_is_not(out: Outputs) -> None:
    node, handle = out.do("create", 1, b"a", 0o644, W, ME)
    out.fs.write(node.inode, 0, memoryview(b"x"))
    assert out.queued() == []
    out.do("flush", handle, dying=lambda: False)
    assert out.queued() == ["PUT a"]


def test_a_file_closed_again_before_it_was_sent_is_sent_once(out: Outputs) -> None:
    inode = out.write("a", b"one")
    _, handle = out.do("open", inode, W)
    out.fs.write(inode, 0, memoryview(b"two"))
    out.do("flush", handle, dying=lambda: False)
    assert out.queued() == ["PUT a"]
    assert out.fs.journal.db.execute("SELECT count(*) FROM operation").fetchone() == (1,)


def test_a_file_that_is_being_sent_is_queued_anew_when_it_changes(out: Outputs) -> None:
    inode = out.write("a", b"one")
    out.begin()
    _, handle = out.do("open", inode, W)
    out.fs.write(inode, 0, memoryview(b"2"))
    out.do("flush", handle, dying=lambda: False)
    assert out.queued() == ["PUT a", "PUT a"]


def test_a_file_closed_unchanged_is_not_sent_again(out: Outputs) -> None:
    inode = out.write("a", b"one")
    out.finish()
    _, handle = out.do("open", inode, RW)
    out.do("flush", handle, dying=lambda: False)
    out.do("release", handle)
    assert out.queued() == []


def test_what_is_written_through_a_mapping_after_close_is_sent_at_release(out: Outputs) -> None:
    node, handle = out.do("create", 1, b"a", 0o644, RW, ME)
    out.do("flush", handle, dying=lambda: False)
    out.finish()
    os.pwrite(out.fs.descriptor(node.inode), b"mapped", 0)
    out.do("release", handle)
    assert out.queued() == ["PUT a"]


def test_a_killed_writer_of_a_new_file_publishes_nothing(out: Outputs) -> None:
    inode = out.write("a", b"half", dying=True)
    assert out.queued() == []
    assert out.fs.extended_attributes(inode)[b"user.mountkit.state"] == b"abandoned"
    assert out.names() == ["a"]


def test_an_abandoned_file_is_published_when_somebody_closes_it_well(out: Outputs) -> None:
    inode = out.write("a", b"half", dying=True)
    _, handle = out.do("open", inode, W)
    out.do("flush", handle, dying=lambda: False)
    assert out.queued() == ["PUT a"]


def test_a_renamed_file_that_was_not_sent_yet_is_sent_once_under_its_new_name(out: Outputs) -> None:
    out.write("tmp", b"x")
    out.do("rename", 1, b"tmp", 1, b"a", 0)
    assert out.queued() == ["PUT a"]
    assert out.names() == ["a"]


def test_a_renamed_file_that_is_in_the_bucket_is_copied_there(out: Outputs) -> None:
    inode = out.write("tmp", b"x")
    out.finish()
    out.do("rename", 1, b"tmp", 1, b"a", 0)
    assert out.queued() == ["COPY tmp a", "DELETE tmp"]
    assert out.fs.names.lookup(1, b"a").node is not None
    assert out.node_of(inode).names == 1
    assert out.names() == ["a"]


def test_a_renamed_file_that_is_being_sent_goes_under_both_names_and_loses_the_old(out: Outputs) -> None:
    out.write("tmp", b"x")
    out.begin()
    out.do("rename", 1, b"tmp", 1, b"a", 0)
    assert out.queued() == ["PUT tmp", "PUT a", "DELETE tmp"]


def test_an_object_of_the_bucket_renamed_twice_is_copied_once(out: Outputs) -> None:
    out.holds("x")
    out.do("rename", 1, b"x", 1, b"y", 0)
    assert out.queued() == ["COPY x y", "DELETE x"]
    out.do("rename", 1, b"y", 1, b"z", 0)
    assert out.queued() == ["COPY x z", "DELETE x"]
    assert out.names() == ["z"]


def test_a_rename_over_a_file_leaves_nothing_of_it_to_do(out: Outputs) -> None:
    out.write("a", b"old")
    out.write("tmp", b"new")
    out.do("rename", 1, b"tmp", 1, b"a", 0)
    assert out.queued() == ["PUT a"]


def test_an_unlinked_file_that_was_never_sent_leaves_no_trace(out: Outputs) -> None:
    out.write("a", b"x")
    out.do("unlink", 1, b"a")
    assert out.queued() == []
    assert out.names() == []
    out.upkeep.look()
    assert out.fs.staging.numbers() == []


def test_an_unlinked_open_file_keeps_its_bytes_until_it_is_released(out: Outputs) -> None:
    node, handle = out.do("create", 1, b"a", 0o644, RW, ME)
    out.fs.write(node.inode, 0, memoryview(b"x"))
    out.do("unlink", 1, b"a")
    out.upkeep.look()
    assert os.pread(out.fs.descriptor(node.inode), 9, 0) == b"x"
    out.do("flush", handle, dying=lambda: False)
    out.do("release", handle)
    assert out.fs.staging.numbers() == []
    assert out.queued() == []


def test_a_file_made_where_one_is_being_deleted_is_put_after_that(out: Outputs) -> None:
    out.holds("x")
    out.do("unlink", 1, b"x")
    out.begin()
    out.write("x", b"new")
    assert out.queued() == ["DELETE x", "PUT x"]


def test_a_file_made_where_one_was_to_be_deleted_just_replaces_it(out: Outputs) -> None:
    out.holds("x")
    out.do("unlink", 1, b"x")
    out.write("x", b"new")
    assert out.queued() == ["PUT x"]


def test_an_unlinked_object_stays_gone_until_the_bucket_says_so(out: Outputs) -> None:
    out.holds("x", "y")
    out.do("unlink", 1, b"x")
    assert out.names() == ["y"]
    out.holds("x", "y")  # a listing that ran before the deletion
    assert out.names() == ["y"]
    assert not out.fs.names.lookup(1, b"x").exists


def test_an_empty_directory_gets_a_marker_and_a_full_one_does_not(out: Outputs) -> None:
    inode = out.mkdir("d")
    assert out.queued() == ["PUT d/"]
    out.write("f", b"x", inode)
    assert out.queued() == ["PUT d/f"]


def test_a_directory_made_and_removed_leaves_nothing_to_do(out: Outputs) -> None:
    out.mkdir("d")
    out.do("remove_directory", 1, b"d")
    assert out.queued() == []
    assert out.names() == []


def test_a_full_directory_is_not_removed_and_a_file_is_no_directory(out: Outputs) -> None:
    inode = out.mkdir("d")
    out.write("f", b"x", inode)
    refused(errno.ENOTEMPTY, out, "remove_directory", 1, b"d")
    refused(errno.EISDIR, out, "unlink", 1, b"d")
    refused(errno.ENOTDIR, out, "remove_directory", inode, b"f")


def test_a_renamed_directory_takes_everything_with_it(out: Outputs) -> None:
    inode = out.mkdir("d")
    deep = out.mkdir("e", inode)
    out.write("sent", b"1", deep)
    out.finish()
    out.write("new", b"2", deep)
    out.do("rename", 1, b"d", 1, b"moved", 0)
    assert sorted(out.queued()) == ["COPY d/e/sent moved/e/sent", "DELETE d/e/sent", "PUT moved/e/new"]
    assert out.names() == ["moved"]
    assert out.names(deep) == ["new", "sent"]


def test_a_directory_is_not_moved_into_itself(out: Outputs) -> None:
    inode = out.mkdir("d")
    deep = out.mkdir("e", inode)
    refused(errno.EINVAL, out, "rename", 1, b"d", deep, b"x", 0)


def test_times_set_after_close_go_with_the_file_or_after_it(out: Outputs) -> None:
    inode = out.write("a", b"x")
    out.do("set_attributes", inode, NOTHING._replace(mtime_ns=10**18), 0)
    assert out.queued() == ["PUT a"]
    out.finish()
    out.do("set_attributes", inode, NOTHING._replace(mtime_ns=2 * 10**18), 0)
    assert out.queued() == ["COPY a a"]
    assert out.fs.names.attributes(inode)[0].mtime_ns == 2 * 10**18


def test_an_object_to_be_changed_has_to_be_staged_first(out: Outputs) -> None:
    out.holds("x")
    row = out.fs.names.lookup(1, b"x").row
    assert row is not None
    with pytest.raises(MustAsk) as caught:
        out.do("open", row.id, RW)
    assert caught.value.about == ("stage", row.id)


def test_somebody_elses_version_is_shown_once_ours_is_in_the_bucket(out: Outputs) -> None:
    out.write("a", b"mine")
    out.finish('"mine"')
    out.fs.journal.db.execute("UPDATE node SET done_at = done_at - 100")
    out.fs.journal.tree.undone()
    out.holds("a")
    place = out.fs.names.lookup(1, b"a")
    assert place.node is None
    assert place.row is not None


def test_a_new_server_goes_on_where_the_old_one_was_killed(out: Outputs) -> None:
    node, handle = out.do("create", 1, b"a", 0o644, W, ME)
    out.fs.write(node.inode, 0, memoryview(b"x"))
    after = out.again(first=False)
    after.fs.write(node.inode, 1, memoryview(b"y"))
    after.do("flush", handle, dying=lambda: False)
    assert after.queued() == ["PUT a"]
    assert os.pread(after.fs.descriptor(node.inode), 9, 0) == b"xy"


def test_a_new_mount_publishes_what_was_closed_and_keeps_what_was_not(out: Outputs) -> None:
    inode = out.write("closed", b"x")
    out.finish()
    _, _ = out.do("open", inode, W)
    out.fs.write(inode, 1, memoryview(b"y"))
    node, _ = out.do("create", 1, b"never", 0o644, W, ME)
    out.fs.write(node.inode, 0, memoryview(b"z"))
    after = out.again(first=True)
    after.holds()
    assert after.queued() == ["PUT closed"]
    assert after.names() == ["closed"]
    assert after.fs.journal.db.execute("SELECT lost_path FROM node WHERE abandoned = 1").fetchall() == [(b"never",)]


def test_a_mount_whose_staged_bytes_are_lost_says_so_and_goes_on(
    out: Outputs, caplog: pytest.LogCaptureFixture
) -> None:
    inode = out.write("a", b"x")
    out.write("b", b"y")
    out.fs.staging.remove(out.node_of(inode).file)
    after = out.again(first=True)
    after.holds()
    assert after.names() == ["b"]
    assert after.queued() == ["PUT b"]
    assert "are lost" in caplog.text


def test_files_that_a_killed_server_never_entered_are_removed(out: Outputs) -> None:
    out.fs.staging.create(99)
    after = out.again(first=True)
    assert after.fs.staging.numbers() == []


def test_a_log_is_sent_while_it_is_open_and_a_checkpoint_is_not(out: Outputs) -> None:
    log, _ = out.do("create", 1, b"log", 0o644, W | os.O_APPEND, ME)
    checkpoint, _ = out.do("create", 1, b"ckpt", 0o644, W, ME)
    out.fs.write(log.inode, 0, memoryview(b"line"))
    for turn in range(3):
        out.fs.write(checkpoint.inode, turn << 21, memoryview(bytes(1 << 21)))
        out.upkeep.upload_what_grows()
    assert out.queued() == ["PUT log"]


def test_a_clean_file_makes_room_and_keeps_its_dates(directory_fd: int) -> None:
    out = Outputs(directory_fd, staging_size_bytes=64 << 10)
    out.holds()
    inode = out.write("a", bytes(60_000))
    out.do("set_attributes", inode, NOTHING._replace(mtime_ns=10**18), 0)
    out.finish('"a"')
    out.holds("a")
    out.upkeep.look()
    assert out.fs.staging.numbers() == []
    place = out.fs.names.lookup(1, b"a")
    assert out.fs.names.shown_at(place)[0].mtime_ns == 10**18


def test_without_clobber_a_put_names_what_it_may_replace(directory_fd: int) -> None:
    out = Outputs(directory_fd, clobber=False)
    out.holds("x")
    out.write("new", b"1")
    out.write("tmp", b"2")
    out.do("rename", 1, b"tmp", 1, b"x", 0)
    rows = out.fs.journal.db.execute(
        "SELECT key, json_extract(metadata, '$.if_match') FROM operation WHERE state = 0 ORDER BY key"
    ).fetchall()
    assert rows == [(b"p/new", ""), (b"p/x", '"x"')]
