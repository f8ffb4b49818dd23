"""Doctor's lines about the disk of cache and staging."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mountkit import mountinfo, places
from mountkit.config import MountSettings, mount_settings
from mountkit.doctor import disk
from mountkit.doctor.line import Verdict
from tests.doctor.conftest import Doctor

GB = 10**9
Sized = Callable[[int, int], None]


def test_a_cache_that_cannot_be_used_is_a_fault_and_nothing_is_made(tmp_path: Path) -> None:
    settings = mount_settings("data", "/m", cache=str(tmp_path / "new/cache"), cache_size="1kb")
    assert next(line.verdict for line in disk.check(settings)) is Verdict.FINE
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    beyond = mount_settings("data", "/m", cache=str(tmp_path / "file/cache"))
    assert [line.verdict for line in disk.check(beyond)] == [Verdict.FAULT]


def _of_somebody_else(own: Path) -> None:
    own.mkdir(0o700)
    os.chown(own, 12345, 12345)


def _linked(own: Path) -> None:
    own.with_name("elsewhere").mkdir(0o700)
    own.symlink_to(own.with_name("elsewhere"))


def _writable(mode: int) -> Callable[[Path], None]:
    def make(own: Path) -> None:
        own.mkdir()
        own.chmod(mode)

    return make


UNSAFE: dict[str, tuple[Callable[[Path], None], str]] = {
    "somebody else's": (_of_somebody_else, "belongs to user 12345, not to you"),
    "a symlink": (_linked, "is a symlink"),
    "a symlink to nowhere": (lambda own: own.symlink_to(own.with_name("nowhere")), "is a symlink"),
    "writable by a group": (_writable(0o770), "may be written by others (mode 0770)"),
    "writable by all": (_writable(0o707), "may be written by others (mode 0707)"),
    "a file": (lambda own: own.write_text(""), "Not a directory"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_a_cache_that_others_could_tamper_with_is_a_fault_that_says_how(tmp_path: Path, name: str) -> None:
    make, words = UNSAFE[name]
    make(tmp_path / f"mountkit-{os.getuid()}")
    (line,) = disk.check(mount_settings("data", "/m", cache=str(tmp_path)))
    assert (line.verdict, line.name) == (Verdict.FAULT, "cache")
    assert words in line.text
    assert str(tmp_path) in line.text
    assert "--cache" in line.way_out


def test_a_cache_larger_than_its_disk_is_a_note_that_says_what_fits(tmp_path: Path) -> None:
    settings = mount_settings("data", "/m", cache=str(tmp_path), cache_size="900PB")
    line = next(iter(disk.check(settings)))
    assert line.verdict is Verdict.NOTE
    assert "and not 900000.0 TB" in line.text


@pytest.fixture
def sized(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Says how large the disk is and what of it is free."""

    def say(total: int, free: int) -> None:
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(total=total, free=free))

    return say


def test_what_the_cache_holds_already_is_room_for_it(sized: Sized, tmp_path: Path) -> None:
    settings = mount_settings("data", "/m", cache=str(tmp_path), cache_size="8MB", cache_free="10%")
    sized(10_000_000, 1_500_000)
    (line,) = disk.check(settings)
    assert (line.verdict, "holds 500.0 KB" in line.text) == (Verdict.NOTE, True)
    hold(settings, "segments/0001.seg", 7_600_000)
    (line,) = disk.check(settings)
    assert line.verdict is Verdict.FINE


def test_staging_is_looked_at_for_writable_mounts_only(sized: Sized, tmp_path: Path) -> None:
    sized(1000 * GB, 900 * GB)
    assert [line.name for line in disk.check(mount_settings("data", "/m", cache=str(tmp_path)))] == ["cache"]
    writable = mount_settings("data", "/m", cache=str(tmp_path), writable=True)
    line = list(disk.check(writable))[1]
    assert (line.name, line.verdict) == ("staging", Verdict.FINE)
    assert line.text == "100.0 GB may wait for their upload"


def test_staging_cannot_count_on_what_the_cache_may_take(sized: Sized, tmp_path: Path) -> None:
    settings = mount_settings("data", "/m", cache=str(tmp_path), writable=True, cache_size="50GB", cache_free="5%")
    sized(200 * GB, 120 * GB)
    line = list(disk.check(settings))[1]
    assert line.verdict is Verdict.NOTE
    assert "once the cache is full, 70.0 GB are left" in line.text
    assert "not 100.0 GB" in line.text
    assert "--cache-size" in line.way_out
    sized(200 * GB, 160 * GB)
    assert list(disk.check(settings))[1].verdict is Verdict.FINE
    sized(200 * GB, 0)
    assert "0 B are left" in list(disk.check(settings))[1].text


def test_what_is_staged_already_counts_as_room_for_staging(sized: Sized, tmp_path: Path) -> None:
    words = {"cache": str(tmp_path), "cache_size": "0", "cache_free": "0%", "staging_size": "8MB"}
    settings = mount_settings("data", "/m", writable=True, **words)
    sized(10_000_000, 1_000_000)
    assert list(disk.check(settings))[1].verdict is Verdict.NOTE
    hold(settings, "staging/1", 7_600_000)
    line = list(disk.check(settings))[1]
    assert (line.verdict, line.text) == (Verdict.FINE, "8.0 MB may wait for their upload, 7.6 MB are staged")


def test_staging_in_memory_is_named_with_what_that_may_cost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = mountinfo.MountPoint("0:99", "/", str(tmp_path), frozenset(), (), "tmpfs", "tmpfs", frozenset())
    monkeypatch.setattr(mountinfo, "mount_points", lambda: [memory])
    reading = list(disk.check(mount_settings("data", "/m", cache=str(tmp_path))))[-1]
    writing = list(disk.check(mount_settings("data", "/m", cache=str(tmp_path), writable=True)))[-1]
    assert reading.text == f"{tmp_path} is tmpfs: it takes memory"
    assert writing.text == f"{reading.text}, and what is not yet uploaded is lost when this machine goes down"


def test_the_command_asks_for_staging_where_the_mount_may_write(doctor: Doctor) -> None:
    (doctor.base / "mountkit.yaml").write_text(
        "mounts: {out: {source: 's3://data?endpoint=http://x.invalid', directory: ./m, writable: true}}"
    )
    assert doctor("out").line("staging")["section"] == "host"
    assert doctor("--writable").line("staging")["section"] == "host"
    assert not [line for line in doctor().lines if line["name"] == "staging"]


def hold(settings: MountSettings, name: str, count: int) -> None:
    """Puts a file of `count` bytes into the state directory."""
    path = Path(places.state_path(settings.cache_directory, settings.state_name), name)
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_bytes(b"x" * count)
