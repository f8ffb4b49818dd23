"""Fetching ahead on real mounts: a shuffled epoch, and what a few random files cost."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine, wait_until
from tests.sim import SIZE, SimServer, body_of

pytestmark = pytest.mark.timeout(120)


def _mounted(mountkit: CommandLine, server: SimServer) -> Path:
    return mountkit.mount("s3://sim", "--endpoint", server.url, "--region", "us-east-1", "--anonymous")


def _gets(mountkit: CommandLine, root: Path) -> int:
    return int(mountkit.status(root)["requests"]["get"])


def _shuffled(directories: int, files: int) -> list[str]:
    keys = [f"d{d:04d}/f{f:06d}.jpg" for d in range(directories) for f in range(files)]
    random.Random(1).shuffle(keys)
    return keys


def test_a_shuffled_epoch_is_fetched_ahead_with_one_get_a_file(bucket: Bucket, mountkit: CommandLine) -> None:
    with SimServer(10, 150) as server:
        root = _mounted(mountkit, server)
        keys = _shuffled(10, 150)
        for key in keys:
            assert (root / key).read_bytes() == body_of(key)
        reads = mountkit.status(root)["reads"]
        assert reads["fetched_opens"] < 0.5 * len(keys)
        assert _gets(mountkit, root) <= 1.05 * len(keys)


def test_a_hundred_random_files_cost_at_most_four_times_their_bytes(bucket: Bucket, mountkit: CommandLine) -> None:
    with SimServer(20, 1000) as server:
        root = _mounted(mountkit, server)
        for key in _shuffled(20, 1000)[:100]:
            assert (root / key).read_bytes() == body_of(key)
        stopped = time.monotonic()
        counts = [0, 0]

        def quiet() -> bool:
            counts[:] = [counts[1], _gets(mountkit, root)]
            return counts[0] == counts[1]

        wait_until(quiet)
        assert time.monotonic() - stopped < 5.0
        requests = mountkit.status(root)["requests"]
        assert 100 < requests["get"] <= 400
        assert 100 * SIZE < requests["bytes_received"] <= 4 * 100 * SIZE


def test_a_given_order_is_fetched_and_announced_files_too(bucket: Bucket, mountkit: CommandLine) -> None:
    with SimServer(2, 50) as server:
        root = _mounted(mountkit, server)
        (mountkit.base / "order").write_text(f"d0000/f000003.jpg\n{root}/d0001/f000001.jpg\n")
        done = mountkit.run("warm", str(root), "--order", str(mountkit.base / "order"), "--ahead", "5")
        assert done.code == 0, done.err
        assert "2 files, 2.0 KB are in the cache" in done.err
        assert _gets(mountkit, root) == 2
        announce = f"from mountkit.order import announce; announce({str(root)!r}, ['d0001/f000007.jpg'])"
        subprocess.run([sys.executable, "-c", announce], check=True, env=mountkit.environment)
        wait_until(lambda: _gets(mountkit, root) == 3)
        assert (root / "d0001/f000007.jpg").read_bytes() == body_of("d0001/f000007.jpg")
        assert _gets(mountkit, root) == 3
        assert mountkit.run("warm", str(root), "--ahead", "5").code == 2


def test_a_trace_of_opens_is_replayed_in_a_fresh_mount(bucket: Bucket, mountkit: CommandLine) -> None:
    with SimServer(2, 50) as server:
        root = _mounted(mountkit, server)
        trace = mountkit.base / "epoch.trace"
        assert mountkit.run("trace", "stop", str(root)).code == 2, "none is running"
        keys = _shuffled(2, 50)[:10]
        (root / keys[3]).read_bytes()
        wait_until(lambda: mountkit.status(root)["cache"]["sealed"] == 1)
        assert mountkit.run("trace", "start", str(root)).code == 0
        for key in keys + keys[:2]:
            (root / key).read_bytes()
        done = mountkit.run("trace", "stop", str(root), "--output", str(trace))
        assert done.code == 0 and "10 files" in done.err
        traced = trace.read_text().split()
        assert traced == keys, "each once, also the one that was sealed before"
        assert mountkit.run("trace", "start", str(root)).code == 0
        (root / keys[0]).read_bytes()
        (running,) = (Path(mountkit.status(root)["state_directory"]) / "traces").iterdir()
        running.chmod(0o400)  # as a server does that cannot write an open down
        cut = mountkit.base / "cut.trace"
        done = mountkit.run("trace", "stop", str(root), "--output", str(cut))
        assert done.code == 0 and "warning: the trace is incomplete: not every open" in done.err
        done = mountkit.run("warm", str(root), "--trace", str(cut))
        assert done.code == 0 and "cut.trace is an incomplete trace" in done.err and "1 files" in done.err
        mountkit.unmount(root)
        fresh = mountkit.mount(
            "s3://sim",
            "--endpoint",
            server.url,
            "--region",
            "us-east-1",
            "--anonymous",
            "--cache",
            str(mountkit.base / "other"),
            name="fresh",
        )
        done = mountkit.run("warm", str(fresh), "--trace", str(trace))
        assert done.code == 0 and "10 files" in done.err
        assert _gets(mountkit, fresh) == 10
