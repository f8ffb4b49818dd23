"""The s3fs driver: the real s3fs behind our command line, our status and our errors."""

from __future__ import annotations

import hashlib
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.credentials import ReadOnlyCredentials

from mountkit import mountinfo, s3fs
from mountkit.store.access import Wallet
from tests.mount.conftest import Bucket, CommandLine, content, kill, wait_until
from tests.store.raw_server import RawServer, Request, answer

_S3FS = ("--driver", "s3fs")


def _s3fs(mountkit: CommandLine, root: Path) -> psutil.Process:
    return psutil.Process(mountkit.status(root)["server_pids"][0])


def test_the_same_command_mounts_by_s3fs_and_every_byte_is_right(bucket: Bucket, mountkit: CommandLine) -> None:
    objects = {f"a/{n}": content(n, 1000 * n) for n in range(5)} | {"a/b/c/big": content(9, 12_000_000), "top": b"top"}
    for key, data in objects.items():
        bucket.put(key, data)
    root = mountkit.mount(bucket.source, *_S3FS)
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert found == objects
    status = mountkit.status(root)
    assert (status["driver"], status["state"], status["source"]) == ("s3fs", "ok", f"s3://data/{bucket.prefix[:-1]}")
    assert status["server_pids"][0] in mountkit.processes()
    text = mountkit.run("status", str(root)).out
    assert "s3fs" in text
    assert status["log"] in text
    mountkit.unmount(root)
    wait_until(lambda: not mountkit.processes())


def test_random_parallel_and_mapped_reads_are_right(bucket: Bucket, mountkit: CommandLine) -> None:
    """What the first mount's reading tests ask of a file, where s3fs can answer; docs/s3fs.md lists where it cannot."""
    data = content(5, 9_000_000)
    bucket.put("large", data)
    root = mountkit.mount(bucket.source, *_S3FS)
    offsets = [(n * 7_919_317) % (len(data) - 70_000) for n in range(60)]

    def right(offset: int) -> bool:
        with open(root / "large", "rb") as file:
            return os.pread(file.fileno(), 70_000, offset) == data[offset : offset + 70_000]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, offsets))
    with open(root / "large", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[-100_000:] == data[-100_000:]
        assert hashlib.sha256(mapped).digest() == hashlib.sha256(data).digest()
    with pytest.raises(FileNotFoundError):
        (root / "not-there").read_bytes()


def test_options_become_s3fs_options_and_secrets_are_in_no_argument(bucket: Bucket, mountkit: CommandLine) -> None:
    bucket.put("d/x", b"x")
    root = mountkit.mount(
        bucket.source, *_S3FS, "--uid", "12", "--gid", "34", "--umask", "027", "--ttl", "7s", "--allow-other"
    )
    found = os.stat(root / "d/x")
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12, 34, 0o550)
    point = next(m for m in mountinfo.ours() if m.directory == str(root))
    assert {"ro", "nosuid", "nodev"} <= point.options
    assert "allow_other" in point.super_options
    with pytest.raises(OSError, match="Read-only file system"):
        (root / "new").touch()
    process = _s3fs(mountkit, root)
    line = " ".join(process.cmdline())
    assert "stat_cache_expire=7" in line
    assert f"use_cache={mountkit.cache}" in line
    secrets = (bucket.environment["AWS_SECRET_ACCESS_KEY"], bucket.environment["AWS_ACCESS_KEY_ID"])
    everything = line + str(process.environ()) + Path(mountkit.status(root)["log"]).read_text()
    assert not any(secret in everything for secret in secrets)


def test_what_s3fs_cannot_honour_is_named(bucket: Bucket, mountkit: CommandLine) -> None:
    root = mountkit.base / "m"
    root.mkdir()
    words = ("mount", bucket.source, str(root), "--cache", str(mountkit.cache), *_S3FS)
    result = mountkit.run(*words, "--cache-size", "1GB", "--verify", "always", "--data-budget", "5s")
    mountkit.mounted.append(root)
    assert result.code == 0, result.err
    assert result.err == "note: s3fs cannot honour --cache-size, --verify, --data-budget\n"
    for command in ("refresh", "warm"):
        refused = mountkit.run(command, str(root))
        assert refused.code == 2
        assert "served by s3fs" in refused.err


