"""Power cuts under a writable mount whose cache and staging lie on an ext4 of their own."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.faults.power import PoweredDisk, powered_disk
from tests.mount.conftest import Bucket, CommandLine, content, kill, wait_until
from tests.mount.writing import objects

_COMMIT_S = 1.0
"""Time for ext4 to commit what it was asked to."""


@pytest.fixture
def disk(mountkit: CommandLine) -> Iterator[PoweredDisk]:
    with powered_disk(mountkit.base, mountkit.cache) as made:
        yield made
        mountkit.close()


def _cut_power(disk: PoweredDisk, mountkit: CommandLine, mounted: Path) -> None:
    """The disk first, so that nothing that the dying do reaches it; then the machine."""
    disk.cut()
    wait_until(lambda: not _killed(mountkit), seconds=30)
    mountkit.unmount(mounted, "--force")
    disk.take_away()
    disk.restore()
    (journal,) = mountkit.cache.glob("mountkit-*/*/journal.db")
    with closing(sqlite3.connect(journal)) as db, db:
        db.execute("UPDATE setting SET value = '\"before\"' WHERE name = 'boot'")


def _killed(mountkit: CommandLine) -> list[int]:
    """Who was there to be killed: they start each other anew."""
    found = list(mountkit.processes())
    for pid in found:
        with suppress(ProcessLookupError):
            kill(pid)
    return found


def _wait_for_sync(disk: PoweredDisk, mounted: Path) -> None:
    """Returns once everything closed before is on the disk, which the mount sees to each second.

    The journal's row of a new file tells. The first may be there with a sync that was under way; the second is not.
    """
    for _ in range(2):
        name = uuid.uuid4().hex
        (mounted / name).touch()
        wait_until(lambda name=name: disk.holds(name.encode()), seconds=40)  # type: ignore[misc]
        os.unlink(mounted / name)
    time.sleep(_COMMIT_S)


def _mount_without_bucket(bucket: Bucket, mountkit: CommandLine) -> Path:
    """A mount that knows its directory and can upload nothing."""
    mounted = mountkit.mount(bucket.source, "--writable", "--data-budget", "1s")
    os.listdir(mounted)
    bucket.proxy.refuse()
    return mounted


def test_what_was_closed_a_moment_before_a_power_cut_comes_to_the_bucket(
    bucket: Bucket, mountkit: CommandLine, disk: PoweredDisk
) -> None:
    """[writing-6]"""
    count = 60
    mounted = _mount_without_bucket(bucket, mountkit)
    (mounted / "d").mkdir()
    try:
        for number in range(count):
            (mounted / "d" / f"{number}").write_bytes(content(number, 30_000))
        os.rename(mounted / "d" / "3", mounted / "renamed")
        os.unlink(mounted / "d" / "4")
        os.symlink("renamed", mounted / "link")
        with (mounted / "slow").open("wb", buffering=0) as slow:
            for _ in range(6):  # the mount syncs it meanwhile, and has to do so once more
                time.sleep(0.4)
                slow.write(content(9, 10_000))
                with (mounted / "log").open("ab") as log:
                    log.write(b"line\n")
        _wait_for_sync(disk, mounted)
        _cut_power(disk, mountkit, mounted)
    finally:
        bucket.proxy.listen_again()
    expected = {f"d/{n}": content(n, 30_000) for n in range(count) if n not in (3, 4)}
    expected |= {"renamed": content(3, 30_000), "slow": content(9, 10_000) * 6, "log": b"line\n" * 6}
    mounted = mountkit.mount(bucket.source, "--writable")
    assert {str(p.relative_to(mounted)): p.read_bytes() for p in mounted.rglob("*") if p.is_file()} == expected | {
        "link": expected["renamed"]
    }
    mountkit.unmount(mounted)
    assert objects(bucket) == expected | {"link": b"renamed"}


def test_bytes_that_a_power_cut_has_torn_are_never_published(
    bucket: Bucket, mountkit: CommandLine, disk: PoweredDisk
) -> None:
    """[writing-6] [uploads-4] The journal reached the disk, and the bytes that it promises did not.

    A marker that names them did, and the deletion of what they replace: neither comes to the bucket.
    """
    bucket.put("checkpoint", content(1, 50_000))
    bucket.put("before", content(5, 1000))
    mounted = _mount_without_bucket(bucket, mountkit)
    try:
        (mounted / "old").write_bytes(content(2, 50_000))
        _wait_for_sync(disk, mounted)
        with (mounted / "checkpoint.tmp").open("wb") as file:
            file.write(content(3, 60_000))
        os.replace(mounted / "checkpoint.tmp", mounted / "checkpoint")
        (mounted / "new").write_bytes(content(4, 60_000))
        (mounted / "latest").write_text("new")
        os.unlink(mounted / "before")
        _stop(mountkit)
        (journal,) = mountkit.cache.glob("mountkit-*/*/journal.db-wal")
        (marker,) = (path for path in mountkit.cache.glob("mountkit-*/*/staging/*") if path.read_bytes() == b"new")
        _sync(marker)
        _sync(journal)
        _cut_power(disk, mountkit, mounted)
    finally:
        bucket.proxy.listen_again()
    mounted = mountkit.mount(bucket.source, "--writable")
    shown = {path.name: path.read_bytes() for path in mounted.iterdir()}
    assert shown == {"checkpoint": content(1, 50_000), "old": content(2, 50_000), "before": content(5, 1000)}
    assert "'new'" in Path(mountkit.status(mounted)["log"]).read_text()
    mountkit.unmount(mounted)
    assert objects(bucket) == shown
    result = mountkit.run("outputs", str(mounted), "--cache", str(mountkit.cache))
    assert result.code == 0 and "new" in result.out and "latest" in result.out


def test_a_power_cut_under_a_writer_leaves_whole_versions_and_none_that_is_old(
    bucket: Bucket, mountkit: CommandLine, disk: PoweredDisk
) -> None:
    """[writing-6] [uploads-3] Files are replaced and written over, and uploaded meanwhile."""
    mounted = mountkit.mount(bucket.source, "--writable")
    closed: dict[str, list[bytes]] = {f"{how}{n}": [] for n in range(6) for how in ("new", "over")}
    dice = random.Random(6)
    numbers = itertools.count()
    _write_for(2.0, mounted, closed, dice, numbers)
    _wait_for_sync(disk, mounted)
    synced = {name: len(versions) - 1 for name, versions in closed.items()}
    _write_for(2.0, mounted, closed, dice, numbers)
    _cut_power(disk, mountkit, mounted)
    mounted = mountkit.mount(bucket.source, "--writable")
    mountkit.unmount(mounted)
    found = objects(bucket)
    for name, versions in closed.items():
        # Where a file was emptied to be written anew its old bytes are gone, here as on a local disk.
        is_sure = name.startswith("new") and synced[name] >= 0
        may_be = set(versions[synced[name] :]) if is_sure else {*versions, None}
        assert found.pop(name, None) in may_be, name
    assert all(key == "tmp" or body == b"" for key, body in found.items())


def _write_for(
    seconds: float, mounted: Path, closed: dict[str, list[bytes]], dice: random.Random, numbers: Iterator[int]
) -> None:
    """Replaces some files and writes others over, and notes each version that was closed."""
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        number = next(numbers)
        name, data = dice.choice(list(closed)), content(number, 20_000 + number % 1000)
        if name.startswith("new"):
            (mounted / "tmp").write_bytes(data)
            os.replace(mounted / "tmp", mounted / name)
        else:
            (mounted / name).write_bytes(data)
        closed[name].append(data)
        time.sleep(0.005)  # the disk is small


def _stop(mountkit: CommandLine) -> None:
    """Nobody syncs any more."""
    for pid in mountkit.processes():
        os.kill(pid, signal.SIGSTOP)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
