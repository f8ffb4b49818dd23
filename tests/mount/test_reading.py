"""Bytes: right, from the first read on, whatever process dies."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine, content, drop_page_cache, wait_until

SIZES = [0, 1, 4095, 4096, 4097, 131071, 131073, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (8 << 20) + 1]
VARIANTS = [
    pytest.param(("--servers", "1"), id="one-server"),
    pytest.param(("--servers", "2"), id="two-servers"),
    pytest.param(("--servers", "2", "--no-passthrough"), id="two-servers-no-passthrough"),
    pytest.param(("--servers", "1", "--verify", "always"), id="verify-always"),
    pytest.param(("--driver", "s3fs"), id="s3fs"),
]


def _fill(bucket: Bucket) -> dict[str, bytes]:
    objects = {f"dir{n % 3}/size-{size}": content(n, size) for n, size in enumerate(SIZES)}
    for key, data in objects.items():
        bucket.put(key, data)
    return objects


def _all_right(directory: Path, objects: dict[str, bytes]) -> None:
    for key, data in objects.items():
        assert (directory / key).read_bytes() == data, key


@pytest.mark.parametrize("flags", VARIANTS)
def test_every_byte_is_right_cold_from_disk_and_after_a_remount_without_a_get(
    bucket: Bucket, mountkit: CommandLine, flags: tuple[str, ...]
) -> None:
    objects = _fill(bucket)
    directory = mountkit.mount(bucket.source, *flags)
    _all_right(directory, objects)
    drop_page_cache()
    _all_right(directory, objects)
    mountkit.unmount(directory)
    drop_page_cache()
    bucket.proxy.requests.clear()
    directory = mountkit.mount(bucket.source, *flags)
    _all_right(directory, objects)
    # s3fs asks for the bucket itself when it starts, and lists in an older way.
    got = [one.target for one in bucket.proxy.requests if one.method == "GET"]
    assert [target for target in got if "/size-" in target.partition("?")[0]] == []


@pytest.mark.parametrize("flags", [*VARIANTS[:3], VARIANTS[4]])
def test_random_and_mapped_reads_of_a_large_file_are_right(
    bucket: Bucket, mountkit: CommandLine, flags: tuple[str, ...]
) -> None:
    data = content(7, 20_000_003)
    bucket.put("big", data)
    path = mountkit.mount(bucket.source, *flags) / "big"
    rnd = random.Random(3)
    with open(path, "rb") as file:
        for _ in range(60):
            offset = rnd.randrange(len(data))
            length = rnd.randrange(1, 300_000)
            assert os.pread(file.fileno(), length, offset) == data[offset : offset + length]
        # In a process of its own: a page fault holds the GIL, and with it our proxy's thread.
        command = [sys.executable, "-c", _MAP_AND_HASH, str(path)]
        digest = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        assert digest == hashlib.sha256(data).hexdigest()
        assert os.pread(file.fileno(), 100, len(data)) == b""
        assert os.pread(file.fileno(), 100, len(data) - 3) == data[-3:]


_MAP_AND_HASH = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    print(hashlib.sha256(mapped).hexdigest())
"""


def test_a_file_that_is_opened_again_after_sealing_is_read_natively(bucket: Bucket, mountkit: CommandLine) -> None:
    objects = _fill(bucket)
    directory = mountkit.mount(bucket.source)
    _all_right(directory, objects)

    def native() -> bool:
        _all_right(directory, objects)
        reads = mountkit.status(directory)["reads"]
        return bool(reads["passthrough_opens"] >= len(SIZES) - 1)

    wait_until(native, seconds=20)
    before = mountkit.status(directory)["reads"]["reads"]
    drop_page_cache()
    _all_right(directory, objects)
    assert mountkit.status(directory)["reads"]["reads"] == before, "a read of a sealed file reached a server"


def test_many_readers_of_one_block_cause_one_fetch(bucket: Bucket, mountkit: CommandLine) -> None:
    data = content(5, 900_000)
    bucket.put("hot", data)
    path = mountkit.mount(bucket.source) / "hot"
    path.stat()
    bucket.proxy.requests.clear()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: path.read_bytes() == data, range(16))) == {True}
    assert bucket.proxy.count("GET") == 1
