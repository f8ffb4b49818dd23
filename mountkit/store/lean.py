"""Requests over plain sockets: one send, and a short answer or a long body taken straight from the kernel.

A PUT of 20 KB costs a quarter of urllib3's CPU here, a GiB of GETs half of obstore's (0.7 to 1.3 s), nearly all of it
without the GIL. Only for requests that may be repeated and go straight to the server; whatever is unusual (no
connection, a proxy) is left to others, which have the words for it. Safe for threads; connections are kept alive.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from urllib3._collections import HTTPHeaderDict

_HEAD_BYTES, _MAX_HEAD_BYTES = 1 << 12, 1 << 16
_MAX_BODY_BYTES = 1 << 20
_IDLE_S = 20.0
_IDLE_CONNECTIONS = 64
_RECEIVE_BYTES = 1 << 16
_TIMEVAL = struct.Struct("@ll")
_T = TypeVar("_T")


class NoAnswer(Exception):
    """The connection ended, or was kept too long, before there was an answer; the cause says how."""


class Unusable(Exception):
    """This request, or its answer, is none for this module: ask by other means."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Stream:
    """An answer whose body is still to come; read `pieces` to its end, or close it."""

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        connection: socket.socket,
        give_back: Callable[[socket.socket], None],
    ) -> None:
        """Raises Unusable where nobody can tell how long the body is."""
        if "transfer-encoding" in headers:
            raise Unusable
        self.status, self.headers, self.length = status, headers, _length(headers)
        self._connection, self._give_back = connection, give_back
        self._is_ours = True

    def close(self) -> None:
        """Ends it early, with its connection; does nothing once it was read to its end and another may use that."""
        if self._is_ours:
            self._connection.close()

    def pieces(self, size: int) -> Iterator[bytes]:
        """The body in pieces of `size` bytes, of which a slow one may be shorter. Raises NoAnswer, OSError."""
        left = self.length
        try:
            while left:
                piece = self._connection.recv(min(size, left), socket.MSG_WAITALL)
                if not piece:
                    raise NoAnswer("the connection was closed")
                left -= len(piece)
                yield piece
        except BlockingIOError as exc:
            raise TimeoutError("nothing came") from exc
        finally:
            if left or not _keeps(self.headers):
                self.close()
            else:
                self._is_ours = False
                self._give_back(self._connection)


