"""Mounts of this host: start one, find the one a path lies in, ask it, unmount it, list them all.

For the command line and the runner. A mount is found by the kernel's mountinfo, never by touching the directory, which
may be dead; its keeper by the device number, which names the control socket.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from mountkit import drivers, errors, ipc, mountinfo, places, remembered
from mountkit.config import MountSettings, store_environment
from mountkit.errors import MountBusy, MountError, UsageError
from mountkit.mountinfo import MountPoint

_LETTING_GO_S = 2.0
"""A container that starts has every mount of the host until it has changed its root; a process that ends, its files."""
_READY_S = 60.0
_GONE_S = 10.0
_UNDONE_S = 20.0
"""A start that is given up ends at once; more is the time of a machine that is very busy."""
_STAT_S = 2.0
_UNKEPT = {drivers.FUSE: "recovering", drivers.S3FS: "unwatched"}
_KEEPERS = {drivers.FUSE: "mountkit.serve.keeper", drivers.S3FS: "mountkit.s3fs"}


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One mount of ours.

    `state` is what its keeper says (ok, degraded, starting, stopping), or, where no keeper answers: dead (its session
    has ended: the kernel answers ENOTCONN), recovering (servers still serve: they are starting a keeper), unwatched
    (s3fs still serves, but nobody would start another), unresponsive, or unknown (another user's).
    """

    directory: str
    source: str
    state: str
    device: str
    owner_uid: int
    details: dict[str, Any] = field(default_factory=dict)
    """What the keeper says; empty for a dead mount."""


# ---- start ---------------------------------------------------------------------------------------------------
def check_mount_point(directory: str) -> None:
    """Raises UsageError or MountError if `directory` is not a directory something can be mounted at."""
    found = mountinfo.covering(mountinfo.resolve(directory), mountinfo.ours())
    if found is not None and found.directory != directory:
        raise UsageError(f"{directory} lies inside the mount {found.directory}", "choose a directory outside of it")
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        raise UsageError(f"the mount point {directory} does not exist", f"make it: `mkdir -p {directory}`") from None
    except OSError as exc:
        raise MountError(
            f"the mount point {directory} cannot be used: {os.strerror(exc.errno or 0)}",
            "check that you may enter it and that it is no dead mount",
        ) from exc
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"the mount point {directory} is a file, not a directory", "name a directory")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise MountError(f"the mount point {directory} may not be entered by you", "check its owner and mode")
    if os.listdir(directory):
        raise UsageError(
            f"the mount point {directory} is not empty", "a mount would hide what is in it; use an empty one"
        )


def mount(settings: MountSettings, *, passwd_credentials: tuple[str, str] | None = None) -> bool:
    """Mounts and returns once the mount answers; False if the same source was mounted there already.

    Raises MountkitError; then nothing is left behind.
    """
    from mountkit import processes
    from mountkit.serve import locks

    settings = _resolved(settings)
    places.ensure_runtime_directory()
    _say(settings)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.held(places.mount_lock(settings.directory), wait_s=_READY_S))
        except locks.LockHeld:
            raise MountError(
                f"another mount at {settings.directory} is under way and does not end", "try again"
            ) from None
        if _already(settings):
            return False
        process, fd = processes.spawn(_KEEPERS[settings.driver])
        channel = stack.enter_context(socket.socket(fileno=fd))
        _send_start(channel, settings, passwd_credentials)
        try:
            answer = _receive(channel)
        except BaseException:
            channel.close()  # the keeper notices that nobody waits for it, and undoes what it did
            _wait_for_end(process.pid, _UNDONE_S)
            raise
    if "error" in answer:
        process.wait()
        raise errors.from_json(answer["error"])
    remembered.remember(settings)
    return True


def mount_in_foreground(settings: MountSettings, *, passwd_credentials: tuple[str, str] | None = None) -> NoReturn:
    """Becomes the keeper of the mount, which ends with it. Raises MountkitError."""
    from mountkit import notify, processes

    settings = _resolved(settings)
    if settings.driver != drivers.FUSE:
        _end_kept_session(settings)
    if not notify.handed_over(os.environ) and _already(settings):  # a mount systemd keeps the session of is ours
        raise MountError(f"{settings.source} is mounted at {settings.directory} already", "unmount it first")
    _say(settings)
    kept = {name: os.environ[name] for name in notify.HANDED_OVER if name in os.environ}
    ours, theirs = socket.socketpair()
    _send_start(ours, settings, passwd_credentials, foreground=True)
    os.set_inheritable(theirs.fileno(), True)
    command = processes.command(_KEEPERS[settings.driver], str(theirs.fileno()))
    os.execve(
        command[0], command, {**processes.environment(), **kept}
    )  # our end closes with us; the message waits in theirs


