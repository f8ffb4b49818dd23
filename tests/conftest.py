"""Fixtures every test may use. Servers start once in a session, and only when a test asks for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountkit.errors import EngineError
from mountkit.run.docker_engine import DockerEngine
from tests import comparing
from tests.servers import MotoServer, SeaweedServer

_BUILD = Path(__file__).parents[1] / "containers" / "tiny" / "build.py"


def pytest_configure() -> None:
    comparing.install()


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    """SeaweedFS with the empty bucket `data`."""
    with SeaweedServer() as server:
        server.create_bucket("data")
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """moto with the empty bucket `data` in us-east-1."""
    with MotoServer() as server:
        server.create_bucket("data")
        yield server


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """A process environment in which nothing names an AWS account, an endpoint or a proxy."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/credentials")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def tiny_image() -> str:
    """The tiny test image, made of this machine's own programs. Without an engine tests fail, none is skipped."""
    try:
        DockerEngine().check()
    except EngineError as exc:
        pytest.fail(f"these tests need a container engine: {exc.sentence} ({exc.hint})", pytrace=False)
    done = subprocess.run([sys.executable, str(_BUILD)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"the test image could not be made: {done.stderr}", pytrace=False)
    return "mountkit/tiny:latest"
