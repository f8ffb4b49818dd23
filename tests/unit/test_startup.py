"""What a command imports before it does anything: `--help` and `status` must answer at once (0.1 s of CPU)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_RUN = """
import json, sys
before = set(sys.modules)
from mountkit import cli, mountinfo
mountinfo.ours = list  # whatever is mounted here meanwhile
try:
    cli.cli(sys.argv[1:], standalone_mode=False)
except SystemExit:
    pass
print("\\n" + json.dumps(sorted(set(sys.modules) - before)))
"""
_LIGHT = {"mountkit", "click"}
_HEAVY = {"asyncio", "concurrent", "email", "http", "multiprocessing", "ssl", "tempfile", "unittest", "xml"}
"""Of the standard library; each costs more than all that a command needs."""


@pytest.mark.parametrize("words", [["--help"], ["status"], ["mount", "--help"], ["run", "--help"]], ids=" ".join)
def test_a_command_that_only_asks_imports_click_and_little_else(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _RUN, *words], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "mountkit" in packages
    assert not packages & _HEAVY
    assert packages - sys.stdlib_module_names <= _LIGHT
