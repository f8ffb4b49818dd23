"""Wall clocks that jump under a mount: names are dated by them, and nothing waits for them.

mountkit's processes are run by the tests' own interpreter behind libfaketime. They clean their environment, so a script
in its place sets that: each process is started by the path of the one before it. The bucket's server asks for no
signature, which has a date.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mountkit import mountinfo
from tests.mount.conftest import CommandLine, content, wait_until
from tests.servers import MotoServer

DAY_S = 86_400
TTL_S = 1.0
SIZE = 100_000
_PYTHON = """#!/bin/bash
export LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={file} FAKETIME_NO_CACHE=1 NO_FAKE_STAT=1
export FAKETIME_DONT_FAKE_MONOTONIC=1
exec -a {path} {real} "$@"
"""


@dataclass
class Clock:
    """The wall clock of all processes that `python` starts."""

    python: Path
    file: Path

    def set(self, off_s: int) -> None:
        """So far from the true time."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{off_s:+d}\n")
        new.rename(self.file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    """A virtual environment with our packages whose interpreter believes this clock, which is right at first."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.fail("this test fakes clocks: install the package `faketime`", pytrace=False)
    home, file = tmp_path / "python", tmp_path / "clock"
    (home / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", home)
    (home / "lib").symlink_to(Path(sys.prefix) / "lib")
    python = home / "bin" / "python"
    python.write_text(_PYTHON.format(library=library, file=file, path=python, real=os.path.realpath(sys.executable)))
    python.chmod(0o755)
    clock = Clock(python, file)
    clock.set(0)
    return clock


@pytest.fixture
def line(moto: MotoServer, clock: Clock, tmp_path: Path) -> Iterator[CommandLine]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = {**clean, **moto.environment(), "XDG_STATE_HOME": str(tmp_path / "state")}
    line = CommandLine(tmp_path, environment, python=str(clock.python))
    yield line
    line.close()
    wait_until(lambda: not line.processes(), seconds=15)
    assert not [point for point in mountinfo.ours() if point.directory.startswith(str(tmp_path))]


@dataclass
class Place:
    """A prefix of the bucket."""

    client: Any
    prefix: str = field(default_factory=lambda: uuid.uuid4().hex[:10])

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket="data", Key=f"{self.prefix}/{name}", Body=data)

    def keys(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket="data", Prefix=f"{self.prefix}/")
        return [each["Key"] for each in found.get("Contents", [])]

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket="data", Key=f"{self.prefix}/{name}")


class Reader(threading.Thread):
    """Reads files at random, and checks them, until it is stopped."""

    def __init__(self, root: Path, names: list[str]) -> None:
        super().__init__(daemon=True)
        self.longest_s, self.count, self.trouble = 0.0, 0, ""
        self._root, self._names, self._stopped = root, names, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.is_set() and not self.trouble:
            began, name = time.monotonic(), random.choice(self._names)
            try:
                if (self._root / name).read_bytes() != content(int(name), SIZE):
                    self.trouble = f"{name}: other bytes"
            except OSError as exc:
                self.trouble = str(exc)
            self.longest_s, self.count = max(self.longest_s, time.monotonic() - began), self.count + 1

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def test_a_wall_clock_that_jumps_by_days_under_readers_hurts_nobody(
    moto: MotoServer, line: CommandLine, clock: Clock
) -> None:
    """[failures-4] Ahead, back by two days, then right again: names are as new as ever, nothing is replaced."""
    place = Place(moto.client())
    known = [str(n) for n in range(12)]
    for name in [*known, "old 1", "old 2", "old 3"]:
        place.put(name, content(int(name.split()[-1]), SIZE))
    root = line.mount(f"s3://data/{place.prefix}?endpoint={moto.endpoint}", "--ttl", f"{TTL_S:g}s", "--servers", "2")
    assert len(os.listdir(root)) == len(known) + 3
    assert all("libfaketime" in Path(f"/proc/{pid}/maps").read_text() for pid in line.processes())
    readers = [Reader(root, known) for _ in range(3)]
    for number, off_s in enumerate((DAY_S, -DAY_S, 0), 1):
        clock.set(off_s)
        place.put(f"new {number}", content(number, SIZE))
        place.delete(f"old {number}")
        changed = {f"new {number}": True, f"old {number}": False}
        for shown in (lambda name: (root / name).exists(), lambda name: name in os.listdir(root)):
            wait_until(lambda: {name: shown(name) for name in changed} == changed, seconds=TTL_S + 4)  # noqa: B023
        assert (root / f"new {number}").read_bytes() == content(number, SIZE)
    for reader in readers:
        reader.stop()
        assert not reader.trouble
        assert reader.count > 100
        assert reader.longest_s < 4.0
    status = line.status(root)
    assert (status["state"], status["restarts"]) == ("ok", {"server": 0, "mover": 0})


def test_what_was_closed_as_the_clock_jumps_is_uploaded_as_soon_as_ever(
    moto: MotoServer, line: CommandLine, clock: Clock
) -> None:
    """[uploads-1] An upload waits for a second after its file was closed: not for a clock that is set back."""
    place = Place(moto.client())
    root = line.mount(f"s3://data/{place.prefix}?endpoint={moto.endpoint}", "--writable")
    for number, off_s in enumerate((-DAY_S, 0)):
        (root / f"before {number}").write_bytes(b"1")
        clock.set(off_s)
        (root / f"after {number}").write_bytes(b"2")
        wait_until(lambda: len(place.keys()) == 2 * number + 2, seconds=6)  # noqa: B023
    line.unmount(root)
