"""Processes that die under running readers: nobody sees an error, a wrong byte, or a long wait."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import math
import os
import random
import signal
import stat
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mountkit import mountinfo, places
from tests.mount.conftest import Bucket, CommandLine, content, drop_page_cache, kill, kill_all_at_once, wait_until
from tests.mount.killing import killed_at_answer, stopped_after_reading

PATIENCE_S = 6.0
"""The longest a single file may take under kills, on a loaded machine."""
VARIANTS = [
    pytest.param(("--servers", "1"), id="one-server", marks=pytest.mark.soak),
    pytest.param(("--servers", "2"), id="two-servers"),
    pytest.param(("--servers", "2", "--no-passthrough"), id="no-passthrough", marks=pytest.mark.soak),
    pytest.param(("--servers", "2", "--no-passthrough", "--no-resend"), id="no-resend"),
]
TOGETHER = [
    "server",
    "all but one server",
    "mover",
    "keeper",
    "server and mover",
    "keeper and mover",
    "keeper and servers",
]


@dataclass(frozen=True)
class Reading:
    """When a file was read, on the clock that all processes share."""

    began: float
    seconds: float


def _read_until(stop: str, paths: list[Path], expected: list[str]) -> list[Reading]:
    """Reads and checks until the file `stop` exists."""
    done = []
    while not os.path.exists(stop):
        for path, digest in zip(paths, expected, strict=True):
            began = time.monotonic()
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            done.append(Reading(began, time.monotonic() - began))
            assert found == digest, path
    return done


@contextlib.contextmanager
def _readers(tmp_path: Path, directory: Path, objects: dict[str, bytes], how_many: int) -> Iterator[list[Reading]]:
    """Checksumming readers for the time of the block; afterwards all that they have read."""
    stop = tmp_path / "stop"
    paths = [directory / key for key in objects]
    expected = [hashlib.sha256(data).hexdigest() for data in objects.values()]
    readings: list[Reading] = []
    with concurrent.futures.ProcessPoolExecutor(how_many) as pool:
        step = max(1, len(paths) // how_many)
        running = [
            pool.submit(
                _read_until,
                str(stop),
                paths[n * step :] + paths[: n * step],
                expected[n * step :] + expected[: n * step],
            )
            for n in range(how_many)
        ]
        try:
            yield readings
        finally:
            stop.touch()
        for reader in running:
            done = reader.result(60)
            assert len(done) >= len(paths), "a reader was never through its files"
            readings += done


def _longest(readings: list[Reading]) -> float:
    """The seconds of the slowest file."""
    return max(reading.seconds for reading in readings)


def _fill(bucket: Bucket, count: int = 100, size: int = 300_000) -> dict[str, bytes]:
    objects = {f"f{n:03d}": content(n, size) for n in range(count)}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: bucket.put(*item), objects.items()))
    return objects


def _pids(status: dict[str, Any], who: str) -> list[int]:
    servers = status["server_pids"]
    return {
        "server": servers[:1],
        "all but one server": servers[1:] or servers,
        "mover": [status["mover_pid"]],
        "keeper": [status["keeper_pid"]],
        "server and mover": [servers[-1], status["mover_pid"]],
        "keeper and mover": [status["keeper_pid"], status["mover_pid"]],
        "keeper and servers": [status["keeper_pid"], *servers[1:]],
    }[who]


def _whole_without(mountkit: CommandLine, directory: Path, gone: list[int]) -> Callable[[], bool]:
    """Whether the mount is well again, with other processes in the places of those that are gone."""

    def whole() -> bool:
        result = mountkit.run("status", str(directory), "--json")
        (status,) = json.loads(result.out) if result.code == 0 else [{"state": "unknown"}]
        if status["state"] != "ok":
            return False
        return not {*status["server_pids"], status["mover_pid"], status["keeper_pid"]} & set(gone)

    return whole


def _answering(mountkit: CommandLine, directory: Path) -> dict[str, Any]:
    """The status, as soon as a keeper answers and a server serves."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        result = mountkit.run("status", str(directory), "--json")
        found: list[dict[str, Any]] = json.loads(result.out) if result.code == 0 else []
        if found and found[0].get("server_pids") and all(psutil.pid_exists(pid) for pid in found[0]["server_pids"]):
            return found[0]
    raise AssertionError("no keeper came")


