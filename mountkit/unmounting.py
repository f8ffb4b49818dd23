"""Ending a mount: asked of its keeper, or taken away where none can do it. Who works in it is not cut off unasked."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable

from mountkit import ipc, mountinfo, mounts, notes, places, remembered
from mountkit.errors import MountBusy, MountError, UsageError
from mountkit.mountinfo import MountPoint
from mountkit.mounts import MountInfo

_LETTING_GO_S = 2.0
"""A container that starts has every mount of the host until it has changed its root; a process that ends, its files."""
_GONE_S = 10.0


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
    info = mounts.ask(point)
    if info.state == "dead":
        clear_dead(point)
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
                clear_dead(point)
                return
            raise MountError(f"the mount {resolved} does not answer: {exc}", "say --force") from exc
    if info.details:
        wait_for_end(info.details["keeper_pid"])


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


def clear_dead(point: MountPoint) -> None:
    """Takes away a mount whose keeper cannot do it: what works in it is cut off."""
    from mountkit.serve import session

    session.abort(point.device)
    session.unmount(point.directory, lazy=True)
    if point.owner_uid == os.getuid():
        with contextlib.suppress(OSError):
            os.unlink(places.keeper_socket(point.device))


def wait_for_end(pid: int, seconds: float = _GONE_S) -> None:
    """Returns once this process of a mount is gone; says so where that takes longer."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            notes.say(f"note: process {pid} of the mount is still ending")
    finally:
        os.close(pidfd)
