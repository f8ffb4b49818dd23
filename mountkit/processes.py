"""Starting and watching our own processes: isolated Python, cwd `/`, a whitelisted environment, named descriptors."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from mountkit import notes, notify
from mountkit.config import store_environment

_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "XDG_RUNTIME_DIR", notes.LEVEL, notes.FORMAT, *notify.VARIABLES)

_PR_SET_DUMPABLE = 4
_AUTOMOUNTER = 1
"""systemd's process group, in which it calls mount(8): whoever leaves it waits, at the first look at the mount point,
for the automount that it is itself to make. No terminal sends signals there."""


def environment() -> dict[str, str]:
    """What a process of ours may know of the caller's environment."""
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours, isolated from the caller's directory and PYTHON* variables."""
    return [sys.executable, "-I", "-m", module, *arguments]


def spawn(module: str, *, fds: Sequence[int] = ()) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a module in a session of its own; its last argument is its end of a socket pair. Returns our end too."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            command(module, str(theirs.fileno())),
            cwd="/",
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), *fds],
            start_new_session=os.getpgrp() != _AUTOMOUNTER,
        )
    return process, ours.detach()


class Watched:
    """A process by its pidfd: works for children and for processes another keeper started."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError if it is gone already."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self.exit_code: int | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Watched pid={self.pid} exit_code={self.exit_code}>"

    async def wait(self) -> int | None:
        """Waits for its end: its exit code, negative for a signal; None where it is not our child."""
        await trio.lowlevel.wait_readable(self._pidfd)
        self._reap()
        return self.exit_code

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, os.WNOHANG)
            self.exit_code = os.waitstatus_to_exitcode(status)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal; nothing happens once the process was found to have ended."""
        if self._closed:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._pidfd)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended, and what it said."""

    code: int | None
    out: str
    err: str


async def ask(command: Sequence[str], *, patience_s: float) -> Ended | None:
    """What a short command says; None if it does not end in time. Then it is killed, and not waited for.

    Who waits for an answer that a FUSE server had begun cannot be killed, so trio.run_process would wait for ever.
    """
    with _piped(command) as process:
        watched = Watched(process.pid)
        ended = False
        try:
            with trio.move_on_after(patience_s):
                code = await watched.wait()
                ended = True
        finally:
            if not ended:
                watched.kill()
                reap_later(process.pid)
            watched.close()
        if not ended:
            return None
        assert process.stdout is not None
        assert process.stderr is not None
        return Ended(code, *(stream.read().decode(errors="replace") for stream in (process.stdout, process.stderr)))


def _piped(command: Sequence[str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd="/", env=environment(), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    process.returncode = 0  # it is reaped through its pidfd
    return process


def reap_later(pid: int) -> None:
    """Has a task wait for the end of a child that nobody watches, so that no zombie stays."""
    trio.lowlevel.spawn_system_task(_reap, pid)


async def _reap(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        watched = Watched(pid)
        await watched.wait()
        watched.close()


def started(pid: int) -> int:
    """When a process began, in ticks since the host did: with the pid it names one process for ever. 0: it is over."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            words = file.read().rpartition(")")[2].split()
        return 0 if words[0] in "ZX" else int(words[19])  # nobody may be there to reap it
    except (OSError, IndexError, ValueError):
        return 0


def pss_bytes() -> int:
    """This process's share of the machine's memory; what it shares with others counts in parts. About 1 ms."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def hide() -> None:
    """Makes this process undumpable: nobody but root reads its memory, or the credentials' descriptor it passes on."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def keep_files_private() -> None:
    """What this process makes is its user's alone, SQLite's files too, which ask for no mode of their own."""
    os.umask(0o077)


def sealed_environment(passwd_credentials: tuple[str, str] | None) -> int:
    """A sealed memfd with the store environment: nobody can change it, and it is in no one's argv or environment."""
    fd = os.memfd_create("mountkit-secrets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, json.dumps(store_environment(passwd_credentials)).encode("utf-8", "surrogateescape"))
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def take_environment(secrets_fd: int | None) -> None:
    """Puts the caller's store environment, which `sealed_environment` handed on, in the place of ours."""
    if secrets_fd is None:
        return
    with open(f"/proc/self/fd/{secrets_fd}", encoding="utf-8", errors="surrogateescape") as file:
        os.environ.update(json.load(file))
