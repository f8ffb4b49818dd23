"""Which container engine is spoken to where nothing is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from mountkit.run import docker_link
from mountkit.run.docker_link import DockerLink


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "mine"))
    monkeypatch.setattr(docker_link, "_SOCKETS", (f"{tmp_path}/system.sock", "{run}/docker.sock"))
    (tmp_path / "mine").mkdir()
    return tmp_path


def test_the_systems_engine_comes_first(sockets: Path) -> None:
    (sockets / "system.sock").touch()
    (sockets / "mine" / "docker.sock").touch()
    assert DockerLink().url == f"unix://{sockets}/system.sock"


def test_ones_own_rootless_engine_is_taken_where_the_systems_may_not_be_talked_to(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sockets / "system.sock").touch()
    monkeypatch.setattr("os.access", lambda path, _: "mine" in str(path))
    assert DockerLink().url == f"unix://{sockets}/system.sock", "so that the reason is said"
    (sockets / "mine" / "docker.sock").touch()
    assert DockerLink().url == f"unix://{sockets}/mine/docker.sock"
