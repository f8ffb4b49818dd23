"""What is written down about runs, what is counted, and who still uses a mount: no engine, no kernel."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from mountkit.errors import BucketMissing, HostError, MountBusy, MountkitError, UsageError
from mountkit.run import closing, history, records, secret_files
from mountkit.run.engine import ContainerExit
from mountkit.run.output import Blotter, Tee
from mountkit.run.plan import Secret
from mountkit.run.records import Run
from mountkit.run.shared_mounts import Options, SharedMounts
from tests.fakes.tracer import FakeTracer


def new_run(name: str = "", run_id: str = "", **record: Any) -> tuple[Run, int]:
    run_id = run_id or records.new_id()
    return records.create(run_id, {"id": run_id, "name": name, "image": "i", "times": {"started": 1.0}, **record})


# ---- records -------------------------------------------------------------------------------------------------
def test_a_run_lives_as_long_as_its_lock_is_held() -> None:
    run, lock = new_run()
    assert run.alive
    assert run.take() is None
    os.close(lock)
    assert not run.alive
    taken = run.take()
    assert taken is not None
    os.close(taken)


def test_everything_written_down_is_for_its_user_alone(own_history: Path) -> None:
    run, lock = new_run()
    run.write_receipt({"exit_code": 0})
    os.close(lock)
    assert os.stat(own_history).st_mode & 0o777 == 0o700
    assert os.stat(run.path).st_mode & 0o777 == 0o700
    assert {entry.stat().st_mode & 0o777 for entry in Path(run.path).iterdir()} == {0o600}


def test_a_state_directory_of_somebody_else_is_refused(own_history: Path) -> None:
    own_history.mkdir(parents=True, mode=0o777)
    own_history.chmod(0o777)
    with pytest.raises(HostError, match="may be written by others"):
        new_run()


def test_a_receipt_is_there_as_a_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    run, lock = new_run()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(HostError, match="No space left"):
        run.write_receipt({"exit_code": 0})
    assert not run.ended
    assert run.receipt == {}
    os.close(lock)


def test_a_broken_record_reads_as_empty_and_breaks_no_list() -> None:
    run, lock = new_run()
    os.close(lock)
    Path(run.path, "record.json").write_text("{")
    assert [history.summary(one)["id"] for one in records.all_runs()] == [run.id]


def test_a_run_is_found_by_id_unique_beginning_end_and_newest_name() -> None:
    for run_id, name in (("20260101-000000-aaaa", "night"), ("20260102-000000-bbbb", "night")):
        os.close(new_run(name, run_id)[1])
    assert records.find("20260101-000000-aaaa").id.endswith("aaaa")
    assert records.find("20260102").id.endswith("bbbb")
    assert records.find("aaaa").id.endswith("aaaa")
    assert records.find("night").id.endswith("bbbb")
    with pytest.raises(UsageError, match="may be 2 runs"):
        records.find("2026")
    for word in ("", "none", "../x"):
        with pytest.raises(UsageError):
            records.find(word)


def test_counters_are_what_grew_and_a_replaced_process_began_at_zero() -> None:
    before = {"reads": {"opens": 10, "read_bytes": 5}, "requests": {"get": 100}}
    after = {"reads": {"opens": 15, "read_bytes": 5}, "requests": {"get": 7, "list": 1}}
    assert records.difference(before, after) == {
        "reads": {"opens": 5, "read_bytes": 0},
        "requests": {"get": 7, "list": 1},
    }


def test_the_history_shows_each_run_on_a_line() -> None:
    run, lock = new_run("night")
    assert "running" in history.as_table([history.summary(run)])
    inputs = [{"objects_opened": 4, "bytes_read": 4000, "opens_fetched": 1, "native_opens": 2}]
    run.write_receipt({"exit_code": 137, "out_of_memory": True, "inputs": inputs, "seconds": 2.0})
    os.close(lock)
    line = history.as_table([history.summary(run)]).splitlines()[1]
    assert run.id in line and "137 (memory)" in line and "4.0 KB + native" in line and "75 %" in line
    assert json.loads(history.as_json([history.summary(run)]))[0]["exit_code"] == 137
    assert history.as_table([]) == "no runs"


def test_the_history_tells_what_reached_the_bucket_and_leaves_out_what_no_run_has() -> None:
    (plain, lock), (writer, other) = new_run(run_id="20260101-000000-aaaa"), new_run(run_id="20260101-000000-bbbb")
    os.close(lock), os.close(other)
    plain.write_receipt({"exit_code": 0, "inputs": [{"source": "/data"}], "seconds": 2.0})
    head, line = history.as_table([history.summary(plain)]).splitlines()
    assert head.split() == ["RUN", "STARTED", "IMAGE", "EXIT", "SECONDS"]
    outputs = [{"objects": [{"key": "a", "size": 1000}, {"key": "b", "size": 2000}]}, {"directory": "/out"}]
    writer.write_receipt({"exit_code": 0, "outputs": outputs, "seconds": 2.0})
    head, first, second = history.as_table([history.summary(one) for one in (plain, writer)]).splitlines()
    assert head.split()[-1] == "UPLOADED"
    assert second.endswith("2, 3.0 KB") and first == line


# ---- the mounts of runs --------------------------------------------------------------------------------------
class FakeMounter:
    def __init__(self) -> None:
        self.mounted: set[str] = set()
        self.log: list[str] = []
        self.refuse: MountkitError | None = None
        self.busy = False

    def key(self, source: str, options: Options) -> str:
        return source

    def mount(self, source: str, directory: str, options: Options) -> None:
        if self.refuse:
            raise self.refuse
        self.log.append("mount")
        self.mounted.add(directory)

    def unmount(self, directory: str, *, force: bool = False) -> None:
        if self.busy and not force:
            raise MountBusy("busy")
        self.log.append("unmount")
        self.mounted.discard(directory)

    @property
    def traces(self) -> FakeTracer:
        return FakeTracer()

    def put(self, directory: str, path: str, content: BinaryIO) -> None:
        raise AssertionError("no output here is in a bucket")

    def uploaded(self, directory: str, since: float, timeout_s: float) -> tuple[list[dict[str, Any]], str]:
        return [], ""

    def state(self, path: str) -> str:
        return "ok" if path in self.mounted else ""

    def details(self, path: str) -> dict[str, Any]:
        return {}


@pytest.fixture
def mounter() -> FakeMounter:
    return FakeMounter()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "mounts"


def test_the_last_of_two_runs_unmounts(mounter: FakeMounter, base: Path) -> None:
    mounts, others = SharedMounts(mounter, str(base)), SharedMounts(mounter, str(base))
    (first, lock), (second, other) = new_run(), new_run()
    directory = mounts.take("data", {}, first)
    assert others.take("data", {}, second) == directory
    assert mounts.users(directory) == sorted([first.id, second.id])
    others.release(directory, second)
    assert mounter.log == ["mount"]
    mounts.release(directory, first)
    assert mounter.log == ["mount", "unmount"]
    assert not list(base.iterdir())
    os.close(lock), os.close(other)


def _killed(mounts: SharedMounts, run: Run, lock: int) -> None:
    """As the kernel leaves it after kill -9: no lock is held any more."""
    os.close(lock)
    for fd in mounts._locks.values():
        os.close(fd)


def test_a_killed_run_keeps_the_mount_until_it_is_collected(mounter: FakeMounter, base: Path) -> None:
    mounts, dead_mounts = SharedMounts(mounter, str(base)), SharedMounts(mounter, str(base))
    (killed, dead), (living, lock) = new_run(), new_run()
    directory = dead_mounts.take("data", {}, killed)
    mounts.take("data", {}, living)
    _killed(dead_mounts, killed, dead)
    mounts.release(directory, living)
    assert mounter.mounted, "its container may still read"
    SharedMounts(mounter, str(base)).release(directory, killed)
    assert not mounter.mounted
    assert not list(base.iterdir())
    os.close(lock)


@pytest.mark.parametrize("how", ["its record is gone", "it has a receipt"])
def test_what_a_killed_run_left_counts_no_more_once_it_is_over(mounter: FakeMounter, base: Path, how: str) -> None:
    mounts, dead_mounts = SharedMounts(mounter, str(base)), SharedMounts(mounter, str(base))
    (killed, dead), (living, lock) = new_run(), new_run()
    directory = dead_mounts.take("data", {}, killed)
    mounts.take("data", {}, living)
    _killed(dead_mounts, killed, dead)
    if how == "it has a receipt":
        killed.write_receipt({})
    else:
        killed.forget()
    mounts.release(directory, living)
    assert not mounter.mounted
    os.close(lock)


def test_a_mount_that_fails_leaves_nothing(mounter: FakeMounter, base: Path) -> None:
    mounter.refuse = BucketMissing("no such bucket")
    run, lock = new_run()
    with pytest.raises(BucketMissing):
        SharedMounts(mounter, str(base)).take("data", {}, run)
    assert not list(base.iterdir())
    os.close(lock)


def test_runs_that_come_and_go_at_once_never_use_what_is_unmounted(mounter: FakeMounter, base: Path) -> None:
    failures: list[str] = []

    def come_and_go() -> None:
        mounts = SharedMounts(mounter, str(base))
        for _ in range(15):
            run, lock = new_run()
            directory = mounts.take("data", {}, run)
            if directory not in mounter.mounted:
                failures.append("unmounted under a user")
            failures.extend(mounts.release(directory, run))
            run.forget()
            os.close(lock)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not mounter.mounted
    assert not list(base.iterdir())


def test_closing_a_run_may_be_cut_short_and_repeated(
    mounter: FakeMounter, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = SharedMounts(mounter, str(base))
    run_id = records.new_id()
    place = secret_files.write({"token": b"value"}, run_id=run_id, uid=None, gid=None)
    inputs = [{"source": "data", "target": "/in", "directory": str(base / "data" / "mnt"), "mounted": True}]
    run, lock = new_run(run_id=run_id, inputs=inputs, secrets_directory=place)
    mounts.take("data", {}, run)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_receipt", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            closing.close_run(run, ContainerExit(0), mounter=mounter, mounts=mounts)
    assert not run.ended
    closing.close_run(run, ContainerExit(0), mounter=mounter, mounts=mounts)
    assert run.receipt["exit_code"] == 0
    assert not mounter.mounted and not os.path.exists(place)
    os.close(lock)


# ---- secrets and output --------------------------------------------------------------------------------------
def test_secrets_are_read_from_files_descriptors_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("value\n")
    monkeypatch.setenv("MINE", "value")
    fd = os.memfd_create("secret")
    os.write(fd, b"value\n")
    for source in (str(tmp_path / "file"), "env:MINE", f"fd:{fd}"):
        assert secret_files.read(Secret("s", source)) == b"value"
    os.close(fd)


@pytest.mark.parametrize(
    ("user", "numbers"),
    [("", (0, 0)), ("me", (7, 8)), ("7", (7, 8)), ("me:9", (7, 9)), ("55", (55, None)), ("who", (None, None))],
)
def test_the_user_of_a_container_is_looked_up_in_its_own_passwd(user: str, numbers: tuple[Any, Any]) -> None:
    assert secret_files.user_numbers(user, "root:x:0:0::/:/bin/sh\nme:x:7:8::/:/bin/sh\n") == numbers


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_a_secret_is_blotted_out_however_the_stream_is_cut(step: int) -> None:
    stream, blotter = b"a secrsecret b secre secretsecret sec", Blotter([b"secret", b"x"])
    shown = b"".join(blotter.feed(stream[i : i + step]) for i in range(0, len(stream), step)) + blotter.rest()
    assert shown == b"a secr*** b secre ****** sec"


def test_what_cannot_be_a_secret_is_shown_at_once() -> None:
    assert Blotter([b"secret"]).feed(b"epoch 1\n") == b"epoch 1\n"


def test_a_log_has_a_limit_and_says_so(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as log:
        tee = Tee(None, None, log, log_limit_bytes=10)
        for _ in range(5):
            tee(b"12345678", False)
        tee.close()
    assert (tmp_path / "log").read_bytes().startswith(b"1234567812\nmountkit: the log ends here")
