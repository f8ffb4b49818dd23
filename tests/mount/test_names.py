"""Keys that are no paths, on a server that takes any key (moto)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from mountkit import names
from tests.mount.conftest import CommandLine, our_processes, wait_until
from tests.servers import MotoServer

PLAIN = [
    "a/b",
    "deep/er/x",
    "trail/",
    "_$folder$",
    "sp ace",
    "%41",
    "plus+",
    "hash#",
    "ask?",
    "q'\"",
    "back\\slash",
]
PLAIN += ["tab\t", "🐈", "e\u0301", "\u00e9", "CASE", "case", "p/" + "x" * 255, "/".join("d" * 9 for _ in range(90))]
ODD = ["a", "x//y", "trail//", "./dot", "up/../x", "..", "p/" + "y" * 256, ".mountkit/keys/z", "z" * 1024]


@pytest.fixture
def odd_bucket(moto: MotoServer) -> Iterator[tuple[Any, str, dict[str, str]]]:
    name = f"odd-{uuid.uuid4().hex[:10]}"
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    client = boto3.client("s3", endpoint_url=moto.endpoint, region_name="us-east-1", **keys)
    client.create_bucket(Bucket=name)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    environment = {
        **clean,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }
    yield client, f"s3://{name}?endpoint={moto.endpoint}", environment


def test_every_key_is_reachable_and_none_hides_another(
    odd_bucket: tuple[Any, str, dict[str, str]], tmp_path: Path
) -> None:
    """[names-2] [names-3] [names-4]"""
    client, source, environment = odd_bucket
    bucket = source.removeprefix("s3://").split("?")[0]
    before = our_processes()
    for key in PLAIN + ODD:
        client.put_object(Bucket=bucket, Key=key, Body=b"" if key == "trail/" else key.encode())
    line = CommandLine(tmp_path, environment)
    try:
        for flags in (("--servers", "1"), ()):
            root = line.mount(source, *flags)
            _check(root)
            line.unmount(root)
    finally:
        line.close()
    wait_until(lambda: not set(our_processes()) - set(before))


def _check(root: Path) -> None:
    for _ in range(2):  # by lookups, then by listings
        for key in PLAIN:
            path = root / key
            assert path.is_dir() if key.endswith("/") else path.read_bytes() == key.encode(), key
        assert (root / "a").is_dir()
        for key in ODD:
            escaped = os.fsdecode(b"/".join(names.escape(key.encode())))
            assert (root / ".mountkit/keys" / escaped).read_bytes() == key.encode(), key
        found = set(os.listdir(root))
        assert ".mountkit" not in found
        assert found >= {key.split("/")[0] for key in PLAIN}
        for directory, subdirectories, files in os.walk(root):
            assert len(set(subdirectories) | set(files)) == len(subdirectories) + len(files), directory
    with pytest.raises(FileNotFoundError):
        (root / ".mountkit/keys/nothing-here").read_bytes()
