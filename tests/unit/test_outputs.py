"""Where the command line finds what was written into a mount."""

from __future__ import annotations

import os
from pathlib import Path

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
