"""mount(8), umount(8), fstab and automounts: the real tools of util-linux and systemd call our helpers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.mount.conftest import content
from tests.systemd.conftest import Place
from tests.systemd.machine import USER, Machine


@pytest.fixture
def helped(machine: Machine, place: Place) -> Iterator[Machine]:
    """A machine with the helpers, credentials in ~root/.aws, and nothing in fstab."""
    place.put("a", content(3, 100_000))
    machine.write("~root/.aws/credentials", place.credentials, mode=0o600)
    machine.sh("mountkit systemd install-helpers; mkdir -p /mnt/x")
    yield machine
    machine.sh("systemctl stop mnt-x.automount mnt-x.mount 2>/dev/null; : >/etc/fstab; systemctl daemon-reload")
    assert not machine.mounted("/mnt/x")


def fstab(machine: Machine, place: Place, options: str, *, fstype: str = "fuse.mountkit") -> None:
    endpoint = place.server.endpoint
    words = f"ro,profile=train,endpoint={endpoint},ttl=5m,_netdev,{options}"
    machine.write("/etc/fstab", f"{place.source} /mnt/x {fstype} {words} 0 0\n")
    machine.sh("systemctl daemon-reload")


def test_mount_and_umount_as_anybody_types_them(helped: Machine, place: Place) -> None:
    options = f"ro,profile=train,endpoint={place.server.endpoint},_netdev"
    helped.sh(f"mount -t fuse.mountkit {place.source} /mnt/x -o {options}")
    assert helped.sh("cat /mnt/x/a | wc -c").strip() == "100000"
    assert json.loads(helped.sh("mountkit status /mnt/x --json"))[0]["cache_directory"] == "/var/cache"
    helped.sh("umount /mnt/x")
    assert not helped.processes(), "umount returns once the mount's processes have ended"


def test_a_line_of_fstab_is_mounted_by_mount_a_once_and_unmounted_by_umount(helped: Machine, place: Place) -> None:
    fstab(helped, place, "nofail,noatime,x-systemd.device-timeout=5")
    helped.sh("mount -a && mount -a")
    assert helped.sh("grep -c fuse.mountkit /proc/mounts").strip() == "1"
    assert json.loads(helped.sh("mountkit status /mnt/x --json"))[0]["ttl_s"] == 300
    helped.sh("umount /mnt/x")
    assert not helped.processes()


def test_systemd_mounts_and_unmounts_a_line_of_fstab_as_a_unit(helped: Machine, place: Place) -> None:
    fstab(helped, place, "nofail", fstype="mountkit")
    helped.sh("systemctl start mnt-x.mount")
    assert helped.show("mnt-x.mount", "SubState") == "mounted"
    assert helped.mounted("/mnt/x")
    helped.sh("systemctl stop mnt-x.mount")
    assert not helped.processes()


def test_an_automount_is_mounted_on_first_access_and_unmounted_when_idle(helped: Machine, place: Place) -> None:
    fstab(helped, place, "noauto,x-systemd.automount,x-systemd.idle-timeout=2s")
    helped.sh("systemctl start mnt-x.automount")
    assert not helped.mounted("/mnt/x")
    assert helped.sh("cat /mnt/x/a | wc -c", timeout=60).strip() == "100000"
    assert helped.mounted("/mnt/x")
    deadline = time.monotonic() + 30
    while helped.mounted("/mnt/x"):
        assert time.monotonic() < deadline, helped.journal()
        time.sleep(0.2)
    helped.wait_for("mnt-x.mount", "SubState", "dead")
    assert not helped.processes()
    assert helped.sh("cat /mnt/x/a | wc -c", timeout=60).strip() == "100000", "and mounted again on the next access"


def test_a_busy_mount_stays_and_umount_says_by_whom_and_how_to_go_on(helped: Machine, place: Place) -> None:
    fstab(helped, place, "noauto")
    helped.sh("mount /mnt/x; nohup sleep 1000 </mnt/x/a >/dev/null 2>&1 & echo $! >/tmp/sleeper; sleep 0.1")
    done = helped.run("until mountpoint -q /mnt/x; do sleep 0.1; done; umount /mnt/x")
    assert done.returncode == 32
    assert "is in use by sleep (pid" in done.stderr
    assert "umount -l" in done.stderr
    helped.sh("umount -l /mnt/x && kill $(cat /tmp/sleeper)")
    deadline = time.monotonic() + 20
    while helped.processes():
        assert time.monotonic() < deadline, helped.processes()
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("profil=train", 1, "did you mean `profile`?"),
        ("ttl=soon", 1, "`soon` is no duration"),
        ("profile=train,endpoint=http://127.0.0.1:9", 32, "nobody listens at"),
        ("remount", 1, "cannot be remounted"),
    ],
)
def test_what_is_wrong_is_said_in_two_lines_with_an_exit_code_of_mount_8(
    helped: Machine, place: Place, options: str, code: int, words: str
) -> None:
    done = helped.run(f"/sbin/mount.fuse.mountkit {place.source} /mnt/x -o {options}")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("error: ")
    assert not helped.mounted("/mnt/x")


def test_sloppy_passes_over_what_it_does_not_know_and_fake_mounts_nothing(helped: Machine, place: Place) -> None:
    helped.sh(f"/sbin/mount.fuse.mountkit {place.source} /mnt/x -sf -o profil=train,ttl=5m")
    assert not helped.mounted("/mnt/x")


def test_an_ordinary_user_mounts_a_line_that_allows_it(helped: Machine, place: Place) -> None:
    helped.start_user_manager()
    helped.write(f"/home/{USER}/.aws/credentials", place.credentials, mode=0o600, user=True)
    helped.sh(f"mkdir -p /home/{USER}/x; chown {USER} /home/{USER}/x")
    options = f"ro,noauto,users,profile=train,endpoint={place.server.endpoint}"
    helped.write("/etc/fstab", f"{place.source} /home/{USER}/x fuse.mountkit {options} 0 0\n")
    helped.sh(f"mount /home/{USER}/x", user=True)
    assert helped.sh(f"cat /home/{USER}/x/a | wc -c", user=True).strip() == "100000"
    shown = helped.sh("grep fuse.mountkit /proc/mounts")
    assert "user_id=1000" in shown
    assert "noexec" in shown, "mount(8) adds it for an ordinary user"
    helped.sh(f"umount /home/{USER}/x", user=True)
    assert not helped.processes()
