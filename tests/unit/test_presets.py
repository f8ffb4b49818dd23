"""Presets: what an image expects, and that secret arguments end as secrets and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from mountkit.errors import UsageError
from mountkit.run import hidden, presets
from mountkit.run.plan import Input, Output, RunDefaults, Secret

SECRET = "a-very-secret-value"


@pytest.fixture(autouse=True)
def no_token_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTLY_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("lightly/sampling", "lightly"),
        ("lightly/sampling:latest", "lightly"),
        ("lightly/worker:2.13@sha256:" + "0" * 64, "lightly"),
        ("registry.example.com:5000/lightly/worker:latest", "lightly"),
        ("docker.io/lightly/worker", "lightly"),
        ("localhost/lightly/worker", "lightly"),
        ("me/lightly/worker", "generic"),
        ("lightly/other", "generic"),
        ("ubuntu", "generic"),
    ],
)
def test_a_preset_is_chosen_by_the_images_name_whatever_its_registry_and_tag(image: str, name: str) -> None:
    assert presets.choose(image).name == name


def test_a_preset_can_be_named_and_a_wrong_name_is_corrected() -> None:
    assert presets.choose("ubuntu", "lightly").name == "lightly"
    with pytest.raises(UsageError) as caught:
        presets.choose("ubuntu", "lightli")
    assert "did you mean `lightly`?" in caught.value.hint


def test_lightly_gets_its_places_and_its_gpus_only_where_there_are_some() -> None:
    flags = RunDefaults(
        image="lightly/sampling:latest",
        arguments=("n_samples=5", "stopping_condition.n_samples=0.2"),
        inputs=(Input("data", "", is_directory=False),),
        outputs=(Output("/out", ""),),
    )
    wanted = presets.complete(flags)
    assert wanted.arguments == flags.arguments
    assert [i.target for i in wanted.inputs] == ["/home/input_dir"]
    assert [o.target for o in wanted.outputs] == ["/home/output_dir"]
    assert (wanted.gpus, wanted.gpus_optional, wanted.preset) == ("all", True, "lightly")


def test_any_other_image_is_told_where_its_data_is() -> None:
    flags = RunDefaults(
        image="a", inputs=(Input("data", "/x", is_directory=False),), environment={"MOUNTKIT_OUTPUT": "me"}
    )
    wanted = presets.complete(flags)
    assert wanted.environment == {"MOUNTKIT_INPUT": "/x", "MOUNTKIT_OUTPUT": "me"}
    assert wanted.gpus is None


def test_flags_win_over_the_file_and_the_file_over_the_preset() -> None:
    named = RunDefaults(image="lightly/worker", shm_size_bytes=5, gpus="1", preset="lightly")
    wanted = presets.complete(RunDefaults(shm_size_bytes=7), named)
    assert (wanted.image, wanted.shm_size_bytes, wanted.gpus) == ("lightly/worker", 7, "1")


def test_a_token_is_a_secret_and_no_argument() -> None:
    wanted = presets.complete(RunDefaults(image="lightly/worker", arguments=("a=1", f"token={SECRET}")))
    assert wanted.arguments == ("a=1",)
    (secret,) = wanted.secrets
    assert (secret.name, secret.variable) == ("lightly_token", "LIGHTLY_TOKEN")
    assert hidden.open_value(secret.source) == SECRET
    assert SECRET not in repr(wanted)
    os.close(int(secret.source.partition(":")[2]))


def test_a_token_may_be_named_instead_of_written(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = presets.complete(RunDefaults(image="lightly/worker", arguments=("token=env:MY_TOKEN",)))
    assert wanted.secrets == (Secret("lightly_token", "env:MY_TOKEN", "LIGHTLY_TOKEN"),)
    monkeypatch.setenv("LIGHTLY_TOKEN", SECRET)
    wanted = presets.complete(RunDefaults(image="lightly/worker"))
    assert wanted.secrets == (Secret("lightly_token", "env:LIGHTLY_TOKEN", "LIGHTLY_TOKEN"),)
    given = RunDefaults(image="lightly/worker", secrets=(Secret("lightly_token", "/file", "LIGHTLY_TOKEN"),))
    assert presets.complete(given).secrets == given.secrets


def test_an_empty_token_is_an_error() -> None:
    with pytest.raises(UsageError, match="has no value"):
        presets.complete(RunDefaults(image="lightly/worker", arguments=("token=",)))


def test_an_image_for_which_a_token_is_no_secret_gets_the_word_as_it_was_written() -> None:
    fd = hidden.seal(SECRET)
    wanted = presets.complete(RunDefaults(image="ubuntu", arguments=(f"token=fd:{fd}", "token=env:X")))
    assert wanted.arguments == (f"token={SECRET}", "token=env:X")
    assert not wanted.secrets
    os.close(fd)


def test_what_is_hidden_before_presets_are_read_is_what_they_call_secret() -> None:
    assert set(hidden.ARGUMENTS) == {name for one in presets.every().values() for name in one.secret_arguments}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["run", "image", "token=x"], [2]),
        (["run", "--input", "a", "image", "n=1", "token=x", "token=y"], [5, 6]),
        (["run", "image", "token=fd:5"], []),
        (["run", "image", "token=env:T"], []),
        (["run", "image", "token="], []),
        (["run", "-e", "token=x", "image"], []),
        (["mount", "token=x"], []),
    ],
)
def test_open_secrets_are_found_in_the_words_of_a_run_only(words: list[str], found: list[int]) -> None:
    assert hidden.secret_words(words) == found


def test_a_process_becomes_itself_again_without_the_secret() -> None:
    script = """
        import os, sys
        from mountkit.run import hidden
        hidden.hide()
        line = open("/proc/self/cmdline").read()
        around = open("/proc/self/environ").read()
        word = sys.argv[-2]
        fd = int(word.partition("fd:")[2])
        seen = "a-very-secret" + "-value" in line + around
        print(seen, word.startswith("token=fd:"), hidden.open_value(word[6:])[::-1])
        print(os.get_inheritable(fd), sys.argv[1:3], sys.argv[-1])
        try:
            os.write(fd, b"x")
        except OSError as exc:
            print(exc.strerror)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), "run", "image", f"token={SECRET}", "last"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines == [f"False True {SECRET[::-1]}", "False ['run', 'image'] last", "Operation not permitted"], (
        done.stderr
    )