@pytest.mark.parametrize("flags", VARIANTS)
def test_readers_notice_no_death(bucket: Bucket, mountkit: CommandLine, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """[failures-1]"""
    objects = _fill(bucket)
    directory = mountkit.mount(bucket.source, *flags)
    with _readers(tmp_path, directory, objects, 8) as readings:
        for who in TOGETHER:
            pids = _pids(mountkit.status(directory), who)
            for pid in pids:
                kill(pid)
            wait_until(_whole_without(mountkit, directory, pids), seconds=20)
    assert _longest(readings) < PATIENCE_S
    assert mountkit.status(directory)["state"] == "ok"


def test_what_an_only_server_dies_over_is_answered_although_its_successor_has_much_to_do(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    """[failures-1] Below Linux 6.9. Its successor begins with what came meanwhile."""
    objects = _fill(bucket, 20, 100)
    directory = mountkit.mount(bucket.source, "--servers", "1", "--no-passthrough", "--no-resend")
    for name, data in objects.items():  # from here on the kernel asks for opens only, which need not wait
        assert (directory / name).read_bytes() == data
    asked, later = list(objects)[:10], list(objects)[10:]
    server = mountkit.status(directory)["server_pids"][0]
    with killed_at_answer(server, 1):
        asking = [_reading(directory / name) for name in asked]
        wait_until(lambda: not _lives(server))
        asking += [_reading(directory / name) for name in later]
    _answered(asking)


def test_what_a_server_has_read_and_not_yet_looked_at_is_answered_after_its_death(
    bucket: Bucket, mountkit: CommandLine, tmp_path: Path
) -> None:
    """[failures-1] Below Linux 6.9. No line of the server's ran since the kernel had handed it the request."""
    _fill(bucket, 1)
    directory = mountkit.mount(bucket.source, "--servers", "2", "--no-passthrough", "--no-resend")
    late, busy = mountkit.status(directory)["server_pids"]
    os.kill(late, signal.SIGSTOP)
    for number in range(200):  # so that the requests' numbers are far from those the late server knows
        assert not (directory / f"none-{number}").exists()
    os.kill(busy, signal.SIGSTOP)
    try:
        with stopped_after_reading(late, tmp_path / "reads") as has_read:
            asking = _reading(directory / "f000")
            wait_until(lambda: _waits(asking.pid))  # else its first read finds nothing, and is held for that
            os.kill(late, signal.SIGCONT)
            wait_until(has_read)
            kill(late)
    finally:
        os.kill(busy, signal.SIGCONT)
    _answered([asking])


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--servers", "1"), id="resend"),
        pytest.param(("--servers", "1", "--no-resend"), id="no-resend"),
        pytest.param(("--servers", "2", "--no-resend"), id="two-servers", marks=pytest.mark.soak),
    ],
)
def test_one_request_may_meet_any_number_of_deaths(
    bucket: Bucket, mountkit: CommandLine, flags: tuple[str, ...]
) -> None:
    """[failures-1] Below Linux 6.9 the kernel would take one ESTALE for a read or a walk, and no second one."""
    bucket.put("large", content(7, 8_000_000))
    bucket.put("other", b"bytes")
    budgets = ("--data-budget", "60s", "--metadata-budget", "60s")
    directory = mountkit.mount(bucket.source, *flags, "--no-passthrough", *budgets)
    with subprocess.Popen(
        [sys.executable, "-c", _READS_WHEN_TOLD, str(directory / "large")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        assert (directory / "other").stat().st_size == 5
        bucket.proxy.freeze()
        try:
            before = mountkit.status(directory)["reads"]
            reader.stdin.write(b"now\n")
            reader.stdin.flush()
            missing = subprocess.Popen(["test", "!", "-e", str(directory / "not-there")])
            asking = [_reading(directory / "other"), missing]
            for _ in range(3):
                status = _with_more(mountkit, directory, before, "lookups", "fetched_opens", "misses")
                before = status["reads"]
                for pid in status["server_pids"]:
                    kill(pid)
        finally:
            bucket.proxy.thaw()
        _answered([reader, *asking])


_READS_WHEN_TOLD = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print("open", flush=True)
sys.stdin.readline()
sys.exit(os.pread(fd, 1, 7_000_000) != bytes([7_000_007 % 251]))
"""


def _with_more(mountkit: CommandLine, directory: Path, before: dict[str, int], *counters: str) -> dict[str, Any]:
    """The status, as soon as these counters have gone up: the servers that live have the requests in their hands."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = _answering(mountkit, directory)
        if all(status["reads"][name] > before[name] for name in counters):
            return status
    raise AssertionError(f"{counters} did not go up")


def _reading(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL)


def _waits(pid: int) -> bool:
    """Whether the process waits for an answer of a FUSE server; or sleeps, where the kernel does not say for what."""
    where = Path(f"/proc/{pid}/wchan").read_text()
    sleeps = psutil.Process(pid).status() in (psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP)
    return where == "request_wait_answer" or (where == "0" and sleeps)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _answered(asking: list[subprocess.Popen[bytes]]) -> None:
    """Fails if one of them gets an error, or no answer in time. (Then it cannot even be killed.)"""
    deadline = time.monotonic() + 20
    assert [process.wait(max(0.1, deadline - time.monotonic())) for process in asking] == [0] * len(asking)


@pytest.mark.soak
@pytest.mark.parametrize("who", TOGETHER)
@pytest.mark.parametrize("flags", [("--servers", "2"), ("--servers", "2", "--no-passthrough", "--no-resend")])
def test_reads_go_on_within_two_seconds_of_a_death(
    bucket: Bucket, mountkit: CommandLine, tmp_path: Path, who: str, flags: tuple[str, ...]
) -> None:
    """[failures-1] Cold and warm reads; for a machine that has nothing else to do. Prints how long they took."""
    objects = _fill(bucket)
    directory = mountkit.mount(bucket.source, *flags, "--cache-size", "10MB")  # so that most reads need the mover
    deaths = []
    with _readers(tmp_path, directory, objects, 8) as readings:
        for _ in range(20):
            pids = _pids(mountkit.status(directory), who)
            drop_page_cache()
            deaths.append(time.monotonic())
            for pid in pids:
                kill(pid)
            wait_until(_whole_without(mountkit, directory, pids), seconds=20)
    waits = sorted(
        max(each.seconds for each in readings if each.began < until and each.began + each.seconds > death)
        for death, until in itertools.pairwise([*deaths, math.inf])
    )
    usual = statistics.median(each.seconds for each in readings)
    print(
        f"{who} {' '.join(flags)}: the longest read over each of {len(waits)} deaths, in s: "
        f"median {statistics.median(waits):.2f}, 18th {waits[17]:.2f}, longest {waits[-1]:.2f} (any read: {usual:.3f})"
    )
    assert waits[-1] < 2.0


@pytest.mark.parametrize("flags", VARIANTS[:2])
@pytest.mark.parametrize("deaths", [10, pytest.param(50, marks=pytest.mark.soak)])
def test_random_deaths_in_a_row(
    bucket: Bucket, mountkit: CommandLine, tmp_path: Path, flags: tuple[str, ...], deaths: int
) -> None:
    objects = _fill(bucket)
    directory = mountkit.mount(bucket.source, *flags)
    rnd = random.Random(50)
    with _readers(tmp_path, directory, objects, 8) as readings:
        for _ in range(deaths):
            status = _answering(mountkit, directory)
            # Keeper and servers start each other: one that is in office has to be left, which both kinds are here.
            victim = rnd.choice([status["keeper_pid"], status["mover_pid"], *status["server_pids"]])
            with contextlib.suppress(ProcessLookupError):
                kill(victim)
            time.sleep(rnd.uniform(0, 0.3))
    wait_until(_whole_without(mountkit, directory, []), seconds=20)
    assert _longest(readings) < 4 * PATIENCE_S  # several may follow each other under one read


def test_who_mounts_once_more_does_not_wait_for_the_mounts_servers(bucket: Bucket, mountkit: CommandLine) -> None:
    """As the keeper of a unit that is started again does: nobody else would start servers that could answer it."""
    directory = mountkit.mount(bucket.source, "--servers", "1", "--ttl", "0")  # the kernel keeps nothing of the root
    (server,) = mountkit.status(directory)["server_pids"]
    os.kill(server, signal.SIGSTOP)
    try:
        again = mountkit.run("mount", bucket.source, str(directory), "--cache", str(mountkit.cache), timeout=30)
    finally:
        os.kill(server, signal.SIGCONT)
    assert again.code == 0
    assert "already" in again.err


def test_status_ends_also_while_the_only_server_hangs_and_the_keeper_is_dead(
    bucket: Bucket, mountkit: CommandLine, tmp_path: Path
) -> None:
    """[failures-1] A process of its own asks whether the session lives; what a server has read no kill ends."""
    directory = mountkit.mount(bucket.source, "--servers", "1", "--no-passthrough")
    status = mountkit.status(directory)
    (server,) = status["server_pids"]
    os.kill(server, signal.SIGSTOP)
    kill(status["keeper_pid"])
    with stopped_after_reading(server, tmp_path / "reads") as has_read:
        command = [sys.executable, "-m", "mountkit", "status", str(directory)]
        with subprocess.Popen(command, env=mountkit.environment, stdout=subprocess.PIPE) as asking:
            try:
                wait_until(lambda: any(_waits(child.pid) for child in psutil.Process(asking.pid).children()))
                os.kill(server, signal.SIGCONT)
                wait_until(has_read)
                said, _ = asking.communicate(timeout=8)
            finally:
                kill(server)
    assert b"recovering" in said


def test_a_keeper_is_replaced_while_the_bucket_is_away(bucket: Bucket, mountkit: CommandLine) -> None:
    """[failures-1] Keeper and mover die while nobody answers for the bucket; what is cached is read on."""
    objects = _fill(bucket, 10)
    directory = mountkit.mount(bucket.source, "--ttl", "indefinite")
    for key, data in objects.items():
        assert (directory / key).read_bytes() == data
    bucket.put("later", b"after the silence")
    bucket.proxy.fault = lambda _method, _target: b""
    status = mountkit.status(directory)
    kill(status["keeper_pid"])
    kill(status["mover_pid"])
    wait_until(lambda: _answering(mountkit, directory)["keeper_pid"] != status["keeper_pid"], seconds=15)
    wait_until(lambda: _answering(mountkit, directory)["mover_pid"] not in (0, status["mover_pid"]))
    drop_page_cache()
    for key, data in objects.items():
        assert (directory / key).read_bytes() == data
    bucket.proxy.fault = None
    assert mountkit.run("refresh", str(directory)).code == 0
    # The credentials have survived both deaths: this one was never fetched before.
    assert (directory / "later").read_bytes() == b"after the silence"
    assert mountkit.status(directory)["state"] == "ok"


def test_the_death_of_all_is_said_and_cleared_by_the_next_mount(bucket: Bucket, mountkit: CommandLine) -> None:
    """[failures-8]"""
    objects = _fill(bucket, 3)
    directory = mountkit.mount(bucket.source)
    assert (directory / "f001").read_bytes() == objects["f001"]
    kill_all_at_once(mountkit)
    assert f"{directory}: dead" in mountkit.run("status").out
    mountkit.mounted.remove(directory)
    bucket.proxy.requests.clear()
    directory = mountkit.mount(bucket.source)
    assert (directory / "f001").read_bytes() == objects["f001"]
    assert bucket.proxy.count("GET") == 0, "the cache is used again"
    points = [m for m in mountinfo.ours() if m.directory == str(directory)]
    assert len(points) == 1, "the dead mount is still below the new one"


@pytest.mark.parametrize("pause_s", [0, 0.2])
def test_after_one_death_after_another_the_next_mount_is_whole(
    bucket: Bucket, mountkit: CommandLine, pause_s: float
) -> None:
    """As `pkill -9` does it: a keeper may be on its way while the last server dies. Nothing may be left over."""
    objects = _fill(bucket, 3)
    directory = mountkit.mount(bucket.source)
    status = mountkit.status(directory)
    for pid in (status["keeper_pid"], *status["server_pids"], status["mover_pid"]):
        kill(pid)
        time.sleep(pause_s)

    def mounted_again() -> bool:
        return mountkit.run("mount", bucket.source, str(directory), "--cache", str(mountkit.cache)).code == 0

    wait_until(mounted_again, seconds=20)
    assert (directory / "f001").read_bytes() == objects["f001"]
    assert len([m for m in mountinfo.ours() if m.directory == str(directory)]) == 1


@pytest.mark.parametrize("flags", VARIANTS[:2])
def test_every_process_is_replaced_under_readers_by_order(
    bucket: Bucket, mountkit: CommandLine, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """[failures-9] `mountkit upgrade`."""
    objects = _fill(bucket)
    directory = mountkit.mount(bucket.source, *flags)
    with _readers(tmp_path, directory, objects, 4) as readings:
        for _ in range(2):
            before = mountkit.status(directory)
            result = mountkit.run("upgrade", str(directory))
            assert (result.code, result.err) == (0, "")
            after = mountkit.status(directory)
            old = {before["keeper_pid"], before["mover_pid"], *before["server_pids"]}
            assert not old & {after["keeper_pid"], after["mover_pid"], *after["server_pids"]}
            assert after["restarts"] == {"server": 0, "mover": 0}
    assert _longest(readings) < PATIENCE_S


@pytest.mark.parametrize("who", ["server", "mover", "keeper", "all"])
@pytest.mark.parametrize("pause_s", [2.0, pytest.param(30.0, marks=pytest.mark.soak)])
def test_processes_that_are_stopped_for_a_while_go_on(
    bucket: Bucket, mountkit: CommandLine, who: str, pause_s: float
) -> None:
    """As a suspended machine or a paused container does. Names are waited for as long as bytes here."""
    objects = _fill(bucket, 30)
    directory = mountkit.mount(bucket.source, "--servers", "1", "--metadata-budget", "60s")
    pids = list(mountkit.processes()) if who == "all" else _pids(mountkit.status(directory), who)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(pause_s, lambda: [os.kill(pid, signal.SIGCONT) for pid in pids])
    timer.start()
    with concurrent.futures.ProcessPoolExecutor(4) as pool:
        paths = [directory / key for key in objects]
        assert list(pool.map(_digest, paths)) == [hashlib.sha256(data).hexdigest() for data in objects.values()]
    timer.join()
    assert mountkit.status(directory)["state"] == "ok"
    assert mountkit.status(directory)["restarts"] == {"server": 0, "mover": 0}


@pytest.mark.parametrize("down_s", [4.0, pytest.param(60.0, marks=pytest.mark.soak)])
def test_a_network_that_is_down_for_a_while_is_waited_for(bucket: Bucket, mountkit: CommandLine, down_s: float) -> None:
    """[failures-4] Connections stay, no byte passes, in the middle of bodies too; then it goes on by itself."""
    objects = _fill(bucket, 20, 3_000_000)
    patience = ("--data-budget", "120s", "--metadata-budget", "120s", "--ttl", "10m")
    directory = mountkit.mount(bucket.source, *patience)
    assert len(os.listdir(directory)) == 20
    with concurrent.futures.ProcessPoolExecutor(4) as pool:
        running = [pool.submit(_digest, directory / key) for key in objects]
        bucket.proxy.freeze()
        started = time.monotonic()
        try:
            time.sleep(down_s)
            assert not all(reader.done() for reader in running), "nobody noticed"
            assert os.listdir(directory), "what is known stays visible"
        finally:
            bucket.proxy.thaw()
        digests = [reader.result(60) for reader in running]
    assert digests == [hashlib.sha256(data).hexdigest() for data in objects.values()]
    assert time.monotonic() - started < down_s + 15
    wait_until(lambda: bool(mountkit.status(directory)["state"] == "ok"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_mounts_at_one_directory_at_once_make_one(bucket: Bucket, mountkit: CommandLine, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    mountkit.mounted.append(directory)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        words = ("mount", bucket.source, str(directory), "--cache", str(mountkit.cache))
        results = list(pool.map(lambda _: mountkit.run(*words), range(4)))
    assert [r.code for r in results] == [0] * 4, [r.err for r in results]
    assert len([m for m in mountinfo.ours() if m.directory == str(directory)]) == 1
    assert sum("already" in r.out + r.err for r in results) == 3


def test_mounts_follow_unmounts_without_a_pause(bucket: Bucket, mountkit: CommandLine) -> None:
    """The next mount may meet a mover that is just ending, and a device number that is just free."""
    bucket.put("a", b"bytes")
    for _ in range(4):
        directory = mountkit.mount(bucket.source)
        assert (directory / "a").read_bytes() == b"bytes"
        mountkit.unmount(directory)


def test_ctrl_c_ends_a_mount_that_waits_for_a_black_hole(bucket: Bucket, mountkit: CommandLine, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    import socket

    with socket.create_server(("127.0.0.1", 0)) as hole:
        source = f"s3://some-bucket?endpoint=http://127.0.0.1:{hole.getsockname()[1]}"
        command = [
            sys.executable,
            "-m",
            "mountkit",
            "mount",
            source,
            str(directory),
            "--cache",
            str(mountkit.cache),
        ]
        process = subprocess.Popen(command, env=mountkit.environment, stderr=subprocess.PIPE, text=True)
        hole.settimeout(10)
        asked, _ = hole.accept()  # the mover has asked the bucket
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        asked.close()
    assert process.returncode == 130
    assert "Traceback" not in err
    wait_until(lambda: not mountkit.processes(), seconds=3)
    assert time.monotonic() - started < 5
    assert not [m for m in mountinfo.ours() if m.directory == str(directory)]


def test_only_the_mover_knows_the_secret(bucket: Bucket, mountkit: CommandLine) -> None:
    """[secrets-1] Not in arguments, environment or memory of keeper and servers, nor in log and status."""
    secret = bucket.environment["AWS_SECRET_ACCESS_KEY"].encode()
    bucket.put("a", b"bytes")
    directory = mountkit.mount(bucket.source)
    assert (directory / "a").read_bytes() == b"bytes"
    status = mountkit.status(directory)
    kill(status["keeper_pid"])
    wait_until(_whole_without(mountkit, directory, [status["keeper_pid"]]), seconds=15)
    status = mountkit.status(directory)
    assert _holds(status["mover_pid"], secret), "the search does not find it where it must be"
    for pid in (status["keeper_pid"], *status["server_pids"]):
        assert not _holds(pid, secret)
    for pid in mountkit.processes():
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert secret.decode() not in mountkit.run("status", "--json").out
    assert secret not in Path(status["log"]).read_bytes()


def test_what_lies_in_the_cache_is_its_owners_alone(bucket: Bucket, mountkit: CommandLine) -> None:
    """[secrets-1] Whatever the umask; and so are the sockets."""
    bucket.put("a", b"bytes")
    before = os.umask(0)
    try:
        directory = mountkit.mount(bucket.source, "--writable")
    finally:
        os.umask(before)
    assert (directory / "a").read_bytes() == b"bytes"
    (directory / "b").write_bytes(b"staged")
    state = Path(mountkit.status(directory)["state_directory"])
    wait_until(lambda: any(state.glob("segments/*")), seconds=5)
    kinds = {"catalog.db", "index.db", "journal.db", "mountkit.log"}
    found = {path: path.lstat().st_mode for path in [state, *state.rglob("*")]}
    assert {path.name for path in found} > kinds
    assert {oct(mode) for mode in found.values() if stat.S_ISDIR(mode)} == {oct(stat.S_IFDIR | 0o700)}
    assert [path for path, mode in found.items() if not stat.S_ISDIR(mode) and mode & 0o077] == []
    device = mountkit.status(directory)["device"]
    assert stat.S_IMODE(os.stat(places.keeper_socket(device)).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(places.mover_socket(str(state))).st_mode) == 0o600


def _holds(pid: int, secret: bytes) -> bool:
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            words = line.split()
            start, end = (int(word, 16) for word in words[0].split("-"))
            if "r" not in words[1] or words[-1] in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                continue
            with contextlib.suppress(OSError):
                memory.seek(start)
                if secret in memory.read(end - start):
                    return True
    return False
