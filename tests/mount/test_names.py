"""Keys that are no paths, on servers that take any key: moto, and a simulated one for many and for worse."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from mountkit import names
from tests.mount.conftest import CommandLine, wait_until
from tests.servers import MotoServer
from tests.sim import SimServer, body_of

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
    wait_until(lambda: not line.processes())


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


NASTY = [
    "a",
    "b",
    "A",
    "é",
    "e\u0301",
    "🐈",
    " ",
    "%",
    "+",
    "#",
    "?",
    "'",
    '"',
    "\\",
    "\n",
    "\t",
    "_$folder$",
    ".",
    "..",
    "…",
]
NASTY += ["…", "\udcff", "\udc80x", "x" * 255, "y" * 256, "", "", ".mountkit", "keys", "%2E", "0", "\x7f", "\x01"]


def _random_keys(count: int) -> list[bytes]:
    rnd = random.Random(6)
    keys = set()
    while len(keys) < count:
        parts = ["".join(rnd.choices(NASTY, k=rnd.choice([1, 1, 2, 3]))) for _ in range(rnd.choice([1, 1, 2, 2, 3, 5]))]
        key = "/".join(parts).encode("utf-8", "surrogateescape")[:1024]
        if key:
            keys.add(key)
    return sorted(keys)


@pytest.fixture
def sim_line(tmp_path: Path) -> Iterator[CommandLine]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    environment |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "thing", "AWS_REGION": "us-east-1"}
    line = CommandLine(tmp_path, environment)
    yield line
    line.close()
    wait_until(lambda: not line.processes())


def _serve(keys: list[bytes], tmp_path: Path) -> SimServer:
    file = tmp_path / "keys"
    file.write_text("\n".join(key.hex() for key in keys))
    return SimServer(keys=file)


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.soak)])
def test_of_random_keys_each_is_readable_and_none_hides_another(
    sim_line: CommandLine, tmp_path: Path, count: int
) -> None:
    """[names-2] [names-3]"""
    keys = _random_keys(count)
    directories = {key[: end + 1] for key in keys for end in range(len(key)) if key[end : end + 1] == b"/"}
    with _serve(keys, tmp_path) as server:
        root = os.fsencode(sim_line.mount(f"s3://sim?endpoint={server.url}"))
        seen = 0
        for key in keys:
            kind = names.classify(key)
            shadowed = key + b"/" in directories
            if kind is names.KeyKind.MARKER:
                assert os.path.isdir(os.path.join(root, key)), key
                continue
            path = b"/".join((root, key))
            if kind is names.KeyKind.ODD or shadowed:
                path = b"/".join((root, names.HIDDEN, names.KEYS, *names.escape(key)))
            with open(path, "rb") as file:
                assert file.read() == body_of(key), key
            seen += 1
        assert seen > count * 0.8
        walked = {os.path.join(at, name)[len(root) + 1 :] for at, _, files in os.walk(root) for name in files}
        plain = {key for key in keys if names.classify(key) is names.KeyKind.PATH and key + b"/" not in directories}
        assert walked == plain, "a walk shows every key that is a path, and no other"


@pytest.mark.parametrize("levels", [150, pytest.param(5000, marks=pytest.mark.soak)])
def test_a_directory_of_a_hundred_thousand_keys_and_one_of_many_levels(
    sim_line: CommandLine, tmp_path: Path, levels: int
) -> None:
    keys = [b"flat/%06d" % number for number in range(100_000)] + [b"deep/" * levels + b"end"]
    with _serve(keys, tmp_path) as server:
        root = sim_line.mount(f"s3://sim?endpoint={server.url}")
        with os.scandir(root / "flat") as entries:
            found = [entry.name for entry in entries]
        assert len(found) == len(set(found)) == 100_000
        assert sorted(found)[::99_999] == ["000000", "099999"]
        assert (root / "flat/031415").read_bytes() == body_of("flat/031415")
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for _ in range(levels):  # longer than PATH_MAX: one step after the other
                below = os.open("deep", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
                os.close(at)
                at = below
            end = os.open("end", os.O_RDONLY, dir_fd=at)
            assert os.read(end, 2000) == body_of(keys[-1])
            os.close(end)
        finally:
            os.close(at)
