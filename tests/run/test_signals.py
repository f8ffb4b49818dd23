"""Runs that end otherwise than by themselves: stopped, detached, killed with -9. After each, nothing is left.

The runs are processes of their own (`driver`), their containers real; their mounts are directories.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from mountkit.run import history, orphans, records
from mountkit.run.docker_engine import DockerEngine
from mountkit.run.plan import RUN_LABEL
from mountkit.run.records import Run
from mountkit.run.shared_mounts import SharedMounts
from tests.run.driver import DirectoryMounter

COUNT = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done"
DEAF = "trap '' TERM; echo up; while :; do sleep 0.1; done"
SECRET = "a-value-nobody-may-see"


class Bench:
    """Starts runs, and looks at what is left of them."""

    def __init__(self, tmp_path: Path, image: str) -> None:
        self.base = tmp_path / "mounts"
        self.image = image
        self.environment = {**os.environ, "MINE": SECRET}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.said: list[str] = []

    def start(self, script: str, **words: Any) -> subprocess.Popen[bytes]:
        given = {"image": self.image, "arguments": ["sh", "-c", script], "base_directory": str(self.base), **words}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.run.driver", json.dumps(given)],
            cwd=Path(__file__).parents[2],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # what `up` has not read is left for `communicate`
        )
        self.processes.append(process)
        return process

    def up(self, process: subprocess.Popen[bytes]) -> Run:
        """The run of an attached `process`, once its container has said `up`."""
        assert process.stdout
        line = process.stdout.readline()
        assert line == b"up\n", (line, process.stderr.read() if process.stderr else b"")
        return records.all_runs()[-1]

    def detached(self, script: str, **words: Any) -> Run:
        process = self.start(script, detach=True, **words)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        return records.find(out.decode().strip())

    def collect(self) -> None:
        mounter = DirectoryMounter()
        orphans.collect(DockerEngine, mounter, SharedMounts(mounter, str(self.base)), self.said.append)

    def containers(self) -> list[Any]:
        client = docker.from_env()
        with contextlib.closing(client):
            ids = {run.id for run in records.all_runs()}
            found = client.containers.list(all=True, filters={"label": RUN_LABEL}, ignore_removed=True)
            return [one for one in found if one.labels[RUN_LABEL] in ids]

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
            process.wait()
        for one in self.containers():
            one.remove(force=True)


def wait_until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def bench(tmp_path: Path, tiny_image: str) -> Iterator[Bench]:
    made = Bench(tmp_path, tiny_image)
    try:
        yield made
        assert not made.containers(), "a container was left behind"
        assert not made.base.exists() or not list(made.base.iterdir()), "a mount was left behind"
        for run in records.all_runs():
            assert run.ended and not run.alive, "a process was left behind"
            assert not os.path.exists(run.record.get("secrets_directory") or "/none"), "a secret was left behind"
    finally:
        made.end()


# ---- detached ------------------------------------------------------------------------------------------------
def test_a_detached_run_goes_on_without_its_terminal_and_can_be_waited_for(
    bench: Bench, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    script = "echo up; while [ ! -e /data/output/go ]; do sleep 0.05; done; cat /data/input/file; exit 42"
    run = bench.detached(script, input=["my-bucket"], output=[str(tmp_path / "out")], name_run="night")
    assert run.alive and not run.ended
    os.kill(run.record["pid"], signal.SIGHUP)
    (tmp_path / "out" / "go").touch()
    assert history.wait("night") == 42
    history.show_log("night", follow=True)
    assert capfdbinary.readouterr().out == b"up\nmy-bucket\n"
    assert run.receipt["exit_code"] == 42
    assert run.receipt["detached"]


def test_what_is_wrong_with_a_detached_run_is_said_before_the_command_returns(bench: Bench) -> None:
    process = bench.start("true", detach=True, input=["/no/such/directory"])
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert b"/no/such/directory does not exist" in err


def test_stop_gives_a_detached_container_its_grace(bench: Bench) -> None:
    run = bench.detached(COUNT)
    wait_until(lambda: Path(run.log).read_bytes() == b"up\n")
    history.stop(run.id)
    assert run.receipt["exit_code"] == 7
    assert run.receipt["stopped_by"] == "SIGTERM"
    assert Path(run.log).read_bytes() == b"up\nbye\n"


def test_stop_with_kill_gives_it_none(bench: Bench) -> None:
    run = bench.detached(DEAF, stop_timeout="60s")
    wait_until(lambda: Path(run.log).read_bytes() == b"up\n")
    started = time.monotonic()
    history.stop(run.id, kill=True)
    assert run.receipt["exit_code"] == 137
    assert time.monotonic() - started < 20


# ---- killed with -9 ------------------------------------------------------------------------------------------
def test_the_container_of_a_killed_run_is_stopped_and_everything_taken_away(bench: Bench) -> None:
    process = bench.start(COUNT, input=["my-bucket"], secret=["token:TOKEN=env:MINE"])
    run = bench.up(process)
    process.kill()
    process.wait()
    assert bench.containers() and list(bench.base.iterdir())
    bench.collect()
    assert run.receipt["exit_code"] == 7
    assert run.receipt["collected"]
    assert Path(run.log).read_bytes() == b"up\nbye\n"
    assert any("lost its process; stopping its container" in line for line in bench.said)
    assert any("collected (its container ended with 7)" in line for line in bench.said)


def test_a_container_that_ended_after_its_run_was_killed_keeps_its_exit_code_and_its_words(bench: Bench) -> None:
    process = bench.start("echo up; sleep 1; echo $TOKEN; exit 42", secret=["token:TOKEN=env:MINE"])
    run = bench.up(process)
    process.kill()
    process.wait()
    wait_until(lambda: bench.containers()[0].status == "exited")
    bench.collect()
    assert run.receipt["exit_code"] == 42
    assert Path(run.log).read_bytes() == b"up\n***\n"


def test_a_detached_container_goes_on_when_its_process_is_killed_and_gets_another(bench: Bench) -> None:
    run = bench.detached(COUNT, input=["my-bucket"])
    wait_until(lambda: Path(run.log).read_bytes() == b"up\n")
    first = run.record["pid"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not run.alive)
    bench.collect()
    assert any("goes on, and process" in line for line in bench.said)
    wait_until(lambda: run.record["pid"] != first and run.alive)
    assert bench.containers()[0].status == "running"
    assert list(bench.base.iterdir()), "its mount is still there"
    history.stop(run.id)
    assert run.receipt["exit_code"] == 7
    assert Path(run.log).read_bytes() == b"up\nbye\n"
    os.waitpid(-1, 0)  # the second process is a child of this one


def test_stop_reaches_a_detached_container_whose_process_is_gone(bench: Bench) -> None:
    run = bench.detached(COUNT)
    wait_until(lambda: Path(run.log).read_bytes() == b"up\n")
    os.kill(run.record["pid"], signal.SIGKILL)
    history.stop(run.id)
    assert run.receipt["exit_code"] == 7
    assert run.receipt["collected"]


def test_a_run_killed_while_mounting_leaves_nothing_once_collected(bench: Bench) -> None:
    process = bench.start("true", input=["first:/a", "slow-bucket:/b"])
    assert process.stdout and process.stdout.readline() == b"mounting\n"
    process.kill()
    process.wait()
    bench.collect()
    assert not records.all_runs(), "it never was"
    assert not list(bench.base.iterdir())


def test_a_run_that_goes_on_is_not_collected(bench: Bench) -> None:
    process = bench.start(COUNT)
    run = bench.up(process)
    bench.collect()
    assert not bench.said
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 7
    assert run.receipt["stopped_by"] == "SIGTERM"


def test_with_no_engine_an_orphan_is_left_for_the_next_time_and_that_is_said(bench: Bench, tmp_path: Path) -> None:
    process = bench.start(COUNT)
    run = bench.up(process)
    process.kill()
    process.wait()
    mounter = DirectoryMounter()

    def gone() -> DockerEngine:
        engine = DockerEngine(f"unix://{tmp_path}/none.sock")
        engine.check()
        return engine

    orphans.collect(gone, mounter, SharedMounts(mounter, str(bench.base)), bench.said.append)
    assert "cannot be collected now" in bench.said[0]
    assert not run.ended
    bench.collect()
    assert run.ended


# ---- secrets in real containers ------------------------------------------------------------------------------
@pytest.mark.parametrize("user", ["", "65534", "nobody"])
def test_a_secret_reaches_the_program_and_shows_nowhere_else(bench: Bench, user: str, tmp_path: Path) -> None:
    script = 'echo up; test "$TOKEN" = "$(cat /run/secrets/token)" && echo same; echo "$TOKEN"; set; echo .; sleep 60'
    process = bench.start(script, secret=["token:TOKEN=env:MINE"], user=user or None)
    run = bench.up(process)
    client = docker.from_env()
    with contextlib.closing(client):
        inspected = json.dumps(bench.containers()[0].attrs)
    assert RUN_LABEL in inspected
    assert SECRET not in inspected
    assert SECRET not in subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
    wait_until(lambda: b"\n.\n" in Path(run.log).read_bytes())
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert out.startswith(b"same\n***\n")
    everything = out + err + b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert SECRET.encode() not in everything
    assert run.receipt["secrets"] == ["token"]


def test_the_images_own_command_runs_behind_the_shim(bench: Bench) -> None:
    from mountkit.run import command, options
    from mountkit.run.plan import merge

    os.environ["MINE"] = SECRET
    try:
        wanted = merge(options.wanted({"secret": ["t:T=env:MINE"], "tty": False}, image=bench.image))
        assert command.run(wanted, mounter=DirectoryMounter(), base_directory=str(bench.base)) == 0
    finally:
        del os.environ["MINE"]


def test_running_out_of_memory_says_so_with_the_limit(bench: Bench) -> None:
    process = bench.start("tail /dev/zero", memory="16m")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 137
    assert b"ran out of memory: the kernel killed it at its limit of 16 MiB" in err
    assert records.all_runs()[-1].receipt["out_of_memory"]


def test_limits_and_places_are_as_asked(bench: Bench) -> None:
    script = "id -u; pwd; uname -n > /dev/null; cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || true"
    words = {"user": "65534", "workdir": "/tmp", "cpus": "1", "memory": "64m", "network": "none", "label": ["a=b"]}
    out, err = bench.start(script, **words).communicate(timeout=60)
    assert out.split()[:2] == [b"65534", b"/tmp"], err
    command = records.all_runs()[-1].receipt["command"]
    for part in ("--user 65534", "--workdir /tmp", "--cpus 1", "--memory 67108864", "--network none", "--label a=b"):
        assert part in command


def test_the_docker_run_of_a_dry_run_does_the_same(bench: Bench, tmp_path: Path) -> None:
    from mountkit.run import command, options
    from mountkit.run.plan import merge

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("content\n")
    words = {"input": [f"{tmp_path}/in:/in"], "env": ["A=b c"], "workdir": "/in", "memory": "64m", "tty": False}
    line = command.dry_run(merge(options.wanted(words, image=bench.image, arguments=["sh", "-c", 'cat a; echo "$A"'])))
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "content\nb c\n"), done.stderr


def test_adopting_writes_all_output_from_the_beginning(bench: Bench) -> None:
    client = docker.from_env()
    with contextlib.closing(client):
        made = client.containers.run(bench.image, ["sh", "-c", "seq 1000; exit 3"], detach=True)
    out = io.BytesIO()
    ended = DockerEngine().adopt(
        str(made.id), stop_first=False, stop_timeout_s=5, output=lambda chunk, _: out.write(chunk) and None
    )
    assert ended and ended.code == 3
    assert out.getvalue() == b"".join(b"%d\n" % n for n in range(1, 1001))
