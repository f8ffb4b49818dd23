"""`mountkit cache`: what is kept, whether it is right, less of it; of live mounts and of mounts that are gone."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import Bucket, CommandLine, Result, content, wait_until

_OBJECTS = {f"d/{n}": content(n, 90_000) for n in range(20)} | {"large": content(3, 7_000_000)}


@pytest.fixture
def root(bucket: Bucket, mountkit: CommandLine) -> Path:
    """A mount with everything in its cache."""
    for key, data in _OBJECTS.items():
        bucket.put(key, data)
    directory = mountkit.mount(bucket.source, "--no-passthrough")
    assert mountkit.run("warm", str(directory)).code == 0
    return directory


def cache(mountkit: CommandLine, *words: str) -> Result:
    return mountkit.run("cache", *words, "--cache", str(mountkit.cache))


def listed(mountkit: CommandLine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cache(mountkit, "list", "--json").out)
    return found


def spoil(state: str, number: int = 3) -> None:
    """Flips a byte in the middle of some of the cached objects: of segments and own files."""
    files = sorted(path for path in Path(state).rglob("*") if path.suffix == ".seg" or len(path.name) == 32)
    for path in [path for path in files if path.stat().st_size][:number]:
        os.chmod(path, 0o600)
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 0xFF]))


def test_list_tells_whose_how_large_and_in_use_by_whom(bucket: Bucket, mountkit: CommandLine, root: Path) -> None:
    (state,) = listed(mountkit)
    assert state["source"] == f"s3://data/{bucket.prefix[:-1]}"
    assert state["identity"] == "key AKIA…0001"
    assert state["used_by"] == [str(root)]
    assert state["objects"] == len(_OBJECTS)
    assert 8_000_000 < state["size_bytes"] < 30_000_000
    assert state["busy"]
    mountkit.unmount(root)
    (state,) = listed(mountkit)
    assert state["used_by"] == []
    assert not state["busy"]
    assert state["last_used"] > os.stat(mountkit.base).st_mtime - 60
    text = cache(mountkit, "list").out
    assert "in all" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_verify_finds_spoilt_bytes_of_a_live_mount_and_of_one_that_is_gone(
    bucket: Bucket, mountkit: CommandLine, root: Path
) -> None:
    whole = cache(mountkit, "verify", str(root))
    assert whole.code == 0, whole.err
    assert f"{len(_OBJECTS)} objects" in whole.out
    assert "all as they were written" in whole.out
    spoil(listed(mountkit)[0]["path"])
    bad = cache(mountkit, "verify", bucket.source.partition("?")[0])
    assert bad.code == 1, bad.out + bad.err
    assert "they were fetched again" in bad.out
    assert cache(mountkit, "verify", str(root)).code == 0
    for key, data in _OBJECTS.items():
        assert (root / key).read_bytes() == data
    mountkit.unmount(root)
    spoil(listed(mountkit)[0]["path"])
    gone = cache(mountkit, "verify")
    assert gone.code == 1
    assert "fetched again when they are read" in gone.out
    assert cache(mountkit, "verify").code == 0
    again = mountkit.mount(bucket.source)
    for key, data in _OBJECTS.items():
        assert (again / key).read_bytes() == data


def test_clear_refuses_what_is_in_use_unless_it_is_said(bucket: Bucket, mountkit: CommandLine, root: Path) -> None:
    refused = cache(mountkit, "clear", str(root))
    assert refused.code == 4
    assert f"is mounted at {root}" in refused.err
    assert "--in-use" in refused.err
    left = cache(mountkit, "clear", "--all")
    assert left.code == 0
    assert "left, it is mounted" in left.out
    with open(root / "large", "rb") as file:
        assert cache(mountkit, "clear", str(root), "--in-use").code == 0
        assert file.read() == _OBJECTS["large"]
    wait_until(lambda: mountkit.status(root)["restarts"]["mover"] == 1)
    for key, data in _OBJECTS.items():
        assert (root / key).read_bytes() == data
    mountkit.unmount(root)
    assert cache(mountkit, "clear", bucket.source.partition("?")[0]).code == 0
    assert listed(mountkit) == []
    assert cache(mountkit, "clear", "s3://nothing-of-that").code == 2
    assert cache(mountkit, "clear").code == 2


def test_a_mount_of_mountkit_yaml_is_meant_by_its_name_wherever_it_caches(
    bucket: Bucket, mountkit: CommandLine, root: Path
) -> None:
    mountkit.unmount(root)
    mount = f"{{source: '{bucket.source}', directory: ./m, cache: '{mountkit.cache}'}}"
    broken = "{source: 'data/${NOBODY_SETS_THIS}', directory: ./n}"
    (mountkit.base / "mountkit.yaml").write_text(f"mounts:\n  train: {mount}\n  other: {broken}\n")
    environment = {**mountkit.environment, "MOUNTKIT_CONFIG": str(mountkit.base / "mountkit.yaml")}
    for words in (("list",), ("verify", "train"), ("limit", "5MB", "train"), ("clear", "train")):
        done = mountkit.run("cache", *words, environment=environment)
        assert done.code == 0, done.err
        assert f"s3://data/{bucket.prefix[:-1]}" in done.out
    assert listed(mountkit) == []


def test_only_the_cache_directory_that_is_named_is_meant(mountkit: CommandLine, root: Path) -> None:
    """A live mount that caches elsewhere was listed, and shrunk by `limit`, all the same."""
    elsewhere = str(mountkit.base / "elsewhere")
    assert mountkit.run("cache", "list", "--cache", elsewhere).out == "nothing is cached\n"
    assert mountkit.run("cache", "limit", "1MB", "--cache", elsewhere).out == ""
    assert mountkit.status(root)["cache"]["limit_bytes"] > 1_000_000


def test_a_state_that_does_not_say_whose_it_is_has_a_name_nevertheless(mountkit: CommandLine, root: Path) -> None:
    mountkit.unmount(root)
    state = Path(listed(mountkit)[0]["path"])
    (state / "about.json").unlink()
    assert cache(mountkit, "verify").out.startswith(f"unknown source ({state.name[:8]}): ")


def test_a_state_with_files_that_are_not_uploaded_is_not_cleared(mountkit: CommandLine, root: Path) -> None:
    state = listed(mountkit)[0]["path"]
    mountkit.unmount(root)
    with closing(sqlite3.connect(f"{state}/journal.db")) as db:
        db.execute("CREATE TABLE operation (seq INTEGER PRIMARY KEY, state INTEGER)")
        db.execute("INSERT INTO operation (state) VALUES (2), (0)")
        db.commit()
    refused = cache(mountkit, "clear", state)
    assert refused.code == 3
    assert "1 output operations that are not yet in the bucket" in refused.err
    assert Path(state).is_dir()


def test_limit_shrinks_a_live_cache_and_one_that_is_gone(bucket: Bucket, mountkit: CommandLine, root: Path) -> None:
    assert cache(mountkit, "limit", "5MB", str(root)).code == 0
    status = mountkit.status(root)
    assert status["cache"]["bytes_used"] <= 5_000_000
    assert status["cache"]["limit_bytes"] == 5_000_000
    for key, data in _OBJECTS.items():
        assert (root / key).read_bytes() == data
    mountkit.unmount(root)
    result = cache(mountkit, "limit", "1MB")
    assert result.code == 0, result.err
    used = sum(path.stat().st_blocks * 512 for path in Path(listed(mountkit)[0]["path"]).glob("objects/*/*"))
    assert used <= 1_000_000
    again = mountkit.mount(bucket.source)
    assert (again / "large").read_bytes() == _OBJECTS["large"]


@pytest.mark.parametrize("version", [0, 99])
def test_state_of_another_version_is_begun_anew_and_says_so(
    bucket: Bucket, mountkit: CommandLine, root: Path, version: int
) -> None:
    state = Path(listed(mountkit)[0]["path"])
    mountkit.unmount(root)
    with closing(sqlite3.connect(state / "catalog.db")) as db:
        db.execute(f"PRAGMA user_version = {version}")
    with closing(sqlite3.connect(state / "index.db")) as db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'format'", (version,))
        db.commit()
    (state / "about.json").write_text('{"format": 99, "source": 5}')
    again = mountkit.mount(bucket.source)
    for key, data in _OBJECTS.items():
        assert (again / key).read_bytes() == data
    said = (state / "mountkit.log").read_text()
    assert f"the catalog was begun anew: it has format {version}" in said
    assert f"the cache was emptied: its format is {version}" in said
