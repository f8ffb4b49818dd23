"""The protocol with systemd, on a socket of our own: what is said, which descriptors go with it, what comes back."""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountkit import config, notify
from mountkit.notify import Manager
from mountkit.serve.kept_session import KeptSession
from mountkit.serve.session import Session


class Listener:
    """The manager's end."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(10)

    def receive(self) -> tuple[list[str], list[int]]:
        text, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(64))
        fds = array.array("i")
        for _level, _kind, data in ancillary:
            fds.frombytes(data)
        return text.decode().split("\n"), list(fds)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    heard = Listener(str(tmp_path / "notify"))
    yield heard
    heard.close()


@pytest.fixture
def manager(tmp_path: Path, listener: Listener) -> Manager:
    environment = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "MOUNTKIT_UNIT": "mountkit@a.service",
        "MOUNTKIT_MANAGER": "user",
        "WATCHDOG_USEC": "60000000",
    }
    found = Manager.from_environment(environment)
    assert found
    return found


def test_outside_of_a_unit_there_is_no_manager() -> None:
    assert Manager.from_environment({"MOUNTKIT_UNIT": "mountkit@a.service"}) is None


def test_the_environment_says_who_watches_and_how_often(manager: Manager) -> None:
    assert (manager.unit, manager.user, manager.watchdog_s) == ("mountkit@a.service", True, 60.0)
    assert manager.asks_for_job()[:3] == ["systemctl", "--user", "list-jobs"]


def test_words_arrive_as_they_were_said(manager: Manager, listener: Listener) -> None:
    manager.tell("READY=1", "STATUS=well")
    assert listener.receive() == (["READY=1", "STATUS=well"], [])


def test_a_kept_descriptor_goes_with_its_name_and_is_not_polled(manager: Manager, listener: Listener) -> None:
    ours, theirs = os.pipe()
    manager.keep("mountkit-fuse", theirs)
    words, fds = listener.receive()
    assert words == ["FDSTORE=1", "FDNAME=mountkit-fuse", "FDPOLL=0"]
    os.close(theirs)
    os.write(fds[0], b"x")
    assert os.read(ours, 1) == b"x"
    for fd in (ours, *fds):
        os.close(fd)


def test_flush_returns_once_the_manager_has_let_go_of_the_barrier(manager: Manager, listener: Listener) -> None:
    done = threading.Event()
    thread = threading.Thread(target=lambda: (manager.flush(), done.set()))
    thread.start()
    words, fds = listener.receive()
    assert words == ["BARRIER=1"]
    assert not done.is_set()
    os.close(fds[0])
    assert done.wait(10)
    thread.join()


def test_a_manager_that_is_gone_is_no_failure(manager: Manager, listener: Listener) -> None:
    listener.close()
    manager.tell("WATCHDOG=1")
    os.unlink(manager.address)
    manager.tell("WATCHDOG=1")


@pytest.mark.parametrize(
    ("listed", "job"),
    [
        ("", ""),
        ("123 mountkit@a.service restart running\n", "restart"),
        ("7 other.service stop running\n  8 mountkit@a.service stop  waiting\n", "stop"),
        ("7 mountkit@ab.service restart running\n", ""),
        ("No jobs listed.\n", ""),
    ],
)
def test_the_job_tells_a_restart_from_a_stop(manager: Manager, listed: str, job: str) -> None:
    assert manager.job_type(listed) == job


def test_descriptors_meant_for_another_process_are_left_alone() -> None:
    environment = {"LISTEN_PID": f"{os.getpid() + 1}", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/"}
    assert notify.take(environment) == {}
    assert environment == {"HOME": "/"}, "nor do our children take them for theirs"


def test_only_what_the_kernel_was_not_promised_may_change_in_a_kept_session() -> None:
    def settings(**flags: str | bool) -> config.MountSettings:
        return config.mount_settings("s3://data/a", "/mnt/a", **{"cache": "/c", "servers": "2", **flags})

    kept = KeptSession(Session(3, b"", "/mnt/a", "0:40"), 4, settings(), "", [])
    assert kept.suits(settings(ttl="5m", cache_size="1GB", metadata_budget="1s"))
    for flags in (
        {"allow_other": True},
        {"no_exec": True},
        {"no_passthrough": True},
        {"servers": "3"},
        {"cache": "/d"},
    ):
        assert not kept.suits(settings(**flags)), flags  # type: ignore[arg-type]
    assert not kept.suits(config.mount_settings("s3://data/b", "/mnt/a", cache="/c", servers="2"))
