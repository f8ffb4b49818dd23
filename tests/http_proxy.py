"""A logging HTTP/1.1 proxy in front of a real S3 server, in a thread: what was asked, in what order, with what answer.

Requests pass through byte for byte (the client signs the proxy's own Host, which the server then sees), one upstream
connection per client connection. `faults` may answer or spoil a request instead.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


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
class LoggingProxy:
    """`with LoggingProxy(port) as proxy:` forwards `proxy.url` to 127.0.0.1:port."""

    upstream_port: int
    requests: list[Request] = field(default_factory=list)
    fault: Fault | None = None
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

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopped.wait()
        server.close()
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
                fields = _fields(head)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                canned = self.fault(method, target) if self.fault else None
                if canned is not None:
                    self.requests.append(Request(method, target, fields.get("range", ""), 0))
                    writer.write(canned)
                    await writer.drain()
                    return
                if upstream is None:
                    upstream = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=1 << 20)
                upstream[1].write(head + body)
                status = await _pass_answer(upstream[0], writer, method)
                self.requests.append(Request(method, target, fields.get("range", ""), status))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            if upstream is not None:
                upstream[1].close()


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _pass_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
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
                writer.write(data)
                await writer.drain()
    await writer.drain()
    return status
