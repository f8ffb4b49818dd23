"""Objects of the bucket that are to be changed."""

from __future__ import annotations

import pytest

from mountkit.serve.asking import MustAsk
from tests.unit.serve.outputs import RW, Outputs


def test_an_object_to_be_changed_has_to_be_staged_first(out: Outputs) -> None:
    out.holds("x")
    row = out.fs.names.lookup(1, b"x").row
    assert row is not None
    with pytest.raises(MustAsk) as caught:
        out.do(out.fs.files.open, row.id, RW)
    assert caught.value.about == ("stage", row.id)
