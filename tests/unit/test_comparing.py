"""A test that fails on large values says where they differ, and soon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.comparing import difference

_FAILS = """
import pytest

LARGE = bytes(i % 251 for i in range(251)) * 8000

@pytest.mark.parametrize("wrapped", [lambda data: data, lambda data: {"a": data}, lambda data: [data]])
def test_it(wrapped):
    assert wrapped(LARGE) == wrapped(LARGE[1:])
"""


def test_two_megabytes_that_differ_are_told_in_seconds_also_on_a_ci_machine(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests import comparing\ncomparing.install()\n")
    (tmp_path / "test_large.py").write_text(_FAILS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        env={**os.environ, "CI": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
    )
    assert "3 failed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert "2,008,000 items and 2,007,999; from item 0 on:" in done.stdout
    assert "1 keys differ: ['a']" in done.stdout


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (b"x" * 30_000, b"x" * 29_000 + b"y" * 1000, "from item 29,000 on:"),
        (b"x" * 30_000, b"x" * 29_000, "30,000 items and 29,000; from item 29,000 on:"),
        (list(range(9000)), list(range(8999)), "from item 8,999 on:"),
        ({"a": b"x" * 30_000, "b": 1}, {"b": 2}, "2 keys differ: ['a', 'b']"),
        (set(range(9000)), set(range(1, 9001)), "only in the first: [0]"),
        (b"x" * 30_000, None, "is not the NoneType"),
    ],
)
def test_the_first_difference_is_named(left: Any, right: Any, words: str) -> None:
    said = difference(left, right)
    assert said is not None
    assert words in "\n".join(said)
    assert len("\n".join(said)) < 2000


@pytest.mark.parametrize("small", [b"x", "x" * 99_999, [1, 2]])
def test_what_is_small_or_text_is_left_to_pytest(small: Any) -> None:
    assert difference(small, small) is None
