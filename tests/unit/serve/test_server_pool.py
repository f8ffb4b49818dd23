"""Servers that come to a new keeper: the expected ones join, others are turned away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import trio

from mountkit import processes
from mountkit.errors import MountError
from mountkit.ipc import Channel, ChannelClosed
from mountkit.processes import Watched
from mountkit.serve.server_pool import MISMATCH, ServerPool, _Server
from mountkit.serve.shared import SharedMemory
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


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    fd = SharedMemory.create()
    memory = SharedMemory(fd)
    yield memory
    memory.close()
    os.close(fd)


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
    stranger: tuple[subprocess.Popen[bytes], socket.socket], shared: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, ours = stranger
    pool = ServerPool(2, _nothing)
    pool._shape, pool._joining_is_over = [1], True
    handed_out: list[int] = []
    monkeypatch.setattr(pool, "_hand_out_again", handed_out.append)
    pool._shared = shared
    shared.store_server(1, process.pid, processes.started(process.pid))
    await pool.join({"op": "join", "slot": 1}, Channel(trio.socket.from_stdlib_socket(ours)))
    assert not psutil.pid_exists(process.pid)
    assert handed_out == [1]


@pytest.mark.parametrize("later", [False, True])
@in_trio
async def test_a_server_that_does_not_join_is_ended_unless_another_process_has_its_number(
    later: bool, shared: SharedMemory
) -> None:
    """Its successor would write requests down at the same places."""
    pool = ServerPool(1, _nothing)
    pool._shared = shared
    await pool._end_absent(0)  # nobody has served yet
    with subprocess.Popen(["sleep", "60"]) as absent:
        os.kill(absent.pid, signal.SIGSTOP)
        shared.store_server(0, absent.pid, processes.started(absent.pid) - later)
        await pool._end_absent(0)
        if later:
            assert absent.poll() is None
            absent.kill()
    assert not psutil.pid_exists(absent.pid)
    await pool._end_absent(0)


@in_trio
async def test_what_a_dead_server_held_is_handed_out_before_the_next_one_of_its_slot_begins(
    shared: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one writes its own requests down in the same place. Here a keeper adopts, then a server dies."""
    pool, happened = ServerPool(2, _nothing), list[tuple[str, int]]()

    def spawn() -> _Server:
        process = subprocess.Popen(["sleep", "60"])
        process.returncode = 0  # it is reaped through its pidfd
        ours, theirs = trio.socket.socketpair()
        theirs.close()
        return _Server(Watched(process.pid), Channel(ours))

    async def end_absent(slot: int) -> None:
        happened.append(("end", slot))

    async def begin(slot: int, *, first: bool = False) -> None:
        happened.append(("begin", slot))
        pool._servers[slot].up.set()

    monkeypatch.setattr(pool, "_spawn", spawn)
    monkeypatch.setattr(pool, "_begin", begin)
    monkeypatch.setattr(pool, "_hand_out_again", lambda slot: happened.append(("hand out", slot)))
    monkeypatch.setattr(pool, "_end_absent", end_absent)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run, {}, -1, shared, False, {"shape": [1], "servers_gone": True})
        assert happened[:4] == [("end", 0), ("hand out", 0), ("end", 1), ("hand out", 1)]
        assert sorted(happened[4:]) == [("begin", 0), ("begin", 1)]
        for slot in (1, 0):
            happened.clear()
            pool._servers[slot].watched.kill()
            while len(happened) < 2:
                await trio.sleep(0.01)
            assert happened == [("hand out", slot), ("begin", slot)]
        nursery.cancel_scope.cancel()
    pool.kill()
    for server in pool._servers.values():
        await server.watched.wait()
        server.watched.close()
        server.channel.close()


@in_trio
async def test_nobody_waits_for_a_server_that_died_with_the_keeper(shared: SharedMemory) -> None:
    """Its requests are in nobody's hands until another one has its place."""
    pool = ServerPool(2, _nothing)
    pool._shared = shared
    with subprocess.Popen(["sleep", "60"]) as dead, subprocess.Popen(["sleep", "60"]) as late:
        for slot, process in enumerate((dead, late)):
            shared.store_server(slot, process.pid, processes.started(process.pid))
        dead.kill()
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        with trio.move_on_after(0.2) as waited:
            await pool._await_joins(60.0)
        assert waited.cancelled_caught, "one still lives"
        late.kill()
        os.waitid(os.P_PID, late.pid, os.WEXITED | os.WNOWAIT)
        await pool._await_joins(60.0)
    assert pool._joining_is_over


@in_trio
async def test_the_kernel_says_who_joins_not_the_message(
    stranger: tuple[subprocess.Popen[bytes], socket.socket], shared: SharedMemory
) -> None:
    process, ours = stranger
    pool = ServerPool(1, _nothing)
    pool._shared = shared
    pool._shape = [1]
    await pool.join({"op": "join", "slot": 0, "pid": 1}, Channel(trio.socket.from_stdlib_socket(ours)))
    await pool._await_joins(1.0)
    assert pool.pids() == [process.pid]
    pool._servers[0].watched.close()
    pool._servers[0].channel.close()


@pytest.mark.parametrize(("code", "words"), [(MISMATCH, "libfuse"), (1, "does not start")])
@in_trio
async def test_where_no_new_server_could_join_the_old_ones_stay(
    code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mountkit upgrade` after an update of libfuse: a mount with one server must not be left without any."""

    def spawn(_module: str) -> tuple[subprocess.Popen[bytes], int]:
        ours, theirs = socket.socketpair()
        with theirs:
            program = f"import socket, sys; socket.socket(fileno={theirs.fileno()}).recv(1); sys.exit({code})"
            process = subprocess.Popen(["python3", "-c", program], pass_fds=[theirs.fileno()])
        process.returncode = 0  # it is reaped through its pidfd
        return process, ours.detach()

    monkeypatch.setattr(processes, "spawn", spawn)
    with subprocess.Popen(["sleep", "60"]) as old, open("/dev/null", "rb") as device:
        pool = ServerPool(1, _nothing)
        pool._start, pool._shape, pool._fuse_fd = {}, [1], device.fileno()
        ours, theirs = trio.socket.socketpair()
        server = pool._servers[0] = _Server(Watched(old.pid), Channel(ours))
        with pytest.raises(MountError, match=words):
            await pool.replace_all()
        assert old.poll() is None
        assert pool.pids() == [old.pid]
        server.watched.close()
        server.channel.close()
        theirs.close()
        old.kill()
