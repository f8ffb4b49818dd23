"""Writing below a directory: whole files, one for each name, and the disk's own words where it cannot be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mountkit.beneath import Beneath
from mountkit.errors import HostError, UsageError


def test_files_whose_long_names_begin_alike_are_written_at_the_same_time(tmp_path: Path) -> None:
    one, other = b"n" * 220 + b"-one", b"n" * 220 + b"-other"
    with Beneath(str(tmp_path)) as root:
        with root.replaced(one) as first, root.replaced(other) as second:
            os.write(first, b"the first")
            os.write(second, b"2nd")
    assert (tmp_path / os.fsdecode(one)).read_bytes() == b"the first"
    assert (tmp_path / os.fsdecode(other)).read_bytes() == b"2nd"


def test_a_file_whose_writing_fails_leaves_nothing_and_the_error_is_the_writers(tmp_path: Path) -> None:
    with Beneath(str(tmp_path)) as root:
        with pytest.raises(OSError, match="No space") as caught, root.replaced(b"d/f"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path / "d") == []


@pytest.mark.parametrize("path", [b"link/f", b"file/f", b"dir"])
def test_what_stands_in_the_way_is_said_and_left_as_it_was(tmp_path: Path, path: bytes) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "dir")
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "dir").mkdir()
    with Beneath(str(tmp_path)) as root:
        with pytest.raises(HostError) as caught, root.replaced(path) as fd:
            os.write(fd, b"x")
    assert os.fsdecode(path) in caught.value.sentence and "stand" in caught.value.hint
    assert sorted(os.listdir(tmp_path)) == ["dir", "file", "link"] and os.listdir(tmp_path / "dir") == []
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_name_that_is_too_long_says_so(tmp_path: Path) -> None:
    with Beneath(str(tmp_path)) as root, pytest.raises(HostError) as caught:
        root.directory(b"n" * 300)
    assert "too long" in caught.value.hint


@pytest.mark.parametrize("path", [b"../f", b"a/../../f", b"a//f", b"./f", b"a\0b"])
def test_no_path_leads_out(tmp_path: Path, path: bytes) -> None:
    with Beneath(str(tmp_path)) as root, pytest.raises(UsageError), root.replaced(path):
        pass
    assert os.listdir(tmp_path) == []
