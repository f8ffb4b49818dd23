"""Fixtures every test may use. Servers start once in a session, and only when a test asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.servers import MotoServer, SeaweedServer


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
