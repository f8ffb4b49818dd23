"""Many objects, many keys: the sizes the promises were made for."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
import psutil
import pytest
from obstore.store import S3Store

from tests.mount.conftest import Bucket, CommandLine, content, drop_page_cache, kill, wait_until
from tests.sim import SimServer

if TYPE_CHECKING:
    from obstore.store import S3Config

SPECIAL = [
    0,
    1,
    4095,
    4096,
    4097,
    (1 << 20) - 1,
    1 << 20,
    (1 << 20) + 1,
    (8 << 20) - 1,
    8 << 20,
    (8 << 20) + 1,
    50_000_000,
]


def _sizes(count: int) -> dict[str, tuple[int, int]]:
    """key → (seed, size): mostly small, with every border among them."""
    rnd = random.Random(11)
    sizes = [*SPECIAL, *(rnd.randrange(0, 16_000) for _ in range(count - len(SPECIAL)))]
    return {f"class{n % 50:02d}/{n:05d}.bin": (n, size) for n, size in enumerate(sizes)}


def _upload(bucket: Bucket, objects: dict[str, tuple[int, int]]) -> None:
    """By obstore: with boto3 this alone took a minute of both cores."""
    config: S3Config = {
        "endpoint": bucket.client.meta.endpoint_url,
        "region": "us-east-1",
        "access_key_id": bucket.environment["AWS_ACCESS_KEY_ID"],
        "secret_access_key": bucket.environment["AWS_SECRET_ACCESS_KEY"],
    }
    store = S3Store(bucket.name, prefix=bucket.prefix, config=config, client_options={"allow_http": True})

    def put(item: tuple[str, tuple[int, int]]) -> None:
        key, (seed, size) = item
        obstore.put(store, key, content(seed, size), use_multipart=False)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(put, objects.items()))


def _wrong(root: Path, items: list[tuple[str, tuple[int, int]]]) -> list[str]:
    """The keys whose SHA-256 through the mount is not that of what was uploaded."""
    wrong = []
    for key, (seed, size) in items:
        found = hashlib.sha256((root / key).read_bytes()).digest()
        if found != hashlib.sha256(content(seed, size)).digest():
            wrong.append(key)
    return wrong


def _check(root: Path, objects: dict[str, tuple[int, int]], seed: int) -> None:
    items = list(objects.items())
    random.Random(seed).shuffle(items)
    with concurrent.futures.ProcessPoolExecutor(8) as pool:
        for wrong in pool.map(_wrong, [root] * 8, [items[n::8] for n in range(8)]):
            assert wrong == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [2_500, pytest.param(20_000, marks=pytest.mark.soak)])
def test_thousands_of_objects_are_right_through_eight_readers(
    bucket: Bucket, mountkit: CommandLine, count: int
) -> None:
    """Cold, with a server killed on the way; after dropping the page cache; after a remount, then without any GET."""
    objects = _sizes(count)
    _upload(bucket, objects)
    root = mountkit.mount(bucket.source)
    with concurrent.futures.ThreadPoolExecutor(1) as background:
        cold = background.submit(_check, root, objects, 1)
        for _ in range(2):
            wait_until(lambda: bucket.proxy.count("GET") > 1000, seconds=60)
            kill(mountkit.status(root)["server_pids"][0])
        cold.result()
    drop_page_cache()
    _check(root, objects, 2)
    mountkit.unmount(root)
    drop_page_cache()
    bucket.proxy.requests.clear()
    root = mountkit.mount(bucket.source)
    _check(root, objects, 3)
    assert bucket.proxy.count("GET") == 0


@pytest.fixture
def million(tmp_path: Path) -> Iterator[tuple[CommandLine, str]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    environment |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "thing", "AWS_REGION": "us-east-1"}
    line = CommandLine(tmp_path, environment)
    with SimServer(1000, 1000) as server:
        yield line, f"s3://sim?endpoint={server.url}"
        line.close()


def _pss_mb(line: CommandLine) -> float:
    return sum(psutil.Process(pid).memory_full_info().pss for pid in line.processes()) / 1e6


_WALK = "import os, sys; print(sum(len(files) for _, _, files in os.walk(sys.argv[1])))"


@pytest.mark.timeout(400)
def test_a_million_keys_are_walked_in_little_memory(million: tuple[CommandLine, str]) -> None:
    line, source = million
    root = line.mount(source)
    walked = subprocess.run([sys.executable, "-c", _WALK, root], capture_output=True, text=True, check=True).stdout
    assert int(walked) == 1_000_000
    assert _pss_mb(line) < 250
    key = "d0500/f000123.jpg"
    assert (root / key).read_bytes() == (key * 100).encode()[:1000]


def test_the_first_entries_of_a_huge_directory_do_not_wait_for_the_last(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "thing",
        "AWS_REGION": "us-east-1",
    }
    line = CommandLine(tmp_path, environment)
    with SimServer(1, 999_999) as server:
        root = line.mount(f"s3://sim?endpoint={server.url}")
        process: Any = subprocess.Popen(["ls", "-f", root / "d0000"], stdout=subprocess.PIPE)
        started = time.monotonic()
        first = next(line for line in process.stdout if line.startswith(b"f"))
        seconds = time.monotonic() - started
        process.kill()
        process.communicate()
        line.close()
    assert first == b"f000000.jpg\n"
    assert seconds < 3, "ls waited for far more than the first pages"
