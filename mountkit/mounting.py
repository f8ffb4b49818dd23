"""Starting a mount: the keeper gets settings and credentials, and says when the mount answers, or why there is none."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from dataclasses import replace
from typing import Any, NoReturn

from mountkit import drivers, errors, ipc, mountinfo, mounts, notes, places, processes, remembered
from mountkit.config import MountSettings
from mountkit.errors import MountError, UsageError
from mountkit.unmounting import clear_dead, wait_for_end

_READY_S = 60.0
_UNDONE_S = 20.0
"""A start that is given up ends at once; more is the time of a machine that is very busy."""
_KEEPERS = {drivers.FUSE: "mountkit.serve.keeper", drivers.S3FS: "mountkit.s3fs"}


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
            wait_for_end(process.pid, _UNDONE_S)
            raise
    if "error" in answer:
        process.wait()
        raise errors.from_json(answer["error"])
    if remarks := answer.get("remarks"):
        _note(f"another mount of this source shares this cache; what it has holds here, too: {', '.join(remarks)}")
    remembered.remember(settings)
    return True


def mount_in_foreground(settings: MountSettings, *, passwd_credentials: tuple[str, str] | None = None) -> NoReturn:
    """Becomes the keeper of the mount, which ends with it. Raises MountkitError."""
    from mountkit import notify

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
    settings = replace(settings, directory=mountinfo.resolve_all(settings.directory))
    chosen = drivers.choose(settings.driver, writable=settings.outputs is not None)
    if chosen.why:
        _note(f"{chosen.why}, so s3fs serves this mount; docs/s3fs.md says what it cannot do")
    return replace(settings, driver=chosen.driver)


def _say(settings: MountSettings) -> None:
    """What the user should know of the driver before the mount is there."""
    if settings.driver == drivers.S3FS and (flags := drivers.unhonoured(settings)):
        _note(f"s3fs cannot honour {', '.join(flags)}")


def _note(text: str) -> None:
    notes.say(f"note: {text}")


def _already(settings: MountSettings) -> bool:
    """Whether this very source is mounted there. Raises if something else is, or the directory is unusable."""
    points = mountinfo.mount_points()
    directory = mountinfo.resolve(settings.directory)
    found = [point for point in points if point.directory == directory]
    if not found or found[-1].fstype != mountinfo.FSTYPE:
        check_mount_point(directory)
        return False
    info = mounts.ask(found[-1])
    if info.state == "dead":
        clear_dead(found[-1])
        check_mount_point(directory)
        return False
    if not info.details:
        raise MountError(f"{directory} is a mount of {info.source} already, and {info.state}", "try again in a moment")
    if info.source == str(settings.source) and info.details.get("endpoint", "") == settings.source.endpoint:
        return True
    raise MountError(
        f"{directory} is the mount of {info.source} already", f"unmount it: `mountkit unmount {directory}`"
    )


def _send_start(
    channel: socket.socket,
    settings: MountSettings,
    credentials: tuple[str, str] | None,
    *,
    foreground: bool = False,
) -> None:
    secrets_fd = processes.sealed_environment(credentials)
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
