"""Words between processes."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mountkit import ipc
from mountkit.errors import ObjectChanged
from mountkit.ipc import Channel, ChannelClosed, Message


def _pair() -> tuple[Channel, Channel]:
    a, b = socket.socketpair()
    return Channel.from_fd(a.detach()), Channel.from_fd(b.detach())


def test_messages_keep_their_borders_payloads_and_descriptors() -> None:
    async def main() -> None:
        a, b = _pair()
        read_fd, write_fd = os.pipe()
        big = os.urandom(3 << 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, {"n": 1})
            nursery.start_soon(a.send, {"n": 2}, big)
            nursery.start_soon(a.send, {"n": 3}, b"", [write_fd])
            got = sorted([await b.receive() for _ in range(3)], key=lambda m: m.body["n"])
        assert [m.body["n"] for m in got] == [1, 2, 3]
        assert got[1].payload == big
        os.write(got[2].fds[0], b"x")
        assert os.read(read_fd, 1) == b"x"
        for fd in (read_fd, write_fd, got[2].fds[0]):
            os.close(fd)
        a.close()
        b.close()

    trio.run(main)


def test_garbage_closes_the_connection_instead_of_waiting_for_gigabytes() -> None:
    async def main() -> None:
        a, b = socket.socketpair()
        channel = Channel.from_fd(b.detach())
        a.send(b"GET / HTTP/1.1\r\n\r\n")
        with trio.fail_after(2), pytest.raises(ChannelClosed):
            await channel.receive()
        a.close()
        channel.close()

    trio.run(main)


def test_a_listener_is_private_and_takes_the_place_of_a_dead_one(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "x.sock")
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(path)
        dead.close()
        async with ipc.listening(path):
            assert os.stat(path).st_mode & 0o777 == 0o600
            (await Channel.connect(path)).close()
        assert not os.path.exists(path)

    trio.run(main)


_SOMEBODY_ELSE = """
import os, socket
from mountkit import ipc
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as asking:
    asking.settimeout(10)
    try:
        asking.connect("x.sock")
        asking.sendall(b"".join(ipc.encode({"op": "status", "id": 1})))
        print("answered" if asking.recv(1) else "turned away")
    except PermissionError:
        print("no way in")
    except (BrokenPipeError, ConnectionResetError):
        print("turned away")
"""


@pytest.mark.parametrize(("mode", "outcome"), [(0o600, "no way in"), (0o666, "turned away")])
def test_another_user_is_not_talked_to_whatever_the_sockets_mode(tmp_path: Path, mode: int, outcome: str) -> None:
    """[secrets-1]"""
    tmp_path.chmod(0o755)

    async def handler(_request: Message, _progress: ipc.Progress) -> dict[str, Any]:
        return {"state": "ok"}

    async def main() -> None:
        async with ipc.listening(str(tmp_path / "x.sock")) as listener, trio.open_nursery() as nursery:
            (tmp_path / "x.sock").chmod(mode)
            nursery.start_soon(ipc.serve, listener, lambda c: ipc.answer_requests(c, handler))
            done = await trio.run_process([sys.executable, "-c", _SOMEBODY_ELSE], cwd=tmp_path, capture_stdout=True)
            nursery.cancel_scope.cancel()
        assert done.stdout.decode().strip() == outcome

    trio.run(main)


def test_errors_and_progress_reach_the_client(tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")

    async def handler(request: Message, progress: ipc.Progress) -> dict[str, Any]:
        if request.body["op"] == "fail":
            raise ObjectChanged("it changed", "look again")
        await progress({"half": True})
        return {"done": request.body["what"]}

    def ask() -> None:
        with ipc.Client(path) as client:
            assert list(client.stream("work", what="x")) == [{"half": True}, {"id": 1, "done": "x"}]
        with ipc.Client(path) as client, pytest.raises(ObjectChanged) as caught:
            client.call("fail")
        assert caught.value.hint == "look again"

    async def main() -> None:
        async with ipc.listening(path) as listener, trio.open_nursery() as nursery:
            nursery.start_soon(ipc.serve, listener, lambda c: ipc.answer_requests(c, handler))
            await trio.to_thread.run_sync(ask)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_death_of_a_client_cancels_what_it_had_asked_for(tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")

    async def main() -> None:
        cancelled = trio.Event()

        async def handler(_request: Message, _progress: ipc.Progress) -> dict[str, Any]:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        async with ipc.listening(path) as listener, trio.open_nursery() as nursery:
            nursery.start_soon(ipc.serve, listener, lambda c: ipc.answer_requests(c, handler))
            client = await Channel.connect(path)
            await client.send({"op": "wait", "id": 1})
            await trio.testing.wait_all_tasks_blocked(0.05)
            client.close()
            with trio.fail_after(2):
                await cancelled.wait()
            nursery.cancel_scope.cancel()

    trio.run(main)
