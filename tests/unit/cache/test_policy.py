"""How often the disk is asked for its free space, and what counts in between."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mountkit.cache.policy import Limits, Policy
from mountkit.cache.writer import CacheWriter
from tests.unit.cache.harness import PART, Thing, put, put_parts

FREE = 1000 * 4096


def test_between_two_looks_at_the_disk_what_was_written_is_taken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, now, used = [0], [0.0], [0]

    def look(_: int) -> SimpleNamespace:
        looks[0] += 1
        return SimpleNamespace(f_bavail=1000, f_frsize=4096, f_blocks=2000)

    monkeypatch.setattr(os, "fstatvfs", look)
    policy = Policy(0, Limits(1 << 40, 0.25), lambda: used[0], lambda: now[0])
    room = FREE // 2  # a quarter of the disk stays free
    assert policy.admits(room)
    used[0] = room
    assert not policy.admits(1)
    assert looks == [1]
    now[0] = 0.2
    assert policy.admits(room), "somebody made room meanwhile"
    assert looks == [2]


def test_the_complete_among_small_objects_are_told_in_one_look(writer: CacheWriter) -> None:
    whole, half, absent = Thing(1, 300_000), Thing(2, 300_000), Thing(3, 300_000)
    put(writer, whole)
    put_parts(writer, half, [0])
    assert half.size > PART
    asked = [(thing.content, thing.size) for thing in (whole, half, absent)]
    assert writer.complete_among(asked) == {whole.content}
    assert writer.complete_among([]) == set()
