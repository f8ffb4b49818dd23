"""What becomes of the process that a request came from, as far as /proc tells without waiting for that process.

Since a caller waits for our answer, nothing may be read of him that the kernel keeps back meanwhile. It keeps back
/proc/PID/stat, among others, from the moment when execve replaces his memory until it has closed his files, that is,
until we have answered their FLUSH: with that, one read would stop the mount for good.
"""

from __future__ import annotations

import os

_EXIT_CODE = -1  # the last field of /proc/PID/stat; it is in the form of wait(2)
_SIGNAL_BITS = 0x7F


def is_being_killed(pid: int) -> bool:
    """Whether the thread `pid` closes its files because a signal ends it; False for one of another pid namespace (0).

    The kernel flushes the files of a process that is killed as those of one that exits by itself.
    """
    if pid == 0:
        return False
    try:
        return _has_no_memory(pid) and int(_read(pid, "stat").rsplit(b" ", 1)[_EXIT_CODE]) & _SIGNAL_BITS != 0
    except (OSError, ValueError):
        return False


def _has_no_memory(pid: int) -> bool:
    """A thread that exits lets go of its memory before its files; from then on it cannot be in execve."""
    return _read(pid, "statm").startswith(b"0 ")


def _read(pid: int, name: str) -> bytes:
    fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)  # a file object costs twice as much
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
