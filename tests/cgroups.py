"""A memory limit for running processes, by cgroup v1 or v2, whichever this machine has."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class MemoryLimit:
    """A cgroup of its own. What its processes held before they came is not counted."""

    def __init__(self, name: str) -> None:
        self._v1 = (_V1 / "memory.limit_in_bytes").exists()
        self._directory = (_V1 if self._v1 else _V2) / name
        if not self._v1:
            with contextlib.suppress(OSError):  # on already
                (_V2 / "cgroup.subtree_control").write_text("+memory")
        self._directory.mkdir()

    def hold(self, pid: int, limit_bytes: int) -> None:
        """From now on this process may get so much more memory, none of it on swap; then the kernel kills it."""
        (self._directory / ("memory.limit_in_bytes" if self._v1 else "memory.max")).write_text(str(limit_bytes))
        with contextlib.suppress(OSError):
            (self._directory / ("memory.swappiness" if self._v1 else "memory.swap.max")).write_text("0")
        (self._directory / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed in it for want of memory."""
        text = (self._directory / ("memory.oom_control" if self._v1 else "memory.events")).read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))

    def remove(self) -> None:
        for pid in (self._directory / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (self._directory.parent / "cgroup.procs").write_text(pid)
        for _ in range(100):
            try:
                os.rmdir(self._directory)
            except OSError:
                time.sleep(0.05)  # a process that was killed is still leaving
            else:
                return


@contextlib.contextmanager
def memory_limit(name: str) -> Iterator[MemoryLimit]:
    limit = MemoryLimit(f"mountkit-test-{os.getpid()}-{name}")
    try:
        yield limit
    finally:
        limit.remove()
