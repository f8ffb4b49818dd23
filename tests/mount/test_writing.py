"""A writable mount as programs see it: every operation of a local directory, read back at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine


@pytest.fixture(params=["passthrough", "no-passthrough"])
def mounted(request: pytest.FixtureRequest, bucket: Bucket, mountkit: CommandLine) -> Path:
    bucket.put("old/a.bin", b"old bytes")
    flags = ["--no-passthrough"] if request.param == "no-passthrough" else []
    return mountkit.mount(bucket.source, "--writable", *flags)


def test_what_was_written_is_read_back(mounted: Path) -> None:
    (mounted / "new.txt").write_text("hello")
    assert (mounted / "new.txt").read_text() == "hello"
    assert sorted(os.listdir(mounted)) == ["new.txt", "old"]
    (mounted / "dir").mkdir()
    (mounted / "dir" / "x").write_bytes(b"x" * 100_000)
    os.rename(mounted / "dir" / "x", mounted / "dir" / "y")
    assert os.listdir(mounted / "dir") == ["y"]
    assert (mounted / "dir" / "y").stat().st_size == 100_000
    (mounted / "dir" / "y").unlink()
    (mounted / "dir").rmdir()
    assert sorted(os.listdir(mounted)) == ["new.txt", "old"]
    assert (mounted / "old" / "a.bin").read_bytes() == b"old bytes"
    os.rename(mounted / "old" / "a.bin", mounted / "b.bin")
    assert (mounted / "b.bin").read_bytes() == b"old bytes"
    assert sorted(os.listdir(mounted)) == ["b.bin", "new.txt", "old"]
