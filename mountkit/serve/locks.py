"""Locks that a process holds by an open file and that end with it: who keeps a session, who mounts at a directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator

import trio

_POLL_S = 0.02


class LockHeld(Exception):
    """Another process holds the lock and did not let go in time."""


@contextlib.contextmanager
def held(path: str, *, wait_s: float) -> Iterator[None]:
    """Holds the lock file at `path`, and removes it afterwards. Raises LockHeld."""
    deadline = time.monotonic() + wait_s
    while (fd := _try(path)) is None:
        if time.monotonic() >= deadline:
            raise LockHeld(path)
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        _release(fd, path)


@contextlib.asynccontextmanager
async def held_async(path: str, *, wait_s: float) -> AsyncIterator[None]:
    """The same for a trio task."""
    deadline = trio.current_time() + wait_s
    while (fd := _try(path)) is None:
        if trio.current_time() >= deadline:
            raise LockHeld(path)
        await trio.sleep(_POLL_S)
    try:
        yield
    finally:
        _release(fd, path)


def _try(path: str) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == os.stat(path).st_ino:
            return fd
    except (FileNotFoundError, BlockingIOError):
        pass  # held, or its holder ended between our open and our lock, and took the file with it
    os.close(fd)
    return None


def _release(fd: int, path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
    os.close(fd)
