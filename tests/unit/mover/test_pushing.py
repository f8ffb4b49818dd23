"""What a push makes of a directory and of what an earlier one left in its journal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mountkit.config import OutputSettings
from mountkit.mover.pushing import PushedDirectory
from mountkit.staging.queue import UploadJournal


@pytest.fixture
def pushed(tmp_path: Path) -> Iterator[Callable[[], PushedDirectory]]:
    """Opens `tmp_path/tree` for a push, as each command does anew."""
    fds = []
    for name in ("tree", "journal"):
        (tmp_path / name).mkdir()
        fds.append(os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY))
    tree_fd, journal_fd = fds
    yield lambda: PushedDirectory(journal_fd, tree_fd, b"p/", OutputSettings())
    for fd in fds:
        os.close(fd)


def test_a_file_deleted_after_a_kill_in_its_middle_is_not_tried_again(
    pushed: Callable[[], PushedDirectory], tmp_path: Path
) -> None:
    (tmp_path / "tree/gone").write_bytes(b"x")
    (tmp_path / "tree/there").write_bytes(b"y")
    with closing(pushed()) as first:
        first.queue()
    journal_fd = os.open(tmp_path / "journal", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with closing(UploadJournal(journal_fd)) as journal:
            journal.claim(list(journal.open_seqs()))  # and then the push is killed
            (tmp_path / "tree/gone").unlink()
            with closing(pushed()) as second:
                second.queue()
            journal.recover()
            assert [operation.key for operation in journal.open_operations()] == [b"p/there"]
    finally:
        os.close(journal_fd)
