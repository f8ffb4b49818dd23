"""`mountkit run` with a fake mounter and a fake engine: what is started when, and what is undone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from mountkit.catalog.values import ObjectId, ObjectRow
from mountkit.errors import (
    BucketMissing,
    EngineError,
    HostError,
    ImageMissing,
    MountBusy,
    MountError,
    MountkitError,
    UploadsLeft,
    UsageError,
)
from mountkit.run import command, options, records, requests
from mountkit.run.engine import ContainerExit, Found, Image, ImageInside, Output, PullProgress
from mountkit.run.plan import ContainerPlan, RunDefaults, merge
from mountkit.run.shared_mounts import Options
from tests.fakes.tracer import FakeTracer


class FakeMounter:
    """Remembers what it was asked; a mount is a key in `mounted`."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.mounted: dict[str, str] = {}
        self.states: dict[str, str] = {}
        self.refuse: MountkitError | None = None
        self.refuse_after = 0
        self.busy = False
        self.reads = 0
        self.objects: list[dict[str, Any]] = []
        self.left = ""
        self.traces = FakeTracer()
        self.files: dict[str, bytes] = {}

    def key(self, source: str, options: Options) -> str:
        return "".join(c if c.isalnum() else "-" for c in f"{source}{sorted(options.items())}")

    def mount(self, source: str, directory: str, options: Options) -> None:
        if self.refuse and len(self.mounted) >= self.refuse_after:
            raise self.refuse
        self.log.append(f"mount {source}")
        self.mounted[directory] = source

    def unmount(self, directory: str, *, force: bool = False) -> None:
        if self.busy and not force:
            raise MountBusy(f"{directory} is in use")
        self.log.append(f"unmount {self.mounted.pop(directory)}{' by force' if force else ''}")

    def uploaded(self, directory: str, since: float, timeout_s: float) -> tuple[list[dict[str, Any]], str]:
        self.log.append(f"drain {self.mounted[directory]} for {timeout_s:g} s")
        return self.objects, self.left

    def put(self, directory: str, path: str, content: BinaryIO) -> None:
        self.files[f"{self.mounted[directory]}/{path}"] = content.read()

    def state(self, path: str) -> str:
        return "ok" if path in self.mounted else self.states.get(path, "")

    def details(self, path: str) -> dict[str, Any]:
        self.reads += 10
        return {"reads": {"opens": self.reads, "read_bytes": 100 * self.reads}} if self.state(path) == "ok" else {}