def _end_kept_session(settings: MountSettings) -> None:
    """A session that systemd kept is the other driver's: it is ended, and systemd starts us again without it."""
    from mountkit.serve.supervision import Supervision

    supervision = Supervision.from_environment()
    try:
        supervision.take_session(settings)
    except MountError as exc:
        sys.exit(supervision.starts_anew(exc))


def _resolved(settings: MountSettings) -> MountSettings:
    """With the mount point as mountinfo will name it (no symlink in it, also not as its last part), and a driver.

    Raises HostError if the driver cannot work here.
    """
    settings = replace(settings, directory=os.path.realpath(settings.directory))
    chosen = drivers.choose(settings.driver, writable=settings.outputs is not None)
    if chosen.why:
        _note(f"{chosen.why}, so s3fs serves this mount; docs/s3fs.md says what it cannot do")
    return replace(settings, driver=chosen.driver)


def _say(settings: MountSettings) -> None:
    """What the user should know of the driver before the mount is there."""
    if settings.driver == drivers.S3FS and (flags := drivers.unhonoured(settings)):
        _note(f"s3fs cannot honour {', '.join(flags)}")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)  # noqa: T201


def _already(settings: MountSettings) -> bool:
    """Whether this very source is mounted there. Raises if something else is, or the directory is unusable."""
    points = mountinfo.mount_points()
    directory = mountinfo.resolve(settings.directory)
    found = [point for point in points if point.directory == directory]
    if not found or found[-1].fstype != mountinfo.FSTYPE:
        check_mount_point(directory)
        return False
    info = _ask(found[-1])
    if info.state == "dead":
        _clear_dead(found[-1])
        check_mount_point(directory)
        return False
    if not info.details:
        raise MountError(f"{directory} is a mount of {info.source} already, and {info.state}", "try again in a moment")
    if info.source == str(settings.source) and info.details.get("endpoint", "") == settings.source.endpoint:
        return True
    raise MountError(
        f"{directory} is the mount of {info.source} already", f"unmount it: `mountkit unmount {directory}`"
    )


