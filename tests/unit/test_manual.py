"""`mountkit help`, shell completion, and how much a command and the processes of a mount say."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from mountkit import cli, logs, notes, processes

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has said how much he wants to hear; what a command says of it is forgotten after the test."""
    for name in (notes.LEVEL, notes.FORMAT, "MOUNTKIT_UNIT"):
        monkeypatch.setenv(name, "")


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.cli, words, prog_name="mountkit")
    return done.exit_code, done.output


# ---- help ----------------------------------------------------------------------------------------------------
def test_help_shows_every_page_of_docs_and_the_help_of_every_command() -> None:
    listed = run("help")[1]
    for page in DOCS.glob("*.md"):
        assert f"  {page.stem} " in listed
        assert run("help", page.stem) == (0, page.read_text())
    assert "mountkit cache limit [OPTIONS] SIZE" in run("help", "cache", "limit")[1]


def test_help_about_nothing_names_the_pages() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mountkit", "help", "nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no command and no page `nonsense`\nhint: ")
    assert "semantics" in done.stderr


# ---- completion ----------------------------------------------------------------------------------------------
def offered(*words: str) -> list[tuple[str, str]]:
    found = BashComplete(cli.cli, {}, "mountkit", "_MOUNTKIT_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [(item.type, item.value) for item in found]


def test_commands_options_choices_and_places_are_completed() -> None:
    assert ("plain", "unmount") in offered("unm")
    assert ("plain", "--cache-size") in offered("mount", "--cache-s")
    assert offered("mount", "--driver", "s") == [("plain", "s3fs")]
    assert offered("mount", "--cache", "x") == [("dir", "x")]
    assert offered("config", "check", "m") == [("file", "m")]
    assert ("plain", "semantics") in offered("help", "sem")


def test_mounts_of_mountkit_yaml_are_completed_beside_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "other: {source: 'data/${NOBODY_SETS_THIS}', directory: /n}"
    (tmp_path / "mountkit.yaml").write_text(f"mounts:\n  train: {{source: data, directory: /m}}\n  {broken}\n")
    monkeypatch.chdir(tmp_path)
    assert offered("unmount", "t") == [("dir", "t"), ("plain", "train")]
    assert offered("mount", "") == [("plain", "train")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_given_its_script(shell: str) -> None:
    code, text = run("completion", shell)
    assert code == 0
    assert "_MOUNTKIT_COMPLETE" in text
    if shell == "bash":
        script = f"{text}\ncomplete -p mountkit"
        assert "mountkit" in subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout


# ---- how much is said ----------------------------------------------------------------------------------------
def every(group: click.Group) -> list[click.Command]:
    return [
        each for one in group.commands.values() for each in (one, *(every(one) if hasattr(one, "commands") else []))
    ]


def test_every_command_takes_the_words_about_speech_and_only_the_first_help_shows_them() -> None:
    for command in every(cli.cli):
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {"--verbose", "--quiet", "--log-format"} <= flags, command.name
    assert "--log-format" in run("--help")[1]
    assert "--log-format" not in run("mount", "--help")[1]


def test_what_is_said_of_speech_reaches_the_processes_of_a_mount() -> None:
    run("policy", "s3://data", "--quiet", "--log-format", "json")
    assert processes.environment()[notes.LEVEL] == notes.QUIET
    assert processes.environment()[notes.FORMAT] == notes.JSON


def test_quiet_leaves_out_notes_but_no_result() -> None:
    assert "note: where objects are encrypted" in run("policy", "s3://data")[1]
    quiet = run("--quiet", "policy", "s3://data")[1]
    assert "note:" not in quiet
    assert json.loads(quiet)["Version"]


def line_of(monkeypatch: pytest.MonkeyPatch, level: int, text: str, **environment: str) -> str:
    """What a process in this environment writes of one event; "" if nothing."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    root, written = logging.getLogger(), io.StringIO()
    kept, was = root.handlers[:], root.level
    root.handlers.clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", written)
            logs.basic()
            logging.getLogger("mountkit.x").log(level, text)
    finally:
        root.handlers[:] = kept
        root.setLevel(was)
    return written.getvalue()


def test_a_log_line_is_text_or_one_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    assert line_of(monkeypatch, logging.INFO, "hello").endswith(f"INFO mountkit.x[{os.getpid()}]: hello\n")
    found = json.loads(line_of(monkeypatch, logging.INFO, "two\nlines", MOUNTKIT_LOG_FORMAT="json"))
    assert (found["level"], found["logger"], found["pid"]) == ("info", "mountkit.x", os.getpid())
    assert found["message"] == "two\nlines"
    assert found["time"].endswith("Z")
    assert line_of(monkeypatch, logging.INFO, "x", MOUNTKIT_UNIT="u", MOUNTKIT_LOG_FORMAT="json").startswith('<6>{"')


def test_the_level_decides_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not line_of(monkeypatch, logging.DEBUG, "detail")
    assert "detail" in line_of(monkeypatch, logging.DEBUG, "detail", MOUNTKIT_LOG_LEVEL=notes.VERBOSE)
    assert not line_of(monkeypatch, logging.INFO, "news", MOUNTKIT_LOG_LEVEL=notes.QUIET)
