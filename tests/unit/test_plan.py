"""What `--input`, `--output` and `--env` mean, and what a container is never given."""

from __future__ import annotations

import os

import pytest

from mountkit.errors import UsageError
from mountkit.run import plan, words
from mountkit.run.plan import Bind, Input, Output, RunDefaults, Secret, Ulimit, Volume, merge


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data", Input("data", "", False)),
        ("data/train", Input("data/train", "", False)),
        ("data/train:/in", Input("data/train", "/in", False)),
        ("s3://data", Input("s3://data", "", False)),
        ("s3://data/a:/in", Input("s3://data/a", "/in", False)),
        ("s3://data?endpoint=http://h:9000", Input("s3://data?endpoint=http://h:9000", "", False)),
        ("s3://data?endpoint=http://h:9000:/in/x/", Input("s3://data?endpoint=http://h:9000", "/in/x", False)),
        ("s3://data?endpoint=http://[::1]:9000:/in", Input("s3://data?endpoint=http://[::1]:9000", "/in", False)),
        ("s3://tenant:data/a:/in", Input("s3://tenant:data/a", "/in", False)),
        ("/mnt/train", Input("/mnt/train", "", True)),
        ("/mnt/train:/in", Input("/mnt/train", "/in", True)),
        ("/mnt/odd:name:/in", Input("/mnt/odd:name", "/in", True)),
    ],
)
def test_an_input_is_split_at_its_last_absolute_path(text: str, expected: Input) -> None:
    assert words.parse_input(text) == expected


@pytest.mark.parametrize("text", [".", "./data", "../data:/in", "~/data"])
def test_an_input_that_starts_with_dot_or_tilde_is_a_directory_and_becomes_absolute(text: str) -> None:
    parsed = words.parse_input(text)
    assert parsed.is_directory
    assert os.path.isabs(parsed.source)


@pytest.mark.parametrize(
    "text", ["", ":/in", "data:in", "./data:in", "s3://", "s3://b?nosuch=1", "gs://data", "data:/in/../../etc", "/a\0b"]
)
def test_an_input_that_makes_no_sense_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        words.parse_input(text)
    assert caught.value.sentence
    assert caught.value.hint


@pytest.mark.parametrize("target", ["/", "/proc", "/proc/self", "/sys", "/dev", "/dev/shm"])
def test_nothing_is_mounted_over_what_a_container_needs_itself(target: str) -> None:
    with pytest.raises(UsageError):
        words.parse_input(f"/mnt/train:{target}")


def test_an_output_is_a_directory_even_without_a_slash() -> None:
    assert words.parse_output("results") == Output(os.path.abspath("results"), "")
    assert words.parse_output("/r:/out") == Output("/r", "/out")


def test_an_output_may_be_a_bucket_if_it_is_written_as_a_url() -> None:
    assert words.parse_output("s3://results/run-7") == Output("s3://results/run-7", "", is_bucket=True)
    assert words.parse_output("s3://results/run-7:/out") == Output("s3://results/run-7", "/out", is_bucket=True)
    assert not words.parse_output("results").is_bucket
    with pytest.raises(UsageError):
        words.parse_output("gs://results")


@pytest.mark.parametrize(
    "directory",
    ["/", "/etc", "/etc/ssl", "/proc", "/sys/fs", "/dev", "/run", "/var/run", "/var/run/docker.sock", "/x/docker.sock"],
)
def test_a_container_is_never_given_the_host(directory: str) -> None:
    for parse in (words.parse_input, words.parse_output):
        with pytest.raises(UsageError, match="would hand this host to the container"):
            parse(directory)
    with pytest.raises(UsageError):
        plan.plan(RunDefaults(image="image"), run_id="1", inputs=[(directory, "/in")])


@pytest.mark.parametrize(
    "directory", ["/etcetera", "/home/etc", "/dev/shm/data", "/run/mountkit/runs/1/input-0", "/mnt"]
)
def test_directories_that_only_look_alike_are_allowed(directory: str) -> None:
    plan.refuse_dangerous(directory)


