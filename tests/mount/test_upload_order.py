"""Promises about the order of things in the bucket: markers, and files that grow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.mount.conftest import Bucket, CommandLine
from tests.mount.test_uploads import objects, read, unfinished, until

_LATE_S = 8.0
"""Two intervals until it is clear that a file only grows, the other's TTL, and patience with a machine that is busy."""
_WRITER = """
import json, os, sys, time
base, number, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for step in range(steps):
    shards = []
    for shard in range(3):
        name = f"w{number}-s{step}-{shard}.bin"
        with open(f"{base}/shards/{name}", "wb") as file:
            file.write(os.urandom(30_000))
        shards.append(name)
    with open(f"{base}/latest.tmp{number}", "w") as file:
        json.dump(shards, file)
    os.replace(f"{base}/latest.tmp{number}", f"{base}/latest")
"""
_LOGGER = """
import sys, time
with open(sys.argv[1], "a", buffering=1) as file:
    for number in range(int(sys.argv[2])):
        file.write(f"line {number}\\n")
        time.sleep(0.1)
"""

_TRAINER = """
import logging, os, sys, time
base = sys.argv[1]
logging.basicConfig(filename=f"{base}/train.log", filemode="a", format="%(message)s")
with open(f"{base}/events.out.tfevents.1", "wb") as events:  # as SummaryWriter opens it: not for appending
    for step in range(int(sys.argv[2])):
        logging.warning("step %d", step)
        events.write(step.to_bytes(8, "little") * 20)
        events.flush()
        time.sleep(0.1)
"""


def start(script: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script, *words])


def test_latest_never_names_what_is_not_in_the_bucket_under_8_writers_and_kills(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    """[uploads-4]"""
    mounted = mountkit.mount(bucket.source, "--writable")
    (mounted / "shards").mkdir()
    wrong: list[str] = []
    seen: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            try:
                latest = read(bucket, "latest")
            except bucket.client.exceptions.NoSuchKey:
                continue
            if latest.decode() in seen:
                continue
            seen.add(latest.decode())
            there = objects(bucket)
            wrong.extend(name for name in json.loads(latest) if f"shards/{name}" not in there)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        writers = [start(_WRITER, str(mounted), str(number), "4") for number in range(8)]
        for round_ in range(4):
            time.sleep(0.7)  # anywhere in the writing and uploading
            status = mountkit.status(mounted)
            victim = status["mover_pid"] if round_ % 2 == 0 else status["server_pids"][0]
            os.kill(victim, signal.SIGKILL)
            until(lambda: mountkit.status(mounted)["state"] in ("ok", "degraded"), "the mount does not recover")
        assert [writer.wait(60) for writer in writers] == [0] * 8
        mountkit.unmount(mounted)
    finally:
        ended.set()
        watcher.join()
    assert not wrong and seen
    there = objects(bucket)
    assert len([key for key in there if key.startswith("shards/w")]) == 8 * 4 * 3
    assert not [key for key in there if "tmp" in key] and not unfinished(bucket)


def test_a_log_is_readable_in_the_bucket_within_the_interval_and_costs_one_request_each(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    """[uploads-10]"""
    mounted = mountkit.mount(bucket.source, "--writable", "--live", "2s")
    began = time.monotonic()
    logger = start(_LOGGER, str(mounted / "train.log"), "80")
    late = 0.0
    while logger.poll() is None:
        time.sleep(0.2)
        written = len((mounted / "train.log").read_bytes()) if (mounted / "train.log").exists() else 0
        if time.monotonic() - began > 4.0:
            until(lambda: objects(bucket).get("train.log", 0) > 0, "nothing is in the bucket")
        begun = time.monotonic()
        if written:
            until(lambda size=written: objects(bucket).get("train.log", 0) >= size, "the bucket stays behind")  # type: ignore[misc]
            late = max(late, time.monotonic() - begun)
    seconds = time.monotonic() - began
    puts = [r for r in bucket.proxy.requests if r.method == "PUT" and r.target.endswith("train.log")]
    assert late <= 4.0, f"a line took {late:.1f} s to the bucket"
    assert len(puts) <= seconds / 2.0 + 2, f"{len(puts)} requests in {seconds:.1f} s"
    mountkit.unmount(mounted)
    assert read(bucket, "train.log").count(b"\n") == 80


def test_logs_and_events_are_read_by_another_machine_while_they_grow(
    bucket: Bucket, mountkit: CommandLine, tmp_path: Path
) -> None:
    """[uploads-10] [fresh-1] Its mount never shows but the beginning of what was written, and not much less of it."""
    mounted = mountkit.mount(bucket.source, "--writable", "--live", "1s")
    elsewhere = CommandLine(tmp_path / "elsewhere", mountkit.environment)
    elsewhere.base.mkdir()
    written: dict[str, list[tuple[float, int]]] = {"train.log": [], "events.out.tfevents.1": []}
    seen: dict[str, set[int]] = {name: set() for name in written}
    try:
        other = elsewhere.mount(bucket.source, "--ttl", "1s")
        trainer = start(_TRAINER, str(mounted), "100")
        while trainer.poll() is None:
            time.sleep(0.2)
            for name, sizes in written.items():
                there = (other / name).read_bytes() if (other / name).exists() else b""
                now = time.monotonic()
                whole = (mounted / name).read_bytes() if (mounted / name).exists() else b""
                assert whole.startswith(there)
                due = [size for at, size in sizes if at < now - _LATE_S]
                assert len(there) >= max(due, default=0), f"{name} is seen late"
                sizes.append((now, len(whole)))
                seen[name].add(len(there))
        assert all(len(sizes) > 3 for sizes in seen.values())
        mountkit.unmount(mounted)
        for name, sizes in written.items():
            until(lambda name=name: (other / name).stat().st_size == len(read(bucket, name)), "it is seen late")  # type: ignore[misc]
            assert (other / name).stat().st_size >= sizes[-1][1]
        elsewhere.unmount(other)
    finally:
        elsewhere.close()
