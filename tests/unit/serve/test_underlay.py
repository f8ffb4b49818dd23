"""What the overlay does where the catalog beneath it is another, or none."""

from __future__ import annotations

import pytest

from mountkit.serve.values import NotNow
from tests.unit.serve.outputs import ME, RW, Outputs, W, lose_catalog


def test_what_needs_a_catalog_that_cannot_be_read_is_begun_again_later(out: Outputs) -> None:
    """[failures-7]"""
    out.holds("x")
    row = out.fs.names.lookup(1, b"x").row
    assert row is not None
    lose_catalog(out)
    for question in (lambda: out.fs.names.lookup(1, b"x"), out.names):
        with pytest.raises(NotNow):
            question()
    with pytest.raises(NotNow):
        out.do(out.fs.files.open, row.id, RW)
    with pytest.raises(NotNow):
        out.do(out.fs.entries.create, 1, b"new", 0o644, W, ME)


def test_the_key_of_a_file_is_known_without_the_catalog(out: Outputs) -> None:
    out.write("a", b"x")
    lose_catalog(out)
    assert len(out.do(out.fs.commits.to_commit, 1, None)) == 1
