"""Where the command line finds what was written into a mount."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mountkit import ipc, mountinfo, mounts, outputs, places, remembered
from mountkit.config import MountSettings
from mountkit.errors import MountError, UsageError
from mountkit.sources import BucketURL
from mountkit.staging.journal import Journal


def test_outputs_of_a_dead_mount_are_found_wherever_its_cache_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "cache" / f"mountkit-{os.getuid()}" / "state"
    state.mkdir(parents=True)
    fd = os.open(state, os.O_RDONLY)
    journal = Journal(fd)
    journal.set_setting("directory", "/out")
    journal.close()
    os.close(fd)
    settings = MountSettings(BucketURL("b"), "/out", str(tmp_path / "cache"), "me")
    monkeypatch.setattr(mounts, "find", lambda _: None)
    monkeypatch.setattr(mountinfo, "resolve", lambda path: path)
    monkeypatch.setattr(places, "runtime_directory", lambda: str(tmp_path))
    with pytest.raises(UsageError):
        outputs.find("/out", str(tmp_path / "elsewhere"))
    remembered.remember(settings)
    assert outputs.find("/out", str(tmp_path / "elsewhere")).state_directory == str(state)


def test_who_stops_waiting_is_told_that_the_uploads_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_updates: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs.ipc, "Client", lambda _: contextlib.nullcontext(Interrupted()))
    info = mounts.MountInfo("/out", "s3://b", mountinfo.FSTYPE, "ok", os.getuid(), {})
    with pytest.raises(KeyboardInterrupt):
        outputs.drain(outputs.Place("/state", "/out", "s3://b", info), timeout_s=5.0, show=interrupted)
    assert "/out stays mounted and goes on uploading" in capsys.readouterr().err


class Interrupted:
    def stream(self, _op: str, **_arguments: object) -> Iterator[dict[str, Any]]:
        return iter(())


class Mover(threading.Thread):
    """One that takes a connection for each of `answers`, says that, and ends it; at the last it stays silent."""

    def __init__(self, path: str, *answers: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._answers = answers
        self.start()

    def run(self) -> None:
        with self._listener:
            for answer in self._answers:
                with self._listener.accept()[0] as connection:
                    connection.recv(1000)
                    connection.sendall(b"".join(ipc.encode({"id": 1, **answer})))
            with self._listener.accept()[0] as connection:
                while connection.recv(1000):
                    pass


def drained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, timeout_s: float) -> None:
    monkeypatch.setattr(places, "mover_socket", lambda *_: str(tmp_path / "mover"))
    info = mounts.MountInfo("/out", "s3://b", "ok", "0:1", os.getuid(), {})
    outputs.drain(
        outputs.Place(str(tmp_path), "/out", "s3://b", info), timeout_s=timeout_s, show=lambda updates: [*updates][-1]
    )


def test_a_drain_goes_on_with_the_mover_that_follows_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = {"progress": {"pending": 3, "bytes": 9, "bytes_done": 0, "failed": 0, "trouble": ""}}
    begins = threading.Timer(0.5, Mover, (str(tmp_path / "mover"), pending, {"left": 0, "failed": 0, "errors": {}}))
    begins.start()
    drained(tmp_path, monkeypatch, timeout_s=60.0)
    begins.join()


def test_a_drain_does_not_wait_longer_than_it_may_for_a_mover_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mover(str(tmp_path / "mover"))
    with pytest.raises(MountError, match="cannot be watched"):
        drained(tmp_path, monkeypatch, timeout_s=0.2)
