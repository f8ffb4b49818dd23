"""A cache disk that lies, loses, fills or fails, under a real mount: right bytes, one warning, and it heals."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine, content, drop_page_cache, wait_until

SMALL, LARGE = 150_000, 3_000_000
SOAK = pytest.mark.soak


def fill(bucket: Bucket, *, count: int = 6, first: int = 0) -> dict[str, bytes]:
    """Objects of both kinds: small ones lie in segments, large ones in files of their own."""
    numbers = range(first, first + count)
    objects = {f"d/{n:03d}": content(n, SMALL if n % 3 else LARGE) for n in numbers}
    for key, data in objects.items():
        bucket.put(key, data)
    return objects


def check(root: Path, objects: dict[str, bytes]) -> None:
    for key, data in objects.items():
        assert (root / key).read_bytes() == data, key


def cache_files(line: CommandLine) -> list[Path]:
    found = [path for folder in ("objects", "segments") for path in line.cache.rglob(f"{folder}/**/*")]
    return [path for path in found if path.is_file() and path.stat().st_size]


def state_directory(line: CommandLine, root: Path) -> Path:
    return Path(line.status(root)["state_directory"])


def until_sealed(line: CommandLine, root: Path, count: int) -> None:
    wait_until(lambda: line.status(root)["cache"].get("sealed", 0) >= count, seconds=20)


def flip(path: Path) -> None:
    """One byte in a hundred."""
    chance = random.Random(path.name)
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        for _ in range(len(data) // 100):
            data[chance.randrange(len(data))] ^= 0xFF
        file.seek(0)
        file.write(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


SPOILERS: dict[str, Callable[[Path], None]] = {"flipped": flip, "truncated": truncate, "deleted": Path.unlink}


@pytest.mark.parametrize("how", SPOILERS)
@pytest.mark.parametrize("mode", ["sealed", pytest.param("always", marks=pytest.mark.soak), "between"])
def test_spoilt_cache_files_are_found_out_and_fetched_again(
    bucket: Bucket, mountkit: CommandLine, how: str, mode: str
) -> None:
    """[bytes-1] [bytes-4]"""
    objects = fill(bucket)
    flags = ["--verify", "always"] if mode == "always" else []
    root = mountkit.mount(bucket.source, *flags)
    check(root, objects)
    native = mountkit.status(root)["passthrough"]
    if native:
        until_sealed(mountkit, root, len(objects))
    if mode == "between":
        mountkit.unmount(root)
    files = cache_files(mountkit)
    assert files
    for path in files:
        SPOILERS[how](path)
    drop_page_cache()
    if mode == "between":
        root = mountkit.mount(bucket.source, *flags)
    check(root, objects)
    check(root, objects)
    status = mountkit.status(root)
    log = Path(status["log"]).read_text()
    if mode != "always" or how != "deleted":  # what servers still hold open is right, and nothing is to be said
        assert "not what was written" in log or "were deleted" in log
    assert status["state"] == "ok", status["reasons"]
    assert status["reads"]["errors"] == 0


def test_with_verify_always_an_open_file_is_checked_too(bucket: Bucket, mountkit: CommandLine) -> None:
    """[bytes-1] Sealed files are trusted while they are open; with `--verify always` no byte ever is."""
    data = content(1, LARGE)
    bucket.put("d/f", data)
    root = mountkit.mount(bucket.source, "--verify", "always")
    assert mountkit.status(root)["passthrough"] is False
    with open(root / "d/f", "rb") as file:
        assert file.read() == data
        for path in cache_files(mountkit):
            flip(path)
        drop_page_cache()
        assert os.pread(file.fileno(), LARGE, 0) == data


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(random.Random(1).randbytes(path.stat().st_size))


@pytest.mark.parametrize("name", ["catalog.db", "index.db"])
@pytest.mark.parametrize(
    "how", ["deleted", "overwritten", *(pytest.param(h, marks=SOAK) for h in ("truncated", "flipped"))]
)
def test_a_database_that_is_lost_or_spoilt_under_a_live_mount_is_begun_anew(
    bucket: Bucket, mountkit: CommandLine, name: str, how: str
) -> None:
    """[failures-7]"""
    objects = fill(bucket)
    root = mountkit.mount(bucket.source, "--ttl", "1s")
    check(root, objects)
    spoil = {"overwritten": overwrite, **SPOILERS}[how]
    for path in [p for p in state_directory(mountkit, root).iterdir() if p.name in (name, f"{name}-wal")]:
        if path.stat().st_size:
            spoil(path)
    objects |= fill(bucket, first=10)

    def works() -> bool:
        with contextlib.suppress(OSError):
            check(root, objects)
            return mountkit.status(root)["state"] == "ok"
        return False

    wait_until(works, seconds=20)
    check(root, objects)
