"""The state directory: removed and made anew, kept in memory for a while, brought home."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountkit import logs, places
from mountkit.config import MountSettings
from mountkit.ipc import Message
from mountkit.serve.state import StateDirectory
from mountkit.sources import BucketURL


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateDirectory]:
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(places, "ensure_memory_directory", lambda: str(memory))
    monkeypatch.setattr(logs, "to_state_directory", lambda _: None)
    opened = StateDirectory.open(MountSettings(BucketURL("b"), "/d", str(tmp_path / "cache"), "i"))
    yield opened
    opened.close()


def test_a_directory_that_is_there_is_left_alone(state: StateDirectory) -> None:
    before = os.fstat(state.fd)
    state.renew()
    assert os.path.samestat(before, os.fstat(state.fd))
    assert state.catalog_fd == state.fd


def test_a_removed_directory_is_made_anew_behind_the_same_descriptor(state: StateDirectory) -> None:
    shutil.rmtree(state.path)
    state.renew()
    assert os.path.samestat(os.stat(state.path), os.fstat(state.fd))
    assert state.trouble == ""


def test_a_removed_directory_that_cannot_be_made_is_replaced_by_memory(state: StateDirectory) -> None:
    cache = Path(state.path).parents[1]
    shutil.rmtree(cache)
    cache.write_text("a file stands in the way")
    state.renew()
    assert "cannot be used" in state.trouble
    assert os.path.samestat(os.stat(places.stand_in_path(os.path.basename(state.path))), os.fstat(state.catalog_fd))
    assert not state.works_at_home()
    cache.unlink()
    assert state.works_at_home()


def test_at_home_again_the_log_is_there_too(state: StateDirectory, capfd: pytest.CaptureFixture[str]) -> None:
    state.stand_in("the disk is full")
    assert state.log_path.startswith(places.ensure_memory_directory())
    Path(state.log_path).write_text("what was logged meanwhile\n")
    state.go_home()
    assert state.catalog_fd == state.fd
    assert state.trouble == ""
    assert state.log_path == os.path.join(state.path, logs.FILE_NAME)
    assert "what was logged meanwhile" in capfd.readouterr().err  # stderr is the log, in a real process


def test_a_keeper_follows_the_mover_to_memory_and_back(state: StateDirectory) -> None:
    memory = places.open_stand_in(os.path.basename(state.path))
    state.take(Message({"stand_in": "the disk is full"}, fds=[os.dup(state.fd), memory]))
    assert state.trouble == "the disk is full"
    assert not os.path.samestat(os.fstat(state.fd), os.fstat(state.catalog_fd))
    state.take(Message({"stand_in": ""}, fds=[os.dup(state.fd), os.dup(state.fd)]))
    assert state.trouble == ""
    assert state.catalog_fd == state.fd


def test_what_the_mover_hands_out_is_closed_again(state: StateDirectory) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        state.take(Message({"stand_in": ""}, fds=[os.dup(state.fd), os.dup(state.fd)]))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_that_takes_no_file_does_not_work(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state.works_at_home()
    monkeypatch.setattr(os, "write", lambda _fd, data: len(data) // 2)  # as a full disk answers
    assert not state.works_at_home()
