"""The benchmark's own arithmetic: orders of reading, medians, targets; and its works over a plain directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import data, report, writing
from tests.bench.runs import Sample, works

REPOSITORY = Path(__file__).parents[2]


def sample(work: str, phase: str, who: str, rate: float, **more: object) -> Sample:
    return Sample(work, phase, who, rate, "files/s", 1.0, **more)  # type: ignore[arg-type]


def test_both_orders_of_an_epoch_hold_every_file_once() -> None:
    shuffled, listed = (data.image_keys(100, order=order) for order in ("shuffled", "listed"))
    assert sorted(shuffled) == sorted(listed) == listed
    assert shuffled != listed == sorted(listed)


def test_the_middle_of_three_rounds_counts_and_the_best_peer_is_the_rival() -> None:
    medians = report.Medians(
        [sample("img", "cold", "mountkit", rate) for rate in (900.0, 1200.0, 1000.0)]
        + [sample("img", "cold", "rclone", 100.0), sample("img", "cold", "s3fs", 50.0)]
    )
    assert medians.rate("img", "cold") == 1000.0
    assert medians.best_peer("img", "cold") == 100.0
    line = next(line for line in report.targets(medians).splitlines() if "first epoch / best peer" in line)
    assert line == "| img, first epoch / best peer | ≥ 10 | 10 | yes |"
    assert "| img, first epoch / s5cmd | ≥ 1 | not measured | |" in report.targets(medians)
    assert "1,000 (900-1,200)" in report.table(medians)


def test_a_time_that_must_be_short_is_held_against_the_peers_time() -> None:
    medians = report.Medians([sample("walk", "cold", "mountkit", 30.0), sample("walk", "cold", "rclone", 20.0)])
    line = next(line for line in report.targets(medians).splitlines() if line.startswith("| walk, time"))
    assert line == "| walk, time / best peer's | ≤ 0.5 | 0.667 | **no** |"


def test_a_quick_run_leaves_out_what_takes_minutes() -> None:
    assert {work.name for work in works(4000, quick=True)} < {work.name for work in works(20_000, quick=False)}


@pytest.mark.parametrize(("work", "done"), [("img", 40), ("imgseq", 40), ("walk", 61)])
def test_the_works_read_a_plain_directory(tmp_path: Path, work: str, done: int) -> None:
    for key in data.image_keys(40, order="listed"):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(b"x" * 10)
    words = [sys.executable, "-m", "tests.bench.work", work, str(tmp_path), "--count", "40", "--total", "40"]
    result = json.loads(subprocess.run(words, cwd=REPOSITORY, capture_output=True, check=True).stdout)
    assert result["done"] == done
    if work != "walk":
        assert result["bytes"] == 400 and result["progress"][-1][1] == 40


def test_what_is_measured_of_writing_is_written(tmp_path: Path) -> None:
    assert writing.small(tmp_path, 5) > 0
    assert writing.sequential(tmp_path, 2) > 0
    assert sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir()) == [
        *((str(number), 20_000) for number in range(5)),
        ("large", 2 << 20),
    ]
    writing.make_tree(tmp_path / "tree", files=3, large_bytes=1 << 20)
    assert [len(list((tmp_path / "tree").rglob(each))) for each in ("0000*", "large")] == [3, 1]
