"""mountkit.yaml: what it means, where it is found, and what is said about a wrong one, with line and column."""

from __future__ import annotations

import json
import os
import re
import textwrap
from pathlib import Path

import jsonschema
import pytest
import yaml

from mountkit import project, project_schema, yamlfile
from mountkit.errors import UsageError
from mountkit.run import entries
from mountkit.run.plan import Input, Output, RunDefaults, Secret, Ulimit, Volume

GOOD = """
x-cache: &cache {cache: ~/cache, cache-size: 20GB}
mounts:
  train:
    <<: *cache
    source: s3://data/train?region=eu-central-1
    directory: mnt/train
    ttl: indefinite
    umask: 022
    allow_other: yes
  eval: {source: "${BUCKET:-data}/eval", directory: /mnt/eval}
runs:
  sample:
    image: lightly/sampling:latest
    args: [n_samples=100, "price=5$$"]
    inputs:
      - train
      - {source: other/prefix, target: /data/other, ttl: 5m}
      - ./plain:/data/plain
    outputs: out
    volumes: [{source: ../shared, target: /home/shared_dir, read-only: true}]
    env: {A: 1, FROM_HERE: , B: "${B}"}
    secrets: {lightly_token: {from: env:TOKEN, variable: LIGHTLY_TOKEN}, key: keys/api}
    labels: [team=a]
    ulimits: {nofile: "1024:2048", nproc: 5}
    memory: 2g
    gpus: all
    gpus-optional: true
    stop-timeout: 90s
    detach: no
    mount: {verify: always}
"""
SURROUNDINGS = {"B": "from b", "FROM_HERE": "here"}


def write(directory: Path, text: str) -> str:
    path = directory / project.FILE_NAME
    path.write_text(textwrap.dedent(text))
    path.chmod(0o600)
    return str(path)


def load(directory: Path, text: str) -> project.Project:
    return project.load(write(directory, text), SURROUNDINGS)


def test_a_mount_has_its_source_directory_and_options(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD).mount("train")
    assert found.source == "s3://data/train?region=eu-central-1"
    assert found.directory == str(tmp_path / "mnt/train")
    assert found.options == {
        "cache": os.path.expanduser("~/cache"),
        "cache_size": "20GB",
        "ttl": "indefinite",
        "umask": "022",
        "allow_other": True,
    }


def test_a_run_has_every_field_it_names(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD)
    train = loaded.mount("train")
    assert loaded.run("sample") == RunDefaults(
        image="lightly/sampling:latest",
        run_name="sample",
        arguments=("n_samples=100", "price=5$"),
        inputs=(
            Input(train.source, "", is_directory=False, options=train.options),
            Input("other/prefix", "/data/other", is_directory=False, options={"ttl": "5m"}),
            Input(str(tmp_path / "plain"), "/data/plain", is_directory=True),
        ),
        outputs=(Output(str(tmp_path / "out"), ""),),
        volumes=(Volume(str(tmp_path.parent / "shared"), "/home/shared_dir", True),),
        environment={"A": "1", "FROM_HERE": "here", "B": "from b"},
        secrets=(
            Secret("lightly_token", "env:TOKEN", "LIGHTLY_TOKEN"),
            Secret("key", str(tmp_path / "keys/api")),
        ),
        labels={"team": "a"},
        ulimits={"nofile": Ulimit(1024, 2048), "nproc": Ulimit(5, 5)},
        memory_bytes=2 << 30,
        gpus="all",
        gpus_optional=True,
        stop_timeout_s=90.0,
        detach=False,
        mount_options={"verify": "always"},
    )


def test_every_field_of_a_run_can_be_written_in_a_file() -> None:
    by_option = {option.field for option in entries.OPTION_KEYS.values()}
    own = {"image", "arguments", "tty", "input_target", "output_target", "gpus_optional", "mount_options"}
    assert by_option | own | {"rewrite"} == set(RunDefaults.__dataclass_fields__)


def test_the_whole_of_a_good_file_passes_the_check(tmp_path: Path) -> None:
    load(tmp_path, GOOD).check()
    load(tmp_path, "").check()
    load(tmp_path, "mounts:\nruns:\n").check()


def test_a_variable_one_run_lacks_does_not_keep_another_entry_from_its_work(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "mounts: {train: {source: data, directory: /m}}\nruns:\n  one: {image: a, env: {T: '${NOT_SET}'}}\n",
    )
    assert loaded.mount("train").source == "data"
    with pytest.raises(UsageError, match="NOT_SET"):
        loaded.run("one")


