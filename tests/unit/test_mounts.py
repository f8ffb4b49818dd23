"""Mounts of a host, as the command line asks their keepers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mountkit import ipc, mountinfo, mounts, places, report
from mountkit.errors import MountError
from mountkit.mountinfo import MountPoint


def _point(number: int) -> MountPoint:
    return MountPoint(
        f"0:{number}", "/", f"/mnt/{number}", frozenset(), (), mountinfo.FSTYPE, "s3://b", frozenset({"user_id=0"})
    )


class Keepers:
    """Keepers of which none answers before all of them were asked."""

    def __init__(self, directory: Path, stack: ExitStack, count: int) -> None:
        self.points = [_point(number) for number in range(count)]
        self.refusing = ""
        self._directory, self._asked = directory, threading.Barrier(count)
        for point in self.points:
            bound = stack.enter_context(socket.socket(socket.AF_UNIX))
            bound.bind(self.path(point.device, 0))
            bound.listen()
            threading.Thread(target=self._serve, args=(bound, point.device), daemon=True).start()

    def path(self, device: str, _uid: int) -> str:
        return str(self._directory / device)

    def _serve(self, bound: socket.socket, device: str) -> None:
        connection, _ = bound.accept()
        with connection:
            ipc.receive_one(connection)
            self._asked.wait(20)
            refused = {"error": MountError("it is not itself").to_json()}
            body = refused if device == self.refusing else {"state": "ok", "device": device}
            connection.sendall(b"".join(ipc.encode(body)))


@pytest.fixture
def keepers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keepers]:
    with ExitStack() as stack:
        found = Keepers(tmp_path, stack, 3)
        monkeypatch.setattr(mountinfo, "ours", lambda: found.points)
        monkeypatch.setattr(places, "keeper_socket", found.path)
        yield found


def test_mounts_are_asked_at_once_and_listed_in_their_order(keepers: Keepers) -> None:
    listed = mounts.list_all()
    assert [(info.directory, info.state) for info in listed] == [("/mnt/0", "ok"), ("/mnt/1", "ok"), ("/mnt/2", "ok")]
    assert [info.details["device"] for info in listed] == [info.device for info in listed]


def test_a_keeper_that_answers_with_an_error_hides_no_other_mount(keepers: Keepers) -> None:
    keepers.refusing = "0:1"
    listed = mounts.list_all()
    assert [info.state for info in listed] == ["ok", "failing", "ok"]
    assert report.as_json(listed[1])["reasons"] == ["it is not itself"]
    assert report.as_text(listed[1]).splitlines() == [
        "s3://b at /mnt/1: failing",
        "  its keeper answers with an error: it is not itself",
    ]
