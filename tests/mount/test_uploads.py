"""A writable mount seen from the bucket: what arrives there, when, and what happens where it cannot."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import Bucket, CommandLine, content

DEADLINE_S = 30.0


def until(met: Callable[[], Any], what: str) -> Any:
    """What `met` returns, once that is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := met()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def objects(bucket: Bucket) -> dict[str, int]:
    """Keys below the prefix and their sizes."""
    pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=bucket.prefix)
    return {
        each["Key"].removeprefix(bucket.prefix): each["Size"] for page in pages for each in page.get("Contents", ())
    }


def read(bucket: Bucket, key: str) -> bytes:
    body: bytes = bucket.client.get_object(Bucket=bucket.name, Key=bucket.prefix + key)["Body"].read()
    return body


def unfinished(bucket: Bucket) -> list[str]:
    found = bucket.client.list_multipart_uploads(Bucket=bucket.name, Prefix=bucket.prefix)
    return [each["Key"] for each in found.get("Uploads", ())]


def outputs(mountkit: CommandLine, directory: Path) -> dict[str, dict[str, Any]]:
    result = mountkit.run("outputs", str(directory), "--json", "--cache", str(mountkit.cache))
    assert result.code == 0, result.err
    return {each["path"]: each for each in json.loads(result.out)}


def test_unmount_returns_once_everything_is_in_the_bucket(bucket: Bucket, mountkit: CommandLine) -> None:
    """[uploads-3] [uploads-5] [uploads-12]"""
    mounted = mountkit.mount(bucket.source, "--writable")
    expected = {}
    for number in range(100):
        name = f"step/{number}.bin"
        (mounted / "step").mkdir(exist_ok=True)
        expected[name] = content(number, 20_000 + number)
        (mounted / name).write_bytes(expected[name])
    expected["large.bin"] = content(7, 40_000_000)
    (mounted / "large.bin").write_bytes(expected["large.bin"])
    os.utime(mounted / "step/3.bin", ns=(10**18, 1_354_040_105_123_456_789))
    mountkit.unmount(mounted)
    assert objects(bucket) == {name: len(data) for name, data in expected.items()}
    assert all(read(bucket, name) == data for name, data in expected.items())
    assert bucket.head("step/3.bin")["Metadata"]["mtime"] == "1354040105.123456789"
    assert not unfinished(bucket)
    found = outputs(mountkit, mounted)
    assert {each["state"] for each in found.values()} <= {"done"}


def test_outputs_lists_what_is_staged_and_drain_says_what_is_left(bucket: Bucket, mountkit: CommandLine) -> None:
    """[uploads-6] [uploads-8]"""
    mounted = mountkit.mount(bucket.source, "--writable", "--data-budget", "1s")
    os.listdir(mounted)  # names of a directory that nobody has listed could not be made while the bucket is away
    bucket.proxy.refuse()
    try:
        (mounted / "a.bin").write_bytes(content(1, 1000))
        found = until(lambda: outputs(mountkit, mounted), "nothing was staged")
        assert found["a.bin"]["state"] in ("staged", "uploading") and found["a.bin"]["size"] == 1000
        result = mountkit.run("drain", str(mounted), "--timeout", "3s")
        assert result.code == 9 and "did not reach the bucket" in result.err and "--export" in result.err
        result = mountkit.run("outputs", str(mounted), "--export", str(mountkit.base / "out"))
        assert result.code == 0 and (mountkit.base / "out/a.bin").read_bytes() == content(1, 1000)
        until(lambda: mountkit.status(mounted)["state"] == "degraded", "status does not say that uploads wait")
    finally:
        bucket.proxy.listen_again()
    assert mountkit.run("outputs", str(mounted), "--wait", timeout=60).code == 0
    assert read(bucket, "a.bin") == content(1, 1000)
    assert outputs(mountkit, mounted)["a.bin"]["state"] == "done"