# The text of a file, line and column of what is wrong, a part of the sentence, a part of the hint.
BROKEN = [
    ("mounts: [", 1, 10, "no YAML", "indentation"),
    ("mounts:\n\t- a", 2, 1, "no YAML", ""),
    ("- a", 1, 1, "not a list of", "indent"),
    ("mount: {}", 1, 1, "`mount` is no key", "did you mean `mounts`?"),
    ("mounts: 5", 1, 9, "not a list of", ""),
    ("mounts: {}\nmounts: {}", 2, 1, "twice", "keep one"),
    ("mounts: {train: {directory: /m}}", 1, 10, "no source", "source:"),
    ("mounts: {train: {source: data}}", 1, 10, "no directory", "directory:"),
    ("mounts: {train: data}", 1, 17, "not a list of", ""),
    ("mounts:\n  train: {source: data, directory: /m, tll: 5m}", 2, 40, "`tll` is no key of the mount", "`ttl`"),
    ("mounts:\n  train: {source: data, directory: /m, ttl: soon}", 2, 45, "no duration", "60s"),
    ("mounts:\n  train: {source: data, directory: /m, cache-size: big}", 2, 52, "no size", "50GB"),
    ("mounts:\n  train: {source: data, directory: /m, anonymous: maybe}", 2, 51, "a switch", "true"),
    ("mounts:\n  train: {source: data, directory: /m, ttl: [1]}", 2, 45, "not one value", "ttl:"),
    ("mounts:\n  train: {source: 'ftp://data', directory: /m}", 2, 19, "unknown scheme", "s3://"),
    ("mounts:\n  train: {source: 'x', directory: /m}", 2, 19, "no bucket name", "bucket"),
    ("mounts:\n  train: {source: 'data/${WHO}', directory: /m}", 2, 25, "WHO is not set", "${WHO:-default}"),
    ("mounts:\n  train: {source: 'data/${WHO', directory: /m}", 2, 25, "does not begin a variable", "$$"),
    ("mounts:\n  aa: {source: data, directory: /m}\n  bb: {source: data, directory: /m/x}", 3, 3, "one place", "own"),
    ("mounts:\n  a/b: {source: data, directory: /m}", 2, 3, "no name of a mount", "letters"),
    ("mounts:\n  aa: {source: data, directory: /m, ttl: 1, ttl: 2}", 2, 45, "twice", ""),
    ("mounts:\n  aa: {source: data, directory: /m, cache_size: 1, cache-size: 2}", 2, 52, "twice", ""),
    ("mounts: &a\n  aa: *a", 1, 9, "leads back to itself", "alias"),
    ("mounts: !!python/object:os.system {}", 1, 9, "is a tag", ""),
    ("runs:\n  one: {args: [x]}", 2, 3, "no image", "image:"),
    ("runs:\n  one: {image: a, imputs: [data]}", 2, 19, "`imputs` is no key of the run", "`inputs`"),
    ("runs:\n  one: {image: a, inputs: [{target: /x}]}", 2, 28, "no source", "source:"),
    ("runs:\n  one: {image: a, inputs: [{source: data, tll: 1}]}", 2, 43, "`tll` is no key of an input", "`ttl`"),
    ("runs:\n  one: {image: a, inputs: ['data:x']}", 2, 28, "no absolute path", "/x"),
    ("runs:\n  one: {image: a, outputs: ['s3://b']}", 2, 29, "no bucket name", ""),
    ("runs:\n  one:\n    image: a\n    memory: lots", 4, 13, "no size", ""),
    ("runs:\n  one: {image: a, cpus: none}", 2, 25, "no number of cores", ""),
    ("runs:\n  one: {image: a, pull: often}", 2, 25, "not one of", "missing"),
    ("runs:\n  one: {image: a, env: [A-IS-NOT-SET]}", 2, 25, "not set", ""),
    ("runs:\n  one: {image: a, env: {NOT_SET: }}", 2, 33, "not set", ""),
    ("runs:\n  one: {image: a, secrets: {t: {variable: T}}}", 2, 32, "comes from nowhere", "from:"),
    ("runs:\n  one: {image: a, input-target: data}", 2, 33, "no absolute path", "/data/input"),
    ("runs:\n  one: {image: a, mount: {tll: 5}}", 2, 27, "`tll` is no key", "`ttl`"),
]


