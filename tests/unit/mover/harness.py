"""A bucket that moves only when a test lets it, and a way to write a test as a trio task."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import trio
import trio.testing

from mountkit.errors import StoreUnavailable
from mountkit.store.api import Body, ObjectInfo, Page
from tests.fakes.memory_store import MemoryStore

_STUCK_S = 20.0
"""Only a broken test waits that long."""


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The async test as pytest calls it; if it asks for the fixture `clock`, that is what trio runs by."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        clock = kwargs.get("clock")

        async def main() -> None:
            with trio.fail_after(_STUCK_S if clock is None else math.inf):
                await test(*args, **kwargs)

        trio.run(main, clock=clock)

    return run


settled = trio.testing.wait_all_tasks_blocked


class Turns:
    """A gate that lets one call through for each `allow`; open until `close`."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._open, self._allowed = True, 0

    def close(self) -> None:
        with self._condition:
            self._open = False

    def open(self) -> None:
        with self._condition:
            self._open = True
            self._condition.notify_all()

    def allow(self, count: int = 1) -> None:
        with self._condition:
            self._allowed += count
            self._condition.notify_all()

    def take(self) -> None:
        with self._condition:
            if not self._condition.wait_for(lambda: self._open or self._allowed, _STUCK_S):
                raise AssertionError("nobody opened the gate")
            if not self._open:
                self._allowed -= 1


class SteppedStore(MemoryStore):
    """A MemoryStore with small pages, whose pages and body chunks pass a gate each."""

    def __init__(self, *, page: int = 1000, chunk_bytes: int = 1 << 20) -> None:
        super().__init__(chunk_bytes=chunk_bytes)
        self.page = page
        self.pages, self.bodies = Turns(), Turns()
        self.shorten_next = self.lengthen_next = 0
        """How many bytes the next body lacks or has too many, without saying so."""
        self.down = False
        self.gets: list[tuple[bytes, int, int]] = []

    def list_page(self, prefix: bytes, *, delimiter: bytes = b"/", token: str = "", limit: int = 1000) -> Page:
        if delimiter:
            self.pages.take()
        return super().list_page(prefix, delimiter=delimiter, token=token, limit=min(limit, self.page))

    def get(self, info: ObjectInfo, offset: int, length: int, *, spent_s: float = 0.0) -> Body:
        self.gets.append((info.key, offset, length))
        extra, self.lengthen_next = self.lengthen_next, 0
        lacking, self.shorten_next = self.shorten_next, 0
        length += extra
        body = super().get(info, offset, length)
        return _Stepped(body, self.bodies, length - lacking)

    def _enter(self, call: str, key: bytes) -> None:
        super()._enter(call, key)
        if self.down:
            raise StoreUnavailable("down")


class _Stepped:
    def __init__(self, body: Body, turns: Turns, length: int) -> None:
        self.info, self._body, self._turns, self._length = body.info, body, turns, length

    def chunks(self) -> Iterator[memoryview]:
        left = self._length
        for chunk in self._body.chunks():
            self._turns.take()
            if left > 0:
                yield chunk[:left]
            left -= len(chunk)
