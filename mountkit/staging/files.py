"""Staging files: the bytes of output files, `staging/N` for file N, whole on the local disk until the bucket has them.

A stamp (size, mtime, ctime) names one state of a file's bytes; what writes to it, also through the kernel alone, makes
another.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from mountkit.staging import schema

_OPEN: Final = 256
_COARSE_NS: Final = 20_000_000
_MULTIGRAIN: Final = (6, 13)


class Stamp(NamedTuple):
    size: int
    mtime_ns: int
    ctime_ns: int


def stamp_of(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class StagingFiles:
    """The directory `staging/` of a state directory. Descriptors it gives out stay its own."""

    def __init__(self, state_fd: int) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(schema.STAGING, 0o700, dir_fd=state_fd)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self.directory_fd = os.open(schema.STAGING, flags, dir_fd=state_fd)
        self._open: OrderedDict[int, int] = OrderedDict()
        self._coarse = _has_coarse_times()
        self._changed: set[int] = set()
        self._doomed: set[int] = set()
        self._sizes: dict[int, int] | None = None
        """What each file takes on the disk, as last measured; None before the first time."""
        self._used_bytes = 0
        self._unmeasured: set[int] = set()
        self.filling: set[int] = set()
        """Files that another process is writing to."""

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        os.close(self.directory_fd)

    def note_changed(self, number: int) -> None:
        """Its bytes are promised to somebody now."""
        self._changed.add(number)
        self._unmeasured.add(number)

    def take_changed(self) -> set[int]:
        """The files that were made, opened or promised since the last call: they may have to be synced."""
        changed, self._changed = self._changed, set()
        return changed

    def create(self, number: int) -> int:
        """A new empty file, open. A file of that number that a killed server left is emptied."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        return self._keep(number, os.open(str(number), flags, 0o600, dir_fd=self.directory_fd))

    def descriptor(self, number: int) -> int:
        """The file open for reading and writing; valid until the next call. Raises OSError."""
        fd = self._open.get(number)
        if fd is not None:
            self._open.move_to_end(number)
            return fd
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        return self._keep(number, os.open(str(number), flags, dir_fd=self.directory_fd))

    def status(self, number: int) -> os.stat_result:
        fd = self._open.get(number)
        if fd is not None:
            return os.fstat(fd)
        return os.stat(str(number), dir_fd=self.directory_fd, follow_symlinks=False)

    def stamp(self, number: int) -> Stamp:
        return stamp_of(self.status(number))

    def settled_stamp(self, number: int) -> Stamp:
        """A stamp that any later write is sure to change.

        Below Linux 6.13 two writes within one tick of the clock leave the same mtime. There a young mtime is set back
        by a nanosecond: whatever writes in the same tick makes another one.
        """
        status = self.status(number)
        if self._coarse and time.time_ns() - status.st_mtime_ns < _COARSE_NS:
            os.utime(self.descriptor(number), ns=(status.st_atime_ns, status.st_mtime_ns - 1))
            status = self.status(number)
        return stamp_of(status)

    def release(self, number: int) -> None:
        """Closes what is open of it; the file stays."""
        self._unmeasured.add(number)
        fd = self._open.pop(number, None)
        if fd is not None:
            os.close(fd)

    def remove(self, number: int) -> None:
        self.release(number)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(str(number), dir_fd=self.directory_fd)

    def doom(self, number: int) -> None:
        """Closes what is open of it; it may be removed once what takes its place is synced."""
        self.release(number)
        self._doomed.add(number)

    def take_doomed(self) -> set[int]:
        """The files that were doomed since the last call."""
        doomed, self._doomed = self._doomed, set()
        return doomed

    def numbers(self) -> list[int]:
        """Every staging file there is."""
        return [int(name) for name in os.listdir(self.directory_fd) if name.isdigit()]

    def used_bytes(self, written: Iterable[int] = ()) -> int:
        """What all of them take on the disk; `written`: files that somebody may be writing to, also the kernel alone.

        The others are looked at once: there may be very many.
        """
        if self._sizes is None:
            self._sizes = {}
            self._unmeasured.update(self.numbers())
        for number in self._unmeasured.union(self.filling, written):
            with contextlib.suppress(FileNotFoundError):
                self._used_bytes -= self._sizes.pop(number, 0)
                size = self._sizes[number] = self.status(number).st_blocks * 512
                self._used_bytes += size
        self._unmeasured.clear()
        return self._used_bytes

    def _keep(self, number: int, fd: int) -> int:
        self._changed.add(number)
        self._unmeasured.add(number)
        self._open[number] = fd
        if len(self._open) > _OPEN:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)
        return fd


def _has_coarse_times() -> bool:
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return match is None or (int(match[1]), int(match[2])) < _MULTIGRAIN