@pytest.mark.parametrize(("text", "line", "column", "sentence", "hint"), BROKEN)
def test_a_mistake_is_told_with_file_line_column_and_a_way_out(
    tmp_path: Path, text: str, line: int, column: int, sentence: str, hint: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        project.load(path, {}).check()
    assert caught.value.sentence.startswith(f"{path}:{line}:{column}: "), caught.value.sentence
    assert sentence in caught.value.sentence
    assert "\n" not in caught.value.sentence
    assert hint in caught.value.hint
    assert caught.value.hint


def test_aliases_that_multiply_end_early(tmp_path: Path) -> None:
    bomb = "x-0: &a0 [b, b, b, b, b, b, b, b, b]\n"
    bomb += "".join(f"x-{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    with pytest.raises(UsageError, match="aliases multiply"):
        load(tmp_path, bomb)


def test_a_file_others_may_write_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "mounts: {}")
    for mode in (0o620, 0o602):
        os.chmod(path, mode)
        with pytest.raises(UsageError, match="written by others"):
            project.load(path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "mounts: {}")
    os.chown(path, 12345, 0)
    with pytest.raises(UsageError, match="belongs to user 12345"):
        project.load(path)


def test_the_nearest_file_upward_wins_then_the_users_then_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    home = tmp_path / "config"
    (home / "mountkit").mkdir(parents=True)
    around = {"XDG_CONFIG_HOME": str(home)}
    assert list(project.candidates(str(below), around))[-1] == "/etc/mountkit/mountkit.yaml"
    mine = write(home / "mountkit", "mounts: {}")
    assert project.find_file(str(below), around) == mine
    above = write(tmp_path / "a", "mounts: {}")
    assert project.find_file(str(below), around) == above
    assert project.find_file(str(below), around) != write(below, "mounts: {}")


def test_a_word_that_is_a_path_or_an_image_with_a_tag_never_reads_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "mounts: [")
    monkeypatch.chdir(tmp_path)
    for word in ("./train", "/mnt/train", "lightly/sampling", "image:latest"):
        assert project.find_mount(word) is None
        assert project.find_run(word) is None


def test_what_is_not_in_the_file_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    assert project.find_run("ubuntu") is None
    with pytest.raises(UsageError, match="no run `smaple`") as nearly:
        project.find_run("smaple")
    assert "did you mean `sample`?" in nearly.value.hint
    wanted = RunDefaults(inputs=(Input("bucket", "", is_directory=False), Input("eval", "/e", is_directory=False)))
    assert [i.source for i in project.resolve(wanted).inputs] == ["bucket", "data/eval"]
    with pytest.raises(UsageError, match="no mount `trian`") as caught:
        project.chosen_mounts("trian", every=False)
    assert "did you mean `train`?" in caught.value.hint


def test_one_mount_and_all_mounts_exclude_each_other() -> None:
    for name, every in (("bucket", True), (None, False)):
        with pytest.raises(UsageError, match="either one mount or --all"):
            project.chosen_mounts(name, every=every)


def test_what_is_shown_reads_back_the_same_and_tells_no_variables(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD)
    text = f"mounts:{yamlfile.dump(loaded.mounts, 1)}runs:{yamlfile.dump(loaded.runs, 1)}"
    assert "from b" not in text
    assert load(tmp_path, text).run("sample") == loaded.run("sample")


@pytest.mark.parametrize("page", ["configuration.md", "train-in-five-minutes.md"])
def test_every_example_in_docs_passes_the_check(tmp_path: Path, page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    examples = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        project.load(write(tmp_path, example), {"HOME": "/home/me"}).check()


def test_the_schema_in_docs_is_the_one_of_the_tables() -> None:
    path = Path(__file__).parents[2] / "docs" / "mountkit.schema.json"
    assert path.read_text() == project_schema.as_text(), "mountkit config schema > docs/mountkit.schema.json"


def test_the_schema_takes_what_we_take_and_refuses_what_we_refuse() -> None:
    schema = json.loads(project_schema.as_text())
    jsonschema.validate(yaml.safe_load(GOOD.replace("allow_other", "allow-other")), schema)
    for text in ("mount: {}", "runs: {a: {imputs: []}}", "mounts: {a: {source: x, directory: /y, tll: 1}}"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(text), schema)
