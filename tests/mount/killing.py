"""Deaths at a certain instant: strace holds a process at one of its system calls."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.mount.conftest import wait_until

_LONG_US = 30_000_000


@contextlib.contextmanager
def _traced(pid: int, *words: str) -> Iterator[None]:
    tracer = subprocess.Popen(["strace", "-q", "-p", str(pid), *words], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: f"TracerPid:\t{tracer.pid}" in Path(f"/proc/{pid}/status").read_text())
        yield
    finally:
        tracer.terminate()
        tracer.communicate()


@contextlib.contextmanager
def killed_at_answer(pid: int, number: int) -> Iterator[None]:
    """The server dies as it enters its `number`th answer from now on."""
    with _traced(pid, "-e", "trace=writev", "-e", f"inject=writev:signal=SIGKILL:when={number}"):
        yield


@contextlib.contextmanager
def stopped_after_reading(pid: int, log: Path) -> Iterator[Callable[[], bool]]:
    """The server stands still when the kernel has handed it a request; whether it does, says what this yields."""

    def has_read() -> bool:
        return any("iov_base" in line and " = -1 " not in line for line in log.read_text().splitlines())

    with _traced(pid, "-o", str(log), "-e", "trace=readv", "-e", f"inject=readv:delay_exit={_LONG_US}"):
        yield has_read
