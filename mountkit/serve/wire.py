"""The wire between the kernel and pyfuse3: requests are read here, so several servers share one FUSE connection.

libfuse reads blockingly from the descriptor number it was given, and a server that loses the race for a request would
freeze with its whole event loop. So this class reads the kernel's descriptor itself, without blocking. A request whose
opcode has a handler here is answered raw; any other is injected into a socket pair, one end of which stands at
libfuse's descriptor number only while libfuse reads from it:

    wait_readable:  relay what libfuse wrote meanwhile · number → kernel · read a request · inject it, number → socket
    any handler:    first act `to_kernel()`: from here on what libfuse writes goes to the kernel

pyfuse3 finds trio through its module global of that name, as `pyfuse3.asyncio` does; `trio_facade` stands there.
The INIT request of the mount is injected first. The first server's answer to it is patched and goes to the kernel;
later servers' answers are dropped, but must agree with the first one's.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from mountkit.serve import messages

log = logging.getLogger(__name__)
_BUFFER_BYTES = (1 << 20) + 8192
_TURNS = 16
"""Requests answered in a row before other tasks get their turn (a trio checkpoint costs as much as a LOOKUP)."""

_SPIN_NS = 30_000
"""A program that writes small files comes back sooner than a turn of trio's loop takes: so long it is waited for."""

_LINGER_S = 0.001
"""So long a server waits for the next request beside trio's loop, a turn of which costs as much as a request. It waits
exclusively: a request wakes one server, not all of them. Not after a READ: what follows from it (reading ahead) needs
a turn, and a file read from start to end costs 2.6 CPU seconds a GiB instead of 3.1."""

RawHandler = Callable[[int, int, int, int], None]
"""Called with (unique, inode, pid, length); the request lies in `Wire.buffer` until the handler returns."""


class InitMismatch(Exception):
    """This server's libfuse negotiates otherwise than the session's: it must not join."""


class Wire:
    """One server's end of the FUSE connection at descriptor `fd`, which pyfuse3 must be given as `/dev/fd/<fd>`."""

    def __init__(
        self,
        fd: int,
        init: bytes,
        *,
        first: bool,
        passthrough: bool,
        writable: bool = False,
        buffer: memoryview,
        expected_shape: Sequence[int] | None = None,
        on_ready: Callable[[tuple[int, ...]], None],
        before_wait: Callable[[], None],
        note_injected: Callable[[int], None],
    ) -> None:
        """`buffer` is where requests are read to; `note_injected` is called with the number of each that libfuse gets,
        which may answer it long after the buffer has been used again."""
        self.kernel = os.dup(fd)
        os.set_blocking(self.kernel, False)
        self.buffer = buffer
        self.resent = 0
        self.may_linger: Callable[[], bool] = lambda: True
        """Whether no task here waits for its turn."""
        self._requests = select.epoll()
        self._requests.register(self.kernel, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self._spin_until_ns = 0
        self._fd, self._init, self._first = fd, init, first
        self._passthrough, self._writable = passthrough, writable
        self._expected = tuple(expected_shape) if expected_shape else None
        self._on_ready, self._before_wait, self._note_injected = on_ready, before_wait, note_injected
        self._handlers: Mapping[int, RawHandler] = {}
        self._inner, self._outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._inner, self._outer):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, 2 * _BUFFER_BYTES)
        os.dup2(self._inner.fileno(), fd)
        self._injecting = True
        self._started = self._init_answered = False

    def __repr__(self) -> str:
        state = "serving" if self._init_answered else "starting"
        return f"<Wire fd={self._fd} {state}>"

    def answer_raw(self, handlers: Mapping[int, RawHandler]) -> None:
        """Sets which opcodes are answered here instead of by pyfuse3."""
        self._handlers = handlers

    def trio_facade(self) -> Any:
        """What pyfuse3 must find under its global name `trio`."""
        lowlevel = types.SimpleNamespace(
            current_task=trio.lowlevel.current_task,
            notify_closing=trio.lowlevel.notify_closing,
            current_trio_token=trio.lowlevel.current_trio_token,
            wait_readable=self.wait_readable,
        )
        return types.SimpleNamespace(
            Lock=trio.Lock,
            open_nursery=trio.open_nursery,
            lowlevel=lowlevel,
            ClosedResourceError=trio.ClosedResourceError,
            from_thread=trio.from_thread,
        )

    def to_kernel(self) -> None:
        """What libfuse writes from here on goes to the kernel."""
        if self._injecting:
            os.dup2(self.kernel, self._fd)
            self._injecting = False

    def send(self, *pieces: bytes) -> bool:
        """Writes one raw answer; False if the kernel no longer waits for it (answered by another server, or gone)."""
        try:
            os.writev(self.kernel, pieces)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENODEV):
                return False
            raise
        return True

    async def wait_readable(self, _fd: int) -> None:
        """Returns when libfuse has a request to read. Raises trio.ClosedResourceError when the session has ended."""
        self._relay()
        self.to_kernel()  # late answers of waiting handlers must not end in the socket while we sleep
        if not self._started:
            self._started = True
            self._inject(self._init)
            return
        turns, lingers = 0, False
        while True:
            length = await self._next_request(lingers=lingers)
            _, opcode, unique, inode, _, _, pid, _, _ = messages.IN_HEADER.unpack_from(self.buffer)
            if unique & messages.UNIQUE_RESEND:
                self.resent += 1
            handler = self._handlers.get(opcode)
            if handler is None:
                self._note_injected(unique)
                self._inject(memoryview(self.buffer)[:length])
                return
            handler(unique, inode, pid, length)
            lingers = opcode != messages.READ
            if self._writable:
                self._spin_until_ns = time.monotonic_ns() + _SPIN_NS
            turns += 1
            if turns % _TURNS == 0:
                await trio.lowlevel.checkpoint()

    async def _next_request(self, *, lingers: bool) -> int:
        """Reads it into the buffer; its length. `lingers`: see `_LINGER_S`."""
        while True:
            try:
                return os.readv(self.kernel, [self.buffer])
            except BlockingIOError:
                if self._writable and time.monotonic_ns() < self._spin_until_ns:
                    continue
                if lingers and self.may_linger() and self._requests.poll(_LINGER_S):
                    continue
                self._before_wait()
                await trio.lowlevel.wait_readable(self.kernel)
            except OSError as exc:
                if exc.errno == errno.ENODEV:
                    raise trio.ClosedResourceError from exc
                if exc.errno not in (errno.EINTR, errno.ENOENT):  # ENOENT: its caller was killed before we read it
                    raise

    def _inject(self, message: bytes | memoryview) -> None:
        self._outer.send(message)
        os.dup2(self._inner.fileno(), self._fd)
        self._injecting = True

    def _relay(self) -> None:
        """Passes on what libfuse answered before any handler ran: INIT, and operations pyfuse3 lacks."""
        while True:
            try:
                reply = self._outer.recv(1 << 17, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if self._init_answered:
                self.send(reply)
            else:
                self._answer_init(reply)

    def _answer_init(self, reply: bytes) -> None:
        plain_readdir = messages.READDIR in self._handlers
        patched = messages.patched_init_reply(
            reply, passthrough=self._passthrough, plain_readdir=plain_readdir, writable=self._writable
        )
        shape = messages.init_reply_shape(patched)
        if self._expected is not None and shape != self._expected:
            raise InitMismatch(f"libfuse negotiates {shape}, the session runs with {self._expected}")
        self._init_answered = True
        if self._first:
            self.send(patched)
        self._on_ready(shape)
