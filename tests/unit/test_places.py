"""Where state may lie: `--cache /tmp` must be safe for root."""

import os
from pathlib import Path

import pytest

from mountkit import mountinfo, places
from mountkit.errors import HostError


def test_a_state_directory_is_private_and_reused(tmp_path: Path) -> None:
    first = places.open_state(str(tmp_path), "name")
    second = places.open_state(str(tmp_path), "name")
    assert os.fstat(first).st_ino == os.fstat(second).st_ino
    assert os.fstat(first).st_mode & 0o777 == 0o700
    os.close(first)
    os.close(second)


def test_a_symlink_in_its_place_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (tmp_path / f"mountkit-{os.getuid()}").symlink_to(target)
    with pytest.raises(HostError):
        places.open_state(str(tmp_path), "name")
    assert list(target.iterdir()) == []


def test_a_directory_others_may_write_is_refused(tmp_path: Path) -> None:
    own = tmp_path / f"mountkit-{os.getuid()}"
    own.mkdir()
    own.chmod(0o770)
    with pytest.raises(HostError) as caught:
        places.open_state(str(tmp_path), "name")
    assert "may be written by others" in caught.value.sentence


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory to somebody else")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "mountkit-0"
    own.mkdir(mode=0o700)
    os.chown(own, 12345, 12345)
    with pytest.raises(HostError) as caught:
        places.open_state(str(tmp_path), "name")
    assert "12345" in caught.value.sentence


def test_the_covering_mount_is_the_last_on_the_longest_prefix() -> None:
    def point(directory: str, source: str) -> mountinfo.MountPoint:
        return mountinfo.MountPoint("0:1", "/", directory, frozenset(), (), "x", source, frozenset())

    points = [point("/", "a"), point("/mnt", "b"), point("/mnt", "c"), point("/mnt/deep", "d")]
    assert mountinfo.covering("/mnt/x", points).source == "c"  # type: ignore[union-attr]
    assert mountinfo.covering("/mnt/deep/x", points).source == "d"  # type: ignore[union-attr]
    assert mountinfo.covering("/mntx", points).source == "a"  # type: ignore[union-attr]


def test_mountinfo_lines_with_escapes_are_read() -> None:
    line = r"36 35 0:57 / /mnt/a\040b rw,nosuid shared:1 - fuse.mountkit s3://x/\134y rw,user_id=1000,group_id=0"
    found = mountinfo._parse(line + "\n")
    assert found.directory == "/mnt/a b"
    assert found.source == "s3://x/\\y"
    assert found.owner_uid == 1000
