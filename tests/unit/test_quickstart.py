"""What the quickstart finds missing, what it asks, and what it says when a step fails."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mountkit import prerequisites, quickstart
from mountkit.quickstart import Failed, Host

COMPLETE = Host(
    python="3.11",
    has_apt=True,
    is_root=True,
    has_sudo=False,
    has_venv=True,
    has_python_headers=True,
    has_compiler=True,
    has_libc_headers=True,
    has_pkg_config=True,
    has_fuse_headers=True,
    has_fusermount=True,
    has_certificates=True,
    engine="answers",
    has_dockerd=True,
    has_fuse_device=True,
    test_programs=frozenset(quickstart.TEST_PROGRAMS),
)
BARE = COMPLETE._replace(
    has_venv=False,
    has_python_headers=False,
    has_compiler=False,
    has_libc_headers=False,
    has_pkg_config=False,
    has_fuse_headers=False,
    has_fusermount=False,
    has_certificates=False,
    engine="silent",
    has_dockerd=False,
)


def packages(host: Host) -> list[str]:
    return [need.package for need in quickstart.missing_packages(host)]


def test_a_complete_machine_needs_nothing() -> None:
    assert packages(COMPLETE) == []
    assert quickstart.unmet(COMPLETE) is None


def test_a_bare_machine_needs_everything_and_each_need_says_why() -> None:
    assert packages(BARE) == [
        *("python3.11-venv", "python3.11-dev", "gcc", "libc6-dev", "pkg-config", "libfuse3-dev", "fuse3"),
        *("ca-certificates", "docker.io"),
    ]
    assert all(need.why for need in quickstart.missing_packages(BARE))


def test_the_programs_of_the_tests_are_installed_for_the_tests_alone() -> None:
    without = COMPLETE._replace(test_programs=frozenset(quickstart.TEST_PROGRAMS) - {"podman"})
    assert packages(without) == []
    assert [need.package for need in quickstart.missing_packages(without, tests=True)] == ["podman"]


def test_an_engine_is_installed_only_where_none_answers_and_none_is_there() -> None:
    assert "docker.io" not in packages(COMPLETE._replace(has_dockerd=False))
    assert "docker.io" not in packages(COMPLETE._replace(engine="silent"))
    assert "docker.io" in packages(COMPLETE._replace(engine="silent", has_dockerd=False))


def test_an_engine_that_denies_us_is_said_and_nothing_is_installed() -> None:
    problem = quickstart.unmet(COMPLETE._replace(engine="denied"))
    assert problem
    assert "usermod" in problem.hint


def test_a_python_somebody_built_gets_no_packages_of_the_distribution() -> None:
    own = COMPLETE._replace(python="")
    assert packages(own) == []
    assert packages(own._replace(has_venv=False)) == []
    assert quickstart.unmet(own._replace(has_venv=False))
    assert quickstart.unmet(own._replace(has_python_headers=False))


def test_only_who_is_not_root_uses_sudo() -> None:
    needs = quickstart.missing_packages(BARE)
    assert [c[0] for c in quickstart.install_commands(needs, BARE)] == ["apt-get", "env"]
    assert {c[0] for c in quickstart.install_commands(needs, BARE._replace(is_root=False))} == {"sudo"}


@pytest.mark.parametrize(
    ("host", "answer", "words"),
    [
        (BARE, False, "install them yourself: apt-get update"),
        (BARE._replace(is_root=False), True, "as root: apt-get update"),
        (BARE._replace(has_apt=False), True, "install what matches: python3.11-venv"),
    ],
)
def test_what_cannot_be_installed_is_told_as_a_command(
    host: Host, answer: bool, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Failed) as caught:
        quickstart._install(quickstart.missing_packages(host), host, lambda _: answer)
    assert words in caught.value.hint
    assert "gcc" in capsys.readouterr().out


def test_nobody_is_asked_with_yes_or_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    assert quickstart._asker(True)("?")
    with open(os.devnull, encoding="utf-8") as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        assert quickstart._asker(False)("?")


@pytest.mark.parametrize(("typed", "agreed"), [("", True), ("y", True), ("Yes", True), ("n", False), ("what", False)])
def test_enter_agrees_and_any_other_word_does_not(monkeypatch: pytest.MonkeyPatch, typed: str, agreed: bool) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: typed)
    assert quickstart._asker(False)("?") is agreed


def test_a_failed_step_shows_the_end_of_its_log_a_sentence_and_a_hint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quickstart, "_logs", [str(tmp_path)])
    command = ["sh", "-c", "seq -f 'line %g' 0 99; exit 4"]
    with pytest.raises(Failed) as caught:
        quickstart._run(command, "counting", "count.log", hint="count by hand")
    assert quickstart._fail(caught.value) != 0
    error = capsys.readouterr().err
    assert "line 99" in error
    assert "line 50" not in error
    assert error.splitlines()[-2].startswith("error: counting failed")
    assert error.splitlines()[-1] == "hint: count by hand"


def test_an_old_python_is_told_which_one_to_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert quickstart.main(["demo"]) != 0
    error = capsys.readouterr().err
    assert "needs Python 3.11 or newer, and this is 3.9" in error
    assert "apt-get install python3.11" in error


def test_an_environment_that_is_up_to_date_is_used_again_and_another_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps: list[str] = []

    def fake_run(command: list[str], words: str, log_name: str, **_: Any) -> None:
        steps.append(log_name)
        (tmp_path / "venv" / "bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / "venv" / "pyvenv.cfg").touch()
        (tmp_path / "venv" / "bin" / "python").touch()

    monkeypatch.setattr(quickstart, "_run", fake_run)
    venv = str(tmp_path / "venv")
    for extra, expected in (
        ("demo", ["venv.log", "pip.log"]),
        ("demo", []),
        ("dev", ["pip.log"]),
        ("demo", []),
    ):
        steps.clear()
        quickstart._ensure_venv(venv, extra)
        assert steps == expected
    stamp = tmp_path / "venv" / "mountkit-quickstart.json"
    stamp.write_text(json.dumps({"of": {"project": "older"}, "extras": ["dev"]}))
    steps.clear()
    quickstart._ensure_venv(venv, "demo")
    assert steps == ["venv.log", "pip.log"]


def test_a_directory_that_is_no_environment_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(Failed, match="holds something else"):
        quickstart._ensure_venv(str(tmp_path), "demo")
    assert (tmp_path / "precious").exists()


def test_words_after_two_dashes_go_to_pytest_and_only_there() -> None:
    assert quickstart._parse(["test", "--yes", "--", "-k", "plan"]).rest == ["-k", "plan"]
    with pytest.raises(SystemExit):
        quickstart._parse(["demo", "--", "-k"])
    with pytest.raises(SystemExit):
        quickstart._parse([])


def test_it_imports_nothing_but_the_standard_library_before_the_environment_is_there() -> None:
    checked = (quickstart, prerequisites, sys.modules["mountkit"])
    ours = {module.__name__ for module in checked}
    for module in checked:
        assert module.__file__
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name.partition(".")[0] for name in names - ours} <= sys.stdlib_module_names