def test_an_s3fs_that_dies_is_started_again_and_one_without_its_watcher_is_named(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    bucket.put("x", b"still here")
    root = mountkit.mount(bucket.source, *_S3FS)
    first = _s3fs(mountkit, root).pid
    kill(first)
    wait_until(lambda: mountkit.run("status", str(root), "--json").out.count('"state": "ok"') == 1)
    status = mountkit.status(root)
    assert status["restarts"]["server"] == 1
    assert status["server_pids"] != [first]
    assert (root / "x").read_bytes() == b"still here"
    kill(status["keeper_pid"])
    wait_until(lambda: mountkit.status(root)["state"] == "unwatched")
    assert (root / "x").read_bytes() == b"still here"
    mountkit.unmount(root)
    wait_until(lambda: not mountkit.processes())


def test_while_the_bucket_is_away_a_dead_s3fs_is_a_degraded_mount_with_its_reason(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    bucket.put("x", b"back")
    root = mountkit.mount(bucket.source, *_S3FS)
    bucket.proxy.refuse()
    try:
        kill(_s3fs(mountkit, root).pid)
        wait_until(lambda: "connection refused" in " ".join(mountkit.status(root)["reasons"]))
        assert mountkit.status(root)["state"] == "degraded"
    finally:
        bucket.proxy.listen_again()
    wait_until(lambda: mountkit.run("status", str(root), "--json").out.count('"state": "ok"') == 1)
    assert (root / "x").read_bytes() == b"back"


def test_an_ordinary_umount_ends_it_in_order(bucket: Bucket, mountkit: CommandLine) -> None:
    root = mountkit.mount(bucket.source, *_S3FS)
    subprocess.run(["umount", "-i", str(root)], check=True)
    wait_until(lambda: not mountkit.processes())
    mountkit.mounted.remove(root)


def test_a_bucket_that_cannot_be_had_is_named_before_s3fs_is_started(bucket: Bucket, mountkit: CommandLine) -> None:
    root = mountkit.base / "m"
    root.mkdir()
    words = ("mount", bucket.source, str(root), "--cache", str(mountkit.cache), *_S3FS)
    result = mountkit.run(*words, environment={**mountkit.environment, "AWS_SECRET_ACCESS_KEY": "wrong"})
    assert result.code == 7
    assert "the secret does not fit the access key" in result.err
    wait_until(lambda: not mountkit.processes())
    assert not [m for m in mountinfo.ours() if m.directory == str(root)]


def test_a_session_token_goes_to_s3fs_alone_and_in_no_argument() -> None:
    class Temporary(Wallet):
        def __init__(self) -> None:
            pass

        @property
        def signs(self) -> bool:
            return True

        def current(self) -> Any:
            return ReadOnlyCredentials("AKIAX", "the-secret", "the-token")

    said: list[Request] = []

    def refuse(request: Request) -> list[bytes]:
        said.append(request)
        return [answer(403, code="InvalidToken")]

    with RawServer(refuse) as server, s3fs._keys(Temporary()) as (words, variables, fds):
        assert words == ["use_session_token"]
        command = ["s3fs", "data", "/nowhere", "-f", "-o", f"url={server.endpoint},use_path_request_style"]
        with tempfile.TemporaryDirectory() as directory:
            command[2] = directory
            environment = {"PATH": os.environ["PATH"]} | variables
            line = [*command, "-o", words[0]]
            subprocess.run(line, env=environment, pass_fds=fds, capture_output=True, timeout=30, check=False)
    assert said[0].headers["x-amz-security-token"] == "the-token"


def test_auto_falls_back_to_s3fs_and_says_why(bucket: Bucket, mountkit: CommandLine) -> None:
    bucket.put("x", b"x")
    package = mountkit.base / "broken" / "pyfuse3"
    package.mkdir(parents=True)
    library = package / "__init__.cpython-311-x86_64-linux-gnu.so"
    library.write_bytes(b"no library")
    environment = {**mountkit.environment, "PYTHONPATH": str(package.parent)}
    root = mountkit.base / "m"
    root.mkdir()
    words = ("mount", bucket.source, str(root), "--cache", str(mountkit.cache))
    result = mountkit.run(*words, environment=environment)
    mountkit.mounted.append(root)
    assert result.code == 0, result.err
    assert result.err.startswith("note: pyfuse3 cannot be loaded:")
    assert "so s3fs serves this mount" in result.err
    assert mountkit.status(root)["driver"] == "s3fs"
    assert (root / "x").read_bytes() == b"x"
    mountkit.unmount(root)
    bare = {**environment, "PATH": str(mountkit.base)}
    refused = mountkit.run(*words, environment=bare)
    assert refused.code == 5
    assert "pyfuse3 cannot be loaded" in refused.err
    assert "s3fs, which could serve instead, is not installed" in refused.err
    explicit = mountkit.run(*words, "--driver", "fuse", environment=environment)
    assert explicit.code == 5


def test_a_run_reads_a_mount_that_s3fs_serves(bucket: Bucket, mountkit: CommandLine, tiny_image: str) -> None:
    bucket.put("a.txt", b"by s3fs\n")
    words = ("run", "--driver", "s3fs", "--cache", str(mountkit.cache), "--input", f"{bucket.source}:/in")
    result = mountkit.run(*words, tiny_image, "cat", "/in/a.txt", timeout=90)
    assert result.code == 0, result.err
    assert result.out == "by s3fs\n"
    wait_until(lambda: not mountkit.processes())


def test_as_a_unit_it_is_ready_when_the_mount_answers_and_ends_in_order(bucket: Bucket, mountkit: CommandLine) -> None:
    bucket.put("x", b"x")
    root = mountkit.base / "m"
    root.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(30)
        manager.bind(str(mountkit.base / "notify"))
        words = ("mount", bucket.source, str(root), "--cache", str(mountkit.cache), *_S3FS, "--foreground")
        unit = subprocess.Popen(
            [sys.executable, "-m", "mountkit", *words],
            env={**mountkit.environment, "NOTIFY_SOCKET": str(mountkit.base / "notify"), "WATCHDOG_USEC": "600000"},
        )
        mountkit.mounted.append(root)
        told = [manager.recv(4096).decode() for _ in range(2)]
        assert told[0].startswith("READY=1\nSTATUS=s3://data")
        assert told[1].startswith("WATCHDOG=1")
        assert (root / "x").read_bytes() == b"x"
        unit.terminate()
        wait_until(lambda: manager.recv(4096).startswith(b"STOPPING=1"))
        assert unit.wait(timeout=20) == 0
    mountkit.mounted.remove(root)
    assert not [point for point in mountinfo.ours() if point.directory == str(root)]
