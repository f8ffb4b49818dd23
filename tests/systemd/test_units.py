"""The shipped units under a real systemd: readiness, restarts under readers, deaths, stops, wrong credentials, boot."""

from __future__ import annotations

import hashlib
import json
import re
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.mount.conftest import content
from tests.servers import SeaweedServer
from tests.systemd.conftest import Place
from tests.systemd.machine import Machine

CREDENTIALS = "/etc/mountkit/aws"
FILES = {f"d/{n:03}": content(n, 150_000 + n) for n in range(40)}
SUM = hashlib.sha256(b"".join(FILES[key] for key in sorted(FILES))).hexdigest()
# O_DIRECT goes past the page cache, and the mount has no passthrough: each round asks the servers.
READER = """
i=0; while [ $i -lt 400 ]; do
    found=$(for f in /mnt/train/d/*; do dd if=$f bs=1M iflag=direct status=none; done | sha256sum | cut -d' ' -f1)
    [ "$found" = {sum} ] || {{ echo wrong $found; exit 1; }}
    i=$((i+1)); [ $i -lt 3 ] || [ ! -e /tmp/enough ] || break
done; echo read $i times
"""


def project(place: Place, more: str = "") -> str:
    return f"""
mounts:
  train:
    source: {place.source}?endpoint={place.server.endpoint}
    directory: /mnt/train
    no-passthrough: true
    {more}
"""


@pytest.fixture(scope="module")
def place(seaweed: SeaweedServer) -> Place:
    """One prefix for all tests of this file: nothing writes to it."""
    filled = Place(seaweed, seaweed.client(), uuid.uuid4().hex[:10])
    for key, data in FILES.items():
        filled.put(key, data)
    return filled


@pytest.fixture
def train(machine: Machine, place: Place) -> Iterator[Machine]:
    """The mount `train`, installed and running as a unit."""
    machine.write("/etc/mountkit/mountkit.yaml", project(place))
    machine.write(CREDENTIALS, place.credentials, mode=0o600)
    machine.sh(f"mountkit systemd install train --now --credentials {CREDENTIALS}")
    yield machine
    machine.sh("rm -f /tmp/enough; mountkit systemd uninstall train")
    assert not machine.mounted("/mnt/train")


def test_a_unit_is_ready_once_the_mount_answers_and_says_how_it_is(train: Machine) -> None:
    assert train.show("mountkit@train", "ActiveState") == "active"
    assert len(train.sh("ls /mnt/train/d").split()) == len(FILES)
    assert re.match(r"s3://data/\w+ at /mnt/train: ok", train.show("mountkit@train", "StatusText"))
    assert "mountkit.serve.keeper" in train.sh(f"cat /proc/{train.show('mountkit@train', 'MainPID')}/cmdline")
    status = json.loads(train.sh("mountkit status /mnt/train --json"))[0]
    assert status["unit"] == "mountkit@train.service"
    assert status["log"] == "journalctl -u mountkit@train.service"
    assert "is mounted at /mnt/train" in train.sh("journalctl --no-pager -u mountkit@train")


