"""Several mounts of one source share a mover and its cache; each one's settings hold, or it says what does not."""

from __future__ import annotations

import errno
import os

import pytest

from tests.mount.conftest import Bucket, CommandLine, kill, kill_together, wait_until

BUDGETS = ("--metadata-budget", "1500ms", "--data-budget", "2s")


def test_each_mount_of_a_mover_has_its_own_rule_for_a_bucket_that_is_away(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    """[fresh-3]"""
    bucket.put("a", b"bytes")
    patient = mountkit.mount(bucket.source, "--ttl", "1ms", *BUDGETS, name="patient")
    strict = mountkit.mount(bucket.source, "--ttl", "0", *BUDGETS, name="strict")
    assert mountkit.status(patient)["mover_pid"] == mountkit.status(strict)["mover_pid"]
    for directory in (patient, strict):
        assert os.listdir(directory) == ["a"]
        assert (directory / "a").read_bytes() == b"bytes"
    bucket.proxy.fault = lambda _method, _target: b""
    assert (patient / "a").stat().st_size == 5
    assert os.listdir(patient) == ["a"]
    with pytest.raises(OSError) as refused:
        (strict / "a").stat()
    assert refused.value.errno == errno.EIO


def test_what_a_mover_can_do_in_one_way_only_is_the_first_mounts_and_said(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    bucket.put("a", b"bytes")
    first = mountkit.mount(bucket.source, "--cache-size", "10MB", *BUDGETS, name="first")
    other = mountkit.base / "other"
    other.mkdir()
    words = ("mount", bucket.source, str(other), "--cache", str(mountkit.cache))

    refused = mountkit.run(*words, "--cache-size", "20MB", "--data-budget", "2s")
    assert refused.code == 3
    assert "with the same cache has --cache-size 10MB, this one cannot have --cache-size 20MB" in refused.err
    assert not os.path.ismount(other)

    follows = mountkit.run(*words)
    mountkit.mounted.append(other)
    assert follows.code == 0
    assert "holds here, too: --cache-size 10MB, --data-budget 2s, --metadata-budget 1.5s" in follows.err
    kill(mountkit.status(first)["mover_pid"])  # whoever starts the next one, it is the same
    wait_until(lambda: all(mountkit.status(each)["cache"] for each in (first, other)))
    for each in (first, other):
        assert mountkit.status(each)["cache"]["limit_bytes"] == 10_000_000

    mountkit.unmount(other)
    status = mountkit.status(first)
    kill_together([*status["server_pids"], status["keeper_pid"]])  # its mover waits a while for another keeper
    accepted = mountkit.run(*words, "--cache-size", "20MB")
    mountkit.mounted.append(other)
    assert (accepted.code, accepted.err) == (0, ""), "nobody is left who has it otherwise"
