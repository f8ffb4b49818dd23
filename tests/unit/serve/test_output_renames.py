"""What a rename makes of names, and what it queues for the bucket."""

from __future__ import annotations

import errno

import pytest

from tests.unit.serve.outputs import NOTHING, Outputs, refused


def test_a_renamed_file_that_was_not_sent_yet_is_sent_once_under_its_new_name(out: Outputs) -> None:
    out.write("tmp", b"x")
    out.do(out.fs.renames.rename, 1, b"tmp", 1, b"a", 0)
    assert out.queued() == ["PUT a"]
    assert out.names() == ["a"]


def test_a_renamed_file_that_is_in_the_bucket_is_copied_there(out: Outputs) -> None:
    inode = out.write("tmp", b"x")
    out.finish()
    out.do(out.fs.renames.rename, 1, b"tmp", 1, b"a", 0)
    assert out.queued() == ["COPY tmp a", "DELETE tmp"]
    assert out.fs.names.lookup(1, b"a").node is not None
    assert out.node_of(inode).names == 1
    assert out.names() == ["a"]


def test_a_renamed_file_that_is_being_sent_goes_under_both_names_and_loses_the_old(out: Outputs) -> None:
    out.write("tmp", b"x")
    out.begin()
    out.do(out.fs.renames.rename, 1, b"tmp", 1, b"a", 0)
    assert out.queued() == ["PUT tmp", "PUT a", "DELETE tmp"]


def test_an_object_of_the_bucket_renamed_twice_is_copied_once(out: Outputs) -> None:
    out.holds("x")
    out.do(out.fs.renames.rename, 1, b"x", 1, b"y", 0)
    assert out.queued() == ["COPY x y", "DELETE x"]
    out.do(out.fs.renames.rename, 1, b"y", 1, b"z", 0)
    assert out.queued() == ["COPY x z", "DELETE x"]
    assert out.names() == ["z"]


def test_a_rename_over_a_file_leaves_nothing_of_it_to_do(out: Outputs) -> None:
    out.write("a", b"old")
    out.write("tmp", b"new")
    out.do(out.fs.renames.rename, 1, b"tmp", 1, b"a", 0)
    assert out.queued() == ["PUT a"]


def test_a_renamed_directory_takes_everything_with_it(out: Outputs) -> None:
    inode = out.mkdir("d")
    deep = out.mkdir("e", inode)
    out.write("sent", b"1", deep)
    out.finish()
    out.write("new", b"2", deep)
    out.do(out.fs.renames.rename, 1, b"d", 1, b"moved", 0)
    assert sorted(out.queued()) == ["COPY d/e/sent moved/e/sent", "DELETE d/e/sent", "PUT moved/e/new"]
    assert out.names() == ["moved"]
    assert out.names(deep) == ["new", "sent"]


def test_a_directory_is_not_moved_into_itself(out: Outputs) -> None:
    inode = out.mkdir("d")
    deep = out.mkdir("e", inode)
    refused(errno.EINVAL, out, out.fs.renames.rename, 1, b"d", deep, b"x", 0)


def test_without_clobber_a_put_names_what_it_may_replace(directory_fd: int) -> None:
    out = Outputs(directory_fd, clobber=False)
    out.holds("x")
    out.write("new", b"1")
    out.write("tmp", b"2")
    out.do(out.fs.renames.rename, 1, b"tmp", 1, b"x", 0)
    rows = out.journal.db.execute(
        "SELECT key, json_extract(metadata, '$.if_match') FROM operation WHERE state = 0 ORDER BY key"
    ).fetchall()
    assert rows == [(b"p/new", ""), (b"p/x", '"x"')]


@pytest.mark.parametrize("staged", [True, False])
def test_what_was_to_be_deleted_under_a_name_that_is_taken_and_left_again_is_deleted(
    out: Outputs, staged: bool
) -> None:
    """A copy to that name was to replace it; without the copy nobody else would take it away."""
    if staged:
        out.write("a", b"1")
        out.write("c", b"2")
        out.finish()
    else:
        out.holds("a", "c")
    out.do(out.fs.entries.unlink, 1, b"a")
    out.do(out.fs.renames.rename, 1, b"c", 1, b"a", 0)
    assert out.queued() == ["COPY c a", "DELETE c"]
    out.do(out.fs.renames.rename, 1, b"a", 1, b"d", 0)
    assert "DELETE a" in out.queued()


def test_what_a_mover_had_begun_before_it_died_is_deleted_under_its_old_name(out: Outputs) -> None:
    """The bucket may have got it: the death came before its answer was written down."""
    inode = out.mkdir("d")
    out.finish()
    out.write("tmp", b"x")
    out.begin()
    out.recover()
    out.do(out.fs.renames.rename, 1, b"tmp", 1, b"a", 0)
    assert out.queued() == ["PUT a", "DELETE tmp"]
    out.begin()
    out.recover()
    out.do(out.fs.entries.unlink, 1, b"a")
    assert out.queued() == ["DELETE tmp", "DELETE a"]
    out.finish()
    out.holds("object")
    out.do(out.fs.renames.rename, 1, b"object", 1, b"b", 0)
    out.begin()
    out.recover()
    out.do(out.fs.renames.rename, 1, b"b", 1, b"c", 0)
    assert out.queued() == ["COPY object c", "DELETE object", "DELETE b"]
    assert out.node_of(inode).names == 1


