"""The mutations of `tests.broken` still fit the package."""

from __future__ import annotations

from pathlib import Path

import pytest

import mountkit
from tests.broken import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_stands_where_it_says(mutation: Mutation) -> None:
    text = (Path(mountkit.__file__).parent / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1
    assert (Path(__file__).parents[2] / mutation.test.split()[0].partition("::")[0]).exists()
