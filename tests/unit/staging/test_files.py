"""Staging files and the stamps that tell one state of their bytes from another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountkit.staging import files
from mountkit.staging.files import StagingFiles


@pytest.fixture
def staging(directory_fd: int) -> Iterator[StagingFiles]:
    made = StagingFiles(directory_fd)
    yield made
    made.close()


def test_the_directory_is_ours_alone(staging: StagingFiles, tmp_path: Path) -> None:
    staging.create(1)
    assert (tmp_path / "staging").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "staging" / "1").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("coarse", [False, True])
def test_a_write_right_after_a_stamp_makes_another(
    staging: StagingFiles, monkeypatch: pytest.MonkeyPatch, coarse: bool
) -> None:
    monkeypatch.setattr(staging, "_coarse", coarse)
    fd = staging.create(1)
    os.pwrite(fd, b"a", 0)
    for turn in range(200):
        stamp = staging.settled_stamp(1)
        os.pwrite(fd, bytes([turn % 251]), 0)
        assert staging.stamp(1) != stamp


def test_below_linux_6_13_young_stamps_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, coarse in (("6.12.1", True), ("6.13.0-rc1", False), ("6.1.0-18-amd64", True), ("7.0", False)):
        monkeypatch.setattr(os, "uname", lambda release=release: os.uname_result(("Linux", "h", release, "v", "m")))
        assert files._has_coarse_times() is coarse


def test_many_files_need_few_descriptors(staging: StagingFiles) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(600):
        os.pwrite(staging.create(number), b"%d" % number, 0)
    assert len(os.listdir("/proc/self/fd")) - before <= 260
    assert os.pread(staging.descriptor(3), 9, 0) == b"3"


def test_a_removed_file_is_gone_and_removing_it_twice_is_fine(staging: StagingFiles) -> None:
    staging.create(5)
    staging.remove(5)
    staging.remove(5)
    assert staging.numbers() == []


def test_what_was_opened_is_to_be_synced_once(staging: StagingFiles) -> None:
    staging.create(5)
    assert staging.take_changed() == {5}
    assert staging.take_changed() == set()


def test_what_is_used_is_counted_without_looking_at_files_that_nobody_writes(
    staging: StagingFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        os.pwrite(staging.create(number), bytes(8192), 0)
    assert staging.used_bytes() == 3 * 8192
    looked_at: list[int] = []
    status = staging.status
    monkeypatch.setattr(staging, "status", lambda number: looked_at.append(number) or status(number))
    assert staging.used_bytes() == 3 * 8192
    assert looked_at == []
    os.pwrite(staging.descriptor(2), bytes(4096), 8192)
    assert staging.used_bytes(written=[2]) == 3 * 8192 + 4096
    assert looked_at == [2]


def test_what_is_used_follows_files_that_end_and_those_that_another_process_fills(staging: StagingFiles) -> None:
    for number in range(1, 4):
        os.pwrite(staging.create(number), bytes(8192), 0)
    staging.used_bytes()
    os.pwrite(staging.descriptor(1), bytes(4096), 8192)
    staging.release(1)  # written natively until just now
    staging.doom(2)
    assert staging.used_bytes() == 3 * 8192 + 4096, "it is still there"
    staging.remove(2)
    staging.filling.add(3)
    os.truncate(f"/proc/self/fd/{staging.directory_fd}/3", 0)
    assert staging.used_bytes() == 8192 + 4096