def test_what_failed_for_good_is_not_deleted_under_its_old_name(out: Outputs) -> None:
    """Somebody else's object may be there, which is why it failed."""
    out.write("tmp", b"x")
    out.begin()
    out.journal.db.execute("UPDATE operation SET state = 3, error = '{}'")
    out.do(out.fs.renames.rename, 1, b"tmp", 1, b"a", 0)
    assert out.queued() == ["PUT a"]


def _chmod(out: Outputs, name: bytes) -> None:
    node = out.fs.names.lookup(1, name).node
    assert node is not None
    out.do(out.fs.attributes.set_attributes, node.inode, NOTHING._replace(mode=0o600), 0)


def _copied_modes(out: Outputs) -> list[int | None]:
    """The mode that each copy still to be done gives; None: that of its source."""
    rows = out.journal.db.execute(
        "SELECT json_extract(metadata, '$.mode') FROM operation WHERE kind = 2 AND state = 0 ORDER BY seq"
    )
    return [None if mode is None else mode & 0o777 for (mode,) in rows]


def test_a_renamed_object_keeps_its_place_before_what_took_its_old_name_when_its_mode_is_changed(out: Outputs) -> None:
    """Behind the new file's PUT the copy would find other bytes, and the deletion would delete those."""
    out.holds("x")
    out.do(out.fs.renames.rename, 1, b"x", 1, b"y", 0)
    out.write("x", b"new")
    _chmod(out, b"y")
    assert out.queued() == ["COPY x y", "DELETE x", "PUT x"]
    assert _copied_modes(out) == [0o600]


def test_a_renamed_object_is_renamed_again_from_where_it_is_once_its_old_name_is_taken(out: Outputs) -> None:
    out.holds("x")
    out.do(out.fs.renames.rename, 1, b"x", 1, b"y", 0)
    out.write("x", b"new")
    out.do(out.fs.renames.rename, 1, b"y", 1, b"z", 0)
    assert out.queued() == ["COPY x y", "DELETE x", "PUT x", "COPY y z", "DELETE y"]
    assert out.names() == ["x", "z"]


def test_a_copy_that_failed_is_not_done_behind_what_took_its_source(out: Outputs) -> None:
    """It may be done yet, at the next drain; what follows waits for that."""
    out.holds("x")
    out.do(out.fs.renames.rename, 1, b"x", 1, b"y", 0)
    out.journal.db.execute("UPDATE operation SET state = 3, error = '{}' WHERE kind = 2")
    out.write("x", b"new")
    _chmod(out, b"y")
    assert out.queued() == ["DELETE x", "PUT x", "COPY y y"]


def test_an_object_that_is_renamed_and_back_is_not_deleted(out: Outputs) -> None:
    out.holds("x")
    out.do(out.fs.renames.rename, 1, b"x", 1, b"y", 0)
    out.do(out.fs.renames.rename, 1, b"y", 1, b"x", 0)
    assert out.queued() == ["COPY x x"]
    assert None not in _copied_modes(out), "a store refuses a copy onto itself that changes nothing"
    assert out.names() == ["x"]


def test_an_object_that_is_renamed_back_over_what_took_its_name_is_not_deleted(out: Outputs) -> None:
    out.holds("x")
    out.do(out.fs.renames.rename, 1, b"x", 1, b"y", 0)
    out.write("x", b"new")
    out.do(out.fs.renames.rename, 1, b"y", 1, b"z", 0)
    out.do(out.fs.renames.rename, 1, b"z", 1, b"y", 0)
    assert out.queued() == ["COPY x y", "DELETE x", "PUT x", "COPY y y"]
    out.do(out.fs.renames.rename, 1, b"y", 1, b"x", 0)
    assert out.queued() == ["COPY x y", "DELETE x", "COPY y x", "DELETE y"]


def test_a_mode_that_was_set_between_two_renames_comes_to_the_bucket(out: Outputs) -> None:
    out.holds("x")
    out.do(out.fs.renames.rename, 1, b"x", 1, b"y", 0)
    _chmod(out, b"y")
    out.do(out.fs.renames.rename, 1, b"y", 1, b"z", 0)
    assert out.queued() == ["COPY x z", "DELETE x"]
    assert _copied_modes(out) == [0o600]


def test_an_object_removed_after_its_mode_was_changed_while_it_was_copied_is_deleted(out: Outputs) -> None:
    out.holds("x")
    out.do(out.fs.renames.rename, 1, b"x", 1, b"y", 0)
    out.begin()
    _chmod(out, b"y")
    out.do(out.fs.entries.unlink, 1, b"y")
    assert out.queued() == ["COPY x y", "DELETE x", "DELETE y"]


def test_an_object_renamed_to_its_own_name_stays(out: Outputs) -> None:
    """The kernel itself sees to that; nothing may be lost where it does not."""
    out.holds("x")
    out.do(out.fs.renames.rename, 1, b"x", 1, b"x", 0)
    assert out.queued() == []
    assert out.names() == ["x"]
