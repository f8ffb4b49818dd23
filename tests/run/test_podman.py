"""Podman instead of Docker: its service at a socket, with a store of its own for images and containers."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine, content, our_processes, wait_until
from tests.mount.conftest import bucket as bucket
from tests.mount.conftest import proxy as proxy
from tests.run.test_whole import history, run_mounts, start

_BUILD = Path(__file__).parents[2] / "containers" / "tiny" / "build.py"
IMAGE = "mountkit/tiny:latest"
# Podman asks for more processes than a host without CAP_SYS_RESOURCE may give, unless it is told how many.
LIMITS = ("--ulimit", f"nproc={min(4096, resource.getrlimit(resource.RLIMIT_NPROC)[1])}")


@pytest.fixture(scope="module")
def podman() -> Iterator[dict[str, str]]:
    """Podman's service with the tiny image; yields what must be in the environment to meet it."""
    base = Path(tempfile.mkdtemp(prefix="podman-"))  # its runroot may have 50 characters at most
    path = base / "podman.sock"
    store = [f"--root={base}/root", f"--runroot={base}/run", "--storage-driver=vfs", "--cgroup-manager=cgroupfs"]
    command = ["podman", *store, "system", "service", "--time=0", f"unix://{path}"]
    with (base / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as service:
        try:
            wait_until(lambda: _answers(path), seconds=20)
            found = {"DOCKER_HOST": f"unix://{path}"}
            subprocess.run([sys.executable, str(_BUILD)], env={**os.environ, **found}, check=True, capture_output=True)
            yield found
        finally:
            service.terminate()
    subprocess.run(["podman", *store, "system", "reset", "--force"], check=False, capture_output=True)
    shutil.rmtree(base, ignore_errors=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture
def line(bucket: Bucket, podman: dict[str, str], tmp_path: Path) -> Iterator[CommandLine]:
    environment = {**bucket.environment, **podman, "XDG_STATE_HOME": str(tmp_path / "state")}
    yield CommandLine(tmp_path, environment)
    wait_until(lambda: not our_processes(tmp_path), seconds=15)


def _run(line: CommandLine, bucket: Bucket, *words: str) -> tuple[str, ...]:
    return ("--cache", str(line.cache), *LIMITS, "--input", f"{bucket.source}:/in", *words)


def test_a_container_of_podman_reads_the_bucket_and_its_exit_code_comes_through(
    bucket: Bucket, line: CommandLine
) -> None:
    bucket.put("a", content(1, 100_000))
    out = line.base / "out"
    script = "cp /in/a /out/b; echo done; exit 42"
    words = _run(line, bucket, "--output", f"{out}:/out", "--secret", "KEY=env:HOME", IMAGE, "sh", "-c", script)
    result = line.run("run", *words, timeout=90)
    assert (result.code, result.out) == (42, "done\n"), result.err
    assert (out / "b").read_bytes() == content(1, 100_000)
    (one,) = history(line)
    assert one["exit_code"] == 42
    assert json.loads(Path(one["receipt"]).read_text())["inputs"][0]["bytes_fetched"] == 100_000
    assert run_mounts(bucket) == []


def test_ctrl_c_stops_a_container_of_podman(bucket: Bucket, line: CommandLine) -> None:
    bucket.put("a", b"a")
    script = "trap 'echo ends; exit 7' TERM; echo begins; while true; do sleep 0.1; done"
    with start(line, *_run(line, bucket, IMAGE, "sh", "-c", script)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (7, "ends\n"), err
    assert run_mounts(bucket) == []


def test_a_detached_container_of_podman_is_followed_to_its_end(bucket: Bucket, line: CommandLine) -> None:
    bucket.put("a", b"a")
    words = _run(line, bucket, "--detach", "--name-run", "far", IMAGE, "sh", "-c", "sleep 1; cat /in/a; exit 5")
    started = line.run("run", *words, timeout=90)
    assert started.code == 0, started.err
    assert line.run("wait", "far").code == 5
    assert line.run("logs", "far").out == "a"


def test_an_image_podman_does_not_have_is_a_sentence(line: CommandLine) -> None:
    result = line.run("run", "--pull", "never", "localhost/no-such-image", "true")
    assert result.code == 8
    assert result.err.startswith("error: ")
    assert "localhost/no-such-image" in result.err
