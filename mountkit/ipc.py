"""Words between our processes: JSON messages with an optional payload and descriptors, over Unix stream sockets.

A frame is two lengths, a JSON object and payload bytes. `Channel` is the trio side, `Client` the blocking one the
command line uses. A request carries `op` and `id`; its answer carries the same `id` and either a result or `error`
(`errors.to_json`); messages with `progress` may come before it. Sockets are 0600 and every peer is checked by
SO_PEERCRED: the same user, or root.
"""

from __future__ import annotations

import array
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mountkit import errors

if TYPE_CHECKING:
    import trio

log = logging.getLogger(__name__)
_FRAME = struct.Struct("<II")
_MAX_JSON, _MAX_PAYLOAD, _MAX_FDS = 64 << 20, 64 << 20, 8
_CHUNK = 1 << 20


class ChannelClosed(Exception):
    """The peer is gone; what was on its way may or may not have arrived."""


@dataclass(slots=True)
class Message:
    """One frame: `body` is the JSON object; `fds` belong to the receiver."""

    body: dict[str, Any]
    payload: bytes = b""
    fds: Sequence[int] = ()


def encode(body: dict[str, Any], payload: bytes | memoryview = b"") -> list[bytes | memoryview]:
    """The pieces of a frame, ready for sendmsg."""
    text = json.dumps(body, separators=(",", ":")).encode()
    return [_FRAME.pack(len(text), len(payload)), text, payload]


class _Assembler:
    """Bytes and descriptors in, whole messages out."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: list[int] = []

    def feed(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        self._buffer += data
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds += fds

    def next(self) -> Message | None:
        if len(self._buffer) < _FRAME.size:
            return None
        text_length, payload_length = _FRAME.unpack_from(self._buffer)
        if text_length > _MAX_JSON or payload_length > _MAX_PAYLOAD:
            raise ChannelClosed("the peer does not speak our language")
        end = _FRAME.size + text_length + payload_length
        if len(self._buffer) < end:
            return None
        try:
            body = json.loads(self._buffer[_FRAME.size : _FRAME.size + text_length])
        except ValueError:
            raise ChannelClosed("the peer does not speak our language") from None
        if not isinstance(body, dict):
            raise ChannelClosed("the peer does not speak our language")
        payload = bytes(self._buffer[_FRAME.size + text_length : end])
        del self._buffer[:end]
        announced = body.pop("fds", 0)
        if not isinstance(announced, int) or announced < 0:
            raise ChannelClosed("the peer does not speak our language")
        count = min(announced, len(self._fds))
        fds, self._fds = self._fds[:count], self._fds[count:]
        return Message(body, payload, fds)


def _rights(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def _peer(sock: Any) -> tuple[int, int]:
    """Pid and uid of the process at the other end, as the kernel knows them."""
    pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _is_trusted(sock: Any) -> bool:
    """Whether the process at the other end belongs to this user or to root."""
    return _peer(sock)[1] in (0, os.getuid())


class Channel:
    """One connection, trio side. `send` may be called by many tasks, `receive` by one."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        import trio

        self._socket = sock
        self._lock = trio.Lock()
        self._assembler = _Assembler()
        self._pushed_back: list[Message] = []

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        import trio

        return cls(trio.socket.from_stdlib_socket(socket.socket(fileno=fd)))

    @classmethod
    async def connect(cls, path: str) -> Channel:
        """Raises OSError when nobody listens there, ChannelClosed when the listener is not to be trusted."""
        import trio

        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(path)
        except BaseException:
            sock.close()
            raise
        if not _is_trusted(sock):
            sock.close()
            raise ChannelClosed(f"{path} belongs to somebody else")
        return cls(sock)

    async def send(self, body: dict[str, Any], payload: bytes | memoryview = b"", fds: Sequence[int] = ()) -> None:
        """Sends one frame whole. Cancelling it half-way closes the channel. Raises ChannelClosed."""
        import trio

        pieces = encode({**body, "fds": len(fds)} if fds else body, payload)
        total = sum(len(piece) for piece in pieces)
        async with self._lock:
            try:
                sent = await self._socket.sendmsg(pieces, _rights(fds))
                if sent < total:
                    await self._send_rest(b"".join(pieces)[sent:])
            except (OSError, trio.ClosedResourceError) as exc:
                raise ChannelClosed(str(exc)) from exc

    async def _send_rest(self, rest: bytes) -> None:
        view = memoryview(rest)
        try:
            while view:
                view = view[await self._socket.send(view) :]
        except BaseException:
            self.close()
            raise

    async def receive(self) -> Message:
        """The next message. Raises ChannelClosed at the end."""
        import trio

        if self._pushed_back:
            return self._pushed_back.pop()
        while True:
            message = self._assembler.next()
            if message is not None:
                return message
            try:
                data, ancillary, _, _ = await self._socket.recvmsg(_CHUNK, socket.CMSG_SPACE(4 * _MAX_FDS))
            except (OSError, trio.ClosedResourceError) as exc:
                raise ChannelClosed(str(exc)) from exc
            if not data:
                raise ChannelClosed("the peer closed the connection")
            self._assembler.feed(data, ancillary)

    @property
    def peer_pid(self) -> int:
        """The process that connected, as the kernel knows it."""
        return _peer(self._socket)[0]

    def push_back(self, message: Message) -> None:
        """Has `receive` return this message next."""
        self._pushed_back.append(message)

    def close(self) -> None:
        self._socket.close()


