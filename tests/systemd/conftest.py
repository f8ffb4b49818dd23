"""A machine with systemd, and a bucket it can reach. One boot serves all tests of this directory."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.servers import SeaweedServer
from tests.systemd.machine import Machine


@dataclass
class Place:
    """A prefix of its own in the bucket, and the words a machine needs to mount it."""

    server: SeaweedServer
    client: Any
    prefix: str

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="data", Key=f"{self.prefix}/{key}", Body=data)

    @property
    def source(self) -> str:
        return f"s3://data/{self.prefix}"

    @property
    def credentials(self) -> str:
        """A file as ~/.aws/credentials, with the good ones and ones nobody knows."""
        good = f"aws_access_key_id = {self.server.access_key}\naws_secret_access_key = {self.server.secret_key}\n"
        return f"[default]\n{good}\n[train]\n{good}"


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    for program, package in (("systemd-analyze", "systemd"), ("dbus-daemon", "dbus"), ("docker", "docker.io")):
        if not shutil.which(program):
            pytest.fail(f"these tests boot systemd in a container: install the package `{package}`", pytrace=False)
    with Machine() as booted:
        yield booted


@pytest.fixture
def place(seaweed: SeaweedServer) -> Place:
    return Place(seaweed, seaweed.client(), uuid.uuid4().hex[:10])
