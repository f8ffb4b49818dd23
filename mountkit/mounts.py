"""Mounts of this host: find the one a path lies in, ask it, list them all, have one's processes replaced.

For the command line and the runner. A mount is found by the kernel's mountinfo, never by touching the directory, which
may be dead; its keeper by the device number, which names the control socket.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from mountkit import drivers, ipc, mountinfo, places
from mountkit.errors import MountError, MountkitError, UsageError
from mountkit.mountinfo import MountPoint

_REPLACED_S = 60.0
_STAT_S = 2.0
_UNKEPT = {drivers.FUSE: "recovering", drivers.S3FS: "unwatched"}


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One mount of ours.

    `state` is what its keeper says (ok, degraded, starting, stopping), or, where no keeper answers: dead (its session
    has ended: the kernel answers ENOTCONN), recovering (servers still serve: they are starting a keeper), unwatched
    (s3fs still serves, but nobody would start another), unresponsive, failing (it answers with an error), or unknown
    (another user's).
    """

    directory: str
    source: str
    state: str
    device: str
    owner_uid: int
    details: dict[str, Any] = field(default_factory=dict)
    """What the keeper says; empty for a dead mount."""
    trouble: str = ""
    """The error of a keeper that answers with one."""


def find(path: str) -> MountInfo | None:
    """The mount of ours that `path` lies in, if any."""
    points = mountinfo.mount_points()
    point = mountinfo.covering(mountinfo.resolve(path), points)
    return ask(point) if point is not None and point.fstype == mountinfo.FSTYPE else None


def list_all() -> list[MountInfo]:
    """Every mount of this host's view, also those of other users, dead ones included.

    All are asked at once: one that does not answer takes seconds, several take no longer.
    """
    asked = [_Asked(point) for point in mountinfo.ours()]
    return [each.answer() for each in asked]


class _Asked(threading.Thread):
    """`ask` on a thread of its own, for which a command that is stopped (Ctrl-C) does not wait."""

    def __init__(self, point: MountPoint) -> None:
        super().__init__(daemon=True)
        self._point = point
        self._answer: MountInfo | None = None
        self.start()

    def run(self) -> None:
        self._answer = ask(self._point)

    def answer(self) -> MountInfo:
        """Once it is there."""
        self.join()
        assert self._answer is not None
        return self._answer


def ask(point: MountPoint) -> MountInfo:
    """What the keeper of this mount says, or how the mount is where none answers."""
    details: dict[str, Any] = {}
    trouble = ""
    try:
        with ipc.Client(places.keeper_socket(point.device, point.owner_uid), timeout_s=2.0) as keeper:
            details = keeper.call("status", timeout_s=5.0)
            state = str(details["state"])
    except PermissionError:
        state = "unknown"
    except TimeoutError:
        state = "unresponsive"
    except MountkitError as exc:
        state, trouble = "failing", exc.sentence
    except (OSError, ipc.ChannelClosed):
        state = "dead" if _is_disconnected(point.directory) else _UNKEPT[point.driver]
    source = point.source.removeprefix(mountinfo.S3FS_MARK)
    return MountInfo(point.directory, source, state, point.device, point.owner_uid, details, trouble)


def _is_disconnected(directory: str) -> bool:
    """Whether the session has ended, asked (statfs is never cached) by a process that can be given up if it hangs.

    It is killed then and not waited for, and holds nothing of ours: no signal ends it while a server that does not
    answer has its question.
    """
    ask = "import os, sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as exc: sys.exit(exc.errno)"
    command = [sys.executable, "-I", "-S", "-c", ask, directory]
    null = subprocess.DEVNULL
    asking = subprocess.Popen(command, stdin=null, stdout=null, stderr=null)
    try:
        return asking.wait(_STAT_S) == errno.ENOTCONN
    except subprocess.TimeoutExpired:
        asking.kill()
        return False


def client(path: str) -> tuple[ipc.Client, MountInfo]:
    """A connection to the keeper of the mount that `path` lies in. Raises UsageError, MountError."""
    info = required(path)
    return _connect(places.keeper_socket(info.device, info.owner_uid), info), info


def mover_client(path: str) -> tuple[ipc.Client, MountInfo]:
    """A connection to the mover of that mount. Raises UsageError where it has none."""
    info = required(path)
    if info.details["driver"] == drivers.S3FS:
        raise UsageError(
            f"{info.directory} is served by s3fs, which fetches nothing ahead", "mount it with `--driver fuse`"
        )
    return _connect(places.mover_socket(info.details["state_directory"], info.owner_uid), info), info


def _connect(socket_path: str, info: MountInfo) -> ipc.Client:
    try:
        return ipc.Client(socket_path)
    except OSError as exc:
        raise MountError(
            f"the mount {info.directory} does not answer: {os.strerror(exc.errno or 0)}", "`mountkit status` says more"
        ) from exc


def required(path: str) -> MountInfo:
    """The mount that `path` lies in, its keeper answering. Raises UsageError, MountError."""
    info = find(path)
    if info is None:
        raise UsageError(f"{path} is not in a mount of mountkit", "`mountkit status` lists the mounts")
    if info.state == "dead":
        raise MountError(f"the mount {info.directory} is dead", f"clear it away: `mountkit unmount {info.directory}`")
    if not info.details:
        how = f"{info.state} (owner: user {info.owner_uid})" + (f": {info.trouble}" if info.trouble else "")
        raise MountError(f"the mount {info.directory} is {how}", "try again")
    return info


def upgrade(path: str) -> MountInfo:
    """Has every process of a mount replaced by one that runs the code installed now; readers go on.

    Where systemd watches the mount it is the one to replace them: then this is the unit's restart, which keeps the
    session. Returns how the mount is then. Raises MountError if no new keeper answers in time.
    """
    keeper, before = client(path)
    with keeper:
        if before.details.get("unit"):
            _restart_unit(before)
        else:
            keeper.call("upgrade", timeout_s=_REPLACED_S)
    deadline = time.monotonic() + _REPLACED_S
    while time.monotonic() < deadline:
        info = _required_soon(before.directory)
        if info is not None and info.details["keeper_pid"] != before.details["keeper_pid"] and info.state != "starting":
            return info
        time.sleep(0.05)
    raise MountError(f"no new keeper answers for {before.directory} within {_REPLACED_S:g} s", "its log may say why")


def _restart_unit(info: MountInfo) -> None:
    scope = ["--user"] if info.details["unit_manager"] == "user" else []
    command = ["systemctl", *scope, "restart", info.details["unit"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(command)
        raise MountError(f"`{words}` failed: {done.stderr.strip()}", "see the unit's status")


def _required_soon(directory: str) -> MountInfo | None:
    """The mount, or None while its keeper is being replaced. Raises MountError if it is gone."""
    info = find(directory)
    if info is None or info.state == "dead":
        raise MountError(f"the mount {directory} has ended meanwhile")
    return info if info.details else None
