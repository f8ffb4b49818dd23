"""An ordinary user with an account, a home and a manager of his own: mounts, user units."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest

from tests.mount.conftest import content
from tests.systemd.conftest import Place
from tests.systemd.machine import USER, Machine

HOME = f"/home/{USER}"


@pytest.fixture
def alice(machine: Machine, place: Place) -> Iterator[Machine]:
    place.put("a", content(5, 300_000))
    machine.start_user_manager()
    machine.write(f"{HOME}/.aws/credentials", place.credentials, mode=0o600, user=True)
    text = f"mounts:\n  mine:\n    source: {place.source}?endpoint={place.server.endpoint}\n    directory: ~/mine\n"
    machine.write(f"{HOME}/.config/mountkit/mountkit.yaml", text, mode=0o600, user=True)
    yield machine
    machine.run("mountkit systemd uninstall --user --all; mountkit unmount mine", user=True)
    assert not machine.mounted(f"{HOME}/mine")


def test_an_ordinary_user_mounts_reads_and_unmounts(alice: Machine) -> None:
    alice.sh(f"mkdir -p {HOME}/mine; mountkit mount mine", user=True)
    assert alice.sh(f"cat {HOME}/mine/a | wc -c", user=True).strip() == "300000"
    status = json.loads(alice.sh("mountkit status --json", user=True))[0]
    assert (status["state"], status["owner_uid"]) == ("ok", 1000)
    assert status["state_directory"].startswith(f"{HOME}/.cache/mountkit-1000/")
    alice.sh("mountkit unmount mine", user=True)
    assert not alice.mounted(f"{HOME}/mine")


def test_a_user_unit_survives_restarts_and_deaths_under_its_reader(alice: Machine) -> None:
    said = alice.sh("mountkit systemd install mine --user --now", user=True)
    assert "mountkit@mine.service: s3://data/" in said
    assert "loginctl enable-linger" in said
    device = alice.sh(f"stat -c %d {HOME}/mine", user=True)
    alice.sh(f"cat {HOME}/mine/a | wc -c; systemctl --user restart mountkit@mine", user=True)
    alice.sh("systemctl --user kill --signal=KILL mountkit@mine", user=True)
    assert alice.sh(f"dd if={HOME}/mine/a bs=1M iflag=direct status=none | wc -c", user=True).strip() == "300000"
    alice.wait_for("mountkit@mine", "ActiveState", "active", user=True)
    assert alice.sh(f"stat -c %d {HOME}/mine", user=True) == device
    shown = alice.sh("mountkit systemd status --user", user=True)
    assert shown.startswith("mountkit@mine.service: active, enabled, restarted 1 times")
    alice.sh("mountkit systemd uninstall mine --user", user=True)
    assert not alice.mounted(f"{HOME}/mine")
    assert alice.sh(f"ls -A {HOME}/.config/systemd/user", user=True).split() == []


def test_credentials_come_through_the_users_manager_too(alice: Machine) -> None:
    alice.sh(f"mv {HOME}/.aws/credentials {HOME}/elsewhere", user=True)
    done = alice.run("mountkit systemd install mine --user --now", user=True)
    assert done.returncode == 5
    assert "mountkit@mine.service does not start: " in done.stderr
    assert "hint: " in done.stderr
    alice.sh(f"mountkit systemd install mine --user --now --credentials {HOME}/elsewhere", user=True)
    assert alice.sh(f"cat {HOME}/mine/a | wc -c", user=True).strip() == "300000"


def test_units_of_the_system_are_not_an_ordinary_users(alice: Machine) -> None:
    done = alice.run("mountkit systemd install mine", user=True)
    assert (done.returncode, done.stderr.splitlines()[0]) == (5, "error: units of the system are root's")


def test_somebody_in_the_docker_group_runs_a_container_on_his_mount(alice: Machine, tiny_image: str) -> None:
    alice.start_engine(tiny_image)
    run = f"mountkit run --network host --input mine:/data --output {HOME}/out:/out {tiny_image}"
    alice.sh(f"{run} sh -c 'sha256sum /data/a >/out/sum; id -u'", user=True)
    assert alice.sh(f"cat {HOME}/out/sum", user=True).startswith(hashlib.sha256(content(5, 300_000)).hexdigest())
    assert not alice.processes(), "the mount of the run has ended with it"
