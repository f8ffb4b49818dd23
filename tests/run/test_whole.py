"""`mountkit run` as a user types it: a real bucket, real mounts, real containers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mountkit import mountinfo
from mountkit.run.docker_engine import DockerEngine
from tests.mount.conftest import Bucket, CommandLine, content, our_processes, wait_until
from tests.mount.conftest import bucket as bucket
from tests.mount.conftest import proxy as proxy


@pytest.fixture
def line(bucket: Bucket, tmp_path: Path) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path, {**bucket.environment, "XDG_STATE_HOME": str(tmp_path / "state")})
    yield line
    line.close()
    wait_until(lambda: not our_processes(tmp_path), seconds=15)


def start(line: CommandLine, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mountkit", "run", *words],
        env=line.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_mounts(bucket: Bucket) -> list[str]:
    """The mounts of this test's bucket alone."""
    return [m.directory for m in mountinfo.ours() if bucket.prefix.rstrip("/") in m.source]


def history(line: CommandLine) -> list[dict[str, Any]]:
    result = line.run("runs", "--json")
    assert result.code == 0, result.err
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


def test_the_history_and_the_receipt_tell_what_a_run_read(
    bucket: Bucket,
    line: CommandLine,
    tiny_image: str,
) -> None:
    for n in range(20):
        bucket.put(f"{n:02d}", content(n, 10_000))
    words = ("run", "--no-sweep", "--name-run", "night", "--cache", str(line.cache), "--input", f"{bucket.source}:/in")
    result = line.run(*words, tiny_image, "sh", "-c", "cat /in/* > /dev/null; exit 3", timeout=90)
    assert result.code == 3, result.err
    (one,) = history(line)
    assert (one["name"], one["exit_code"], one["objects_opened"]) == ("night", 3, 20)
    receipt = json.loads(Path(one["receipt"]).read_text())
    (given,) = receipt["inputs"]
    assert given["bytes_fetched"] == 200_000
    assert given["requests"]["get"] >= 20
    assert not given["shared_with"]
    assert bucket.environment["AWS_SECRET_ACCESS_KEY"] not in Path(one["receipt"]).read_text()
    again = line.run("rerun", "night", timeout=90)
    assert again.code == 3, again.err
    assert [r["bytes_fetched"] for r in history(line)] == [200_000, 0], "the second one read the cache"
    assert [r["opens_fetched"] for r in history(line)] == [20, 0]
    assert not run_mounts(bucket)


def test_two_runs_at_once_share_one_mount_and_the_last_one_unmounts_it(
    bucket: Bucket,
    line: CommandLine,
    tiny_image: str,
    tmp_path: Path,
) -> None:
    bucket.put("x", b"x")
    (tmp_path / "out").mkdir()
    script = "echo up; while [ ! -e /data/output/$0 ]; do sleep 0.05; done; cat /in/x"
    words = ("--cache", str(line.cache), "--input", f"{bucket.source}:/in", "--output", str(tmp_path / "out"))
    both = [start(line, *words, tiny_image, "sh", "-c", script, name) for name in ("first", "second")]
    for process in both:
        assert process.stdout and process.stdout.readline() == "up\n"
    assert len(run_mounts(bucket)) == 1
    for name, process, left in zip(("first", "second"), both, (1, 0), strict=True):
        (tmp_path / "out" / name).touch()
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "x"), err
        assert len(run_mounts(bucket)) == left