def test_past_its_timeout_unmount_says_what_is_left_and_the_next_mount_goes_on(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    """[uploads-1] [uploads-5] [uploads-8]"""
    mounted = mountkit.mount(bucket.source, "--writable", "--drain-timeout", "2s", "--data-budget", "1s")
    os.listdir(mounted)  # names of a directory that nobody has listed could not be made while the bucket is away
    bucket.proxy.refuse()
    try:
        for number in range(5):
            (mounted / f"{number}.bin").write_bytes(content(number, 1000))
        result = mountkit.run("unmount", str(mounted))
        assert result.code == 9 and "5 operations" in result.err and "--force" in result.err
        assert (mounted / "3.bin").read_bytes() == content(3, 1000)
        mountkit.unmount(mounted, "--force")
        result = mountkit.run("drain", str(mounted), "--cache", str(mountkit.cache))
        assert result.code == 9 and "mount it again" in result.err
        result = mountkit.run("outputs", str(mounted), "--cache", str(mountkit.cache))
        assert result.code == 0 and result.out.count("staged") == 5
    finally:
        bucket.proxy.listen_again()
    mountkit.mount(bucket.source, "--writable")
    mountkit.unmount(mounted)
    assert all(read(bucket, f"{number}.bin") == content(number, 1000) for number in range(5))
    assert not unfinished(bucket)


def test_what_the_bucket_refuses_for_good_is_said_and_kept(bucket: Bucket, mountkit: CommandLine) -> None:
    """[uploads-7]"""
    denied = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(denied), denied)
    mounted = mountkit.mount(bucket.source, "--writable")
    bucket.proxy.fault = lambda method, target: answer if method == "PUT" and "/secret" in target else None
    (mounted / "secret.bin").write_bytes(content(1, 500))
    (mounted / "other.bin").write_bytes(content(2, 500))
    until(lambda: mountkit.status(mounted)["outputs"]["failed"] == 1, "the refusal is not in status")
    status = mountkit.status(mounted)
    assert status["state"] == "degraded" and any("secret.bin" in reason for reason in status["reasons"])
    assert outputs(mountkit, mounted)["secret.bin"]["state"] == "failed"
    result = mountkit.run("unmount", str(mounted))
    assert result.code == 9 and "secret.bin" in result.err and "may not write" in result.err
    with pytest.raises(OSError):
        fd = os.open(mounted / "secret.bin", os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    bucket.proxy.fault = None
    mountkit.unmount(mounted)
    assert objects(bucket) == {"other.bin": 500, "secret.bin": 500}


def test_sigterm_to_the_keeper_drains_too(bucket: Bucket, mountkit: CommandLine) -> None:
    """[uploads-5]"""
    mounted = mountkit.mount(bucket.source, "--writable")
    for number in range(50):
        (mounted / f"{number}.bin").write_bytes(content(number, 10_000))
    os.kill(mountkit.status(mounted)["keeper_pid"], signal.SIGTERM)
    until(lambda: not mountkit.processes(), "the mount does not end")
    mountkit.mounted.remove(mounted)
    assert len(objects(bucket)) == 50


def test_the_mover_may_die_at_any_moment_of_an_upload(bucket: Bucket, mountkit: CommandLine) -> None:
    """[uploads-1] [uploads-3]"""
    mounted = mountkit.mount(bucket.source, "--writable")
    data = content(3, 60_000_000)
    (mounted / "large.bin").write_bytes(data)
    for number in range(200):
        (mounted / f"{number}.bin").write_bytes(content(number, 5000))
    for _ in range(4):
        time.sleep(0.4)  # anywhere in the uploads; where exactly does not matter
        os.kill(mountkit.status(mounted)["mover_pid"], signal.SIGKILL)
        until(lambda: mountkit.status(mounted)["mover_pid"] in mountkit.processes(), "no mover comes")
    mountkit.unmount(mounted)
    assert read(bucket, "large.bin") == data and len(objects(bucket)) == 201
    assert not unfinished(bucket)


def test_fsync_returns_once_the_bucket_has_the_file(bucket: Bucket, mountkit: CommandLine) -> None:
    """[uploads-2]"""
    mounted = mountkit.mount(bucket.source, "--writable", "--data-budget", "2s")
    with open(mounted / "a.bin", "wb") as file:
        for size in (1000, 20_000_000):
            file.write(content(size, size))
            file.flush()
            os.fsync(file.fileno())
            assert len(read(bucket, "a.bin")) == file.tell()
        bucket.proxy.refuse()
        try:
            file.write(b"more")
            file.flush()
            with pytest.raises(OSError):
                os.fsync(file.fileno())
        finally:
            bucket.proxy.listen_again()
    mountkit.unmount(mounted)
    assert read(bucket, "a.bin").endswith(b"more")


def test_no_clobber_refuses_to_replace_what_somebody_else_wrote(bucket: Bucket, mountkit: CommandLine) -> None:
    """[uploads-9]"""
    mounted = mountkit.mount(bucket.source, "--writable", "--no-clobber")
    for number in range(3):
        (mounted / "b.txt").write_bytes(b"%d" % number)
    with open(mounted / "a.txt", "wb") as file:
        file.write(b"ours")
        bucket.put("a.txt", b"theirs")
    until(lambda: outputs(mountkit, mounted).get("a.txt", {}).get("state") == "failed", "it was not refused")
    assert "somebody else" in outputs(mountkit, mounted)["a.txt"]["reason"]
    assert mountkit.run("unmount", str(mounted)).code == 9
    assert read(bucket, "a.txt") == b"theirs" and read(bucket, "b.txt") == b"2"
    mountkit.unmount(mounted, "--force")
