"""Our processes: closed to others of the same user, and never waited for in vain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mountkit import processes
from mountkit.mover import process as mover
from mountkit.processes import Ended, Watched
from mountkit.serve import keeper, server
from tests.unit.mover.harness import in_trio

_TARGET = """
import ctypes, os, sys
from mountkit import processes
os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: the change of user has taken it away
if sys.argv[1] == "hidden":
    processes.hide()
print(flush=True)
sys.stdin.read()
"""
_OTHER = "import os, sys; os.setgid(65534); os.setuid(65534); os.readlink(f'/proc/{sys.argv[1]}/fd/0')"


@pytest.mark.parametrize(("how", "code"), [("open", 0), ("hidden", 1)])
def test_a_hidden_process_is_closed_to_others_of_its_user(how: str, code: int) -> None:
    """[secrets-1]"""
    command = [sys.executable, "-c", _TARGET, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
        assert target.stdout is not None
        target.stdout.readline()
        done = subprocess.run(
            [sys.executable, "-c", _OTHER, str(target.pid)], capture_output=True, text=True, check=False
        )
    assert done.returncode == code
    assert ("PermissionError" in done.stderr) == bool(code), done.stderr


class Hidden(Exception):
    """It did."""


@pytest.mark.parametrize("module", [keeper, server, mover], ids=["keeper", "server", "mover"])
def test_every_process_hides_before_it_does_anything(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """[secrets-1]"""

    def hide() -> None:
        raise Hidden

    monkeypatch.setattr(processes, "hide", hide)
    monkeypatch.setattr("os.chdir", lambda _: None)
    with pytest.raises(Hidden):
        module.main()


@in_trio
async def test_a_short_command_is_asked_for_its_code_and_words() -> None:
    assert await processes.ask(["sh", "-c", "echo out; echo err >&2; exit 3"], patience_s=60) == Ended(
        3, "out\n", "err\n"
    )


@in_trio
async def test_a_command_that_cannot_even_be_killed_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that waits for an answer of a FUSE server that died over it."""
    monkeypatch.setattr(Watched, "kill", lambda _: None)
    noted = tmp_path / "pid"
    assert await processes.ask(["sh", "-c", f"echo $$ >{noted}; exec sleep 600"], patience_s=1) is None
    os.kill(int(noted.read_text()), signal.SIGKILL)
