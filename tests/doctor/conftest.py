"""Doctor as a user runs it, against real servers and against ones that say what a test wants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.servers import SeaweedServer


@dataclass
class Diagnosis:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.out)["lines"]
        return found

    def line(self, name: str, section: str = "") -> dict[str, Any]:
        return next(line for line in self.lines if line["name"] == name and line["section"].startswith(section))

    @property
    def faults(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["verdict"] == "fault"]


@dataclass
class Doctor:
    base: Path
    environment: dict[str, str]

    def __call__(self, *words: str, text: bool = False, **changed: str | None) -> Diagnosis:
        merged = {**self.environment, **changed}
        environment = {name: value for name, value in merged.items() if value is not None}
        more = [] if text else ["--json"]
        command = [sys.executable, "-m", "mountkit", "doctor", *words, "--cache", str(self.base / "cache"), *more]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=self.base
        )
        return Diagnosis(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def doctor(seaweed: SeaweedServer, tmp_path: Path) -> Iterator[Doctor]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_") and not k.upper().endswith("_PROXY")}
    yield Doctor(
        tmp_path,
        {
            **clean,
            "AWS_ACCESS_KEY_ID": seaweed.access_key,
            "AWS_SECRET_ACCESS_KEY": seaweed.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": str(tmp_path),
            "COLUMNS": "80",
        },
    )
