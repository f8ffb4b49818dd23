"""When the overlay's word counts, and when the bucket's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.serve.outputs import Outputs


def test_an_unlinked_object_stays_gone_until_the_bucket_says_so(out: Outputs) -> None:
    out.holds("x", "y")
    out.do(out.fs.entries.unlink, 1, b"x")
    assert out.names() == ["y"]
    out.holds("x", "y")  # a listing that ran before the deletion
    assert out.names() == ["y"]
    assert not out.fs.names.lookup(1, b"x").exists


def test_somebody_elses_version_is_shown_once_ours_is_in_the_bucket(out: Outputs) -> None:
    out.write("a", b"mine")
    out.finish('"mine"')
    out.journal.db.execute("UPDATE node SET done_at = done_at - 100")
    out.journal.tree.undone()
    out.holds("a")
    place = out.fs.names.lookup(1, b"a")
    assert place.node is None
    assert place.row is not None


def age(out: Outputs, table: str, column: str) -> None:
    """As if that had been more than a TTL ago."""
    out.journal.db.execute(f"UPDATE {table} SET {column} = {column} - 100")
    out.journal.tree.undone()


def test_a_directory_that_somebody_makes_anew_is_listed_at_once(out: Outputs) -> None:
    """[fresh-1] It was removed here, its marker is gone, and the bucket has an object below it since."""
    out.holds("d/")
    out.fs.names.lookup(1, b"d")
    out.holds(below="d/")
    out.do(out.fs.entries.remove_directory, 1, b"d")
    out.finish()
    out.holds("d/")
    age(out, "entry", "since")
    assert out.names() == ["d"]


@pytest.mark.parametrize("look", [Outputs.names, lambda out, d: [str(out.fs.names.lookup(d, b"sub").exists)]])
def test_what_was_in_a_removed_directory_stays_gone_where_it_is_made_again_while_the_bucket_is_away(
    out: Outputs, look: Callable[[Outputs, int], list[str]]
) -> None:
    """[writing-1] After the TTL, too: its deletion is still to come."""
    out.holds("d/")
    d = out.fs.names.lookup(1, b"d").node
    assert d is not None
    out.holds("sub/", below="d/")
    sub = out.fs.names.lookup(d.inode, b"sub").node
    assert sub is not None
    out.holds("x", below="d/sub/")
    out.do(out.fs.entries.unlink, sub.inode, b"x")
    out.do(out.fs.entries.remove_directory, d.inode, b"sub")
    out.do(out.fs.entries.remove_directory, 1, b"d")
    again = out.mkdir("d")
    age(out, "node", "made_at")
    assert look(out, again) in ([], ["False"])
    out.write("y", b"", again)
    assert "DELETE d/sub/x" in out.queued()
