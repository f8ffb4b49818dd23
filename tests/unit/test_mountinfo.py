"""Names of mount points, found without asking what is mounted there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mountkit import mountinfo
from mountkit.mountinfo import MountPoint


@pytest.mark.parametrize("name", ["there", "link", "link-to-link", "above/there", "./there/"])
def test_a_mount_point_is_named_without_being_touched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit's keeper that goes on with a kept session would wait for itself."""
    directory = tmp_path / "there"
    directory.mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "link-to-link").symlink_to(tmp_path / "link")
    (tmp_path / "above").symlink_to(tmp_path)
    point = MountPoint("0:99", "/", str(directory), frozenset(), (), "fuse.mountkit", "s3://b", frozenset())
    monkeypatch.setattr(mountinfo, "mount_points", lambda: [point])
    monkeypatch.chdir(tmp_path)
    for call in ("lstat", "stat", "readlink"):
        real = getattr(os, call)

        def guarded(path: Any, *words: Any, real: Any = real, **named: Any) -> Any:
            assert os.path.abspath(os.fspath(path)) != str(directory), "the mount point was asked"
            return real(path, *words, **named)

        monkeypatch.setattr(os, call, guarded)
    assert mountinfo.resolve_all(name) == str(directory)


def test_what_is_no_mount_point_is_named_as_realpath_does(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("there", "link", "absent", "loop"):
        assert mountinfo.resolve_all(str(tmp_path / name)) == os.path.realpath(tmp_path / name)
