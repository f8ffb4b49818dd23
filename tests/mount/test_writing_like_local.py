"""A writable mount and a local directory under the same random operations: same results, same errnos, same tree."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mount.conftest import Bucket, CommandLine
from tests.mount.differential import Operation, World, operations

_numbers = itertools.count()


@pytest.fixture(params=["passthrough", "no-passthrough"])
def mounted(request: pytest.FixtureRequest, bucket: Bucket, mountkit: CommandLine) -> Iterator[Path]:
    flags = ["--no-passthrough"] if request.param == "no-passthrough" else []
    before = os.umask(0o022)
    yield mountkit.mount(bucket.source, "--writable", "--umask", "022", *flags)
    os.umask(before)


def _tell_the_same(mounted: Path, local: Path, script: list[Operation]) -> None:
    name = f"w{next(_numbers)}"
    ours, theirs = World(mounted / name), World(local / name)
    try:
        for step, operation in enumerate(script):
            expected = theirs.apply(operation)
            assert ours.apply(operation) == expected, f"step {step}: {operation}"
        assert ours.tree() == theirs.tree()
    finally:
        ours.close()
        theirs.close()


_PLAIN = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}


@settings(max_examples=40, derandomize=True, **_PLAIN)
@given(script=st.lists(operations, min_size=20, max_size=80))
def test_the_mount_does_what_a_local_directory_does(mounted: Path, tmp_path: Path, script: list[Operation]) -> None:
    """[writing-1]"""
    _tell_the_same(mounted, tmp_path, script)


@pytest.mark.soak
@settings(max_examples=int(os.environ.get("MOUNTKIT_SOAK_EXAMPLES", "1500")), **_PLAIN)
@given(script=st.lists(operations, min_size=30, max_size=200))
def test_the_mount_does_so_for_thousands_of_scripts(mounted: Path, tmp_path: Path, script: list[Operation]) -> None:
    _tell_the_same(mounted, tmp_path, script)