class FakeEngine:
    """Runs nothing; `action` happens in its place."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.refuse: EngineError | None = None
        self.ended = ContainerExit(0)
        self.action: Callable[[ContainerPlan], None] = lambda plan: None
        self.plan: ContainerPlan | None = None
        self.here = self.shell = True
        self.gpus = False
        self.platform = ""
        self.says = b""
        self.found: dict[str, list[Found]] = {}

    def check(self) -> None:
        self.log.append("check")

    def image(self, name: str) -> Image | None:
        found = Image("sha256:1", entrypoint=("/main",), command=("--default",), platform=self.platform)
        return found if self.here else None

    def pull(self, name: str, platform: str = "") -> Iterator[PullProgress]:
        if self.refuse:
            raise self.refuse
        self.log.append("pull")
        self.here = True
        yield PullProgress("layer", "Downloading", 1, 2)

    def look_inside(self, name: str, user: str, run_id: str) -> ImageInside:
        return ImageInside(self.shell, os.getuid(), os.getgid())

    def has_gpus(self) -> bool:
        return self.gpus

    def run(
        self,
        plan: ContainerPlan,
        *,
        stop_timeout_s: float,
        output: Output | None = None,
        started: Callable[[str], None] | None = None,
    ) -> ContainerExit:
        self.log.append("run")
        self.plan = plan
        if started:
            started("container-1")
        self.action(plan)
        if output:
            output(self.says, False)
        return self.ended

    def find(self, run_id: str) -> list[Found]:
        return self.found.get(run_id, [])

    def adopt(self, container: str, *, stop_first: bool, stop_timeout_s: float, output: Output) -> ContainerExit | None:
        self.log.append(f"adopt {container}{' and stop it' if stop_first else ''}")
        output(self.says, False)
        return self.ended


class Bench:
    """A run with fakes, and a base directory that must be empty again afterwards."""

    def __init__(self, base: Path) -> None:
        self.log: list[str] = []
        self.base = base
        self.mounter, self.engine = FakeMounter(self.log), FakeEngine(self.log)

    def __call__(self, **words: Any) -> int:
        try:
            wanted = merge(options.wanted(words, image="image", arguments=["go"]))
            return command.run(wanted, mounter=self.mounter, engine=self.engine, base_directory=str(self.base))
        finally:
            assert not self.mounter.mounted
            assert not self.base.exists() or not list(self.base.iterdir())

    @property
    def sources(self) -> dict[str, str]:
        assert self.engine.plan
        return {bind.target: bind.source for bind in self.engine.plan.binds}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "runs")


def test_buckets_are_mounted_before_the_container_and_unmounted_after_it(bench: Bench) -> None:
    assert bench(input=["first:/a", "s3://second/x:/b"]) == 0
    assert bench.log == [
        *("check", "mount first", "mount s3://second/x", "run", "unmount s3://second/x", "unmount first"),
    ]


def test_each_bucket_has_a_private_directory_of_its_own(bench: Bench) -> None:
    def look(plan: ContainerPlan) -> None:
        for bind in plan.binds:
            assert os.stat(bind.source).st_mode & 0o777 == 0o700
            assert os.stat(os.path.dirname(bind.source)).st_mode & 0o777 == 0o700

    bench.engine.action = look
    bench(input=["first:/a", "second:/b"])
    assert len(set(bench.sources.values())) == 2


def test_a_bucket_wanted_at_two_places_is_mounted_once(bench: Bench) -> None:
    bench(input=["first:/a", "first:/b"])
    assert bench.log.count("mount first") == 1
    assert bench.sources["/a"] == bench.sources["/b"]


def test_the_exit_code_is_the_containers(bench: Bench) -> None:
    bench.engine.ended = ContainerExit(42)
    assert bench() == 42


def test_running_out_of_memory_is_said(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.engine.ended = ContainerExit(137, out_of_memory=True)
    assert bench() == 137
    assert "ran out of memory" in capsys.readouterr().err


def test_a_directory_is_bound_as_it_is_and_not_unmounted(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    bench(input=[f"{tmp_path}/data"], output=[f"{tmp_path}/new/out"])
    assert bench.log == ["check", "run"]
    assert bench.sources == {"/data/input": f"{tmp_path}/data", "/data/output": f"{tmp_path}/new/out"}
    assert (tmp_path / "new" / "out").is_dir()


def test_an_output_bucket_is_drained_before_the_run_ends_and_its_objects_are_in_the_receipt(bench: Bench) -> None:
    bench.mounter.objects = [{"key": "run-7/a.pt", "size": 5, "etag": '"e"', "checksum": "crc32c:AAAAAA=="}]
    assert bench(input=["first:/a"], output=["s3://results/run-7:/out"], drain_timeout="30s") == 0
    drained = "drain s3://results/run-7 for 30 s"
    assert bench.log[-3:] == [drained, "unmount s3://results/run-7", "unmount first"]
    assert bench.sources["/out"].endswith("/mnt")
    (run,) = records.all_runs()
    assert run.receipt["outputs"] == [
        {"source": "s3://results/run-7", "target": "/out", "objects": bench.mounter.objects}
    ]


def test_a_run_whose_outputs_did_not_reach_the_bucket_says_so_with_its_exit_code(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """[uploads-13]"""
    bench.mounter.left = "3 operations did not reach the bucket"
    assert bench(output=["s3://results/run-7"]) == UploadsLeft.exit_code
    assert "3 operations did not reach the bucket" in capsys.readouterr().err
    assert bench.log[-1] == "unmount s3://results/run-7 by force"
    (run,) = records.all_runs()
    assert run.receipt["outputs_left"] and run.receipt["outputs"][0]["left"] == bench.mounter.left
    bench.engine.ended = ContainerExit(42)
    assert bench(output=["s3://results/run-7"]) == 42


def test_a_link_to_a_dangerous_place_is_seen_through(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(UsageError, match="`/etc` would hand this host"):
        bench(input=[f"{tmp_path}/link"])
    assert "run" not in bench.log


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ({"input": ["a-bucket", "other"]}, UsageError),
        ({"input": ["a-bucket", "/nosuch/directory:/x"]}, UsageError),
        ({"input": ["a-bucket", "/proc/version:/x"]}, UsageError),
        ({"input": ["a-bucket"], "output": ["/dev/null/x"]}, MountkitError),
        ({"input": ["a-bucket"], "env": ["NOT_SET_ANYWHERE"]}, UsageError),
    ],
)
def test_what_makes_no_sense_is_found_before_anything_is_mounted(
    bench: Bench, words: dict[str, Any], kind: type[MountkitError]
) -> None:
    with pytest.raises(kind):
        bench(**words)
    assert not [line for line in bench.log if line != "check"]


def test_a_missing_image_is_found_before_anything_is_mounted(bench: Bench) -> None:
    bench.engine.here, bench.engine.refuse = False, ImageMissing("the image is not there")
    with pytest.raises(EngineError):
        bench(input=["first"])
    assert bench.log == ["check"]


def test_a_bucket_that_cannot_be_mounted_undoes_the_ones_before_it(bench: Bench) -> None:
    bench.mounter.refuse, bench.mounter.refuse_after = BucketMissing("no such bucket", "check it"), 1
    with pytest.raises(BucketMissing, match="cannot mount the input `second`: no such bucket"):
        bench(input=["first:/a", "second:/b"])
    assert bench.log == ["check", "mount first", "unmount first"]


def test_a_bucket_named_like_a_directory_gets_a_hint(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    bench.mounter.refuse = BucketMissing("no such bucket")
    with pytest.raises(BucketMissing) as caught:
        bench(input=["data"])
    assert "write ./data" in caught.value.hint


def test_a_dead_mount_is_not_given_to_a_container(bench: Bench, tmp_path: Path) -> None:
    bench.mounter.states[str(tmp_path)] = "dead"
    with pytest.raises(MountError, match="is dead"):
        bench(input=[str(tmp_path)])


def test_an_engine_that_fails_leaves_no_mount(bench: Bench) -> None:
    def fail(plan: ContainerPlan) -> None:
        raise EngineError("gone")

    bench.engine.action = fail
    with pytest.raises(EngineError):
        bench(input=["first"])
    assert bench.log[-1] == "unmount first"


def test_a_mount_that_is_busy_after_the_run_is_cut_off_and_said(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.mounter.busy = True
    bench.engine.ended = ContainerExit(3)
    assert bench(input=["first"]) == 3
    assert bench.log[-1] == "unmount first by force"
    assert "is in use" in capsys.readouterr().err


def test_an_image_that_is_not_here_is_fetched_unless_that_is_forbidden(bench: Bench) -> None:
    bench.engine.here = False
    with pytest.raises(ImageMissing, match="--pull never"):
        bench(pull="never")
    assert bench() == 0
    assert bench.log == ["check", "check", "pull", "run"]
    bench(pull="always")
    assert bench.log.count("pull") == 2


def test_an_image_for_another_platform_is_not_the_one_that_is_wanted(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.engine.platform = "linux/amd64"
    for platform in ("linux/amd64", "linux/amd64/v3"):
        assert bench(platform=platform) == 0
    assert "pull" not in bench.log
    assert bench(platform="linux/arm64") == 0
    assert "pull" in bench.log
    assert "fetching the image image for linux/arm64" in capsys.readouterr().err
    with pytest.raises(ImageMissing, match="on this machine is for linux/amd64"):
        bench(platform="linux/arm64", pull="never")


@pytest.mark.parametrize(
    ("given", "hint"),
    [({"pull": "always"}, "drop --pull always"), ({"platform": "linux/arm64"}, "is for linux/amd64: drop --platform")],
)
def test_who_cannot_fetch_an_image_is_told_of_the_one_that_is_there(
    bench: Bench, given: dict[str, Any], hint: str
) -> None:
    bench.engine.platform = "linux/amd64"
    bench.engine.refuse = ImageMissing("the image `image` cannot be pulled: no route")
    with pytest.raises(ImageMissing) as refused:
        bench(**given)
    assert refused.value.sentence == "the image `image` cannot be pulled: no route"
    assert hint in refused.value.hint


def test_gpus_that_are_not_there_are_an_error_if_asked_for_and_a_note_if_a_preset_wants_them(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError, match="no GPU runtime"):
        bench(gpus="all")
    assert "run" not in bench.log
    preset = RunDefaults(gpus="all", gpus_optional=True)
    settled = command.settle_gpus(merge(RunDefaults(), preset), bench.engine)
    assert settled.gpus is None
    assert "without GPUs" in capsys.readouterr().err
    assert not merge(RunDefaults(gpus="all"), preset).gpus_optional
    bench.engine.gpus = True
    bench(gpus="all")
    assert bench.engine.plan and bench.engine.plan.gpus == "all"


# ---- secrets -------------------------------------------------------------------------------------------------
VALUE = "a-value-nobody-may-see"


def everything_written(directory: Path) -> bytes:
    return b"".join(p.read_bytes() for p in directory.rglob("*") if p.is_file())


def test_a_secret_is_a_file_in_memory_for_the_time_of_the_run_and_nowhere_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("MINE", VALUE)
    seen: list[str] = []

    def look(plan: ContainerPlan) -> None:
        places = {bind.target: bind.source for bind in plan.binds}
        secret = Path(places["/run/secrets"], "token")
        assert secret.read_text() == VALUE
        assert secret.stat().st_mode & 0o777 == 0o400
        assert secret.parent.parent.parent.stat().st_mode & 0o077 == 0
        assert VALUE not in repr(plan)
        seen.append(places["/run/secrets"])

    bench.engine.action = look
    bench.engine.says = f"arguments: {VALUE[:7]}".encode()
    assert bench(secret=["token:TOKEN=env:MINE"], env=["OTHER=1"]) == 0
    assert seen and not os.path.exists(os.path.dirname(seen[0]))
    assert VALUE.encode() not in everything_written(tmp_path)
    assert capfdbinary.readouterr().out == f"arguments: {VALUE[:7]}".encode()
    assert bench.engine.plan
    assert bench.engine.plan.entrypoint == ("/bin/sh", "/run/mountkit/entry", "token:TOKEN", "--", "/main")
    assert bench.engine.plan.arguments == ("go",)


def test_a_program_that_prints_its_secret_is_blotted_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("MINE", VALUE)
    bench.engine.says = f"token={VALUE}!".encode()
    bench(secret=["token=env:MINE"], env=[f"COPY=<{VALUE}>"], label=[f"copy={VALUE}"])
    assert capfdbinary.readouterr().out == b"token=***!"
    assert VALUE.encode() not in everything_written(tmp_path)


def test_a_variable_in_an_image_without_a_shell_is_refused_before_anything_starts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", VALUE)
    bench.engine.shell = False
    with pytest.raises(UsageError, match="no /bin/sh"):
        bench(secret=["token:TOKEN=env:MINE"])
    assert "run" not in bench.log
    assert not records.all_runs()
    assert bench(secret=["token=env:MINE"]) == 0


def test_a_secret_that_is_not_there_is_found_first(bench: Bench) -> None:
    for source in ("env:NOT_SET_ANYWHERE", "/no/such/file", "fd:999"):
        with pytest.raises(UsageError, match="the secret token"):
            bench(secret=[f"token={source}"], input=["a-bucket"])
    assert bench.log == ["check"] * 3


# ---- receipts ------------------------------------------------------------------------------------------------
def test_the_receipt_tells_what_was_read_and_how_it_ended(bench: Bench) -> None:
    bench.engine.ended = ContainerExit(42)
    bench(input=["first:/a"], env=["API_KEY=hidden-value"], name_run="night")
    (run,) = records.all_runs()
    receipt = run.receipt
    assert (receipt["exit_code"], receipt["name"], receipt["image_id"]) == (42, "night", "sha256:1")
    (one,) = receipt["inputs"]
    assert (one["source"], one["target"], one["objects_opened"], one["bytes_read"]) == ("first", "/a", 10, 1000)
    assert "hidden-value" not in repr(receipt)
    assert receipt["command"].startswith("docker run ")
    assert os.stat(run.path).st_mode & 0o777 == 0o700


def _row(key: bytes, etag: str, size: int) -> ObjectRow:
    return ObjectRow(ObjectId(1), key, f'"{etag}"', size, 0, "", "STANDARD", None)


def test_the_receipt_names_every_version_that_was_opened(bench: Bench) -> None:
    bench.mounter.traces.rows = [_row(b"a", "1", 5), _row(b"a", "2", 6), _row(b"b\n\xff", "3", 7)]
    assert bench(input=["first:/a"], output=["s3://results/run-7"]) == 0
    (run,) = records.all_runs()
    (one,) = run.receipt["inputs"]
    listed = (Path(run.path) / one["objects"]["list"]).read_bytes()
    assert [json.loads(line) for line in listed.splitlines()] == one["objects"]["all"]
    assert [(o["key"], o["size"], o["etag"]) for o in one["objects"]["all"]] == [
        ("a", 5, '"1"'),
        ("a", 6, '"2"'),
        ("b\n\\xff", 7, '"3"'),
    ]
    assert (one["objects"]["count"], one["objects"]["bytes"], one["objects"]["changed_meanwhile"]) == (3, 18, 1)
    assert one["objects"]["sha256"] == hashlib.sha256(listed).hexdigest()
    assert not bench.mounter.traces.under_way
    copies = f"s3://results/run-7/.mountkit-runs/{run.id}"
    assert bench.mounter.files[f"{copies}/input-1.jsonl"] == listed
    assert json.loads(bench.mounter.files[f"{copies}/receipt.json"]) == run.receipt


def test_many_objects_are_in_the_list_only(bench: Bench) -> None:
    bench.mounter.traces.rows = [_row(b"%03d" % n, "e", 1) for n in range(101)]
    bench(input=["first"])
    (run,) = records.all_runs()
    (one,) = run.receipt["inputs"]
    assert one["objects"]["count"] == 101 and "all" not in one["objects"]
    assert len((Path(run.path) / "input-1.jsonl").read_text().splitlines()) == 101


def test_a_trace_that_was_lost_is_said_to_be(bench: Bench) -> None:
    def lose(_: ContainerPlan) -> None:
        bench.mounter.traces.lost = True

    bench.engine.action = lose
    assert bench(input=["first"]) == 0
    (run,) = records.all_runs()
    assert run.receipt["inputs"][0]["objects"] == {"unknown": "the trace is gone"}
    assert run.receipt["inputs"][0]["objects_opened"] == 10, "the counters are there all the same"


def test_an_input_of_a_mount_that_was_there_before_is_counted_and_traced(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    bench.mounter.states[str(tmp_path / "train")] = "ok"
    bench.mounter.traces.rows = [_row(b"a", "1", 5)]
    assert bench(input=[f"{tmp_path}/train"]) == 0
    (run,) = records.all_runs()
    (one,) = run.receipt["inputs"]
    assert (one["objects_opened"], one["objects"]["count"], one["mounted_before"]) == (10, 1, True)


def test_a_receipt_that_cannot_be_written_costs_no_exit_code_and_leaves_no_mount(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise HostError("cannot write the receipt: No space left on device")

    monkeypatch.setattr(records.Run, "write_receipt", full)
    bench.engine.ended = ContainerExit(42)
    assert bench(input=["first"]) == 42
    assert bench.log[-1] == "unmount first"
    assert "has no receipt" in capsys.readouterr().err


def test_a_run_whose_container_never_was_is_not_in_the_history(bench: Bench) -> None:
    bench.mounter.refuse = BucketMissing("no such bucket")
    with pytest.raises(BucketMissing):
        bench(input=["first"])
    assert not records.all_runs()


def test_two_runs_at_once_share_one_mount_and_the_last_one_unmounts_it(bench: Bench) -> None:
    inner: list[str] = []

    def second(plan: ContainerPlan) -> None:
        bench.engine.action = lambda plan: inner.append(plan.binds[0].source)
        wanted = merge(options.wanted({"input": ["first"]}, image="image"))
        assert command.run(wanted, mounter=bench.mounter, engine=bench.engine, base_directory=str(bench.base)) == 0
        assert inner == [plan.binds[0].source]
        assert bench.mounter.mounted

    bench.engine.action = second
    bench(input=["first"])
    assert [line for line in bench.log if "first" in line] == ["mount first", "unmount first"]
    runs = records.all_runs()
    said = [run.receipt["inputs"][0]["shared_with"] for run in runs]
    assert said == [[runs[1].id], [runs[0].id]], "it was, whoever has ended since"


def test_runs_one_after_the_other_share_nothing(bench: Bench) -> None:
    for _ in range(2):
        assert bench(input=["first"]) == 0
    assert [run.receipt["inputs"][0]["shared_with"] for run in records.all_runs()] == [[], []]


def test_other_options_make_another_mount(bench: Bench) -> None:
    real = command.Mounts()
    assert real.key("s3://data", {}) == real.key("data", {})
    assert real.key("s3://data", {}) != real.key("s3://data", {"ttl": "5s"})


def test_a_dry_run_asks_for_gpus_as_the_run_would(bench: Bench) -> None:
    preset = RunDefaults(gpus="all", gpus_optional=True)

    def line(given: dict[str, Any]) -> str:
        wanted = merge(options.wanted(given, image="image"), preset)
        return command.dry_run(wanted, mounter=bench.mounter, engine=bench.engine)

    assert "--gpus" not in line({}) and "--gpus all" in line({"gpus": "all"})
    bench.engine.gpus = True
    assert "--gpus all" in line({})


def test_a_dry_run_starts_nothing_and_tells_no_secret(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, no_aws: None
) -> None:
    monkeypatch.setenv("MINE", VALUE)
    words = {"input": ["s3://a-bucket:/a"], "secret": ["t:TOKEN=env:MINE"], "env": ["HF_TOKEN=x1y2", "A=b c"]}
    wanted = merge(options.wanted(words, image="image", arguments=["run", "token=x1y2", "--password", "x1y2"]))
    line = command.dry_run(wanted, mounter=bench.mounter, engine=bench.engine)
    assert line.startswith("docker run --rm ")
    assert "target=/a,readonly" in line and "'A=b c'" in line
    assert line.endswith(
        "--entrypoint /bin/sh image /run/mountkit/entry t:TOKEN -- /main run 'token=***' --password '***'"
    )
    assert VALUE not in line and "x1y2" not in line
    assert not bench.log


def test_a_rerun_is_the_same_run_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "x1y2")
    words = {"input": ["first:/a"], "env": ["HF_TOKEN", "A=1"], "memory": "1g", "ulimit": ["nofile=5"]}
    wanted = merge(options.wanted(words, image="image", arguments=["go"]))
    again = requests.from_json(json.loads(json.dumps(requests.to_json(wanted))))
    assert again == wanted
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match="the variable HF_TOKEN"):
        requests.from_json(requests.to_json(wanted))
    with pytest.raises(UsageError, match="token"):
        requests.from_json(requests.to_json(replace(wanted, arguments=("token=x",))))
