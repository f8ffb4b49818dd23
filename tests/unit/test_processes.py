"""Our processes are closed to others of the same user: their memory, and the descriptors they pass on."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from mountkit import processes
from mountkit.mover import process as mover
from mountkit.serve import keeper, server

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
