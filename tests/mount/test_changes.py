"""Changes in the bucket under a real mount: never a mixture of versions, the new state in time."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
import time
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine, content, wait_until

SIZE = 2_500_000
CHANGES = {"larger": SIZE + 700_000, "smaller": SIZE - 700_000, "the same size": SIZE, "truncated to nothing": 0}


def refresh(line: CommandLine, root: Path) -> None:
    assert line.run("refresh", str(root)).code == 0


@pytest.mark.parametrize("how", CHANGES)
def test_a_replaced_object_is_whole_before_and_after(bucket: Bucket, mountkit: CommandLine, how: str) -> None:
    """[bytes-1] [bytes-2] [fresh-1]"""
    old, new = content(1, SIZE), content(2, CHANGES[how])
    bucket.put("d/f", old)
    root = mountkit.mount(bucket.source, "--ttl", "1h")
    path = root / "d/f"
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        # Read first: a page fault holds the interpreter's lock, and the proxy that must answer it is a thread of ours.
        assert file.read() == old
        assert mapped[:] == old
        bucket.put("d/f", new)
        refresh(mountkit, root)
        assert path.stat().st_size == len(new)
        assert path.read_bytes() == new
        assert mapped[:] == old
        file.seek(0)
        assert file.read() == old
    assert path.read_bytes() == new


def test_a_deleted_object_is_gone_and_its_open_handle_is_not(bucket: Bucket, mountkit: CommandLine) -> None:
    """[bytes-2] [fresh-1]"""
    old = content(1, SIZE)
    bucket.put("d/f", old)
    bucket.put("d/g", b"stays")
    root = mountkit.mount(bucket.source, "--ttl", "1h")
    with open(root / "d/f", "rb") as file:
        assert file.read() == old
        bucket.delete("d/f")
        refresh(mountkit, root)
        with pytest.raises(FileNotFoundError):
            (root / "d/f").read_bytes()
        file.seek(0)
        assert file.read() == old
    assert os.listdir(root / "d") == ["g"]


def test_an_object_that_becomes_a_directory_and_one_again(bucket: Bucket, mountkit: CommandLine) -> None:
    """[names-2] [fresh-1]"""
    bucket.put("d/f", b"file")
    root = mountkit.mount(bucket.source, "--ttl", "1h")
    with open(root / "d/f", "rb") as file:
        assert file.read() == b"file"
        bucket.delete("d/f")
        bucket.put("d/f/inside", b"inside")
        refresh(mountkit, root)
        assert (root / "d/f").is_dir()
        assert (root / "d/f/inside").read_bytes() == b"inside"
    bucket.delete("d/f/inside")
    bucket.put("d/f", b"file again")
    refresh(mountkit, root)
    assert (root / "d/f").read_bytes() == b"file again"


@pytest.mark.parametrize("flags", [(), ("--no-passthrough",)], ids=["passthrough", "through us"])
def test_under_churn_every_read_is_of_one_version(
    bucket: Bucket, mountkit: CommandLine, flags: tuple[str, ...]
) -> None:
    """[bytes-1] A version's bytes betray it: all come from one seed, and the sizes go up and down."""
    size = 400_000
    sizes = {version: size + 1000 * (version % 7) for version in range(1, 200)}
    bucket.put("d/f", content(1, sizes[1]))
    root = mountkit.mount(bucket.source, "--ttl", "500ms", *flags)
    stop, written = threading.Event(), [1]

    def churn() -> None:
        chance = random.Random(1)
        while not stop.wait(chance.uniform(0.02, 0.15)) and written[-1] < 199:
            version = written[-1] + 1
            bucket.put("d/f", content(version, sizes[version]))
            written.append(version)

    writer = threading.Thread(target=churn)
    writer.start()
    seen, stale = set(), 0
    try:
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            try:
                with open(root / "d/f", "rb") as file:
                    parts = []
                    while part := file.read(130_000):
                        parts.append(part)
                        time.sleep(0.005)
            except OSError as exc:
                assert exc.errno == errno.ESTALE
                stale += 1
                continue
            found = b"".join(parts)
            version = next((v for v in written if content(v, sizes[v]) == found), None)
            assert version is not None, "a mixture of versions, or no version at all"
            seen.add(version)
    finally:
        stop.set()
        writer.join()
    assert len(seen) >= 3, f"only {seen} were seen, ESTALE {stale} times"
    last = content(written[-1], sizes[written[-1]])
    wait_until(lambda: (root / "d/f").read_bytes() == last, seconds=5)


def test_the_same_size_in_the_same_second_is_seen_within_the_ttl(bucket: Bucket, mountkit: CommandLine) -> None:
    """[fresh-1] Time and size say nothing here; the ETag does."""
    root = mountkit.mount(bucket.source, "--ttl", "1s")
    bucket.put("d/f", content(1, 1000))
    assert (root / "d/f").read_bytes() == content(1, 1000)
    for version in (2, 3, 4):
        bucket.put("d/f", content(version, 1000))
    started = time.monotonic()
    wait_until(lambda: (root / "d/f").read_bytes() == content(4, 1000), seconds=5)
    assert time.monotonic() - started < 1.0 + 2.0
