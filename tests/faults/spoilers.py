"""Spoilers: what a bad server, proxy or network does to one answer. Each is a value for `LoggingProxy.spoilt_by`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.http_proxy import Answer, Exchange


def error_document(status: int, code: str = "", headers: str = "") -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode() if code else b""
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/xml\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass(frozen=True)
class Says:
    """Another answer, whole; as a HEAD's, without its body."""

    raw: bytes

    async def __call__(self, exchange: Exchange) -> bool:
        head, end, body = self.raw.partition(b"\r\n\r\n")
        await exchange.send(head + end, b"" if exchange.method == "HEAD" else body)
        return True


def status(number: int, code: str = "", headers: str = "") -> Says:
    return Says(error_document(number, code, headers))


@dataclass(frozen=True)
class ResetsFirst:
    """RST in the place of an answer."""

    async def __call__(self, exchange: Exchange) -> bool:
        exchange.reset()
        return False


@dataclass(frozen=True)
class Breaks:
    """Half of the body, then RST (`how="reset"`), FIN ("close"), or nothing more for an hour ("stall")."""

    how: str

    async def __call__(self, exchange: Exchange) -> bool:
        answer = await exchange.answer()
        await exchange.send(answer.head, answer.body[: len(answer.body) // 2])
        if self.how == "stall":
            await asyncio.sleep(3600)
        elif self.how == "reset":
            await asyncio.sleep(0.02)  # else the RST takes the half that was sent along
            exchange.reset()
        return False


@dataclass(frozen=True)
class Delays:
    """The right answer, late."""

    seconds: float

    async def __call__(self, exchange: Exchange) -> bool:
        answer = await exchange.answer()
        await asyncio.sleep(self.seconds)
        await exchange.send(answer.head, answer.body)
        return True


@dataclass(frozen=True)
class SwallowsAll:
    """A black hole: accepts, never answers."""

    async def __call__(self, exchange: Exchange) -> bool:
        await asyncio.sleep(3600)
        return False


@dataclass(frozen=True)
class Rewrites:
    """The right answer after `change`; its Content-Length is made to fit."""

    change: Callable[[Exchange, Answer], Answer]

    async def __call__(self, exchange: Exchange) -> bool:
        answer = self.change(exchange, await exchange.answer())
        if exchange.method != "HEAD":
            answer.head = with_field(answer.head, "Content-Length", str(len(answer.body)))
        await exchange.send(answer.head, answer.body)
        return True


def with_field(head: bytes, name: str, value: str) -> bytes:
    """The head with this field's value in the place of the one it had."""
    line = re.compile(rb"(?im)^" + name.encode() + rb":[^\r\n]*\r\n")
    assert line.search(head), f"there is no {name} to change in {head!r}"
    return line.sub(f"{name}: {value}\r\n".encode(), head)


def other_etag() -> Rewrites:
    return Rewrites(lambda _, a: Answer(with_field(a.head, "ETag", '"0123456789abcdef0123456789abcdef"'), a.body))


def short_by_a_half() -> Rewrites:
    """A body that is too short and a Content-Length that says the same."""
    return Rewrites(lambda _, a: Answer(a.head, a.body[: len(a.body) // 2]))


def other_range() -> Rewrites:
    """Right length, but the bytes are said to be (and are not) those 131072 further on."""

    def change(_: Exchange, answer: Answer) -> Answer:
        found = re.search(rb"(?i)content-range: bytes (\d+)-(\d+)/(\d+)", answer.head)
        if not found:
            return answer
        first, last, total = map(int, found.groups())
        return Answer(
            with_field(answer.head, "Content-Range", f"bytes {first + 131072}-{last + 131072}/{total}"), answer.body
        )

    return Rewrites(change)


def whole_object(data: bytes, etag: str) -> Says:
    """200 with everything, whatever range was asked for."""
    head = f"HTTP/1.1 200 OK\r\nETag: {etag}\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    return Says(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)


GARBAGE = Says(
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 33\r\n\r\n<html>Please log in first!</html>"
)
