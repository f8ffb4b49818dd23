"""Servers that come to a new keeper: the expected ones join, others are turned away."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import trio

from mountkit.ipc import Channel, ChannelClosed
from mountkit.serve.server_pool import ServerPool
from tests.unit.mover.harness import in_trio


def _nothing() -> tuple[dict[str, object], list[int]]:
    return {}, []


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A process of its own at the other end of a connection, as SO_PEERCRED sees it; and our end."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        script = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); time.sleep(60)"
        process = subprocess.Popen(["python3", "-c", script, str(tmp_path / "s")])
        ours, _ = listener.accept()
    yield process, ours
    process.kill()
    process.wait()


@pytest.mark.parametrize("slot", [None, -1, 2, "0"])
@in_trio
async def test_a_slot_that_is_none_of_ours_is_refused(slot: object) -> None:
    pool = ServerPool(2, _nothing)
    pool._shape = [1]
    ours, theirs = trio.socket.socketpair()
    await pool.join({"op": "join", "slot": slot}, Channel(ours))
    with pytest.raises(ChannelClosed):
        await Channel(theirs).receive()
    theirs.close()
    assert pool.pids() == []


@in_trio
async def test_a_server_that_comes_too_late_is_ended_and_its_work_handed_out_again(
    stranger: tuple[subprocess.Popen[bytes], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, ours = stranger
    pool = ServerPool(2, _nothing)
    pool._shape, pool._joining_is_over = [1], True
    handed_out: list[int] = []
    monkeypatch.setattr(pool, "_hand_out_again", handed_out.append)
    await pool.join({"op": "join", "slot": 1}, Channel(trio.socket.from_stdlib_socket(ours)))
    assert not psutil.pid_exists(process.pid)
    assert handed_out == [1]


@in_trio
async def test_the_kernel_says_who_joins_not_the_message(
    stranger: tuple[subprocess.Popen[bytes], socket.socket],
) -> None:
    process, ours = stranger
    pool = ServerPool(1, _nothing)
    pool._shape = [1]
    await pool.join({"op": "join", "slot": 0, "pid": 1}, Channel(trio.socket.from_stdlib_socket(ours)))
    await pool._await_joins(1.0)
    assert pool.pids() == [process.pid]
    pool._servers[0].watched.close()
    pool._servers[0].channel.close()
