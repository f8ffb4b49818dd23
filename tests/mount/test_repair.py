"""`mountkit status --repair`: mounts that died are mounted again as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mountkit import mountinfo, places, remembered
from tests.mount.conftest import Bucket, CommandLine, kill, kill_all_at_once, wait_until


def test_a_dead_mount_is_mounted_again_as_it_was(bucket: Bucket, mountkit: CommandLine) -> None:
    bucket.put("x", b"still here")
    root = mountkit.mount(bucket.source, "--ttl", "7m", "--umask", "077")
    assert (root / "x").read_bytes() == b"still here"
    nothing = mountkit.run("status", str(root), "--repair")
    assert nothing.out == "nothing needs to be repaired\n"
    kill_all_at_once(mountkit)
    assert "status --repair" in mountkit.run("status", str(root)).out
    repaired = mountkit.run("status", str(root), "--repair")
    assert repaired.code == 0, repaired.err
    assert repaired.out == f"{root} was dead: mounted again\n"
    assert (root / "x").read_bytes() == b"still here"
    assert mountkit.status(root)["ttl_s"] == 420
    assert os.stat(root / "x").st_mode & 0o777 == 0o400


def test_a_mount_that_cannot_be_mounted_again_now_is_owed(bucket: Bucket, mountkit: CommandLine) -> None:
    bucket.put("x", b"x")
    root = mountkit.mount(bucket.source)
    kill_all_at_once(mountkit)
    nobody = {**mountkit.environment, "AWS_SECRET_ACCESS_KEY": "wrong"}
    failed = mountkit.run("status", str(root), "--repair", environment=nobody)
    assert failed.code == 3
    assert "was dead; it is not mounted again yet: the secret does not fit" in failed.err
    assert not [point for point in mountinfo.ours() if point.directory == str(root)]
    repaired = mountkit.run("status", str(root), "--repair")
    assert repaired.out == f"{root} had been taken away: mounted again\n"
    assert (root / "x").read_bytes() == b"x"


def test_an_unwatched_s3fs_is_watched_again(bucket: Bucket, mountkit: CommandLine) -> None:
    bucket.put("x", b"x")
    root = mountkit.mount(bucket.source, "--driver", "s3fs")
    kill(mountkit.status(root)["keeper_pid"])
    wait_until(lambda: mountkit.status(root)["state"] == "unwatched")
    assert mountkit.run("status", str(root), "--repair").code == 0
    assert mountkit.status(root)["state"] == "ok"
    assert mountkit.status(root)["driver"] == "s3fs"


def test_a_repair_in_another_mount_namespace_forgets_nothing(bucket: Bucket, mountkit: CommandLine) -> None:
    """As in a container that has the host's /run: what it does not see is not what somebody unmounted."""
    bucket.put("x", b"still here")
    root = mountkit.mount(bucket.source, "--ttl", "7m")
    elsewhere = ["unshare", "-m", "--propagation", "private", "sh", "-ec", 'umount -l "$0"; exec "$@"', str(root)]
    repair = [sys.executable, "-m", "mountkit", "status", str(root), "--repair"]
    subprocess.run([*elsewhere, *repair], env=mountkit.environment, check=True, capture_output=True, timeout=60)
    kill_all_at_once(mountkit)
    assert mountkit.run("status", str(root), "--repair").out == f"{root} was dead: mounted again\n"
    assert mountkit.status(root)["ttl_s"] == 420


def test_what_is_unmounted_is_forgotten_and_no_secret_is_remembered(bucket: Bucket, mountkit: CommandLine) -> None:
    root = mountkit.mount(bucket.source)
    record = Path(places.mount_record(str(root)))
    assert record.stat().st_mode & 0o777 == 0o600
    assert bucket.environment["AWS_SECRET_ACCESS_KEY"] not in record.read_text()
    mountkit.unmount(root)
    assert remembered.recall(str(root)) is None
