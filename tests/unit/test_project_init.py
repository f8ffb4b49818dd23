"""`mountkit config init`: answers become a file that means them; the options of the page are those of the table."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mountkit import option_table, project, project_init, yamlfile
from mountkit.cli import cli
from mountkit.errors import UsageError


def test_flags_become_a_file_that_means_them(tmp_path: Path) -> None:
    path = tmp_path / "mountkit.yaml"
    words = ["--source", "s3://data/train?region=eu-central-1", "--directory", "/mnt/train", "--ttl", "5m"]
    done = CliRunner().invoke(cli, ["config", "init", str(path), *words, "--allow-other", "--umask", "022"])
    assert done.exit_code == 0, done.output
    mount = project.load(str(path)).mount("train")
    assert (mount.source, mount.directory) == ("s3://data/train?region=eu-central-1", "/mnt/train")
    assert mount.options == {"ttl": "5m", "umask": "022", "allow_other": True}
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_no_flag_says_is_asked_until_it_makes_sense(tmp_path: Path) -> None:
    path = tmp_path / "mountkit.yaml"
    answers = "s3://\ns3://data/train set\nhttp://127.0.0.1:9000\n\n\n"
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "mountkit", "config", "init", str(path)]
    child = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    os.write(main, answers.encode())
    shown = b""
    with contextlib.suppress(OSError):  # EIO once nobody has the terminal any more
        while part := os.read(main, 65536):
            shown += part
    os.close(main)
    assert child.wait() == 0, shown
    assert b"Error: " in shown, "the first answer named no bucket"
    mount = project.load(str(path)).mount("train-set")
    assert (mount.source, mount.directory) == ("s3://data/train set", "/mnt/train-set")
    assert mount.options == {"endpoint": "http://127.0.0.1:9000"}


def test_where_nobody_can_be_asked_what_is_missing_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["config", "init", str(tmp_path / "f"), "--name", "data"])
    assert done.exit_code != 0
    assert "--source" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_left_alone_and_a_wrong_option_leaves_none(tmp_path: Path) -> None:
    path = tmp_path / "mountkit.yaml"
    with pytest.raises(UsageError, match="`soon` is no duration"):
        project_init.write(str(path), project_init.text("data", "s3://data", "/mnt/d", {"ttl": "soon"}))
    assert list(tmp_path.iterdir()) == []
    path.write_text("mounts:\n")
    with pytest.raises(UsageError, match="is there already"):
        project_init.write(str(path), project_init.text("data", "s3://data", "/mnt/d", {}))
    assert path.read_text() == "mounts:\n"


@pytest.mark.parametrize(
    "text",
    ["a b", "#no", "x: y", "$HOME", "${A}", "null", "", "~/c", "s3://b/p?a=b&c=%20", "'", '"', "ä", "-", "a #b", "a:"],
)
def test_a_word_reads_back_as_it_was_meant(text: str) -> None:
    tree = yamlfile.parse(f"key: {yamlfile.quoted(text)}\n", "file", {})
    assert yamlfile.require_table(tree, "").entries["key"].text == text  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data", "data"),
        ("s3://data/a/bc/", "bc"),
        ("s3://data/b", "data"),
        ("s3://data/x y", "x-y"),
        ("s3://data/ä", "data"),
    ],
)
def test_the_end_of_the_source_is_the_suggested_name(source: str, name: str) -> None:
    assert project_init.suggested_name(source) == name


def test_the_options_on_the_page_are_those_of_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    assert option_table.as_markdown() in page, "put the output of `mountkit config options` there"
