"""One writable mount a state directory: whose output server holds this lock is the one that stages."""

from __future__ import annotations

import fcntl
import os
import time

from mountkit.errors import MountError

_FILE = "output.lock"
_PATIENCE_S = 10.0
_POLL_S = 0.02


def check(state_fd: int, source: str) -> None:
    """Raises MountError if another mount writes to this source already."""
    fd = _try(state_fd)
    if fd is None:
        raise MountError(
            f"{source} is mounted writable already, with this cache directory",
            "write there, or unmount it first; `mountkit status` lists the mounts",
        )
    os.close(fd)


def take(state_fd: int) -> None:
    """Takes the lock for the life of this process, waiting for the end of a server that is just being replaced."""
    deadline = time.monotonic() + _PATIENCE_S
    while _try(state_fd) is None:
        if time.monotonic() > deadline:
            raise MountError("another server stages files in this cache directory")
        time.sleep(_POLL_S)


def _try(state_fd: int) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_FILE, flags, 0o600, dir_fd=state_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
