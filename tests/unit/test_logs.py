"""The log file that all processes of a state directory write to, while it is put aside again and again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mountkit import logs

WRITER = """
import logging, os, sys
from mountkit import logs
directory, name, lines, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
logs._LIMIT_BYTES = limit
logs.basic()
logs.to_state_directory(os.open(directory, os.O_RDONLY))
sys.stdin.readline()
for number in range(lines):
    logging.getLogger(name).info("line %d", number)
"""


def _write(directory: Path, *, processes: int, lines: int, limit: int) -> None:
    """Has several processes write at once; returns when all are through."""
    words = [str(directory), "", str(lines), str(limit)]
    writers = []
    for number in range(processes):
        words[1] = f"writer-{number}"
        writers.append(subprocess.Popen([sys.executable, "-c", WRITER, *words], stdin=subprocess.PIPE))
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0] * processes


def _lines(*files: Path) -> list[tuple[str, int]]:
    """Who wrote which line, of every line in these files."""
    found = []
    for line in (line for file in files for line in file.read_text().splitlines()):
        head, _, number = line.rpartition(" line ")
        found.append((head.split()[3].partition("[")[0], int(number)))
    return found


def test_a_file_that_is_put_aside_under_its_writers_loses_no_line(tmp_path: Path) -> None:
    _write(tmp_path, processes=4, lines=1000, limit=150_000)  # 60 bytes a line: once
    found = _lines(tmp_path / f"{logs.FILE_NAME}.1", tmp_path / logs.FILE_NAME)
    assert Counter(found) == Counter((f"writer-{n}", number) for n in range(4) for number in range(1000))


def test_two_files_of_a_bounded_size_hold_the_last_lines_whole(tmp_path: Path) -> None:
    _write(tmp_path, processes=4, lines=2000, limit=30_000)
    old, new = tmp_path / f"{logs.FILE_NAME}.1", tmp_path / logs.FILE_NAME
    assert sorted(os.listdir(tmp_path)) == [logs.FILE_NAME, f"{logs.FILE_NAME}.1"]
    assert 30_000 <= old.stat().st_size < 40_000
    assert new.stat().st_size < 40_000
    assert [file.stat().st_mode & 0o777 for file in (old, new)] == [0o600, 0o600]
    last: dict[str, int] = {}
    for name, number in _lines(old, new):
        assert number > last.get(name, -1), "in order"
        last[name] = number


@pytest.fixture
def writer(tmp_path: Path) -> list[str]:
    return [sys.executable, "-c", WRITER, str(tmp_path), "writer", "1", "1000"]


def test_a_file_that_somebody_removed_is_made_anew(tmp_path: Path, writer: list[str]) -> None:
    with subprocess.Popen(writer, stdin=subprocess.PIPE) as process:
        while not (tmp_path / logs.FILE_NAME).exists():
            assert process.poll() is None
        (tmp_path / logs.FILE_NAME).unlink()
        process.communicate(b"\n")
    assert _lines(tmp_path / logs.FILE_NAME) == [("writer", 0)]


def test_a_unit_writes_no_file(tmp_path: Path, writer: list[str]) -> None:
    environment = {**os.environ, "MOUNTKIT_UNIT": "mountkit@x.service"}
    done = subprocess.run(writer, input=b"\n", stderr=subprocess.PIPE, env=environment, check=True)
    assert done.stderr == b"<6>writer: line 0\n"
    assert os.listdir(tmp_path) == []
