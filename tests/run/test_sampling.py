"""The stand-in for Lightly's container: its logic run directly, and once in its image over a real mount."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import numpy as np
import psutil
import pytest
from PIL import Image

from mountkit.demo.bucket import pictures
from tests.mount.conftest import Bucket, CommandLine, bucket, mountkit, proxy  # noqa: F401

CONTAINERS = Path(__file__).parents[2] / "containers"
SECRET = "tok-3f9a-nobody-may-see-this"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module the image runs."""
    monkeypatch.syspath_prepend(str(CONTAINERS / "sampling"))
    import sampling.__main__

    return sampling.__main__


@pytest.fixture(scope="session")
def sampling_image() -> str:
    done = subprocess.run(
        [sys.executable, str(CONTAINERS / "sampling" / "build.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return "lightly/sampling:latest"


def some_files() -> dict[str, bytes]:
    """40 pictures in 2 folders, one of them twice, one torn, one of another kind, and a file that is no picture."""
    files = dict(pictures(classes=2, per_class=20))
    first = next(iter(files.values()))
    files["train/class01/zz_again.jpg"] = first
    files["train/torn.jpg"] = first[: len(first) // 2]
    buffer = io.BytesIO()
    Image.new("L", (30, 20), 77).save(buffer, "PNG")
    files["grey.png"] = buffer.getvalue()
    files["words.txt"] = b"no picture"
    return files


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    given, results = tmp_path / "given", tmp_path / "results"
    results.mkdir()
    for name, content in some_files().items():
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        (given / name).write_bytes(content)
    return given, results


def only_run(results: Path) -> Path:
    (found,) = results.glob("*/*")
    return found


def lines(run: Path, name: str) -> list[str]:
    return (run / "filenames" / f"{name}_filenames.txt").read_text().splitlines()


def check_results(run: Path, wanted: int) -> None:
    """Everything Lightly's contract names is there, and says what is true of `some_files`."""
    assert lines(run, "corrupt") == ["train/torn.jpg"]
    assert lines(run, "duplicate") == ["train/class01/zz_again.jpg"]
    sampled, removed = lines(run, "sampled"), lines(run, "removed")
    assert len(sampled) == len(set(sampled)) == wanted
    assert set(sampled) | set(removed) == set(some_files()) - {
        "train/torn.jpg",
        "train/class01/zz_again.jpg",
        "words.txt",
    }
    assert not set(sampled) & set(removed)
    with (run / "data" / "embeddings.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert (header[0], header[-1], len(rows)) == ("filenames", "labels", 41)
    for row in rows:
        assert abs(np.linalg.norm([float(value) for value in row[1:-1]]) - 1) < 0.01
    for plot in ("embeddings", "distances", "sampled"):
        Image.open(run / "plots" / f"{plot}.png").verify()
    assert (run / "report.pdf").read_bytes().startswith(b"%PDF")
    report = json.loads((run / "report.json").read_text())
    assert report["pictures"]["sampled"] == wanted
    spread = report["mean_nearest_neighbour_distance"]
    assert spread["after"] > spread["before"]
    assert "n_samples" in (run / "config" / "config.yaml").read_text()


def test_it_selects_and_writes_what_the_contract_says(program: Any, directories: tuple[Path, Path]) -> None:
    given, results = directories
    arguments = ["token=x", "stopping_condition.n_samples=0.2", "enable_corruptness_check=True"]
    assert program.main(arguments, {}, given=str(given), results=str(results)) == 0
    check_results(only_run(results), wanted=9)


def test_the_same_pictures_give_the_same_choice(program: Any, directories: tuple[Path, Path]) -> None:
    given, results = directories
    chosen = []
    for number in range(2):
        place = results / str(number)
        place.mkdir()
        assert program.main(["token=x", "n_samples=5"], {}, given=str(given), results=str(place)) == 0
        chosen.append(lines(only_run(place), "sampled"))
    assert chosen[0] == chosen[1]


def test_duplicates_stay_where_nobody_wants_them_gone(program: Any, directories: tuple[Path, Path]) -> None:
    given, results = directories
    assert (
        program.main(
            ["n_samples=40", "remove_exact_duplicates=False"],
            {"LIGHTLY_TOKEN": "x"},
            given=str(given),
            results=str(results),
        )
        == 0
    )
    assert lines(only_run(results), "duplicate") == []
    assert "sampled" in json.loads((only_run(results) / "report.json").read_text())["pictures"]


def test_farthest_points_cover_what_random_ones_miss(program: Any) -> None:
    from sampling.selection import select
    from sampling.settings import Settings

    dice = np.random.default_rng(3)
    crowd = dice.normal(0, 0.01, (500, 8)) + np.eye(8)[0]
    few = np.eye(8)[1:6]
    points = np.concatenate([crowd, few]).astype(np.float32)
    chosen, distances = select(points, Settings(n_samples=6))
    assert {500, 501, 502, 503, 504} <= set(chosen)
    assert float(distances.max()) < 0.1
    stopped, _ = select(points, Settings(n_samples=100, min_distance=0.5))
    assert len(stopped) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["n_sampels=5"], "did you mean `n_samples`?"),
        (["n_samples=1.5"], "must be a whole number, or a share below 1"),
        (["n_samples=0"], "more than 0"),
        (["n_samples=nan"], "a number of 0 or more"),
        (["--help"], "no argument of the form name=value"),
        (["enable_corruptness_check=maybe"], "True or False"),
        (["method=best"], "coreset or random"),
        (["enable_training=True"], "trains no model"),
        (["token="], "no token"),
    ],
)
def test_wrong_arguments_end_with_one_sentence(
    program: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert program.main(arguments, {}) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_nothing_to_select_from_is_one_sentence(
    program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["token=x"], {}, given=str(tmp_path), results=str(tmp_path)) == 2
    assert "there is no picture" in capsys.readouterr().err
    assert program.main(["token=x"], {}, given=str(tmp_path / "none"), results=str(tmp_path)) == 2
    assert "there is no input directory" in capsys.readouterr().err


def _is_starting(process: psutil.Process) -> bool:
    """Whether it has not yet had the time a Python takes to start: until then nothing can hide its words."""
    try:
        used = process.cpu_times()
    except psutil.NoSuchProcess:
        return True
    return used.user + used.system < 0.1


class Watcher:
    """Looks, as any user of this machine may, at all command lines and at every container, again and again."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.containers = 0
        self._client = docker.from_env()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._client.close()

    def _look(self) -> None:
        while not self._end.is_set():
            for process in psutil.process_iter(["cmdline"]):
                line = " ".join(process.info["cmdline"] or [])
                if SECRET in line and not _is_starting(process):
                    self.seen.append(line)
            for one in self._client.api.containers(all=True, filters={"label": "mountkit.run"}):
                try:
                    text = json.dumps(self._client.api.inspect_container(one["Id"]))
                except docker.errors.NotFound:
                    continue
                self.containers += "lightly" in text
                if SECRET in text:
                    self.seen.append(text)


@pytest.fixture
def filled(bucket: Bucket) -> Iterator[Bucket]:  # noqa: F811
    for name, content in some_files().items():
        bucket.put(name, content)
    yield bucket


def test_a_selection_from_a_bucket_shows_its_token_to_nobody(
    filled: Bucket,
    mountkit: CommandLine,  # noqa: F811
    sampling_image: str,
    tmp_path: Path,
) -> None:
    mountkit.environment |= {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    results = tmp_path / "results"
    words = [
        "run",
        "--input",
        filled.source,
        "--output",
        str(results),
        sampling_image,
        f"token={SECRET}",
        "n_samples=9",
    ]
    with Watcher() as watcher:
        done = mountkit.run(*words)
    assert done.code == 0, done.err
    check_results(only_run(results), wanted=9)
    assert watcher.containers
    assert not watcher.seen
    assert SECRET not in done.out + done.err
    written = [path for base in (tmp_path, results) for path in base.rglob("*") if path.is_file()]
    assert any(path.name == "receipt.json" for path in written)
    for path in written:
        assert SECRET.encode() not in path.read_bytes(), path


def test_a_run_of_mountkit_yaml_selects_from_a_named_mount(
    filled: Bucket,
    mountkit: CommandLine,  # noqa: F811
    sampling_image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mountkit.yaml").write_text(f"""
mounts:
  train: {{source: "{filled.source}", directory: mnt, cache: cache}}
runs:
  sample:
    image: {sampling_image}
    inputs: [train]
    outputs: [results]
    args: [n_samples=9, "token=${{MY_TOKEN}}"]
""")
    monkeypatch.chdir(tmp_path)
    mountkit.environment |= {"XDG_STATE_HOME": str(tmp_path / "state"), "MY_TOKEN": SECRET}
    assert mountkit.run("config", "check").code == 0
    done = mountkit.run("run", "sample")  # the mount is not there: the run makes one of its own
    assert done.code == 0, done.err
    check_results(only_run(tmp_path / "results"), wanted=9)
    (tmp_path / "mnt").mkdir()
    mounted = mountkit.run("mount", "train")
    assert mounted.code == 0, mounted.err
    assert (tmp_path / "mnt" / "grey.png").exists()
    again = mountkit.run("mount", "--all")
    assert again.code == 0
    assert "already" in again.err
    assert mountkit.run("run", "sample", "n_samples=3").code == 2  # its own words take the place of the entry's
    assert mountkit.run("unmount", "train").code == 0
    assert not (tmp_path / "mnt" / "grey.png").exists()
    assert mountkit.run("unmount", "--all").code == 0
