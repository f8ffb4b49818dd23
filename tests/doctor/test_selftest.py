"""`mountkit self-test`: a whole life of a mount in one command, and nothing left of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mountkit import mountinfo


def _self_test(tmp_path: Path, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "80", **changed}
    command = [sys.executable, "-m", "mountkit", "self-test", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)


@pytest.mark.parametrize(("driver", "passed"), [("fuse", 8), ("s3fs", 7)])
def test_a_machine_that_works_passes_every_step_and_nothing_is_left(tmp_path: Path, driver: str, passed: int) -> None:
    done = _self_test(tmp_path, "--driver", driver)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("  ✓ ") == passed
    assert "✗" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "mountkit works on this machine" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert not [point for point in mountinfo.ours() if point.directory.startswith(str(tmp_path))]


def test_a_machine_that_lacks_something_is_told_what_and_keeps_the_logs(tmp_path: Path) -> None:
    done = _self_test(tmp_path, "--driver", "s3fs", PATH=os.path.dirname(sys.executable))
    assert done.returncode == 1
    assert "✗ mount" in done.stdout
    assert "s3fs is not installed" in done.stdout
    assert "→ install it: `apt-get install s3fs`" in done.stdout
    (kept,) = tmp_path.iterdir()
    assert f"stay in {kept}" in done.stdout.replace("\n", " ")
    assert (kept / "weed.log").exists()
    assert "Traceback" not in done.stderr
