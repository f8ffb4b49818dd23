"""The small training program: interrupted and resumed it ends where it would have ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mountkit.demo.bucket import pictures

CONTAINER = Path(__file__).parents[2] / "containers" / "trainer"


@pytest.fixture
def given(tmp_path: Path) -> Path:
    for name, content in pictures(classes=3, per_class=12):
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "given" / name).write_bytes(content)
    return tmp_path / "given"


def train(given: Path, results: Path, *words: str) -> int:
    results.mkdir(exist_ok=True)
    command = [sys.executable, str(CONTAINER / "trainer.py"), "--input", str(given), "--output", str(results)]
    return subprocess.run([*command, "--batch=8", "--epochs=3", *words], capture_output=True, check=False).returncode


def test_interrupted_and_resumed_it_ends_with_the_same_weights(given: Path, tmp_path: Path) -> None:
    assert train(given, tmp_path / "whole") == 0
    parted = tmp_path / "parted"
    assert train(given, parted, "--stop-after=4") == 143
    assert train(given, parted, "--stop-after=9") == 143
    assert train(given, parted) == 0
    results = [json.loads((place / "result.json").read_text()) for place in (tmp_path / "whole", parted)]
    assert results[0] == results[1]
    assert results[0]["steps"] == 15
    steps = [json.loads(line)["step"] for line in (parted / "train.log").read_text().splitlines()]
    assert steps == list(range(1, 16))


def test_it_learns(given: Path, tmp_path: Path) -> None:
    assert train(given, tmp_path / "results", "--epochs=20") == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "results" / "train.log").read_text().splitlines()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_it_runs_in_its_image_and_is_told_where_its_data_is(given: Path, tmp_path: Path) -> None:
    built = subprocess.run([sys.executable, str(CONTAINER / "build.py")], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    words = ["run", "--input", f"{given}:/in", "--output", f"{tmp_path}/out:/results", "mountkit/trainer:latest"]
    command = [sys.executable, "-m", "mountkit", *words, "--epochs=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "done after 2 steps over 36 pictures" in done.stdout
    assert (tmp_path / "out" / "checkpoint.npz").exists()
