"""Options of a run by name: what their texts become, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mountkit.errors import UsageError
from mountkit.run.options import RUN_OPTIONS, wanted
from mountkit.run.plan import RunDefaults, Secret, Ulimit, Volume


def test_every_option_sets_a_field_that_exists() -> None:
    assert {option.field for option in RUN_OPTIONS} <= set(RunDefaults.__dataclass_fields__)


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"memory": "512m"}, "memory_bytes", 512 << 20),
        ({"memory": "2GiB"}, "memory_bytes", 2 << 30),
        ({"shm_size": "2g"}, "shm_size_bytes", 2 << 30),
        ({"cpus": "1.5"}, "cpus", 1.5),
        ({"stop-timeout": "2m"}, "stop_timeout_s", 120.0),
        ({"ulimit": ["nofile=10:20"]}, "ulimits", {"nofile": Ulimit(10, 20)}),
        ({"label": ["a=b=c", "d"]}, "labels", {"a": "b=c", "d": ""}),
        ({"volume": ["/a:/b:ro", "/c:/d"]}, "volumes", (Volume("/a", "/b", True), Volume("/c", "/d"))),
        ({"secret": ["t=env:T"]}, "secrets", (Secret("t", "env:T"),)),
        ({"secret": ["t:TOKEN=/f"]}, "secrets", (Secret("t", "/f", "TOKEN"),)),
        ({"gpus": "0,2"}, "gpus", "0,2"),
        ({"pull": "never"}, "pull", "never"),
        ({"tty": False}, "tty", False),
        ({"detach": True}, "detach", True),
        ({"ttl": "5s", "cache": "/c"}, "mount_options", {"ttl": "5s", "cache": "/c"}),
        ({"env": ["A=1", "HERE"]}, "environment", {"A": "1", "HERE": "x"}),
    ],
)
def test_words_become_values(given: dict[str, Any], field: str, value: object) -> None:
    assert getattr(wanted(given, surroundings={"HERE": "x"}), field) == value


@pytest.mark.parametrize(
    "given",
    [
        {"memory": "much"},
        {"cpus": "0"},
        {"cpus": "many"},
        {"ulimit": ["nofile"]},
        {"ulimit": ["bogus=4"]},
        {"ulimit": ["nofile=9:3"]},
        {"ulimit": ["nofile=-1:3"]},
        {"ipc": "bogus"},
        {"ipc": "container:"},
        {"workdir": "relative"},
        {"platform": "what"},
        {"label": ["mountkit.run=me"]},
        {"volume": ["/only"]},
        {"volume": ["name:/x"]},
        {"secret": ["name"]},
        {"secret": ["a/b=/f"]},
        {"secret": ["a:=/f"]},
        {"gpus": "some gpus"},
        {"pull": "sometimes"},
        {"stop_timeout": "soon"},
        {"env_file": ["/nosuch"]},
        {"nosuch": "x"},
        {"input": ["s3://b:/run/secrets/x"]},
    ],
)
def test_what_makes_no_sense_is_one_sentence_and_a_hint(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        wanted(given)
    assert "\n" not in caught.value.sentence
    assert caught.value.hint


def test_a_file_of_variables_is_read_as_docker_reads_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("# words\n\nA=1\n  B=two words \nHERE\nNOT_HERE\n")
    found = wanted({"env_file": [str(tmp_path / "f")], "env": ["A=2"]}, surroundings={"HERE": "x"})
    assert found.environment == {"A": "2", "B": "two words ", "HERE": "x"}
