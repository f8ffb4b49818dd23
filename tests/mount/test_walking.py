"""Walks over real mounts: every name once, each directory listed once, and again without asking anybody."""

from __future__ import annotations

import os
from pathlib import Path

from tests.mount.conftest import Bucket, CommandLine
from tests.sim import SimServer

DIRECTORIES, FILES = 40, 300


def _names(root: Path) -> list[str]:
    return [os.path.join(top, name) for top, _, files in os.walk(root) for name in files]


def test_a_walk_shows_every_name_once_and_lists_each_directory_once(bucket: Bucket, mountkit: CommandLine) -> None:
    with SimServer(DIRECTORIES, FILES) as server:
        root = mountkit.mount("s3://sim", "--endpoint", server.url, "--region", "us-east-1", "--anonymous")
        first = _names(root)
        assert first == [f"{root}/d{d:04d}/f{f:06d}.jpg" for d in range(DIRECTORIES) for f in range(FILES)]
        lists = mountkit.status(root)["requests"]["list"]
        assert lists <= DIRECTORIES + 3, "the check of the mount, the root, its directories"
        assert all(_names(root) == first for _ in range(4)), "from our catalog, then from the kernel's cache"
        found = [(entry.name, entry.stat().st_size) for entry in os.scandir(root / "d0007")]
        assert found == [(f"f{f:06d}.jpg", 1000) for f in range(FILES)]
        assert mountkit.status(root)["requests"]["list"] == lists


def test_the_kernel_keeps_no_names_that_a_refresh_has_changed(bucket: Bucket, mountkit: CommandLine) -> None:
    """[fresh-1]"""
    bucket.put("d/a", b"a")
    root = mountkit.mount(bucket.source)
    assert all(os.listdir(root / "d") == ["a"] for _ in range(5))
    bucket.put("d/b", b"b")
    bucket.delete("d/a")
    assert mountkit.run("refresh", str(root)).code == 0
    assert all(os.listdir(root / "d") == ["b"] for _ in range(5))