def sealed_environment(passwd_credentials: tuple[str, str] | None) -> int:
    """A sealed memfd with the store environment: nobody can change it, and it is in no one's argv or environment."""
    import fcntl

    fd = os.memfd_create("mountkit-secrets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, json.dumps(store_environment(passwd_credentials)).encode("utf-8", "surrogateescape"))
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _send_start(
    channel: socket.socket,
    settings: MountSettings,
    credentials: tuple[str, str] | None,
    *,
    foreground: bool = False,
) -> None:
    secrets_fd = sealed_environment(credentials)
    try:
        body = {"settings": settings.to_json(), "foreground": foreground, "fds": 1}
        socket.send_fds(channel, [b"".join(ipc.encode(body))], [secrets_fd])
    finally:
        os.close(secrets_fd)


def _receive(channel: socket.socket) -> dict[str, Any]:
    channel.settimeout(_READY_S)
    try:
        message = ipc.receive_one(channel)
    except TimeoutError:
        raise MountError(f"the mount was not ready within {_READY_S:g} s", "its log may say why") from None
    except ipc.ChannelClosed:
        raise MountError("the mount ended before it was ready", "its log in the cache directory may say why") from None
    return message.body


# ---- find and list -------------------------------------------------------------------------------------------
def find(path: str) -> MountInfo | None:
    """The mount of ours that `path` lies in, if any."""
    points = mountinfo.mount_points()
    point = mountinfo.covering(mountinfo.resolve(path), points)
    return _ask(point) if point is not None and point.fstype == mountinfo.FSTYPE else None


def list_all() -> list[MountInfo]:
    """Every mount of this host's view, also those of other users, dead ones included."""
    return [_ask(point) for point in mountinfo.ours()]


def _ask(point: MountPoint) -> MountInfo:
    details: dict[str, Any] = {}
    try:
        with ipc.Client(places.keeper_socket(point.device, point.owner_uid), timeout_s=2.0) as keeper:
            details = keeper.call("status", timeout_s=5.0)
            state = str(details["state"])
    except PermissionError:
        state = "unknown"
    except TimeoutError:
        state = "unresponsive"
    except (OSError, ipc.ChannelClosed):
        state = "dead" if _is_disconnected(point.directory) else _UNKEPT[point.driver]
    source = point.source.removeprefix(mountinfo.S3FS_MARK)
    return MountInfo(point.directory, source, state, point.device, point.owner_uid, details)


def _is_disconnected(directory: str) -> bool:
    """Whether the session has ended, asked (statfs is never cached) by a process that can be given up if it hangs."""
    ask = "import os, sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as exc: sys.exit(exc.errno)"
    command = [sys.executable, "-I", "-S", "-c", ask, directory]
    try:
        return subprocess.run(command, timeout=_STAT_S, check=False).returncode == errno.ENOTCONN
    except subprocess.TimeoutExpired:
        return False


def client(path: str) -> tuple[ipc.Client, MountInfo]:
    """A connection to the keeper of the mount that `path` lies in. Raises UsageError, MountError."""
    info = _required(path)
    return _connect(places.keeper_socket(info.device, info.owner_uid), info), info


def mover_client(path: str) -> tuple[ipc.Client, MountInfo]:
    """A connection to the mover of that mount. Raises UsageError where it has none."""
    info = _required(path)
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


def _required(path: str) -> MountInfo:
    info = find(path)
    if info is None:
        raise UsageError(f"{path} is not in a mount of mountkit", "`mountkit status` lists the mounts")
    if info.state == "dead":
        raise MountError(f"the mount {info.directory} is dead", f"clear it away: `mountkit unmount {info.directory}`")
    if not info.details:
        raise MountError(f"the mount {info.directory} is {info.state} (owner: user {info.owner_uid})", "try again")
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
            keeper.call("upgrade", timeout_s=_READY_S)
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        info = _required_soon(before.directory)
        if info is not None and info.details["keeper_pid"] != before.details["keeper_pid"] and info.state != "starting":
            return info
        time.sleep(0.05)
    raise MountError(f"no new keeper answers for {before.directory} within {_READY_S:g} s", "its log may say why")


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


# ---- end -----------------------------------------------------------------------------------------------------
def unmount(directory: str, *, force: bool = False) -> None:
    """Unmounts and returns once its processes are gone. Raises MountBusy naming who holds it, UsageError."""
    resolved = mountinfo.resolve(directory)
    _unmount(resolved, directory, force=force)
    remembered.forget(resolved)


def _unmount(resolved: str, directory: str, *, force: bool) -> None:
    points = [point for point in mountinfo.ours() if point.directory == resolved]
    if not points:
        raise UsageError(f"{directory} is not a mount of mountkit", "`mountkit status` lists the mounts")
    point = points[-1]
    info = _ask(point)
    if info.state == "dead":
        _clear_dead(point)
        return
    if info.state == "unwatched":
        from mountkit.serve import session

        session.unmount(resolved, lazy=force)
        return
    from mountkit.serve import holders

    if not force and (outside := _staying(lambda: holders.in_other_namespaces(point.device))):
        raise _busy(resolved, outside)
    try:
        with ipc.Client(places.keeper_socket(point.device, point.owner_uid)) as keeper:
            keeper.call("unmount", timeout_s=30.0, force=force)
    except MountBusy:
        raise _busy(resolved, holders.of_mount(resolved, point.device)) from None
    except (OSError, ipc.ChannelClosed) as exc:
        # A keeper whose mount went away ends at once, perhaps before it could answer.
        if any(left.device == point.device and left.directory == resolved for left in mountinfo.ours()):
            if force:
                _clear_dead(point)
                return
            raise MountError(f"the mount {resolved} does not answer: {exc}", "say --force") from exc
    if info.details:
        _wait_for_end(info.details["keeper_pid"])


def refuse_if_used(info: MountInfo) -> None:
    """Raises MountBusy naming who works in the mount, if somebody does."""
    from mountkit.serve import holders

    if by := _staying(lambda: holders.of_mount(info.directory, info.device)):
        raise _busy(info.directory, by)


def _staying(holders: Callable[[], list[str]]) -> list[str]:
    """Who still holds the mount when those who only start or end have let go of it."""
    deadline = time.monotonic() + _LETTING_GO_S
    while (found := holders()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _busy(directory: str, by: list[str]) -> MountBusy:
    who = ", ".join(by[:6]) + (f" and {len(by) - 6} more" if len(by) > 6 else "")
    return MountBusy(
        f"{directory} is in use" + (f" by {who}" if who else ""), "end what works in it, or say --force to cut it off"
    )


def _clear_dead(point: MountPoint) -> None:
    """Takes away a mount whose keeper cannot do it: what works in it is cut off."""
    from mountkit.serve import session

    session.abort(point.device)
    session.unmount(point.directory, lazy=True)
    if point.owner_uid == os.getuid():
        with contextlib.suppress(OSError):
            os.unlink(places.keeper_socket(point.device))


def _wait_for_end(pid: int, seconds: float = _GONE_S) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        import select

        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            _note(f"process {pid} of the mount is still ending")
    finally:
        os.close(pidfd)
