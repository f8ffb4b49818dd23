"""The wire against a kernel that is a socket pair: who answers what, and where libfuse's descriptor leads when."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mountkit.serve import messages
from mountkit.serve.shared import SharedMemory
from mountkit.serve.wire import InitMismatch, Wire
from tests.unit.mover.harness import in_trio

INIT = b"init request"
STATFS = 17


def request(opcode: int, unique: int, inode: int = 5, pid: int = 77, body: bytes = b"") -> bytes:
    return messages.IN_HEADER.pack(messages.IN_HEADER.size + len(body), opcode, unique, inode, 0, 0, pid, 0, 0) + body


def init_reply(max_write: int = 1 << 20) -> bytes:
    body = struct.pack("<IIIIHHIIHHII", 7, 39, 1 << 17, 0, 12, 9, max_write, 1, 256, 0, 0, 0) + bytes(24)
    return messages.OUT_HEADER.pack(messages.OUT_HEADER.size + len(body), 0, 2) + body


class Bench:
    """A wire, the kernel's end, and libfuse played by the test at the descriptor `fd`."""

    def __init__(self, **options: Any) -> None:
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self.fd = ours.detach()
        self.kernel_inode = os.fstat(self.fd).st_ino
        self.ready: list[tuple[int, ...]] = []
        self.noted: list[int] = []
        self.waits = 0
        self.handled: list[tuple[int, int, int, int]] = []
        memory = memoryview(bytearray(1 << 20))
        chosen: dict[str, Any] = {"first": True, "passthrough": False, "buffer": memory, **options}
        self.wire = Wire(
            self.fd,
            INIT,
            on_ready=self.ready.append,
            before_wait=self._waits,
            note_injected=self.noted.append,
            **chosen,
        )

    def _waits(self) -> None:
        self.waits += 1

    @property
    def leads_to_kernel(self) -> bool:
        return os.fstat(self.fd).st_ino == self.kernel_inode

    def libfuse_reads(self) -> bytes:
        return os.read(self.fd, 1 << 20)

    def libfuse_writes(self, reply: bytes) -> None:
        os.write(self.fd, reply)

    def answers(self) -> list[bytes]:
        """What the kernel got."""
        got = []
        while True:
            try:
                got.append(self.kernel.recv(1 << 20))
            except BlockingIOError:
                return got

    async def negotiate(self, reply: bytes) -> None:
        """libfuse takes INIT and answers it; the wire passes it on when libfuse waits for more."""
        await self.wire.wait_readable(self.fd)
        assert self.libfuse_reads() == INIT
        self.libfuse_writes(reply)

    def close(self) -> None:
        for end in (self.kernel, self.wire._inner, self.wire._outer, self.wire._requests):
            end.close()
        os.close(self.wire.kernel)
        os.close(self.fd)


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def bench(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield bench
    for one in made:
        one.close()


@in_trio
async def test_init_is_injected_and_its_answer_patched_and_written(make: Callable[..., Bench]) -> None:
    b = make(passthrough=True)
    assert not b.leads_to_kernel, "libfuse must find INIT before it waits for anything"
    await b.negotiate(init_reply())
    assert not b.leads_to_kernel
    b.kernel.send(request(STATFS, 4))
    await b.wire.wait_readable(b.fd)
    patched = messages.patched_init_reply(init_reply(), passthrough=True)
    assert b.answers() == [patched]
    assert patched != init_reply()
    assert b.ready == [messages.init_reply_shape(patched)]
    assert repr(b.wire) == f"<Wire fd={b.fd} serving>"


@in_trio
async def test_a_later_servers_answer_to_init_is_dropped(make: Callable[..., Bench]) -> None:
    shape = messages.init_reply_shape(messages.patched_init_reply(init_reply(), passthrough=False))
    b = make(first=False, expected_shape=list(shape))
    await b.negotiate(init_reply())
    b.kernel.send(request(STATFS, 4))
    await b.wire.wait_readable(b.fd)
    assert b.answers() == []
    assert b.ready == [shape]


@in_trio
async def test_a_server_that_negotiates_otherwise_does_not_join(make: Callable[..., Bench]) -> None:
    shape: Sequence[int] = messages.init_reply_shape(messages.patched_init_reply(init_reply(), passthrough=False))
    b = make(first=False, expected_shape=shape)
    await b.negotiate(init_reply(max_write=4096))
    with pytest.raises(InitMismatch):
        await b.wire.wait_readable(b.fd)
    assert b.ready == []
    assert b.answers() == []


@in_trio
async def test_a_request_with_a_raw_handler_never_meets_libfuse(make: Callable[..., Bench]) -> None:
    b = make()
    await b.negotiate(init_reply())

    def lookup(unique: int, inode: int, pid: int, length: int) -> None:
        assert b.leads_to_kernel
        b.handled.append((unique, inode, pid, length))
        assert messages.lookup_name(b.wire.buffer, length) == b"name"
        assert b.wire.send(messages.data_header(unique, 3), b"abc")

    b.wire.answer_raw({messages.LOOKUP: lookup})
    for unique in (4, 6):
        b.kernel.send(request(messages.LOOKUP, unique, body=b"name\0"))
    b.kernel.send(request(STATFS, 8))
    await b.wire.wait_readable(b.fd)
    length = messages.IN_HEADER.size + 5
    assert b.handled == [(4, 5, 77, length), (6, 5, 77, length)]
    assert b.answers()[1:] == [messages.data_header(unique, 3) + b"abc" for unique in (4, 6)]
    assert b.noted == [8], "what was given away leaves the buffer before it is answered"
    assert b.libfuse_reads() == request(STATFS, 8)


@in_trio
async def test_what_the_kernel_has_handed_out_is_known_to_others_before_a_line_of_ours_has_run(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below Linux 6.9 a request that only a dead server knew of would never be answered."""
    shared_fd = SharedMemory.create()
    server, keeper = SharedMemory(shared_fd), SharedMemory(shared_fd)
    os.close(shared_fd)
    b = make(buffer=server.request_buffer(1))
    await b.negotiate(init_reply())
    b.kernel.send(request(messages.LOOKUP, 4, body=b"name\0"))
    read = os.readv

    def read_and_die(fd: int, buffers: Sequence[memoryview]) -> int:
        assert read(fd, buffers)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "readv", read_and_die)
    with pytest.raises(KeyboardInterrupt):
        await b.wire.wait_readable(b.fd)
    assert keeper.in_flight(1) == {4}
    assert keeper.in_flight(0) == set()
    keeper.close()


@in_trio
async def test_any_other_request_is_injected_and_its_answer_goes_to_the_kernel(make: Callable[..., Bench]) -> None:
    b = make()
    await b.negotiate(init_reply())
    b.kernel.send(request(STATFS, 4, body=b"x"))
    await b.wire.wait_readable(b.fd)
    assert not b.leads_to_kernel
    assert b.libfuse_reads() == request(STATFS, 4, body=b"x")
    b.wire.to_kernel()  # the first act of every handler
    assert b.leads_to_kernel
    b.answers()
    b.libfuse_writes(messages.failed(4, 0))
    assert b.answers() == [messages.failed(4, 0)]


@in_trio
async def test_what_libfuse_answers_before_any_handler_ran_is_passed_on(make: Callable[..., Bench]) -> None:
    b = make()
    await b.negotiate(init_reply())
    b.kernel.send(request(99, 4))
    await b.wire.wait_readable(b.fd)
    b.answers()
    b.libfuse_reads()
    b.libfuse_writes(messages.failed(4, errno.ENOSYS))
    assert b.answers() == []
    b.kernel.send(request(STATFS, 6))
    await b.wire.wait_readable(b.fd)
    assert b.answers() == [messages.failed(4, errno.ENOSYS)]


@in_trio
async def test_while_nothing_comes_the_descriptor_leads_to_the_kernel(make: Callable[..., Bench]) -> None:
    b = make()
    await b.negotiate(init_reply())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.wire.wait_readable, b.fd)
        await wait_all_tasks_blocked()
        assert b.leads_to_kernel
        assert b.waits == 1
        b.answers()
        b.libfuse_writes(messages.failed(4, 0))  # a handler that waited answers now
        assert b.answers() == [messages.failed(4, 0)]
        b.kernel.send(request(STATFS, 6))


@in_trio
async def test_after_an_answer_the_next_request_is_waited_for_beside_trios_loop(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mountkit.serve.wire._LINGER_S", 10.0)
    b = make()
    await b.negotiate(init_reply())
    later = threading.Timer(0.05, b.kernel.send, [request(STATFS, 6)])
    b.wire.answer_raw({messages.FORGET: lambda *_: later.start()})
    b.kernel.send(request(messages.FORGET, 4))
    await b.wire.wait_readable(b.fd)
    assert b.libfuse_reads() == request(STATFS, 6)
    assert b.waits == 0
    later.join()


@in_trio
@pytest.mark.parametrize("first", [messages.FORGET, STATFS], ids=["somebody waits", "libfuse was given one"])
async def test_while_another_task_has_work_it_gets_its_turn_at_once(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr("mountkit.serve.wire._LINGER_S", 10.0)
    b = make()
    await b.negotiate(init_reply())
    b.wire.may_linger = lambda: first == STATFS
    b.wire.answer_raw({messages.FORGET: lambda *_: None})
    b.kernel.send(request(first, 4))
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        if first == STATFS:
            await b.wire.wait_readable(b.fd)
            b.libfuse_reads()
        nursery.start_soon(b.wire.wait_readable, b.fd)
        await wait_all_tasks_blocked()
        assert b.waits == 1
        assert time.monotonic() - began < 9.0
        b.kernel.send(request(STATFS, 6))


@in_trio
async def test_other_tasks_get_their_turn_under_load(make: Callable[..., Bench]) -> None:
    b = make()
    await b.negotiate(init_reply())
    seen_by_other: list[int] = []
    b.wire.answer_raw({messages.FORGET: lambda *arguments: b.handled.append(arguments)})
    for n in range(40):
        b.kernel.send(request(messages.FORGET, 2 * n))
    b.kernel.send(request(STATFS, 100))

    async def other() -> None:
        for _ in range(3):
            seen_by_other.append(len(b.handled))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await b.wire.wait_readable(b.fd)
    assert [n for n in seen_by_other if 0 < n < 40]


@in_trio
async def test_requests_handed_out_again_are_counted(make: Callable[..., Bench]) -> None:
    b = make()
    await b.negotiate(init_reply())
    b.wire.answer_raw({messages.FORGET: lambda *_: None})
    b.kernel.send(request(messages.FORGET, 4 | messages.UNIQUE_RESEND))
    b.kernel.send(request(STATFS, 6))
    await b.wire.wait_readable(b.fd)
    assert b.wire.resent == 1


@in_trio
async def test_the_sessions_end_is_a_closed_resource(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    b = make()
    await b.negotiate(init_reply())
    reads = [errno.EINTR, errno.ENOENT, errno.ENODEV]

    def readv(*_: object) -> int:
        raise OSError(reads.pop(0), "kernel")

    monkeypatch.setattr(os, "readv", readv)
    with pytest.raises(trio.ClosedResourceError):
        await b.wire.wait_readable(b.fd)
    assert reads == []


@in_trio
async def test_another_error_of_the_kernel_is_not_hidden(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    b = make()
    await b.negotiate(init_reply())

    def readv(*_: object) -> int:
        raise OSError(errno.EIO, "kernel")

    monkeypatch.setattr(os, "readv", readv)
    with pytest.raises(OSError, match="kernel"):
        await b.wire.wait_readable(b.fd)


def test_an_answer_nobody_waits_for_is_dropped_and_other_errors_are_raised(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    b = make()
    codes = [errno.ENOENT, errno.ENODEV, errno.EINVAL]

    def writev(*_: object) -> int:
        raise OSError(codes.pop(0), "kernel")

    monkeypatch.setattr(os, "writev", writev)
    assert b.wire.send(b"x") is False
    assert b.wire.send(b"x") is False
    with pytest.raises(OSError, match="kernel"):
        b.wire.send(b"x")
