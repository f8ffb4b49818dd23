"""A unit whose mount s3fs serves, under a real systemd: started, shown, brought back from every death, stopped."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.mount.conftest import content
from tests.servers import SeaweedServer
from tests.systemd.conftest import Place
from tests.systemd.machine import Machine

CREDENTIALS = "/etc/mountkit/aws"
DATA = content(7, 300_000)
SUM = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def place(seaweed: SeaweedServer) -> Place:
    filled = Place(seaweed, seaweed.client(), uuid.uuid4().hex[:10])
    filled.put("a", DATA)
    return filled


@pytest.fixture
def by_s3fs(machine: Machine, place: Place) -> Iterator[Machine]:
    """The mount `old`, served by s3fs, installed and running as a unit."""
    mount = f"{{source: '{place.source}?endpoint={place.server.endpoint}', directory: /mnt/old, driver: s3fs}}"
    machine.write("/etc/mountkit/mountkit.yaml", f"mounts:\n  old: {mount}\n")
    machine.write(CREDENTIALS, place.credentials, mode=0o600)
    machine.sh(f"mountkit systemd install old --now --credentials {CREDENTIALS}")
    yield machine
    machine.sh("mountkit systemd uninstall old")
    assert machine.run("grep /mnt/old /proc/mounts").returncode == 1


def status(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.sh("mountkit status /mnt/old --json"))[0]
    return found


def wait_until_right(machine: Machine) -> None:
    """Until the file can be read again; then every byte is right, and the unit says it is well."""
    deadline = time.monotonic() + 30
    while (done := machine.run("sha256sum /mnt/old/a")).returncode:
        assert time.monotonic() < deadline, done.stderr + machine.journal()
        time.sleep(0.1)
    assert done.stdout.startswith(SUM)
    machine.wait_for("mountkit@old", "ActiveState", "active")


def test_the_unit_says_who_serves_and_a_stop_takes_the_mount_away(by_s3fs: Machine) -> None:
    wait_until_right(by_s3fs)
    found = status(by_s3fs)
    assert (found["driver"], found["state"]) == ("s3fs", "ok")
    assert (found["unit"], found["log"]) == ("mountkit@old.service", "journalctl -u mountkit@old.service")
    assert by_s3fs.show("mountkit@old", "StatusText").endswith(" at /mnt/old: ok")
    assert "by s3fs" in by_s3fs.sh("journalctl --no-pager -u mountkit@old")
    assert "is served by mountkit" in by_s3fs.sh("mountkit upgrade /mnt/old")
    by_s3fs.sh("systemctl stop mountkit@old")
    assert by_s3fs.show("mountkit@old", "Result") == "success"
    assert by_s3fs.run("grep /mnt/old /proc/mounts; pgrep -x s3fs").stdout == ""


def test_an_s3fs_that_is_killed_comes_back_without_a_restart_of_the_unit(by_s3fs: Machine) -> None:
    main = by_s3fs.show("mountkit@old", "MainPID")
    by_s3fs.sh(f"kill -9 {status(by_s3fs)['server_pids'][0]}")
    wait_until_right(by_s3fs)
    assert (by_s3fs.show("mountkit@old", "MainPID"), by_s3fs.show("mountkit@old", "NRestarts")) == (main, "0")
    assert status(by_s3fs)["restarts"]["server"] == 1


@pytest.mark.parametrize("whom", ["main", "all"])
def test_a_unit_whose_processes_are_killed_mounts_anew(by_s3fs: Machine, whom: str) -> None:
    by_s3fs.sh(f"systemctl kill --kill-who={whom} --signal=KILL mountkit@old")
    by_s3fs.wait_for("mountkit@old", "NRestarts", "1")
    wait_until_right(by_s3fs)
    assert by_s3fs.sh("grep -c /mnt/old /proc/mounts").strip() == "1"


def test_an_s3fs_that_no_longer_answers_is_replaced_by_the_watchdog(by_s3fs: Machine) -> None:
    drop_in = "/etc/systemd/system/mountkit@old.service.d/60-test.conf"
    by_s3fs.write(drop_in, "[Service]\nWatchdogSec=3\n")
    try:
        by_s3fs.sh("systemctl daemon-reload; systemctl restart mountkit@old")
        by_s3fs.sh(f"kill -STOP {status(by_s3fs)['server_pids'][0]}")
        by_s3fs.wait_for("mountkit@old", "NRestarts", "1")
        wait_until_right(by_s3fs)
    finally:
        by_s3fs.sh(f"rm {drop_in}; systemctl daemon-reload")