def test_the_credentials_come_through_systemd_and_stand_in_no_unit_and_no_environment(
    train: Machine, place: Place
) -> None:
    assert place.server.secret_key not in train.sh("systemctl cat mountkit@train; systemctl show mountkit@train")
    assert place.server.secret_key not in train.sh("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
    assert train.sh("stat -c %a /run/credentials/mountkit@train.service").strip() in ("500", "700")


def test_a_restart_under_a_checksumming_reader_is_not_noticed(train: Machine) -> None:
    inodes = train.sh("stat -c '%n %i' /mnt/train/d/*")
    device = train.sh("stat -c %d /mnt/train")
    reader = train.start(READER.format(sum=SUM))
    for _ in range(3):
        main = train.show("mountkit@train", "MainPID")
        train.sh("systemctl restart mountkit@train")
        assert train.show("mountkit@train", "MainPID") != main
    train.sh("touch /tmp/enough")
    out, err = reader.communicate(timeout=120)
    assert reader.returncode == 0, out + err + train.journal()
    assert train.sh("stat -c '%n %i' /mnt/train/d/*") == inodes
    assert train.sh("stat -c %d /mnt/train") == device, "it is another session"


def test_after_the_death_of_every_process_the_mount_is_back_within_seconds_and_readers_only_waited(
    train: Machine,
) -> None:
    reader = train.start(READER.format(sum=SUM))
    for _ in range(2):
        before = train.show("mountkit@train", "NRestarts")
        train.sh("systemctl kill --signal=KILL mountkit@train")
        started = time.monotonic()
        train.sh("stat -f /mnt/train >/dev/null && cat /mnt/train/d/000 >/dev/null")
        assert time.monotonic() - started < 20
        train.wait_for("mountkit@train", "NRestarts", str(int(before) + 1))
        train.wait_for("mountkit@train", "ActiveState", "active")
    train.sh("touch /tmp/enough")
    out, err = reader.communicate(timeout=120)
    assert reader.returncode == 0, out + err + train.journal()


def test_a_killed_keeper_is_followed_by_another(train: Machine) -> None:
    reader = train.start(READER.format(sum=SUM))
    main = train.show("mountkit@train", "MainPID")
    train.sh(f"kill -9 {main}")
    train.wait_for("mountkit@train", "NRestarts", "1")
    train.wait_for("mountkit@train", "ActiveState", "active")
    assert train.show("mountkit@train", "MainPID") != main
    train.sh("touch /tmp/enough")
    out, err = reader.communicate(timeout=120)
    assert reader.returncode == 0, out + err + train.journal()


def test_a_stop_unmounts_also_under_somebody_who_has_a_file_open(train: Machine) -> None:
    train.sh("nohup sleep 1000 </mnt/train/d/000 >/dev/null 2>&1 & echo $! >/tmp/sleeper")
    started = time.monotonic()
    train.sh("systemctl stop mountkit@train")
    assert time.monotonic() - started < 40
    assert not train.mounted("/mnt/train")
    assert train.show("mountkit@train", "ActiveState") == "inactive"
    assert train.run("kill $(cat /tmp/sleeper)").returncode == 0, "the reader lives; only its files are gone"


def test_unmount_by_hand_ends_the_unit_and_it_is_no_failure(train: Machine) -> None:
    train.sh("mountkit unmount /mnt/train")
    train.wait_for("mountkit@train", "ActiveState", "inactive")
    assert not train.mounted("/mnt/train")


def test_wrong_credentials_fail_the_unit_once_with_the_reason_in_its_status(train: Machine) -> None:
    train.sh("systemctl stop mountkit@train")
    train.sh(f"sed -i 's/^aws_secret_access_key.*/aws_secret_access_key = wrong/' {CREDENTIALS}")
    assert train.run("systemctl start mountkit@train").returncode != 0
    assert train.show("mountkit@train", "ActiveState") == "failed"
    assert train.show("mountkit@train", "NRestarts") == "0"
    shown = train.run("systemctl status --no-pager --full mountkit@train").stdout
    assert 'Status: "error: the secret does not fit the access key' in shown
    assert "; hint: check AWS_SECRET_ACCESS_KEY" in shown
    assert "the secret does not fit" in train.sh("mountkit systemd status train")
    assert not train.mounted("/mnt/train")


def test_a_bucket_that_does_not_answer_is_asked_again(train: Machine, place: Place) -> None:
    train.sh("systemctl stop mountkit@train")
    train.write("/etc/mountkit/mountkit.yaml", project(place).replace(place.server.endpoint, "http://127.0.0.1:9"))
    train.sh("systemctl start --no-block mountkit@train")
    deadline = time.monotonic() + 90
    while int(train.show("mountkit@train", "NRestarts")) < 1:
        assert time.monotonic() < deadline, train.journal()
        time.sleep(0.2)
    train.write("/etc/mountkit/mountkit.yaml", project(place))
    train.wait_for("mountkit@train", "ActiveState", "active", seconds=60)


def test_a_mount_that_no_longer_answers_is_restarted_by_the_watchdog(train: Machine) -> None:
    train.write("/etc/systemd/system/mountkit@train.service.d/60-test.conf", "[Service]\nWatchdogSec=3\n")
    try:
        train.sh("systemctl daemon-reload; systemctl restart mountkit@train")
        servers = " ".join(map(str, json.loads(train.sh("mountkit status /mnt/train --json"))[0]["server_pids"]))
        train.sh(f"kill -STOP {servers}")
        train.wait_for("mountkit@train", "NRestarts", "1")
        train.wait_for("mountkit@train", "ActiveState", "active")
        assert "watchdog" in train.sh("journalctl --no-pager -u mountkit@train").lower()
        assert train.sh("cat /mnt/train/d/* | sha256sum").startswith(SUM)
    finally:
        train.sh("rm /etc/systemd/system/mountkit@train.service.d/60-test.conf; systemctl daemon-reload")


def test_other_settings_take_effect_at_a_restart(train: Machine, place: Place) -> None:
    device = train.sh("stat -c %d /mnt/train")
    train.write("/etc/mountkit/mountkit.yaml", project(place, "ttl: 5m"))
    train.sh("systemctl restart mountkit@train")
    assert json.loads(train.sh("mountkit status /mnt/train --json"))[0]["ttl_s"] == 300
    assert train.sh("stat -c %d /mnt/train") == device, "what the kernel was not promised does not end the session"
    train.write("/etc/mountkit/mountkit.yaml", project(place, "allow-other: true"))
    train.run("systemctl restart mountkit@train")  # the first start ends the old session, the second mounts anew
    train.wait_for("mountkit@train", "ActiveState", "active")
    assert "allow_other" in train.sh("grep fuse.mountkit /proc/mounts")


def test_upgrade_of_a_unit_is_its_restart(train: Machine) -> None:
    main = train.show("mountkit@train", "MainPID")
    assert "is served by mountkit" in train.sh("mountkit upgrade /mnt/train")
    assert train.show("mountkit@train", "MainPID") != main
    assert train.show("mountkit@train", "NRestarts") == "0"
    assert train.sh("cat /mnt/train/d/* | sha256sum").startswith(SUM)


def test_s3fs_is_served_as_a_unit_too(train: Machine, place: Place) -> None:
    train.write("/etc/mountkit/mountkit.yaml", project(place).replace("no-passthrough: true", "driver: s3fs"))
    train.run("systemctl restart mountkit@train")  # the session of the other driver does not fit: the next start mounts
    train.wait_for("mountkit@train", "ActiveState", "active")
    assert json.loads(train.sh("mountkit status /mnt/train --json"))[0]["driver"] == "s3fs"
    assert train.sh("cat /mnt/train/d/* | sha256sum").startswith(SUM)
    train.sh("systemctl stop mountkit@train")
    assert train.run("grep s3fs /proc/mounts").returncode == 1


def test_an_installation_repeated_changes_nothing_and_a_changed_unit_is_shown_first(
    train: Machine, place: Place
) -> None:
    main = train.show("mountkit@train", "MainPID")
    again = train.sh(f"mountkit systemd install train --now --credentials {CREDENTIALS}")
    assert again.splitlines() == ["mountkit@train.service runs already"]
    assert train.show("mountkit@train", "MainPID") == main
    train.write("/etc/mountkit/mountkit.yaml", project(place, "cache: /var/tmp/c"))
    shown = train.sh(f"mountkit systemd install train --credentials {CREDENTIALS}")
    assert '+RequiresMountsFor="/var/tmp/c"' in shown
    assert "changing /etc/systemd/system/mountkit@train.service.d/50-mountkit.conf" in shown


def test_the_units_are_verified_by_systemd_and_exposed_less_than_5(train: Machine) -> None:
    assert train.sh("systemd-analyze verify mountkit@train.service mountkit.target 2>&1") == ""
    shown = train.sh("systemd-analyze security --no-pager mountkit@train.service")
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", shown)
    assert exposure, shown
    assert float(exposure[1]) < 5


def test_at_boot_the_mount_is_there_before_a_service_that_needs_it_and_before_docker(train: Machine) -> None:
    need = "[Unit]\nRequires=mountkit@train.service\nAfter=mountkit@train.service\n"
    act = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'cat /mnt/train/d/* | sha256sum >/var/tmp/seen'\n"
    train.write("/etc/systemd/system/needs.service", f"{need}{act}[Install]\nWantedBy=multi-user.target\n")
    train.sh("systemctl enable needs.service docker.service; rm -f /var/tmp/seen")
    train.reboot()
    try:
        assert train.sh("cat /var/tmp/seen").startswith(SUM)
        assert train.show("mountkit.target", "ActiveState") == "active"
        mounted = int(train.show("mountkit@train", "ActiveEnterTimestampMonotonic"))
        assert 0 < mounted < int(train.show("docker.service", "ExecMainStartTimestampMonotonic"))
    finally:
        train.sh("systemctl disable --now needs.service docker.service docker.socket containerd.service")
        train.sh("rm /etc/systemd/system/needs.service")


def test_a_stop_uploads_what_was_written_and_a_restart_keeps_its_writer(
    machine: Machine, seaweed: SeaweedServer
) -> None:
    place = Place(seaweed, seaweed.client(), uuid.uuid4().hex[:10])
    machine.write("/etc/mountkit/mountkit.yaml", project(place, "writable: true"))
    machine.write(CREDENTIALS, place.credentials, mode=0o600)
    machine.sh(f"mountkit systemd install train --now --credentials {CREDENTIALS}")
    try:
        slow = "for i in $(seq 60); do echo line $i; sleep 0.1; [ -e /tmp/enough ] && break; done; echo end"
        writer = machine.start(f"({slow}) > /mnt/train/log")
        machine.sh("until [ -s /mnt/train/log ]; do sleep 0.1; done")
        # The new name has the kernel forget what it knew of the root: whoever asks for it asks the servers.
        machine.sh("touch /mnt/train/new; systemctl restart mountkit@train && touch /tmp/enough")
        _, err = writer.communicate(timeout=60)
        assert writer.returncode == 0, err + machine.journal()
        machine.sh("mkdir /mnt/train/d; for i in $(seq 40); do echo $i > /mnt/train/d/$i; done")
        machine.sh("systemctl stop mountkit@train")
    finally:
        machine.sh("rm -f /tmp/enough; mountkit systemd uninstall train")
    listed = place.client.list_objects_v2(Bucket="data", Prefix=f"{place.prefix}/")["Contents"]
    keys = {one["Key"].removeprefix(f"{place.prefix}/") for one in listed}
    assert keys - {"d/"} == {"log", "new", *(f"d/{n}" for n in range(1, 41))}
    log = place.client.get_object(Bucket="data", Key=f"{place.prefix}/log")["Body"].read().decode().splitlines()
    assert log == [*(f"line {n}" for n in range(1, len(log))), "end"]