Progress = Callable[[dict[str, Any]], Awaitable[None]]
Handler = Callable[[Message, Progress], Awaitable[Message | dict[str, Any]]]


async def answer_requests(channel: Channel, handler: Handler) -> None:
    """Answers every request of one connection, each in a task of its own, until the peer is gone.

    What the handler raises as MountkitError becomes an `error`; the peer's death cancels what it had asked for.
    """
    import trio

    async def one(request: Message) -> None:
        ident = request.body.get("id")

        async def progress(body: dict[str, Any]) -> None:
            await channel.send({"id": ident, "progress": body})

        try:
            result = await handler(request, progress)
        except errors.MountkitError as exc:
            result = {"error": exc.to_json()}
        except Exception as exc:  # one bad request must not end a process that serves many
            log.exception("`%s` failed in a way nobody foresaw", request.body.get("op"))
            result = {"error": errors.MountkitError(f"failed in a way nobody foresaw: {exc!r}").to_json()}
        if isinstance(result, dict):
            result = Message(result)
        with contextlib.suppress(ChannelClosed):
            if ident is not None:
                await channel.send({"id": ident, **result.body}, result.payload, result.fds)
        for fd in result.fds:
            os.close(fd)

    async with trio.open_nursery() as nursery:
        try:
            while True:
                nursery.start_soon(one, await channel.receive())
        except ChannelClosed:
            nursery.cancel_scope.cancel()
        finally:
            channel.close()


async def answers(path: str) -> bool:
    """Whether somebody we trust accepts connections at `path`."""
    try:
        (await Channel.connect(path)).close()
    except (OSError, ChannelClosed):
        return False
    return True


@contextlib.asynccontextmanager
async def listening(path: str) -> AsyncIterator[trio.socket.SocketType]:
    """A listening socket at `path`, 0600, taking the place of a dead one; removed at the end if it is still ours."""
    import trio

    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = f"{path}.{os.getpid()}"
    mask = os.umask(0o177)  # of the whole process: nothing may be awaited until it is put back
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        bound.bind(temporary)
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(mask)
    bound.listen(64)
    sock = trio.socket.from_stdlib_socket(bound)
    inode = os.stat(temporary).st_ino
    os.rename(temporary, path)  # atomic: a client finds the old socket or the new one, never none
    try:
        yield sock
    finally:
        sock.close()
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == inode:
                os.unlink(path)


async def serve(sock: trio.socket.SocketType, serve_channel: Callable[[Channel], Awaitable[None]]) -> None:
    """Accepts trusted peers for ever, each in a task of its own."""
    import trio

    async with trio.open_nursery() as nursery:
        while True:
            accepted, _ = await sock.accept()
            if _is_trusted(accepted):
                nursery.start_soon(serve_channel, Channel(accepted))
            else:
                accepted.close()


class Receiver:
    """The messages that come over a blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._assembler = sock, _Assembler()

    def receive(self) -> Message:
        """The next one. Raises ChannelClosed, TimeoutError."""
        while True:
            message = self._assembler.next()
            if message is not None:
                return message
            data, ancillary, _, _ = self._socket.recvmsg(_CHUNK, socket.CMSG_SPACE(4 * _MAX_FDS))
            if not data:
                raise ChannelClosed("the other side closed the connection")
            self._assembler.feed(data, ancillary)


class Client:
    """A blocking connection for the command line."""

    def __init__(self, path: str, *, timeout_s: float = 5.0) -> None:
        """Raises OSError when nobody listens there, PermissionError when the listener is not to be trusted."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._receiver = Receiver(self._socket)
        try:
            self._socket.connect(path)
            if os.getuid() != 0 and not _is_trusted(self._socket):
                raise PermissionError(f"{path} belongs to user {_peer(self._socket)[1]}")
        except BaseException:
            self._socket.close()
            raise

    def call(self, op: str, *, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        """The answer to one request. Raises the MountkitError the other side sent; OSError; ChannelClosed."""
        last: dict[str, Any] = {}
        for last in self.stream(op, timeout_s=timeout_s, **arguments):  # noqa: B007 - the last one is the answer
            pass
        return last

    def stream(self, op: str, *, timeout_s: float | None = None, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Progress messages as they come, then the answer as the last item."""
        self._socket.settimeout(timeout_s)
        self._socket.sendall(b"".join(encode({"op": op, "id": 1, **arguments})))
        while True:
            message = self._receiver.receive()
            if "error" in message.body:
                raise errors.from_json(message.body["error"])
            if "progress" not in message.body:
                yield message.body
                return
            yield message.body["progress"]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


def receive_one(sock: socket.socket) -> Message:
    """The next message of a blocking socket of which no other will come. Raises ChannelClosed, TimeoutError."""
    return Receiver(sock).receive()
