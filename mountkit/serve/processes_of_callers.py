"""What becomes of the process that a request came from, as far as /proc tells."""

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
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)  # a file object costs twice as much
        try:
            return int(os.read(fd, 4096).rsplit(b" ", 1)[_EXIT_CODE]) & _SIGNAL_BITS != 0
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return False
