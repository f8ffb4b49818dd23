"""A writable mount and a local directory under the same random operations: same results, same errnos, same tree."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mount.conftest import Bucket, CommandLine, kill, wait_until
from tests.mount.differential import Operation, World, operations
from tests.mount.writing import objects

UNAVAILABLE = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n"

_numbers = itertools.count()


def _tell_the_same(mounted: Path, local: Path, script: list[Operation]) -> None:
    name = f"w{next(_numbers)}"
    ours, theirs = World(mounted / name), World(local / name)
    try:
        for step, operation in enumerate(script):
            expected = theirs.apply(operation)
            assert ours.apply(operation) == expected, f"step {step}: {operation}"
        assert ours.tree() == theirs.tree()
    finally:
        ours.close()
        theirs.close()


_PLAIN = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}


_SCRIPTS = st.lists(operations, min_size=20, max_size=80)


def _play(mounted: Path, local: Path, examples: int, scripts: st.SearchStrategy[list[Operation]], *, new: bool) -> None:
    """Random scripts, each in a directory of its own."""

    @settings(max_examples=examples, derandomize=not new, **_PLAIN)
    @given(script=scripts)
    def play(script: list[Operation]) -> None:
        _tell_the_same(mounted, local, script)

    before = os.umask(0o022)
    try:
        play()
    finally:
        os.umask(before)


def _mount(bucket: Bucket, mountkit: CommandLine, flag: str) -> Path:
    flags = [flag] if flag.startswith("--no") else []
    return mountkit.mount(bucket.source, "--writable", "--umask", "022", *flags)


def _assert_the_bucket_is(local: Path, bucket: Bucket) -> None:
    """Every file and link is there byte for byte, every empty directory has its marker, and nothing else is there."""
    files, directories, empty = {}, set(), set()
    for path in local.rglob("*"):
        name = str(path.relative_to(local))
        if path.is_symlink():
            files[name] = os.readlink(path).encode()
        elif path.is_dir():
            directories.add(name + "/")
            if not os.listdir(path):
                empty.add(name + "/")
        else:
            files[name] = path.read_bytes()
    found = objects(bucket)
    markers = {key for key in found if key.endswith("/")}
    assert {key: body for key, body in found.items() if key not in markers} == files
    assert empty <= markers <= directories


FLAGS = pytest.mark.parametrize("flag", ["--passthrough", "--no-passthrough"])


@FLAGS
def test_the_mount_does_what_a_local_directory_does(
    bucket: Bucket, mountkit: CommandLine, tmp_path: Path, flag: str
) -> None:
    """[writing-1] Afterwards the bucket holds that directory byte for byte."""
    mounted, local = _mount(bucket, mountkit, flag), tmp_path / "local"
    local.mkdir()
    _play(mounted, local, 40, _SCRIPTS, new=False)
    mountkit.unmount(mounted)
    _assert_the_bucket_is(local, bucket)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@FLAGS
@pytest.mark.parametrize("trouble", ["none", "kills", "faults"])
def test_the_mount_does_so_for_thousands_of_operations_and_in_trouble(
    bucket: Bucket, mountkit: CommandLine, tmp_path: Path, flag: str, trouble: str
) -> None:
    """[writing-1] [writing-5] Servers, movers and keepers are killed; the bucket answers 503, or nothing."""
    mounted, local = _mount(bucket, mountkit, flag), tmp_path / "local"
    local.mkdir()
    over, dice = threading.Event(), random.Random(flag)

    def kill_now_and_then() -> None:
        while not over.wait(1 + 2 * dice.random()):
            with contextlib.suppress(AssertionError, KeyError, ProcessLookupError, ValueError):
                status = mountkit.status(mounted)
                kill(dice.choice([*status["server_pids"], status["mover_pid"], status["keeper_pid"]]))

    def fail_now_and_then(_method: str, _target: str) -> bytes | None:
        return dice.choice([b"", UNAVAILABLE]) if dice.random() < 0.1 else None

    troublemaker = threading.Thread(target=kill_now_and_then)
    if trouble == "kills":
        troublemaker.start()
    elif trouble == "faults":
        bucket.proxy.fault = fail_now_and_then
    examples = int(os.environ.get("MOUNTKIT_SOAK_EXAMPLES", "300"))
    try:
        _play(mounted, local, examples, st.lists(operations, min_size=30, max_size=200), new=True)
    finally:
        over.set()
        if trouble == "kills":
            troublemaker.join()
    bucket.proxy.fault = None
    wait_until(lambda: mountkit.run("unmount", str(mounted), timeout=300).code == 0, seconds=600)
    mountkit.mounted.remove(mounted)
    _assert_the_bucket_is(local, bucket)
