"""`mountkit run` with a fake mounter and a fake engine: what is started when, and what is undone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mountkit.errors import BucketMissing, EngineError, MountBusy, MountError, MountkitError, UsageError
from mountkit.run import command
from mountkit.run.engine import ContainerExit
from mountkit.run.plan import ContainerPlan


class FakeMounter:
    """Remembers what it was asked; a mount is a key in `mounted`."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.mounted: dict[str, str] = {}
        self.states: dict[str, str] = {}
        self.refuse: MountkitError | None = None
        self.refuse_after = 0
        self.busy = False

    def mount(self, source: str, directory: str) -> None:
        if self.refuse and len(self.mounted) >= self.refuse_after:
            raise self.refuse
        self.log.append(f"mount {source}")
        self.mounted[directory] = source

    def unmount(self, directory: str, *, force: bool = False) -> None:
        if self.busy and not force:
            raise MountBusy(f"{directory} is in use")
        self.log.append(f"unmount {self.mounted.pop(directory)}{' by force' if force else ''}")

    def state(self, path: str) -> str:
        return "ok" if path in self.mounted else self.states.get(path, "")


class FakeEngine:
    """Runs nothing; `action` happens in its place."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.refuse: EngineError | None = None
        self.ended = ContainerExit(0)
        self.action: Callable[[ContainerPlan], None] = lambda plan: None
        self.plan: ContainerPlan | None = None

    def check(self) -> None:
        self.log.append("check")

    def require_image(self, image: str) -> None:
        if self.refuse:
            raise self.refuse

    def run(self, plan: ContainerPlan, *, stop_timeout_s: float) -> ContainerExit:
        self.log.append("run")
        self.plan = plan
        self.action(plan)
        return self.ended


class Bench:
    """A run with fakes, and a base directory that must be empty again afterwards."""

    def __init__(self, base: Path) -> None:
        self.log: list[str] = []
        self.base = base
        self.mounter, self.engine = FakeMounter(self.log), FakeEngine(self.log)

    def __call__(self, **words: Any) -> int:
        try:
            return command.run(
                "image", ["go"], mounter=self.mounter, engine=self.engine, base_directory=str(self.base), **words
            )
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
    assert bench(inputs=["first:/a", "s3://second/x:/b"]) == 0
    assert bench.log == [
        *("check", "mount first", "mount s3://second/x", "run", "unmount s3://second/x", "unmount first"),
    ]


def test_each_bucket_has_a_private_directory_of_its_own(bench: Bench) -> None:
    def look(plan: ContainerPlan) -> None:
        for bind in plan.binds:
            assert os.stat(bind.source).st_mode & 0o777 == 0o700
            assert os.stat(os.path.dirname(bind.source)).st_mode & 0o777 == 0o700

    bench.engine.action = look
    bench(inputs=["first:/a", "second:/b"])
    assert len(set(bench.sources.values())) == 2


def test_a_bucket_wanted_at_two_places_is_mounted_once(bench: Bench) -> None:
    bench(inputs=["first:/a", "first:/b"])
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
    bench(inputs=[f"{tmp_path}/data"], outputs=[f"{tmp_path}/new/out"])
    assert bench.log == ["check", "run"]
    assert bench.sources == {"/data/input": f"{tmp_path}/data", "/data/output": f"{tmp_path}/new/out"}
    assert (tmp_path / "new" / "out").is_dir()


def test_a_link_to_a_dangerous_place_is_seen_through(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(UsageError, match="`/etc` would hand this host"):
        bench(inputs=[f"{tmp_path}/link"])
    assert "run" not in bench.log


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ({"inputs": ["a-bucket", "other"]}, UsageError),
        ({"inputs": ["a-bucket", "/nosuch/directory:/x"]}, UsageError),
        ({"inputs": ["a-bucket", "/proc/version:/x"]}, UsageError),
        ({"inputs": ["a-bucket"], "outputs": ["/dev/null/x"]}, MountkitError),
        ({"inputs": ["a-bucket"], "environment": ["NOT_SET_ANYWHERE"]}, UsageError),
    ],
)
def test_what_makes_no_sense_is_found_before_anything_is_mounted(
    bench: Bench, words: dict[str, Any], kind: type[MountkitError]
) -> None:
    with pytest.raises(kind):
        bench(**words)
    assert not [line for line in bench.log if line != "check"]


def test_a_missing_image_is_found_before_anything_is_mounted(bench: Bench) -> None:
    bench.engine.refuse = EngineError("the image is not there")
    with pytest.raises(EngineError):
        bench(inputs=["first"])
    assert bench.log == ["check"]


def test_a_bucket_that_cannot_be_mounted_undoes_the_ones_before_it(bench: Bench) -> None:
    bench.mounter.refuse, bench.mounter.refuse_after = BucketMissing("no such bucket", "check it"), 1
    with pytest.raises(BucketMissing, match="cannot mount the input `second`: no such bucket"):
        bench(inputs=["first:/a", "second:/b"])
    assert bench.log == ["check", "mount first", "unmount first"]


def test_a_bucket_named_like_a_directory_gets_a_hint(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    bench.mounter.refuse = BucketMissing("no such bucket")
    with pytest.raises(BucketMissing) as caught:
        bench(inputs=["data"])
    assert "write ./data" in caught.value.hint


def test_a_dead_mount_is_not_given_to_a_container(bench: Bench, tmp_path: Path) -> None:
    bench.mounter.states[str(tmp_path)] = "dead"
    with pytest.raises(MountError, match="is dead"):
        bench(inputs=[str(tmp_path)])


def test_an_engine_that_fails_leaves_no_mount(bench: Bench) -> None:
    def fail(plan: ContainerPlan) -> None:
        raise EngineError("gone")

    bench.engine.action = fail
    with pytest.raises(EngineError):
        bench(inputs=["first"])
    assert bench.log[-1] == "unmount first"


def test_a_mount_that_is_busy_after_the_run_is_cut_off_and_said(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.mounter.busy = True
    bench.engine.ended = ContainerExit(3)
    assert bench(inputs=["first"]) == 3
    assert bench.log[-1] == "unmount first by force"
    assert "is in use" in capsys.readouterr().err


def test_the_command_lines_words_become_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def fake_run(image: str, arguments: list[str], **words: Any) -> int:
        given.update(words, image=image)
        return 5

    monkeypatch.setattr(command, "run", fake_run)
    options = {"inputs": ("a-bucket",), "outputs": (), "environment": (), "name": "", "shm_size": "2GiB"}
    assert command.run_from_flags("image", [], {**options, "stop_timeout": "", "ttl": "5s", "region": None}) == 5
    assert (given["shm_size_bytes"], given["stop_timeout_s"]) == (2 << 30, command.DEFAULT_STOP_TIMEOUT_S)
    assert given["mounter"] == command.Mounts({"ttl": "5s"})
