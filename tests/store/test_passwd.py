from __future__ import annotations

import os
from pathlib import Path

import pytest

from mountkit.errors import UsageError
from mountkit.store.passwd import read_passwd_file


def written(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    path = tmp_path / "passwd"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_line_for_the_bucket_wins_over_the_line_for_all(tmp_path: Path) -> None:
    path = written(tmp_path, "# keys\n\nA:S\nother:B:T\nmine:C:U/+=\n")
    assert read_passwd_file(path, "mine") == ("C", "U/+=")
    assert read_passwd_file(path, "unnamed") == ("A", "S")


def test_a_file_without_a_line_for_the_bucket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no account for the bucket `mine`"):
        read_passwd_file(written(tmp_path, "other:B:T\n"), "mine")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o700, 0o666])
def test_a_file_others_can_read_is_refused_with_the_way_out(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, "A:S\n", mode)
    with pytest.raises(UsageError) as caught:
        read_passwd_file(path, "b")
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "A:S\n")
    os.chown(path, 12345, -1)
    with pytest.raises(UsageError, match="belongs to another user"):
        read_passwd_file(path, "b")


def test_a_fifo_or_a_directory_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(UsageError, match="no regular file"):
            read_passwd_file(str(path), "b")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_passwd_file(str(tmp_path / "none"), "b")


@pytest.mark.parametrize("line", ["justone", "Alone:", ":Solo", "a:b:c:d"])
def test_a_line_that_makes_no_sense_is_named_but_never_quoted(tmp_path: Path, line: str) -> None:
    with pytest.raises(UsageError, match="line 2 of") as caught:
        read_passwd_file(written(tmp_path, f"# x\n{line}\n"), "b")
    assert line not in caught.value.sentence.replace(str(tmp_path), "")
