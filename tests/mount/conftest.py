"""Real mounts: the command line in subprocesses, a real S3 server behind a logging proxy, all taken down after."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from mountkit import mountinfo
from tests.http_proxy import LoggingProxy
from tests.servers import SeaweedServer


def content(seed: int, size: int) -> bytes:
    """Bytes that betray their offset: byte i is (seed + i) % 251."""
    pattern = bytes(i % 251 for i in range(251))
    start = seed % 251
    return (pattern[start:] + pattern * (size // 251 + 1))[:size]


def drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def our_processes(base: Path) -> dict[int, str]:
    """Processes of mountkit that commands of the test with this directory have started, by pid.

    Others may run mounts on this machine, too: `CommandLine` marks its own by a word in PATH, which they inherit.
    """
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line[:1] == ["s3fs"] or any(
            word.startswith(("mountkit.serve.", "mountkit.mover.", "mountkit.s3fs")) for word in line
        ):
            with contextlib.suppress(psutil.Error):
                if str(base) in process.environ().get("PATH", "").split(":"):
                    found[process.pid] = " ".join(line)
    return found


@dataclass
class Result:
    code: int
    out: str
    err: str
    seconds: float


@dataclass
class Bucket:
    """A prefix of its own in a bucket on the real server, reached through a logging proxy.

    One bucket for all tests: SeaweedFS gives each bucket volumes of its own, and has only so many.
    """

    name: str
    prefix: str
    client: Any = field(repr=False)
    proxy: LoggingProxy
    environment: dict[str, str] = field(repr=False)

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=self.prefix + key, Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=self.prefix + key)

    def head(self, key: str) -> Any:
        return self.client.head_object(Bucket=self.name, Key=self.prefix + key)

    @property
    def source(self) -> str:
        return f"s3://{self.name}/{self.prefix.rstrip('/')}?endpoint={self.proxy.url}"


@dataclass
class CommandLine:
    """`mountkit` as a user runs it, with directories of its own."""

    base: Path
    environment: dict[str, str] = field(repr=False)
    mounted: list[Path] = field(default_factory=list)
    python: str = sys.executable

    def __post_init__(self) -> None:
        self.environment = {**self.environment, "PATH": f"{self.environment.get('PATH', os.defpath)}:{self.base}"}

    @property
    def cache(self) -> Path:
        return self.base / "cache"

    def processes(self) -> dict[int, str]:
        """What its commands have started and still runs, by pid."""
        return our_processes(self.base)

    def run(self, *words: str, timeout: float = 60, environment: dict[str, str] | None = None) -> Result:
        started = time.monotonic()
        done = subprocess.run(
            [self.python, "-m", "mountkit", *words],
            env=self.environment if environment is None else environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - started)

    def mount(self, source: str, *flags: str, name: str = "m") -> Path:
        directory = self.base / name
        directory.mkdir(exist_ok=True)
        result = self.run("mount", source, str(directory), "--cache", str(self.cache), *flags)
        assert result.code == 0, result.err
        self.mounted.append(directory)
        return directory

    def unmount(self, directory: Path, *flags: str) -> None:
        result = self.run("unmount", str(directory), *flags)
        assert result.code == 0, result.err
        self.mounted.remove(directory)

    def status(self, directory: Path) -> dict[str, Any]:
        result = self.run("status", str(directory), "--json")
        assert result.code == 0, result.err
        found: dict[str, Any] = json.loads(result.out)[0]
        return found

    def close(self) -> None:
        for directory in list(self.mounted):
            with contextlib.suppress(subprocess.TimeoutExpired):  # what is left behind is told next, with its name
                self.run("unmount", str(directory), "--force", timeout=30)


def wait_until(what: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Waits for something another process does; fails loudly when it does not come."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def settled(count: Callable[[], int], *, seconds: float = 30.0) -> int:
    """The count once it has stayed the same for a second; fails loudly when it goes on changing."""
    deadline, last, since = time.monotonic() + seconds, count(), time.monotonic()
    while time.monotonic() < since + 1.0:
        assert time.monotonic() < deadline, "it went on changing"
        time.sleep(0.05)
        if (now := count()) != last:
            last, since = now, time.monotonic()
    return last


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_all_at_once(mountkit: CommandLine) -> None:
    kill_together(list(mountkit.processes()))
    wait_until(lambda: not mountkit.processes())


def kill_together(pids: list[int]) -> None:
    """Stops them all first, so that none sees another one die and begins its successor."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        kill(pid)


@pytest.fixture(scope="session")
def proxy(seaweed: SeaweedServer) -> Iterator[LoggingProxy]:
    with LoggingProxy(int(seaweed.endpoint.rsplit(":", 1)[1])) as running:
        yield running


@pytest.fixture
def bucket(seaweed: SeaweedServer, proxy: LoggingProxy) -> Iterator[Bucket]:
    client = seaweed.client()
    proxy.requests.clear()
    proxy.fault = None
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    environment = {
        **clean,
        "AWS_ACCESS_KEY_ID": seaweed.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweed.secret_key,
        "AWS_REGION": "us-east-1",
    }
    yield Bucket("data", f"{uuid.uuid4().hex[:10]}/", client, proxy, environment)


_OF_ITS_OWN = """
findmnt -rn -t fuse.mountkit -o TARGET | while read -r mount; do
    [ "$mount" = "$0" ] || umount -l "$(printf %b "$mount")"
done
echo ready
exec sleep "$1"
"""


@contextlib.contextmanager
def held_in_another_namespace(root: Path, propagation: str, seconds: float = 100) -> Iterator[int]:
    """A process, by its pid, whose mount namespace holds the mount `root`, and none that other tests have meanwhile."""
    command = ["unshare", "-m", "--propagation", propagation, "sh", "-c", _OF_ITS_OWN, str(root), f"{seconds}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as sleeper:
        assert sleeper.stdout is not None
        try:
            assert sleeper.stdout.readline() == b"ready\n"
            yield sleeper.pid
        finally:
            sleeper.kill()


@pytest.fixture
def mountkit(bucket: Bucket, tmp_path: Path) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path, {**bucket.environment, "XDG_STATE_HOME": str(tmp_path / "state")})
    yield line
    line.close()
    wait_until(lambda: not line.processes(), seconds=15)
    left = [m.directory for m in mountinfo.ours() if m.directory.startswith(str(tmp_path))]
    assert not left, f"mounts were left behind: {left}"
