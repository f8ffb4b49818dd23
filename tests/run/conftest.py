"""The engine and the image of these tests. Where no engine answers they fail and say why: none is ever skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mountkit.errors import EngineError
from mountkit.run.docker_engine import DockerEngine

TINY = "mountkit/tiny:latest"
BUILD = Path(__file__).parents[2] / "containers" / "tiny" / "build.py"


@pytest.fixture(scope="session")
def tiny_image() -> str:
    """The tiny test image, made of this machine's own programs."""
    try:
        DockerEngine().check()
    except EngineError as exc:
        pytest.fail(f"these tests need a container engine: {exc.sentence} ({exc.hint})", pytrace=False)
    done = subprocess.run([sys.executable, str(BUILD)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"the test image could not be made: {done.stderr}", pytrace=False)
    return TINY
