"""A process of its own for a run that goes on after the command has returned.

It is forked while this process has one thread only, before any engine is asked: so nothing of a run, least of all a
secret, has to be written down or put into arguments for it. It has a session of its own, so neither Ctrl-C nor a closed
terminal reaches it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from mountkit import errors
from mountkit.errors import MountError, MountkitError

Started = Callable[[str], None]


def start(work: Callable[[Started], int]) -> tuple[str, int]:
    """Calls `work` in another process and returns once it says that the run has started: ("its id", 0).

    Where it ended before that: ("", its exit code). Raises the MountkitError it failed with. Ctrl-C and SIGTERM are
    handed on to it as long as we wait.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _be_the_other(work, writing)
    os.close(writing)

    def hand_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    previous = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with open(reading, "rb") as pipe:
            answer: dict[str, Any] = json.loads(pipe.readline() or b"{}")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if "run" in answer:
        return str(answer["run"]), 0
    os.waitpid(pid, 0)
    if "error" in answer:
        raise errors.from_json(answer["error"])
    if "code" in answer:
        return "", int(answer["code"])
    raise MountError("the process that was to see to the run ended at once", "repeat it without --detach to see why")


def go_on(work: Callable[[], None]) -> int:
    """Calls `work` in a process of its own, quietly; its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _be_quiet()
        work()
    finally:
        os._exit(0)


def _be_the_other(work: Callable[[Started], int], pipe: int) -> None:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

        def tell(body: dict[str, Any]) -> None:
            with contextlib.suppress(OSError):
                os.write(pipe, json.dumps(body).encode() + b"\n")

        def started(run_id: str) -> None:
            tell({"run": run_id})
            os.close(pipe)
            _be_quiet()

        try:
            code = work(started)
            tell({"code": code})
        except MountkitError as exc:
            code = exc.exit_code
            tell({"error": exc.to_json()})
        except Exception as exc:  # the end of a process, as in `cli.main`
            tell({"error": MountkitError(f"mountkit failed in a way nobody foresaw: {exc!r}").to_json()})
    finally:
        os._exit(code)


def _be_quiet() -> None:
    """Lets go of the terminal and of the directory we were called in."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    os.chdir("/")
