"""What the cache raises: it is full, or its disk is broken. Both make reads slower, never wrong."""

from __future__ import annotations

import errno
import os

from mountkit.errors import HostError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class CacheFull(HostError):
    """The policy or the disk has no room; what is cached stays usable and nothing half-written is referenced."""

    errno = errno.ENOSPC


class DiskFull(CacheFull):
    """It is the disk that has no room, because of others: the cache alone keeps its share free."""


class CacheBroken(HostError):
    """The cache directory does not work (I/O error, index gone or damaged). Opening the writer again repairs it."""


def cache_full(why: str) -> CacheFull:
    return CacheFull(
        f"the cache is full: {why}", "give it more room with `--cache-size` or another `--cache` directory"
    )


def disk_full(why: str) -> DiskFull:
    return DiskFull(f"the disk of the cache is full: {why}", "make room on it, or choose another `--cache` directory")


def cache_broken(why: str) -> CacheBroken:
    return CacheBroken(f"the cache does not work: {why}", "look at the disk that holds the `--cache` directory")


def translated(exc: OSError, doing: str) -> HostError:
    """The named failure for an error of the operating system."""
    if exc.errno in _NO_SPACE:
        return disk_full(f"no space left while {doing}")
    return cache_broken(f"{doing}: {os.strerror(exc.errno or errno.EIO)}")
