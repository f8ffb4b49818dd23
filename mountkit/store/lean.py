"""Small requests over plain sockets: one send, one short answer. A PUT of 20 KB costs a quarter of urllib3's CPU here.

Only for requests that may be repeated and go straight to the server; whatever is unusual (no connection, a proxy) is
left to urllib3, which has the words for it. Safe for threads; connections are kept alive.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from urllib3._collections import HTTPHeaderDict

_MAX_HEAD_BYTES = 1 << 16
_MAX_BODY_BYTES = 1 << 20
_IDLE_S = 20.0
_IDLE_CONNECTIONS = 64
_RECEIVE_BYTES = 1 << 16


class NoAnswer(Exception):
    """The connection ended, or was kept too long, before there was an answer; the cause says how."""


class Unusable(Exception):
    """This request, or its answer, is none for this module: ask by other means."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


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
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        message = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
        while (kept := self._take()) is not None:
            with contextlib.suppress(NoAnswer, ConnectionError):  # the server had closed it while it was idle
                return self._ask(kept, message, wait_s)
        return self._ask(self._connect(), message, wait_s)

    def _ask(self, connection: socket.socket, message: bytes, wait_s: float) -> Answer:
        try:
            connection.settimeout(wait_s)
            connection.sendall(message)
            answer, reusable = _receive(connection)
        except BaseException:
            connection.close()
            raise
        if reusable:
            self._give_back(connection)
        else:
            connection.close()
        return answer

    def _connect(self) -> socket.socket:
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
        length = 0 if status == 204 else _length(headers)
        while len(data) < length:
            data += _more(connection)
        reusable = len(data) == length
    else:
        data, reusable = _chunked(connection, data)
    keep = "close" not in headers.get("connection", "").lower()
    return Answer(status, headers, data), reusable and keep


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
    if not (text.isascii() and text.isdigit()) or int(text) > _MAX_BODY_BYTES:
        raise Unusable
    return int(text)


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
