"""A server that says exactly what a test wants it to say, also what no decent server would.

    with RawServer(lambda request: [answer(503, code="SlowDown")]) as server: …

`request` is a `Request`; the answer is a list of byte strings and Events: an Event is waited for before what follows
is sent. After an answer that lacks what it promised, the connection is closed.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

Piece = bytes | threading.Event


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def lists(self) -> bool:
        return "list-type=2" in self.target


def answer(
    status: int, body: bytes = b"", *, code: str = "", region: str = "", headers: Mapping[str, str] | None = None
) -> bytes:
    """A whole answer; `code` makes the body an error document of S3."""
    if code:
        where = f"<Region>{region}</Region>" if region else ""
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>It is {code}</Message>{where}</Error>".encode()
    lines = {"Content-Length": str(len(body))} | dict(headers or {})
    head = f"HTTP/1.1 {status} Said\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode() + b"\r\n" + body


@dataclass
class RawServer:
    respond: Callable[[Request], Iterable[Piece]]
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> RawServer:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        # close() alone would leave accept() waiting
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        self._open.add(raw)
        with contextlib.suppress(OSError), raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = self.tls.wrap_socket(raw, server_side=True) if self.tls else raw
            with connection, connection.makefile("rb") as stream:
                while (request := _read(stream)) is not None:
                    self.requests.append(request)
                    pieces = list(self.respond(request))
                    for piece in pieces:
                        if isinstance(piece, threading.Event):
                            piece.wait(30)
                        else:
                            head, _, _ = piece.partition(b"\r\n\r\n")
                            connection.sendall(head + b"\r\n\r\n" if request.method == "HEAD" else piece)
                    if CLOSE in pieces:
                        return
        self._open.discard(raw)


CLOSE = b""
"""In an answer: close the connection after it."""


def _read(stream: object) -> Request | None:
    line = stream.readline().decode("latin-1").split()  # type: ignore[attr-defined]
    if len(line) != 3:
        return None
    headers: dict[str, str] = {}
    while text := stream.readline().decode("latin-1").strip():  # type: ignore[attr-defined]
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", "0")))  # type: ignore[attr-defined]
    return Request(line[0], line[1], headers, body)
