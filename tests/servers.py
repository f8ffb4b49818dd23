"""Real S3 servers for tests, on loopback: SeaweedFS (checks signatures and rights) and moto (any key, regions).

    with SeaweedServer() as server:
        server.create_bucket("data")
        server.client().put_object(Bucket="data", Key="a", Body=b"x")

A server that answers its first signed write counts as started; nothing sleeps blindly. `setpriv` ties a server's life
to ours, so that a killed test run leaves none behind.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
import botocore.config
import botocore.exceptions

START_TIMEOUT_S = 40.0


_SERVERS_PORTS = range(15_000, 32_000)
"""Below what the kernel takes for connections: one of those may hold any other port by the time a server wants it."""


def free_ports(count: int) -> list[int]:
    """`count` loopback ports nobody listens on now, and no connection will use."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(_SERVERS_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [] if port in found else [port]
    return found


class S3Server:
    """An S3 endpoint with one administrator."""

    endpoint: str
    access_key = "AKIATESTADMIN0000001"
    secret_key = "an-admin-secret-of-tests"
    region = "us-east-1"

    def client(self, *, access_key: str = "", secret_key: str = "", region: str = "") -> Any:
        """A boto3 client of this server; as its administrator where nothing else is said."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=access_key or self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            region_name=region or self.region,
            config=botocore.config.Config(
                s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, proxies={}, connect_timeout=5
            ),
        )

    def environment(self) -> dict[str, str]:
        """What a child process needs to reach this server as its administrator."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint,
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def create_bucket(self, name: str, region: str = "") -> None:
        place = {"CreateBucketConfiguration": {"LocationConstraint": region}} if region else {}
        self.client(region=region).create_bucket(Bucket=name, **place)

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class SeaweedServer(S3Server):
    """`weed server -s3` in a directory of its own.

    `lister_*` may only list, and only in the bucket `data`; it may read nothing.
    """

    lister_access_key = "AKIATESTLISTER000001"
    lister_secret_key = "a-lister-secret-of-tests"

    def __init__(self) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="mountkit-weed-"))
        config = self._dir / "identities.json"
        config.write_text(json.dumps(self._identities()))
        self._log = (self._dir / "log").open("wb")
        master, master_g, volume, volume_g, filer, filer_g, s3, s3_g = free_ports(8)
        self.endpoint = f"http://127.0.0.1:{s3}"
        data = self._dir / "data"
        data.mkdir()
        command = [
            *_tied_to_us(),
            str(Path(sys.executable).with_name("weed")),
            *("server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}", "-master.telemetry=false"),
            *(f"-master.port={master}", f"-master.port.grpc={master_g}", "-master.volumeSizeLimitMB=64"),
            *(f"-volume.port={volume}", f"-volume.port.grpc={volume_g}", "-volume.max=1000"),
            *(f"-filer.port={filer}", f"-filer.port.grpc={filer_g}", f"-filer.localSocket={self._dir}/filer.sock"),
            *("-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_g}", f"-s3.config={config}", "-s3.port.iceberg=0"),
            *("-s3.port.lance=0", "-s3.iam=false", f"-s3.localSocket={self._dir}/s3.sock"),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT, cwd=self._dir
        )
        try:
            self._wait_until_it_writes()
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def _identities(self) -> dict[str, Any]:
        def identity(name: str, access_key: str, secret_key: str, *actions: str) -> dict[str, Any]:
            keys = [{"accessKey": access_key, "secretKey": secret_key}]
            return {"name": name, "credentials": keys, "actions": actions}

        admin = identity("admin", self.access_key, self.secret_key, "Admin", "Read", "Write", "List", "Tagging")
        lister = identity("lister", self.lister_access_key, self.lister_secret_key, "List:data")
        return {"identities": [admin, lister]}

    def _wait_until_it_writes(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        client = self.client()
        while True:
            try:
                client.create_bucket(Bucket="started")
                client.put_object(Bucket="started", Key="probe", Body=b"x")
                client.delete_object(Bucket="started", Key="probe")
                client.delete_bucket(Bucket="started")
                return
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as exc:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    text = (self._dir / "log").read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"SeaweedFS did not start: {exc}\n{text}") from exc
                time.sleep(0.1)  # between two questions; what ends the wait is the answer

    def stop(self) -> None:
        self._process.kill()  # it takes seconds to end politely, and nobody wants its data
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._dir, ignore_errors=True)


class MotoServer(S3Server):
    """moto in a thread of this process: takes any key and any credentials, knows regions and versions."""

    def __init__(self) -> None:
        import logging

        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"

    def stop(self) -> None:
        self._server.stop()


def _tied_to_us() -> list[str]:
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
