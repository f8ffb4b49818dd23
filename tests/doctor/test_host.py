"""Doctor's lines about the machine, a mount, and what a word means."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from mountkit.doctor import host
from mountkit.doctor.line import Line, Section, Verdict, as_text
from mountkit.errors import HostError
from tests.doctor.conftest import Doctor


def test_an_old_kernel_is_a_note_and_a_new_one_fine() -> None:
    assert host.kernel("6.1.0-18-amd64").verdict is Verdict.NOTE
    assert host.kernel("6.9.0").verdict is Verdict.FINE
    assert host.kernel("nonsense").verdict is Verdict.NOTE


def test_an_ordinary_user_needs_user_allow_other_for_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*, allow_other: bool) -> None:
        raise HostError("not permitted", "ask for user_allow_other")

    assert host.allow_other(0).verdict is Verdict.FINE
    monkeypatch.setattr("mountkit.serve.session.check_device", refuse)
    found = host.allow_other(1000)
    assert (found.verdict, found.way_out) == (Verdict.NOTE, "ask for user_allow_other")
    assert host.device().verdict is Verdict.FAULT


def test_little_shared_memory_and_few_files_are_notes() -> None:
    assert host.shared_memory("/not/there").verdict is Verdict.NOTE
    assert host.open_files(1024, 1024).verdict is Verdict.NOTE
    assert host.open_files(1024, resource.RLIM_INFINITY).verdict is Verdict.FINE


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ('PRUNEFS="NFS proc fuse.mountkit"\n', [Verdict.FINE]),
        ('PRUNEFS = "NFS proc"\n', [Verdict.NOTE]),
        ("", [Verdict.NOTE]),
        (None, []),
    ],
)
def test_updatedb_must_pass_our_mounts_over(tmp_path: Path, text: str | None, verdicts: list[Verdict]) -> None:
    path = tmp_path / "updatedb.conf"
    if text is not None:
        path.write_text(text)
    assert [line.verdict for line in host.pruned(str(path))] == verdicts


def test_a_line_survives_json_and_wraps_its_way_out() -> None:
    line = Section("s").fault("n", HostError("so " * 50, "do " * 50))
    assert Line.from_json(line.to_json()) == line
    shown = list(as_text(line, 80))
    assert len(shown) >= 5
    assert sum("→" in text for text in shown) == 1


def test_without_a_word_only_the_host_is_looked_at(doctor: Doctor) -> None:
    found = doctor()
    assert {line["section"] for line in found.lines} == {"host"}
    assert {"kernel", "/dev/fuse", "driver", "shared memory", "open files", "clock", "cache"} <= {
        line["name"] for line in found.lines
    }


def test_a_missing_driver_is_a_fault_of_the_host(doctor: Doctor) -> None:
    found = doctor("--driver", "s3fs", PATH=str(doctor.base))
    assert found.code == 5
    assert found.line("driver")["verdict"] == "fault"


def test_a_name_of_mountkit_yaml_brings_its_source_and_its_mount_point(doctor: Doctor) -> None:
    (doctor.base / "mountkit.yaml").write_text(
        "mounts: {train: {source: 's3://data?endpoint=http://x.invalid', directory: ./m}}"
    )
    found = doctor("train")
    assert found.line("directory")["verdict"] == "fault"
    assert found.line("name")["verdict"] == "fault"
    assert found.code == 2
    (doctor.base / "m").mkdir()
    by_directory = doctor("./m")
    assert by_directory.line("directory")["verdict"] == "fine"
    assert by_directory.line("name")["verdict"] == "fault"


def test_a_directory_that_is_nothing_of_ours_is_said_so(doctor: Doctor) -> None:
    found = doctor("/tmp")
    assert found.code == 2
    assert "not in a mount of mountkit" in found.err
