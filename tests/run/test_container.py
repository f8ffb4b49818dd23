"""Real containers: what goes in, what comes out, how they end, what they leave."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import docker
import pytest

from mountkit.errors import EngineError, ImageMissing
from mountkit.run.docker_engine import DockerEngine
from mountkit.run.plan import RUN_LABEL, ContainerPlan, RunDefaults, plan


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    return f"test-{os.getpid()}-{abs(hash(request.node.nodeid)) % 10**8}"


@pytest.fixture(autouse=True)
def nothing_is_left(run_id: str) -> Iterator[None]:
    yield
    client = docker.from_env()
    left = client.containers.list(all=True, filters={"label": f"{RUN_LABEL}={run_id}"})
    client.close()
    assert not left


def plan_run(
    image: str,
    arguments: Sequence[str],
    *,
    run_id: str,
    inputs: Sequence[tuple[str, str]] = (),
    outputs: Sequence[tuple[str, str]] = (),
    **wanted: Any,
) -> ContainerPlan:
    wishes = RunDefaults(image=image, arguments=tuple(arguments), **wanted)
    return plan(wishes, run_id=run_id, inputs=inputs, outputs=outputs)


class Outcome:
    """Runs a plan and keeps what came out."""

    def __init__(self, plan: ContainerPlan, stop_timeout_s: float = 5) -> None:
        out, err = io.BytesIO(), io.BytesIO()
        self.exit = DockerEngine(stdout=out, stderr=err).run(plan, stop_timeout_s=stop_timeout_s)
        self.code, self.out, self.err = self.exit.code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_the_exit_code_is_the_containers(tiny_image: str, run_id: str, code: int) -> None:
    assert Outcome(plan_run(tiny_image, ["sh", "-c", f"exit {code}"], run_id=run_id)).code == code


def test_a_killed_program_ends_with_128_and_the_signal(tiny_image: str, run_id: str) -> None:
    assert Outcome(plan_run(tiny_image, ["sh", "-c", "kill -9 $$"], run_id=run_id)).code == 137


def test_output_and_error_output_come_apart_and_byte_for_byte(tiny_image: str, run_id: str, tmp_path: Path) -> None:
    content = bytes((7 + i) % 251 for i in range(3_000_001))
    (tmp_path / "file").write_bytes(content)
    done = Outcome(
        plan_run(
            tiny_image,
            ["sh", "-c", "cat /in/file; printf 'no newline' >&2"],
            run_id=run_id,
            inputs=[(str(tmp_path), "/in")],
        )
    )
    assert done.out == content
    assert done.err == b"no newline"


def test_the_first_byte_of_a_short_life_is_not_lost(tiny_image: str, run_id: str) -> None:
    for _ in range(5):
        assert Outcome(plan_run(tiny_image, ["sh", "-c", "echo x"], run_id=run_id)).out == b"x\n"


def test_an_input_is_read_and_cannot_be_written_and_an_output_can(tiny_image: str, run_id: str, tmp_path: Path) -> None:
    given, results = tmp_path / "in", tmp_path / "out"
    given.mkdir()
    results.mkdir()
    (given / "a").write_bytes(b"content")
    done = Outcome(
        plan_run(
            tiny_image,
            ["sh", "-c", "sha256sum /data/input/a > /data/output/sum; echo x > /data/input/b"],
            run_id=run_id,
            inputs=[(str(given), "/data/input")],
            outputs=[(str(results), "/data/output")],
        )
    )
    assert done.code != 0
    assert b"Read-only file system" in done.err
    assert (results / "sum").read_text().split()[0] == hashlib.sha256(b"content").hexdigest()
    assert [p.name for p in given.iterdir()] == ["a"]


def test_environment_init_and_shared_memory_are_as_planned(tiny_image: str, run_id: str) -> None:
    script = "echo $WORD; cat /proc/1/comm; stat -f -c '%b %S' /dev/shm"
    done = Outcome(plan_run(tiny_image, ["sh", "-c", script], run_id=run_id, environment={"WORD": "a b"}))
    word, init, shm = done.out.decode().splitlines()
    blocks, size = map(int, shm.split())
    assert (word, blocks * size) == ("a b", 1 << 30)
    assert "init" in init or "tini" in init


def test_a_terminal_is_there_only_if_asked(tiny_image: str, run_id: str) -> None:
    planned = plan_run(tiny_image, ["sh", "-c", "test -t 1 && echo yes || echo no"], run_id=run_id)
    assert Outcome(planned).out == b"no\n"
    assert Outcome(dataclasses.replace(planned, tty=True)).out == b"yes\r\n"


def test_a_missing_source_is_an_error_and_no_directory_appears(tiny_image: str, run_id: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(EngineError, match="does not exist"):
        Outcome(plan_run(tiny_image, ["true"], run_id=run_id, inputs=[(str(missing), "/in")]))
    assert not missing.exists()


def test_running_out_of_memory_is_known_from_an_ordinary_end(tiny_image: str, run_id: str) -> None:
    planned = plan_run(tiny_image, ["sh", "-c", "tail /dev/zero"], run_id=run_id, memory_bytes=16 << 20)
    done = Outcome(planned)
    assert done.exit.out_of_memory
    assert done.code == 137
    assert not Outcome(plan_run(tiny_image, ["true"], run_id=run_id)).exit.out_of_memory


def test_a_container_that_cannot_start_says_why_and_is_removed(tiny_image: str, run_id: str) -> None:
    planned = dataclasses.replace(plan_run(tiny_image, ["/nosuch"], run_id=run_id), init=False)
    with pytest.raises(EngineError, match="cannot start") as caught:
        Outcome(planned)
    assert caught.value.hint


def test_an_image_that_is_neither_here_nor_to_be_had_is_named(tiny_image: str) -> None:
    assert DockerEngine().image("localhost:1/nosuch:1") is None
    with pytest.raises(ImageMissing, match="`localhost:1/nosuch:1` cannot be pulled: ") as caught:
        list(DockerEngine().pull("localhost:1/nosuch:1"))
    assert caught.value.hint
    assert "\n" not in caught.value.sentence


def test_an_engine_that_is_down_missing_or_elsewhere_is_one_sentence_and_a_hint(tmp_path: Path) -> None:
    for url in (f"unix://{tmp_path}/none.sock", "tcp://example.org:2375", "ssh://me@example.org", "tcp://127.0.0.1:1"):
        with pytest.raises(EngineError) as caught:
            DockerEngine(url).check()
        assert "\n" not in caught.value.sentence
        assert caught.value.hint


# ---- signals: a run in a process of its own ------------------------------------------------------------------
class Run:
    """`driver.py` with these arguments; its output line by line."""

    def __init__(self, tmp_path: Path, **words: Any) -> None:
        self.base = tmp_path / "runs"
        words = {"arguments": [], "base_directory": str(self.base), **words}
        self.output, theirs = os.pipe()
        command = [sys.executable, "-m", "tests.run.driver", json.dumps(words)]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=theirs)
        os.close(theirs)

    def line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self.output], [], [], 30)[0], f"no line within 30 s: {line!r}"
            more = os.read(self.output, 1)
            assert more, f"the output ended: {line!r}"
            line += more
        return line.decode().strip()

    def stop_reading(self) -> None:
        os.close(self.output)
        self.output = -1

    def end(self) -> int:
        code = self.process.wait(timeout=30)
        if self.output >= 0:
            self.stop_reading()
        assert not self.base.exists() or not list(self.base.iterdir())
        return code


def test_a_run_mounts_its_bucket_shows_it_and_unmounts_it(tiny_image: str, run_id: str, tmp_path: Path) -> None:
    run = Run(
        tmp_path, image=tiny_image, arguments=["cat", "/data/input/file"], input=["my-bucket"], name=f"mk-{run_id}"
    )
    assert run.line() == "my-bucket"
    assert run.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_container_its_grace(
    tiny_image: str, run_id: str, tmp_path: Path, number: signal.Signals
) -> None:
    script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done"
    run = Run(tmp_path, image=tiny_image, arguments=["sh", "-c", script], input=["my-bucket"])
    assert run.line() == "up"
    run.process.send_signal(number)
    assert run.line() == "bye"
    assert run.end() == 7


def test_a_second_signal_kills_a_container_that_does_not_listen(tiny_image: str, tmp_path: Path) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    run = Run(tmp_path, image=tiny_image, arguments=["sh", "-c", script], stop_timeout=60)
    assert run.line() == "up"
    started = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 137
    assert time.monotonic() - started < 20


def test_a_container_that_does_not_listen_is_killed_after_its_grace(tiny_image: str, tmp_path: Path) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    run = Run(tmp_path, image=tiny_image, arguments=["sh", "-c", script], stop_timeout=1)
    assert run.line() == "up"
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 137


def test_a_signal_while_mounting_undoes_everything(tiny_image: str, tmp_path: Path) -> None:
    run = Run(tmp_path, image=tiny_image, arguments=["true"], input=["first:/a", "slow-bucket:/b"])
    assert run.line() == "mounting"
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 128 + signal.SIGTERM


def test_a_reader_that_goes_away_does_not_disturb_the_container(tiny_image: str, run_id: str, tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        image=tiny_image,
        arguments=["sh", "-c", "seq 200000; echo done > /data/output/mark"],
        output=[str(tmp_path / "out")],
    )
    assert run.line() == "1"
    run.stop_reading()
    assert run.end() == 0
    assert (tmp_path / "out" / "mark").read_text() == "done\n"


@pytest.mark.parametrize(
    ("answer", "asked", "request_"),
    [
        ({}, "2", {"Driver": "", "Count": 2, "DeviceIDs": None, "Capabilities": [["gpu"]]}),
        (
            {"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}]},
            "0,GPU-3a",
            {"Driver": "cdi", "Count": 0, "DeviceIDs": ["nvidia.com/gpu=0", "nvidia.com/gpu=GPU-3a"]},
        ),
    ],
)
def test_the_engine_understands_what_gpus_are_asked_of_it(
    tiny_image: str,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    answer: dict[str, Any],
    asked: str,
    request_: dict[str, Any],
) -> None:
    """This engine has none, so the container is made as asked and does not start."""
    assert not DockerEngine().has_gpus()
    told = docker.APIClient.info
    monkeypatch.setattr(docker.APIClient, "info", lambda client: {**told(client), **answer})
    seen: list[dict[str, Any]] = []
    start = docker.APIClient.start

    def look_and_start(client: docker.APIClient, container: str) -> None:
        seen.extend(client.inspect_container(container)["HostConfig"]["DeviceRequests"])
        start(client, container)

    monkeypatch.setattr(docker.APIClient, "start", look_and_start)
    with pytest.raises(EngineError, match="could not select device driver"):
        Outcome(plan_run(tiny_image, ["true"], run_id=run_id, gpus=asked))
    assert [{name: each[name] for name in request_} for each in seen] == [request_]
