"""Trace files: which object versions of a mount were opened, written down in its state directory.

    traces/NAME     int64: when it began, in ns; then the id of each version that was opened, the first open first

Servers append an id before they answer the open (`serve.tracing`), so the death of no process loses one; each server
does so once, so an id may be there some times over. A file whose owner may not write it is incomplete: the disk did
not take an id, or LIMIT_BYTES were reached. What an id stands for is in the catalog beside it.
"""

from __future__ import annotations

import array
import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

DIRECTORY = "traces"
ID_BYTES = 8
LIMIT_BYTES = 32 << 20
"""4 million opens of different files."""
LOOK_S = 0.02
"""A server may take so long to see that a trace has begun."""
_FORGOTTEN_S = 90 * 86400.0
"""Nobody comes back to a trace that old: the run was deleted by hand, or never collected."""
_CHUNK_BYTES = 64 << 10


class NoTrace(Exception):
    """There is no trace of that name."""


def begin(state_fd: int, name: str) -> None:
    """A new trace in the place of an earlier one of that name; returns once every server appends to it.

    Root may begin one in another user's state directory; it is then that user's. Raises OSError.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(DIRECTORY, 0o700, dir_fd=state_fd)
    owner = os.fstat(state_fd)
    directory = open_directory(state_fd)
    try:
        _give(directory, owner)
        _remove_forgotten(directory)
        draft = f".{name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(draft, flags, 0o600, dir_fd=directory)
        try:
            _give(fd, owner)
            os.write(fd, time.time_ns().to_bytes(ID_BYTES, "little"))
        finally:
            os.close(fd)
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)
    time.sleep(LOOK_S)


def end(state_fd: int, name: str) -> None:
    """Takes it away; one that is gone is no error. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        directory = open_directory(state_fd)
        try:
            os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)
    with contextlib.suppress(OSError):  # others are there
        os.rmdir(DIRECTORY, dir_fd=state_fd)


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A trace that is there, open to be read."""

    fd: int

    @property
    def is_complete(self) -> bool:
        return bool(os.fstat(self.fd).st_mode & stat.S_IWUSR)

    def ids(self) -> Iterator[array.array[int]]:
        """Some at a time, in the order they were written."""
        offset = ID_BYTES
        while chunk := os.pread(self.fd, _CHUNK_BYTES, offset):
            ids = array.array("q")
            ids.frombytes(chunk[: len(chunk) // ID_BYTES * ID_BYTES])
            if not ids:
                return
            offset += len(ids) * ID_BYTES
            yield ids


@contextlib.contextmanager
def reading(state_fd: int, name: str) -> Iterator[TraceFile]:
    """The trace of that name. Raises NoTrace, OSError."""
    try:
        directory = open_directory(state_fd)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        finally:
            os.close(directory)
    except FileNotFoundError:
        raise NoTrace(name) from None
    try:
        yield TraceFile(fd)
    finally:
        os.close(fd)


def oldest(state_fd: int) -> float | None:
    """When the oldest trace began, as `time.time` tells it; None if there is none."""
    try:
        directory = open_directory(state_fd)
    except OSError:
        return None
    try:
        return min((began for name in names(directory) if (began := _began(directory, name))), default=None)
    finally:
        os.close(directory)


def open_directory(state_fd: int) -> int:
    """Raises OSError."""
    return os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state_fd)


def names(directory: int) -> list[str]:
    """The traces in it; one that is about to begin is not among them."""
    return [name for name in os.listdir(directory) if not name.startswith(".")]


def _give(fd: int, owner: os.stat_result) -> None:
    if os.fstat(fd).st_uid != owner.st_uid:
        os.fchown(fd, owner.st_uid, owner.st_gid)


def _began(directory: int, name: str) -> float | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        return int.from_bytes(os.pread(fd, ID_BYTES, 0), "little") / 1e9
    finally:
        os.close(fd)


def _remove_forgotten(directory: int) -> None:
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            if time.time() - os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime > _FORGOTTEN_S:
                os.unlink(name, dir_fd=directory)
