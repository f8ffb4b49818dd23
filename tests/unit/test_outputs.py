"""Where the command line finds what was written into a mount."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mountkit import mountinfo, mounts, outputs, places, remembered
from mountkit.config import MountSettings
from mountkit.errors import UsageError
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

    monkeypatch.setattr(outputs.ipc, "Client", lambda _: contextlib.nullcontext(Mover()))
    info = mounts.MountInfo("/out", "s3://b", mountinfo.FSTYPE, "ok", os.getuid(), {})
    with pytest.raises(KeyboardInterrupt):
        outputs.drain(outputs.Place("/state", "/out", "s3://b", info), timeout_s=5.0, show=interrupted)
    assert "/out stays mounted and goes on uploading" in capsys.readouterr().err


class Mover:
    def stream(self, _op: str, **_arguments: object) -> Iterator[dict[str, Any]]:
        return iter(())