def test_what_kill_9_leaves_is_collected_by_the_next_runs(
    bucket: Bucket,
    line: CommandLine,
    tiny_image: str,
) -> None:
    bucket.put("x", b"x")
    words = ("--cache", str(line.cache), "--stop-timeout", "1s", "--input", f"{bucket.source}:/in")
    process = start(line, *words, tiny_image, "sh", "-c", "cat /in/x; echo; sleep 600")
    assert process.stdout and process.stdout.readline() == "x\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(run_mounts(bucket)) == 1
    result = line.run("runs")
    assert "lost its process; stopping its container" in result.err
    assert not run_mounts(bucket)
    (one,) = history(line)
    assert one["collected"]
    assert one["exit_code"] in (137, 143)
    assert [each["key"] for each in objects_of(one)[1]] == [f"{bucket.prefix}x"]
    assert not DockerEngine().find(one["id"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--input", "s3://data/x?endpoint=http://127.0.0.1:1", "{image}", "true"], 7, "cannot mount the input"),
        (["localhost:1/nosuch:1"], 8, "is not on this machine and cannot be pulled"),
        (["--pull", "never", "nosuch:1"], 8, "--pull never"),
        (["--gpus", "all", "{image}", "true"], 6, "no GPU runtime"),
        (["--memory", "lots", "{image}"], 2, "--memory"),
        (["--nosuch", "{image}"], 2, "--nosuch"),
        (["--volume", "/etc:/x", "{image}"], 2, "would hand this host to the container"),
        (["--volume", "/var/run/docker.sock:/x", "{image}"], 2, "would hand this host to the container"),
        (["--output", "s3://data/x?endpoint=http://127.0.0.1:1", "{image}", "true"], 7, "cannot mount the output"),
        (["--network", "nosuch", "{image}", "true"], 6, "nosuch"),
        (["--volume", "/nosuch/file:/x", "{image}", "true"], 2, "the volume /nosuch/file does not exist"),
        (["--platform", "linux/s390x", "--pull", "never", "{image}", "true"], 8, "on this machine is for linux/"),
    ],
)
def test_what_is_wrong_is_two_lines_and_an_exit_code_and_nothing_starts(
    bucket: Bucket,
    line: CommandLine,
    tiny_image: str,
    words: list[str],
    code: int,
    said: str,
) -> None:
    filled = [word.format(image=tiny_image) for word in words]
    result = line.run("run", "--cache", str(line.cache), *filled, timeout=90)
    assert result.code == code, result.err
    lines = [each for each in result.err.splitlines() if not each.startswith("mountkit: fetching")]
    assert said in lines[0] and lines[0].startswith("error: ")
    assert len(lines) == 2 and lines[1].startswith("hint: ")
    assert history(line) == []
    assert not run_mounts(bucket)


def test_an_engine_that_is_down_is_an_exit_code_of_its_own(line: CommandLine) -> None:
    environment = {**line.environment, "DOCKER_HOST": f"unix://{line.base}/none.sock"}
    result = line.run("run", "image", environment=environment)
    assert result.code == 6
    assert "no container engine answers" in result.err
    result = line.run("run", "image", environment={**environment, "DOCKER_HOST": "nothing"})
    assert result.code == 6
    assert "`nothing`, which is no address" in result.err


def test_host_paths_are_shown_if_that_is_said(line: CommandLine, tiny_image: str) -> None:
    words = ("--allow-host-paths", "--volume", "/etc/hostname:/name:ro", tiny_image, "cat", "/name")
    result = line.run("run", *words)
    assert (result.code, result.out) == (0, Path("/etc/hostname").read_text()), result.err


def test_help_is_quick_and_names_every_option(line: CommandLine) -> None:
    assert min(line.run("--help").seconds for _ in range(3)) < 0.3 * max(1.0, os.getloadavg()[0] / 2)
    words = line.run("run", "--help").out
    for option in ("--input", "--secret", "--gpus", "--detach", "--tty / --no-tty", "--dry-run", "--ttl"):
        assert option in words


