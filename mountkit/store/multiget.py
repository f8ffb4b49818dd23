"""Many GETs at once on one thread: sockets that never block, each body straight into memory of its own.

A thread for each GET costs three times as much CPU for an object of 100 KB, most of it for waking threads and for their
turns at the interpreter. Only for answers of a known length; whatever is unusual ends without an answer and is to be
asked again by other means, which have the words for it. All methods but `wake` belong to one thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from mountkit.store.lean import Unusable

log = logging.getLogger(__name__)
_MAX_HEAD_BYTES = 1 << 12
_IDLE_S = 20.0
_EVENTS = 16
"""Sockets that are served before somebody may begin another GET."""
_LOOK_S = 0.25
_WAITS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole answer. The body of any but a 200 is empty."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: memoryview


class _Get(Generic[T]):
    """One GET under way: what came of its answer lies in `buffer`, the head first."""

    __slots__ = ("body_at", "buffer", "came", "head", "message", "moved_at", "size", "tag", "view")

    def __init__(self, tag: T, message: bytes, size: int) -> None:
        self.tag, self.message, self.size = tag, message, size
        self.buffer = bytearray(_MAX_HEAD_BYTES + size)
        self.view = memoryview(self.buffer)
        self.came = self.body_at = 0
        self.head: tuple[int, dict[str, str]] | None = None
        self.moved_at = 0.0


@dataclass(slots=True)
class _Connection(Generic[T]):
    socket: socket.socket
    get: _Get[T] | None = None
    idle_since: float = 0.0


class _Unusual(Exception):
    """This is no answer for us."""


class MultiGet(Generic[T]):
    """GETs to one server, each known by a tag of the caller's."""

    def __init__(
        self, connect: Callable[[], socket.socket], *, patience_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`connect` gives a connection or raises lean.Unusable; it may take its time, on threads of its own. A GET that
        no byte of comes for `patience_s` ends without an answer."""
        self._connect, self._patience_s, self._clock = connect, patience_s, clock
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._connections: dict[int, _Connection[T]] = {}
        self._idle: list[_Connection[T]] = []
        self._unsent: deque[_Get[T]] = deque()
        self._opening = 0
        self._opened: deque[socket.socket | None] = deque()
        self._lock, self._closed = threading.Lock(), False
        self._looked_at = clock()

    def __repr__(self) -> str:
        return f"<MultiGet {len(self._connections) - len(self._idle)} under way, {len(self._unsent)} unsent>"

    def start(self, tag: T, message: bytes, size: int) -> None:
        """Sends `message`, a request for a body of `size` bytes, as soon as there is a connection for it."""
        get = _Get(tag, message, size)
        get.moved_at = self._clock()
        self._unsent.append(get)
        self._send_some()

    def wait(self) -> Iterator[tuple[T, Whole | None]]:
        """What has ended, once something happens; None for what got no answer of use. Nothing, now and then."""
        some_are_idle = _IDLE_S if self._connections else None
        timeout_s = _LOOK_S if len(self._connections) > len(self._idle) or self._unsent else some_are_idle
        for fd, _ in self._epoll.poll(timeout_s, _EVENTS):
            if fd == self._bell:
                os.eventfd_read(self._bell)
                yield from self._take_in()
            elif (connection := self._connections.get(fd)) is not None:
                yield from self._served(connection)
        if self._clock() - self._looked_at >= _LOOK_S:
            yield from self._overdue()

    def wake(self) -> None:
        """Ends a `wait`. From any thread."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Cuts off all that is under way; also where another method has failed half-way."""
        with self._lock:
            self._closed = True
        for opened in (*filter(None, self._opened), *(each.socket for each in self._connections.values())):
            opened.close()
        self._connections.clear()
        self._epoll.close()
        os.close(self._bell)

    # ---- connections ---------------------------------------------------------------------------------------
    def _open(self) -> None:
        """On a thread of its own."""
        connection: socket.socket | None = None
        try:
            connection = self._connect()
        except Unusable:
            pass  # whoever asks by other means is told why
        except Exception:  # its GET must end all the same
            log.exception("connecting failed in a way nobody foresaw")
        with self._lock:
            if not self._closed:
                self._opened.append(connection)
                os.eventfd_write(self._bell, 1)
                return
        if connection is not None:
            connection.close()

    def _take_in(self) -> Iterator[tuple[T, Whole | None]]:
        while self._opened:
            self._opening -= 1
            opened = self._opened.popleft()
            if opened is not None:
                opened.setblocking(False)
                connection = self._connections[opened.fileno()] = _Connection[T](opened)
                self._epoll.register(opened.fileno(), select.EPOLLIN)
                self._rest(connection)
                self._send_some()
            elif self._unsent:
                yield self._unsent.popleft().tag, None

    def _send_some(self) -> None:
        while self._unsent and self._idle:
            connection = self._idle.pop()
            if self._clock() - connection.idle_since > _IDLE_S:
                self._drop(connection)
                continue
            get = self._unsent.popleft()
            try:
                sent = connection.socket.send(get.message)
            except OSError:  # closed while it was idle
                sent = 0
            if sent == len(get.message):
                connection.get, get.moved_at = get, self._clock()
            else:
                self._drop(connection)
                self._unsent.appendleft(get)
        while self._opening < len(self._unsent):
            self._opening += 1
            threading.Thread(target=self._open, name="connect", daemon=True).start()

    def _rest(self, connection: _Connection[T]) -> None:
        connection.get, connection.idle_since = None, self._clock()
        self._idle.append(connection)

    def _drop(self, connection: _Connection[T]) -> None:
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        del self._connections[connection.socket.fileno()]
        connection.socket.close()

    # ---- answers -------------------------------------------------------------------------------------------
    def _served(self, connection: _Connection[T]) -> Iterator[tuple[T, Whole | None]]:
        get = connection.get
        if get is None:  # the server ends a connection that is idle
            self._drop(connection)
            return
        try:
            whole = self._received(connection.socket, get)
        except (_Unusual, OSError):
            self._drop(connection)
            yield get.tag, None
            return
        if whole is None:
            return
        if whole.status == 200 and "close" not in whole.headers.get("connection", "").lower():
            self._rest(connection)
            self._send_some()
        else:
            self._drop(connection)
        yield get.tag, whole

    def _received(self, source: socket.socket, get: _Get[T]) -> Whole | None:
        """The answer, if all of it is here. Raises _Unusual, OSError."""
        try:
            while True:
                count = source.recv_into(get.view[get.came :])
                if not count:
                    raise _Unusual
                get.came += count
                get.moved_at = self._clock()
                if get.head is None:
                    self._begin(get)
                if get.head is not None and get.head[0] != 200:
                    return Whole(*get.head, memoryview(b""))
                if get.head is not None and get.came >= get.body_at + get.size:
                    break
                if not isinstance(source, ssl.SSLSocket):  # what it has decrypted already rings no bell
                    return None
        except _WAITS:
            return None
        if get.came > get.body_at + get.size:
            raise _Unusual
        return Whole(*get.head, get.view[get.body_at : get.came])

    def _begin(self, get: _Get[T]) -> None:
        """Reads the head if it is whole."""
        end = get.buffer.find(b"\r\n\r\n", 0, min(get.came, _MAX_HEAD_BYTES))
        if end < 0:
            if get.came >= _MAX_HEAD_BYTES:
                raise _Unusual
            return
        first, *lines = get.buffer[:end].decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2 or words[0] != "HTTP/1.1" or not words[1].isdecimal():
            raise _Unusual
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        get.head, get.body_at = (int(words[1]), headers), end + 4
        if words[1] == "200" and ("transfer-encoding" in headers or headers.get("content-length") != str(get.size)):
            raise _Unusual

    def _overdue(self) -> Iterator[tuple[T, Whole | None]]:
        self._looked_at = now = self._clock()
        while self._unsent and now - self._unsent[0].moved_at > self._patience_s:
            yield self._unsent.popleft().tag, None
        for connection in list(self._connections.values()):
            get = connection.get
            if get is None and now - connection.idle_since > _IDLE_S:
                self._drop(connection)
            elif get is not None and now - get.moved_at > self._patience_s:
                self._drop(connection)
                yield get.tag, None