class LeanHTTP:
    """Connections to one server."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, connect_s: float) -> None:
        self._address, self._tls, self._connect_s = (host, port), tls, connect_s
        self._lock = threading.Lock()
        self._idle: list[tuple[float, socket.socket]] = []

    def __repr__(self) -> str:
        return f"<LeanHTTP {self._address[0]}:{self._address[1]}>"

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the connections that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def request(self, method: str, target: str, headers: Mapping[str, str], body: bytes, wait_s: float) -> Answer:
        """The whole answer. Raises Unusable where nothing was sent, NoAnswer, OSError (TimeoutError)."""
        message = _message(method, target, headers) + body

        def receive(connection: socket.socket) -> Answer:
            connection.settimeout(wait_s)
            connection.sendall(message)
            answer, reusable = _receive(connection)
            if reusable:
                self._give_back(connection)
            else:
                connection.close()
            return answer

        return self._with_connection(receive)

    @property
    def streams(self) -> bool:
        """Whether `stream` may be asked: not over TLS, which hands bytes out by the record of 16 KiB."""
        return self._tls is None

    def stream(self, target: str, headers: Mapping[str, str], stall_s: float) -> Stream:
        """The answer to a GET, as soon as its head is there; no wait is longer than `stall_s`.

        Raises Unusable where nothing was sent, or the answer is an unusual one; NoAnswer, OSError (TimeoutError).
        """
        message = _message("GET", target, headers)

        def open_(connection: socket.socket) -> Stream:
            connection.settimeout(None)  # a timeout of Python's would take the bytes as they trickle in
            seconds, part = divmod(stall_s, 1)
            timeval = _TIMEVAL.pack(int(seconds), int(part * 1e6))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            connection.sendall(message)
            try:
                return Stream(*_head(_peeked_head(connection)), connection, self._give_back)
            except BlockingIOError as exc:
                raise TimeoutError("no answer came") from exc

        return self._with_connection(open_)

    def _with_connection(self, act: Callable[[socket.socket], _T]) -> _T:
        """`act` with a connection that it has to give back; once more if the server had closed it while it was idle."""
        while (kept := self._take()) is not None:
            with contextlib.suppress(NoAnswer, ConnectionError):
                return _closing_on_error(act, kept)
        return _closing_on_error(act, self.connect())

    def connect(self) -> socket.socket:
        """A new connection, the caller's. Raises Unusable."""
        try:
            connection = socket.create_connection(self._address, timeout=self._connect_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection if self._tls is None else self._wrapped(connection, self._tls)
        except OSError as exc:
            raise Unusable from exc

    def _wrapped(self, connection: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        try:
            return tls.wrap_socket(connection, server_hostname=self._address[0])
        except BaseException:
            connection.close()
            raise

    def _take(self) -> socket.socket | None:
        """A connection that was kept and still stands."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                since, connection = self._idle.pop()
            if time.monotonic() - since < _IDLE_S and not _is_readable(connection):
                return connection
            connection.close()

    def _give_back(self, connection: socket.socket) -> None:
        with self._lock:
            if len(self._idle) < _IDLE_CONNECTIONS:
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()


def _closing_on_error(act: Callable[[socket.socket], _T], connection: socket.socket) -> _T:
    try:
        return act(connection)
    except BaseException:
        connection.close()
        raise


def _message(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def _is_readable(connection: socket.socket) -> bool:
    """An idle connection with something to read was closed by the server."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _receive(connection: socket.socket) -> tuple[Answer, bool]:
    """One answer, and whether the connection may be used again."""
    data = b""
    while True:
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _MAX_HEAD_BYTES:
                raise Unusable
            data += _more(connection)
        status, headers = _head(data[:end])
        data = data[end + 4 :]
        if status >= 200:  # else "100 Continue", which nobody asked for
            break
    if status == 204 or "transfer-encoding" not in headers:
        length = 0 if status == 204 else _short_length(headers)
        while len(data) < length:
            data += _more(connection)
        reusable = len(data) == length
    else:
        data, reusable = _chunked(connection, data)
    return Answer(status, headers, data), reusable and _keeps(headers)


def _peeked_head(connection: socket.socket) -> bytes:
    """The head of an answer, and not a byte of its body."""
    data = b""
    while True:
        seen = connection.recv(_HEAD_BYTES, socket.MSG_PEEK)
        if not seen:
            raise NoAnswer("the connection was closed")
        end = (data + seen).find(b"\r\n\r\n")
        data += connection.recv(len(seen) if end < 0 else end + 4 - len(data))
        if end >= 0:
            return data[:-4]
        if len(data) > _MAX_HEAD_BYTES:
            raise Unusable


def _keeps(headers: Mapping[str, str]) -> bool:
    return "close" not in headers.get("connection", "").lower()


def _head(data: bytes) -> tuple[int, HTTPHeaderDict]:
    first, *lines = data.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.1") or not words[1].isdigit():
        raise Unusable
    headers = HTTPHeaderDict()
    for line in lines:
        name, _, value = line.partition(":")
        headers.add(name, value.strip())
    return int(words[1]), headers


def _length(headers: Mapping[str, str]) -> int:
    text = headers.get("content-length", "")
    if not (text.isascii() and text.isdigit()):
        raise Unusable
    return int(text)


def _short_length(headers: Mapping[str, str]) -> int:
    length = _length(headers)
    if length > _MAX_BODY_BYTES:
        raise Unusable
    return length


def _chunked(connection: socket.socket, data: bytes) -> tuple[bytes, bool]:
    body = b""
    while True:
        while (end := data.find(b"\r\n")) < 0:
            data += _more(connection)
        try:
            size = int(data[:end].partition(b";")[0], 16)
        except ValueError:
            raise Unusable from None
        if len(body) + size > _MAX_BODY_BYTES:
            raise Unusable
        data = data[end + 2 :]
        while len(data) < size + 2:
            data += _more(connection)
        body, data = body + data[:size], data[size + 2 :]
        if not size:
            return body, not data


def _more(connection: socket.socket) -> bytes:
    piece = connection.recv(_RECEIVE_BYTES)
    if not piece:
        raise NoAnswer("the connection was closed")
    return piece
