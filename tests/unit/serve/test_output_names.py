"""When the overlay's word counts, and when the bucket's."""

from __future__ import annotations

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