# ---- what was read -------------------------------------------------------------------------------------------
def objects_of(one: dict[str, Any], number: int = 1) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a receipt says of the objects of an input, and its list of them."""
    path = Path(one["receipt"])
    said = json.loads(path.read_text())["inputs"][number - 1]["objects"]
    listed = (path.parent / said["list"]).read_bytes()
    assert said["sha256"] == hashlib.sha256(listed).hexdigest()
    return said, [json.loads(line) for line in listed.splitlines()]


def in_bucket(bucket: Bucket, names: Iterable[str]) -> list[tuple[str, str]]:
    """Key and ETag of these objects, as the bucket tells them."""
    keys = (f"{bucket.prefix}{name}" for name in names)
    return [(key, bucket.client.head_object(Bucket=bucket.name, Key=key)["ETag"]) for key in keys]


def test_the_receipt_has_the_etag_of_every_object_that_was_read(
    bucket: Bucket,
    line: CommandLine,
    tiny_image: str,
) -> None:
    for n in range(120):
        bucket.put(f"d/{n:03d}", content(n, 1_000))
    bucket.put("empty", b"")
    before = time.time()
    words = ("run", "--cache", str(line.cache), "--input", f"{bucket.source}:/in", tiny_image, "sh", "-c")
    for _ in range(2):
        assert line.run(*words, "cat /in/d/*1 /in/empty > /dev/null; ls -lR /in > /dev/null", timeout=90).code == 0
    first, second = history(line)
    said, listed = objects_of(first)
    wanted = in_bucket(bucket, [*(f"d/{n:03d}" for n in range(1, 120, 10)), "empty"])
    assert [(one["key"], one["etag"]) for one in listed] == wanted, "what was only listed is not there"
    assert said["all"] == listed and (said["count"], said["bytes"]) == (13, 12_000)
    assert objects_of(second)[0]["sha256"] == said["sha256"], "read from the cache, it is the same"
    given = json.loads(Path(first["receipt"]).read_text())["inputs"][0]
    assert before <= given["listed"]["oldest"] <= given["listed"]["newest"] <= time.time()
    assert not list(line.cache.glob("*/*/traces")), "nothing is left of the traces"


def test_what_is_read_from_a_mount_of_the_users_own_survives_the_death_of_its_processes(
    bucket: Bucket, line: CommandLine, tiny_image: str, tmp_path: Path
) -> None:
    for n in range(9):
        bucket.put(f"train/{n}", content(n, 1_000))
        bucket.put(f"train/more/{n}", content(n, 1_000))
        bucket.put(f"other/{n}", content(n, 1_000))
    root = line.mount(bucket.source, "--ttl", "0", "--cache", str(line.cache))
    (tmp_path / "out").mkdir()
    step = "cat /in/$N > /dev/null; touch /data/output/read-$N; while [ ! -e /data/output/go ]; do sleep 0.05; done"
    script = f"N=1; {step}; cat /in/1 /in/2 /in/2 /in/more/3 > /dev/null"
    options = ("--input", f"{root}/train:/in", "--output", str(tmp_path / "out"))
    versions = in_bucket(bucket, ["train/1"])
    process = start(line, *options, tiny_image, "sh", "-c", script)
    wait_until((tmp_path / "out" / "read-1").exists, seconds=30)
    bucket.put("train/1", b"changed")
    status = line.status(root)
    for pid in (status["mover_pid"], *status["server_pids"]):
        os.kill(pid, signal.SIGKILL)
    (root / "other" / "1").read_bytes()
    (tmp_path / "out" / "go").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (out, err)
    said, listed = objects_of(history(line)[0])
    versions += in_bucket(bucket, ["train/1", "train/2", "train/more/3"])
    assert [(one["key"], one["etag"]) for one in listed] == versions
    assert said["changed_meanwhile"] == 1
    assert json.loads(Path(history(line)[0]["receipt"]).read_text())["inputs"][0]["mounted_before"]


def test_two_runs_at_once_on_one_mount_have_a_list_each_and_an_output_in_the_bucket_has_copies(
    bucket: Bucket, line: CommandLine, tiny_image: str
) -> None:
    for name in ("a", "b", "c"):
        bucket.put(f"in/{name}", name.encode())

    def below(name: str) -> str:
        return f"s3://{bucket.name}/{bucket.prefix}{name}?endpoint={bucket.proxy.url}"

    root = line.mount(below("in"), "--cache", str(line.cache))
    words = ("--cache", str(line.cache), "--input", f"{root}:/in")
    runs = [
        start(line, *words, "--output", below(f"out-{n}"), tiny_image, "sh", "-c", f"cat /in/a /in/{n}; {end}")
        for n, end in (("b", "cp /in/a /data/output/result"), ("c", "true"))
    ]

    def got(name: str) -> bytes:
        body: bytes = bucket.client.get_object(Bucket=bucket.name, Key=bucket.prefix + name)["Body"].read()
        return body

    for process in runs:
        assert process.communicate(timeout=90)[1] == "" and process.returncode == 0
    both = [one["id"] for one in history(line)]
    for one in history(line):
        said, listed = objects_of(one)
        receipt = json.loads(Path(one["receipt"]).read_text())
        assert set(receipt["inputs"][0]["shared_with"]) <= {*both} - {one["id"]}, "one may end before the other begins"
        where = f"{receipt['outputs'][0]['source'].partition('?')[0][-5:]}/.mountkit-runs/{one['id']}"
        own = {"a", where[4]}
        assert own <= {each["key"].rpartition("/")[2] for each in listed} <= {"a", "b", "c"}, "perhaps the other's, too"
        assert hashlib.sha256(got(f"{where}/input-1.jsonl")).hexdigest() == said["sha256"]
        assert receipt == json.loads(got(f"{where}/receipt.json"))
        assert all(each["upload_seconds"] > 0 for each in receipt["outputs"][0]["objects"])
        if "b" in own:
            _assert_not_an_input_of_later_runs(line, below("out-b"), one["id"])
        written = [each["key"].rpartition("/")[2] for each in receipt["outputs"][0]["objects"]]
        assert written == (["result"] if "b" in own else [])


def _assert_not_an_input_of_later_runs(line: CommandLine, output: str, run_id: str) -> None:
    """[names-6]"""
    trained_on = line.mount(output, "--cache", str(line.cache), name="later")
    assert os.listdir(trained_on) == ["result"]
    assert (trained_on / ".mountkit-runs" / run_id / "receipt.json").is_file()
