"""An ordinary user writes into a mount of his own, without passthrough and without a root to help him."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest

from tests.systemd.conftest import Place
from tests.systemd.machine import USER, Machine

HOME = f"/home/{USER}"
MOUNTED = f"{HOME}/written"
_WRITER = """
import hashlib, os, random, sys
base, number, turns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dice = random.Random(number)
os.makedirs(f"{base}/w{number}/deep", exist_ok=True)
for turn in range(turns):
    data = dice.randbytes(dice.randrange(1, 60_000))
    path = f"{base}/w{number}/deep/f{turn % 9}"
    if turn % 3 == 0:
        with open(f"{base}/w{number}/tmp", "wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        os.replace(f"{base}/w{number}/tmp", path)
    elif turn % 3 == 1:
        with open(path, "wb") as file:
            file.write(data)
    else:
        with open(f"{base}/w{number}/log", "ab") as file:
            file.write(data)
os.rename(f"{base}/w{number}/deep", f"{base}/w{number}/done")
for top, _, names in os.walk(f"{base}/w{number}"):
    for name in sorted(names):
        path = os.path.join(top, name)
        print(hashlib.sha256(open(path, "rb").read()).hexdigest(), os.path.relpath(path, base))
"""


@pytest.fixture
def alice(machine: Machine, place: Place) -> Iterator[Machine]:
    """Her mount, with a cache directory that no other test has."""
    machine.start_user_manager()
    machine.write(f"{HOME}/.aws/credentials", place.credentials, mode=0o600, user=True)
    machine.write(f"{HOME}/writer.py", _WRITER, user=True)
    machine.sh(f"mkdir -p {MOUNTED} && cd && {_mount(place)}", user=True)
    yield machine
    machine.run(f"mountkit unmount {MOUNTED} --force; rm -rf {HOME}/cache", user=True)
    assert not machine.mounted(MOUNTED)


def _mount(place: Place) -> str:
    source = f"{place.source}?endpoint={place.server.endpoint}"
    return f"mountkit mount '{source}' {MOUNTED} --writable --cache {HOME}/cache"


def _status(machine: Machine) -> dict[str, object]:
    found: dict[str, object] = json.loads(machine.sh(f"mountkit status {MOUNTED} --json", user=True))[0]
    return found


def _hashes(place: Place) -> dict[str, str]:
    """What is in the bucket, as `sha256 path`."""
    pages = place.client.get_paginator("list_objects_v2").paginate(Bucket="data", Prefix=f"{place.prefix}/")
    keys = [each["Key"] for page in pages for each in page.get("Contents", []) if not each["Key"].endswith("/")]
    return {
        key.removeprefix(f"{place.prefix}/"): hashlib.sha256(
            place.client.get_object(Bucket="data", Key=key)["Body"].read()
        ).hexdigest()
        for key in keys
    }


def _written(said: str) -> dict[str, str]:
    return {path: digest for digest, path in (line.split() for line in said.splitlines())}


def test_what_an_ordinary_user_writes_outlives_every_process_and_is_in_the_bucket_after_unmount(
    alice: Machine, place: Place
) -> None:
    """[writing-5] [uploads-1] [uploads-5] Server, keeper and mover are killed under him; he is told of nothing."""
    status = _status(alice)
    assert (status["owner_uid"], status["passthrough"], status["writable"]) == (1000, False, True)
    writers = [alice.start(f"python3 {HOME}/writer.py {MOUNTED} {number} 40", user=True) for number in range(2)]
    for victim in ("server_pids", "keeper_pid", "mover_pid", "server_pids"):
        pid = _status(alice)[victim]
        alice.sh(f"kill -9 {pid[0] if isinstance(pid, list) else pid}", user=True)
        alice.sh(f"until mountkit status {MOUNTED} | grep -q -e ok -e degraded; do sleep 0.2; done", user=True)
    expected: dict[str, str] = {}
    for writer in writers:
        said, trouble = writer.communicate(timeout=90)
        assert writer.returncode == 0, trouble
        expected |= _written(said)
    assert len(expected) == 2 * (1 + 6)
    alice.sh(f"mountkit unmount {MOUNTED}", user=True)
    assert not alice.mounted(MOUNTED)
    assert _hashes(place) == expected


def test_what_an_ordinary_user_closed_before_everything_died_goes_on_with_his_next_mount(
    alice: Machine, place: Place
) -> None:
    """[writing-6] [uploads-1]"""
    expected = _written(alice.sh(f"python3 {HOME}/writer.py {MOUNTED} 7 30", user=True))
    status = _status(alice)
    servers = " ".join(str(pid) for pid in status["server_pids"])  # type: ignore[attr-defined]
    alice.sh(f"kill -9 {status['keeper_pid']} {status['mover_pid']} {servers}", user=True)
    alice.sh(f"{_mount(place)} && mountkit unmount {MOUNTED}", user=True)
    assert _hashes(place) == expected