def test_two_things_cannot_have_one_place_in_the_container() -> None:
    def both(first: str, second: str, output: str = "") -> RunDefaults:
        outputs = (words.parse_output(output),) if output else ()
        return merge(RunDefaults(inputs=tuple(words.parse_input(t) for t in (first, second) if t), outputs=outputs))

    with pytest.raises(UsageError, match="both `a-bucket` and `other` would be /data/input"):
        both("a-bucket", "other")
    with pytest.raises(UsageError):
        both("a-bucket:/x", "", "/out:/x/")
    assert [i.target for i in both("a-bucket", "", "/out").inputs] == ["/data/input"]


def test_what_the_flags_say_wins_over_a_named_run_and_that_over_a_preset() -> None:
    preset = RunDefaults(
        input_target="/home/input_dir",
        environment={"A": "preset", "P": "1"},
        shm_size_bytes=1,
        ulimits={"nofile": Ulimit(1, 1), "memlock": Ulimit(-1, -1)},
        gpus="all",
        gpus_optional=True,
        secrets=(Secret("token", "env:PRESET", "TOKEN"),),
    )
    named = RunDefaults(inputs=(words.parse_input("s3://named"),), environment={"A": "named", "N": "1"}, detach=True)
    flags = RunDefaults(inputs=(words.parse_input("mine"),), shm_size_bytes=2, ulimits={"nofile": Ulimit(5, 6)})
    merged = merge(flags, named, preset)
    assert merged.inputs == (Input("mine", "/home/input_dir", False),)
    assert merged.environment == {"A": "named", "N": "1", "P": "1"}
    assert merged.ulimits == {"nofile": Ulimit(5, 6), "memlock": Ulimit(-1, -1)}
    assert (merged.shm_size_bytes, merged.gpus, merged.gpus_optional, merged.detach) == (2, "all", True, True)
    assert merged.secrets == preset.secrets


def test_inputs_of_two_origins_are_united_by_their_place() -> None:
    flags = RunDefaults(inputs=(Input("a", "/in/a", False),), volumes=(Volume("/v", "/w"),))
    named = RunDefaults(inputs=(Input("b", "/in/a", False), Input("c", "/in/c", False)))
    assert [i.source for i in merge(flags, named).inputs] == ["a", "c"]
    with pytest.raises(UsageError, match="both `c` and `/v`"):
        merge(RunDefaults(volumes=(Volume("/v", "/in/c"),)), named)


def test_false_is_something_said() -> None:
    assert merge(RunDefaults(detach=False, tty=False), RunDefaults(detach=True, tty=True)).detach is False


def test_a_variable_without_value_is_passed_on_from_here() -> None:
    found = words.parse_environment(["A=1", "B=x=y", "C=", "HOME"], {"HOME": "/me"})
    assert found == {"A": "1", "B": "x=y", "C": "", "HOME": "/me"}


@pytest.mark.parametrize("text", ["", "=x", "MISSING"])
def test_a_variable_that_is_not_set_is_an_error_not_an_empty_one(text: str) -> None:
    with pytest.raises(UsageError):
        words.parse_environment([text], {})


@pytest.mark.parametrize("image", ["My.Registry:5000/a/b:Tag", "localhost/a@sha256:AB", "a/b:V1", "HOST:5000/a", "a"])
def test_capitals_are_for_registries_tags_and_digests(image: str) -> None:
    assert plan.plan(RunDefaults(image=image), run_id="1").image == image


@pytest.mark.parametrize("image", ["", " ", "--rm", "a b", "Some/Image:1", "localhost/A"])
def test_an_image_name_must_be_one(image: str) -> None:
    with pytest.raises(UsageError, match="is no image name"):
        plan.plan(RunDefaults(image=image), run_id="1")


def test_inputs_are_read_only_outputs_are_not_and_the_label_names_the_run() -> None:
    wanted = RunDefaults(image="image", arguments=("a", "b"), environment={"A": "1"}, labels={"mine": "1"})
    made = plan.plan(wanted, run_id="77", inputs=[("/i", "/in")], outputs=[("/o", "/out")])
    assert made.binds == (Bind("/i", "/in", read_only=True), Bind("/o", "/out", read_only=False))
    assert made.labels == {"mountkit.run": "77", "mine": "1"}
    assert (made.name, made.arguments, made.environment) == ("mountkit-77", ("a", "b"), {"A": "1"})
    assert made.init
    assert not made.tty
    assert made.shm_size_bytes == 1 << 30
