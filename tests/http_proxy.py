"""A logging HTTP/1.1 proxy in front of a real S3 server, in a thread: what was asked, in what order, with what answer.

Requests pass through byte for byte (the client signs the proxy's own Host, which the server then sees), one upstream
connection per client connection. `fault` may answer instead of the server; `spoilt_by` puts a `Spoiler` (tests.faults)
in the way of the requests that match its rule; `refuse` and `listen_again` are a server that is down; `freeze` and
`thaw` are a network that is down: connections stay, and no byte passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """One request that came by. `status` is 0 where a fault cut it off."""

    method: str
    target: str
    range: str
    status: int

    @property
    def is_listing(self) -> bool:
        return "list-type=2" in self.target


Fault = Callable[[str, str], "bytes | None"]
"""(method, target) → bytes to send instead of the server's answer (b"" closes the connection), None to pass on."""


@dataclass
class Answer:
    """The server's whole answer, for a spoiler to send some of it."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])


class Exchange:
    """One request that a spoiler has to deal with."""

    def __init__(self, method: str, target: str, fields: dict[str, str], writer: asyncio.StreamWriter) -> None:
        self.method, self.target, self.fields, self.writer = method, target, fields, writer
        self.ask: Callable[[], Awaitable[Answer]]

    async def answer(self) -> Answer:
        """What the server says to it."""
        return await self.ask()

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
        await self.writer.drain()

    def reset(self) -> None:
        """Ends the connection with RST, as a killed server or a firewall does."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Spoiler(Protocol):
    async def __call__(self, exchange: Exchange) -> bool:
        """Deals with the request; whether the connection may be used again."""
        ...


@dataclass
class Rule:
    """Which requests are spoilt: those that match, the first `count` of them (None: all), each with `probability`."""

    spoiler: Spoiler
    method: str = ""
    path: str = ""
    """What the target must hold, as it is escaped there."""
    listings: bool | None = None
    """Only listings, or only what is none."""
    credentials: str = ""
    """What the Authorization header must hold."""
    count: int | None = None
    probability: float = 1.0
    seed: int = 0
    hits: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def takes(self, method: str, target: str, fields: dict[str, str]) -> bool:
        """Whether this request is to be spoilt; counts it."""
        matches = (
            self.method in ("", method)
            and self.path in target
            and self.listings in (None, "list-type=2" in target)
            and self.credentials in fields.get("authorization", "")
        )
        if not matches or self.hits == self.count or self._random.random() >= self.probability:
            return False
        self.hits += 1
        return True


@dataclass
class LoggingProxy:
    """`with LoggingProxy(port) as proxy:` forwards `proxy.url` to 127.0.0.1:port."""

    upstream_port: int
    requests: list[Request] = field(default_factory=list, repr=False)
    fault: Fault | None = None
    rules: list[Rule] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> LoggingProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._thread.start()
        assert self._started.wait(5)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, method: str) -> int:
        return sum(r.method == method and not r.is_listing for r in self.requests)

    def listings(self) -> int:
        return sum(r.is_listing for r in self.requests)

    @contextlib.contextmanager
    def spoilt_by(
        self,
        spoiler: Spoiler,
        *,
        method: str = "",
        path: str = "",
        listings: bool | None = None,
        credentials: str = "",
        count: int | None = None,
        probability: float = 1.0,
    ) -> Iterator[Rule]:
        """While it lasts, matching requests are spoilt; see `Rule`."""
        rule = Rule(spoiler, method, path, listings, credentials, count, probability)
        self.rules.append(rule)
        try:
            yield rule
        finally:
            self.rules.remove(rule)

    def refuse(self) -> None:
        """From now on connections are refused, and those there are reset."""
        self._in_loop(self._close_server())

    def listen_again(self) -> None:
        self._in_loop(self._open_server())

    def hang_up(self) -> None:
        """Closes all connections there are, so that the next requests need new ones."""
        self._in_loop(self._end_clients())

    def freeze(self) -> None:
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def thaw(self) -> None:
        self._loop.call_soon_threadsafe(self._flowing.set)

    def _in_loop(self, work: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _open_server(self) -> None:
        self._server = await asyncio.start_server(self._client, "127.0.0.1", self.port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close_server(self) -> None:
        self._server.close()
        await self._end_clients()

    async def _end_clients(self) -> None:
        for task in list(self._clients):
            task.cancel()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._clients: set[asyncio.Task[None]] = set()
        await self._open_server()
        self._started.set()
        await self._stopped.wait()
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # closing a transport takes another turn of the loop

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        me = asyncio.current_task()
        assert me is not None
        self._clients.add(me)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._flowing.wait()
                method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
                fields = _fields(head)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                canned = self.fault(method, target) if self.fault else None
                if canned is not None:
                    self.requests.append(Request(method, target, fields.get("range", ""), 0))
                    writer.write(canned)
                    await writer.drain()
                    return
                rule = next((rule for rule in self.rules if rule.takes(method, target, fields)), None)
                if rule is not None:
                    self.requests.append(Request(method, target, fields.get("range", ""), 0))
                    exchange = Exchange(method, target, fields, writer)
                    exchange.ask = functools.partial(self._ask, method, head + body)
                    if not await rule.spoiler(exchange):
                        return
                    continue
                if upstream is None:
                    upstream = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=1 << 20)
                upstream[1].write(head + body)
                answer = await upstream[0].readuntil(b"\r\n\r\n")
                # Noted before the client has any of it: who holds the bytes may count their requests at once.
                self.requests.append(Request(method, target, fields.get("range", ""), int(answer.split(b" ", 2)[1])))
                await _pass_answer(answer, upstream[0], writer, method, self._flowing)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(me)
            writer.close()
            if upstream is not None:
                upstream[1].close()

    async def _ask(self, method: str, request: bytes) -> Answer:
        """The whole answer to one request, over a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=1 << 20)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            fields = _fields(head)
            if method == "HEAD" or "content-length" not in fields:
                assert "chunked" not in fields.get("transfer-encoding", ""), "spoilers need a Content-Length"
                return Answer(head, b"")
            return Answer(head, await reader.readexactly(int(fields["content-length"])))
        finally:
            writer.close()


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _pass_answer(
    head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, flowing: asyncio.Event
) -> None:
    status = int(head.split(b" ", 2)[1])
    fields = _fields(head)
    writer.write(head)
    if method != "HEAD" and status not in (204, 304):
        if fields.get("transfer-encoding", "").lower() == "chunked":
            while True:
                size_line = await reader.readuntil(b"\r\n")
                size = int(size_line.split(b";")[0], 16)
                writer.write(size_line + await reader.readexactly(size + 2))
                await writer.drain()
                if size == 0:
                    break
        else:
            left = int(fields.get("content-length", 0))
            while left:
                data = await reader.read(min(left, 1 << 18))
                if not data:
                    raise ConnectionError
                left -= len(data)
                await flowing.wait()
                writer.write(data)
                await writer.drain()
    await writer.drain()
