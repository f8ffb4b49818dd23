"""Memory: the kernel's out-of-memory kill of any process is survived, and under load none of them needs much."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import statistics
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.cgroups import memory_limit
from tests.mount.conftest import Bucket, CommandLine, content, drop_page_cache, wait_until
from tests.mount.test_disk import is_ok, reading

COUNT, SIZE = 60, 300_000


@pytest.mark.parametrize("who", ["server", "mover"])
def test_a_process_that_runs_out_of_memory_is_replaced(bucket: Bucket, mountkit: CommandLine, who: str) -> None:
    """[failures-1] The kernel kills it at a cgroup's limit, in the middle of its work."""
    objects = {f"d/{n:03d}": content(n, SIZE) for n in range(COUNT)}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: bucket.put(*item), objects.items()))
    root = mountkit.mount(bucket.source, "--servers", "1", "--no-passthrough")
    status = mountkit.status(root)
    pid = status["server_pids"][0] if who == "server" else status["mover_pid"]
    with memory_limit(f"{who}-{uuid.uuid4().hex[:8]}") as limit, reading(root, objects) as failures:
        limit.hold(pid, 256 << 10)

        def killed() -> bool:
            drop_page_cache()
            os.listdir(root / "d")
            return limit.kills > 0

        wait_until(killed, seconds=20)
        wait_until(is_ok(mountkit, root), seconds=20)
    assert failures == []
    for key, data in objects.items():
        assert (root / key).read_bytes() == data
    after = mountkit.status(root)
    assert after["restarts"][who] >= 1
    assert pid not in (*after["server_pids"], after["mover_pid"])
    assert "ended with -9" in Path(after["log"]).read_text() or "the mover is gone" in Path(after["log"]).read_text()


# ---- load ----------------------------------------------------------------------------------------------------
FILES, THREADS, WALKERS = 300, 64, 10


def test_under_load_memory_stays_small_and_nobody_starves(bucket: Bucket, mountkit: CommandLine) -> None:
    """300 files open at once, 64 reading threads, 10 processes that walk; cold, so that all of it is work."""
    run_load(bucket, mountkit, seconds=4.0, size=600_000)


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_half_an_hour_of_load_makes_nothing_grow(bucket: Bucket, mountkit: CommandLine) -> None:
    """As above; `MOUNTKIT_SOAK_S` makes it shorter. The last fifth needs no more memory than the second."""
    seconds = float(os.environ.get("MOUNTKIT_SOAK_S", "1800"))
    memory, descriptors = run_load(bucket, mountkit, seconds=seconds, size=2_000_000)
    fifth = len(memory) // 5
    before, after = max(memory[fifth : 2 * fifth]), max(memory[-fifth:])
    tenth = len(memory) // 10 + 1
    over_time = [max(memory[start : start + tenth]) >> 20 for start in range(0, len(memory), tenth)]
    print(f"memory {over_time} MiB at most in each tenth of the time; descriptors at most {max(descriptors)}")
    assert after < 1.15 * before
    assert max(descriptors[-fifth:]) < 1.15 * max(descriptors[fifth : 2 * fifth])


def run_load(bucket: Bucket, mountkit: CommandLine, *, seconds: float, size: int) -> tuple[list[int], list[int]]:
    """Memory (PSS) and descriptors of all processes, looked at about twice a second, while all of them work."""
    objects = {f"{n % 30:02d}/{n:03d}": content(n, size + 997 * n) for n in range(FILES)}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: bucket.put(*item), objects.items()))
    # Not through the proxy: it lives in this process, beside 64 reading threads.
    source = bucket.source.replace(bucket.proxy.url, bucket.client.meta.endpoint_url)
    root = mountkit.mount(source, "--no-passthrough", "--ttl", "2s")
    ended, walked = threading.Event(), f"while [ ! -e {mountkit.base}/end ]; do find {root} | wc -l; done"
    walkers = [
        subprocess.Popen(["sh", "-c", walked], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(WALKERS)
    ]
    memory, descriptors = list[int](), list[int]()
    with contextlib.ExitStack() as stack:
        files = [(stack.enter_context(open(root / key, "rb", buffering=0)), data) for key, data in objects.items()]
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            readers = [pool.submit(_read_about, files, n, ended) for n in range(THREADS)]
            deadline = time.monotonic() + seconds
            try:
                while time.monotonic() < deadline:
                    time.sleep(0.5)
                    memory.append(sum(_pss(pid) for pid in mountkit.processes()))
                    descriptors.append(sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in mountkit.processes()))
            finally:
                ended.set()
                (mountkit.base / "end").touch()
            done = sorted(reader.result(60) for reader in readers)
    for walker in walkers:
        out, err = walker.communicate(timeout=60)
        assert err == ""
        assert set(out.split()) == {str(FILES + 30 + 1)}, "a walk did not see every name"
    status = mountkit.status(root)
    middle = statistics.median(done)
    print(
        f"{seconds:g} s: at most {max(memory) >> 20} MiB, {max(descriptors)} descriptors; reads of the slowest thread,"
    )
    print(f"the median, the fastest: {done[0]}, {middle}, {done[-1]}; status says {status['memory_bytes'] >> 20} MiB")
    assert max(memory) < 600 << 20
    assert done[0] * 5 >= middle, f"one reader starved: {done}"
    assert (status["state"], status["reads"]["errors"]) == ("ok", 0), Path(status["log"]).read_text()[-3000:]
    assert status["restarts"] == {"server": 0, "mover": 0}
    assert 0.5 * memory[-1] < status["memory_bytes"] < 2 * memory[-1], "what `status` says of memory is not so"
    return memory, descriptors


def _read_about(files: list[tuple[BinaryIO, bytes]], seed: int, ended: threading.Event) -> int:
    """Reads pieces here and there, each checked, until the end: how many."""
    chance, count = random.Random(seed), 0
    while not ended.is_set():
        file, data = chance.choice(files)
        offset = chance.randrange(len(data))
        assert os.pread(file.fileno(), 200_000, offset) == data[offset : offset + 200_000]
        count += 1
        if chance.random() < 0.01:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that not all is the kernel's doing
    return count


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return 0
