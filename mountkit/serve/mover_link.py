"""A server's or keeper's connection to the mover: requests that outlive the mover's death.

A request is sent again over a new connection when the mover went away before it answered; everything a mover does is
idempotent. A request that got no answer within its budget raises StoreUnavailable.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import trio

from mountkit import errors
from mountkit.config import MountSettings
from mountkit.ipc import Channel, ChannelClosed, Message

log = logging.getLogger(__name__)
_RETRY_S = 0.1
_OPENED_S = 0.01
_MOST_OPENED = 4096


class MoverLink:
    """Connects when first used, again whenever the connection broke. One task must run `run`."""

    def __init__(
        self,
        socket_path: str,
        hello: dict[str, Any] | None = None,
        *,
        on_place: Callable[[Message], None] | None = None,
        settings: MountSettings | None = None,
    ) -> None:
        """`on_place` is called for every connection, before anything is asked over it: where this mover has catalog
        and cache, and the settings it was started with. It closes the message's descriptors. `settings`: those of the
        mount that asks."""
        self._path = socket_path
        self._on_place = on_place
        self._asks = {"op": "place", "id": 0} | ({"settings": settings.to_json()} if settings else {})
        self._hello = hello
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[trio.Event, list[Message | None]]] = {}
        self._channel: Channel | None = None
        self._connected = trio.Event()
        self.lost = trio.Event()
        """Set when a connection breaks; a new event takes its place."""
        self.listens = True
        """Whether the mover wants to hear of files that are opened without its help; it says so itself."""
        self._opened: list[int] = []
        self._entered: list[int] = []
        self._somebody_opened = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the connection and hands answers to whoever waits, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_opened)
            task_status.started()
            await self._keep_connected()

    async def _keep_connected(self) -> None:
        while True:
            try:
                channel = await Channel.connect(self._path)
            except (OSError, ChannelClosed):
                await trio.sleep(_RETRY_S)
                continue
            try:
                if self._hello:
                    await channel.send(self._hello)
                if self._on_place:
                    await channel.send(self._asks)
                    self._on_place(await channel.receive())
                self._channel = channel
                self._connected.set()
                while True:
                    self._hand_over(await channel.receive())
            except ChannelClosed:
                log.info("the mover is gone; connecting again")
            finally:
                channel.close()
                self._channel = None
                if self._connected.is_set():  # else somebody waits for this very event
                    self._connected = trio.Event()
                lost, self.lost = self.lost, trio.Event()
                lost.set()
                self._wake_all()
            await trio.sleep(_RETRY_S)

    async def linked(self) -> None:
        """Waits until there is a connection."""
        while self._channel is None:
            await self._connected.wait()

    def _hand_over(self, message: Message) -> None:
        waiter = self._waiting.get(int(message.body.get("id", 0)))
        if waiter and "progress" not in message.body:
            waiter[1].append(message)
            waiter[0].set()

    def _wake_all(self) -> None:
        for event, answers in self._waiting.values():
            answers.append(None)
            event.set()

    async def call(self, op: str, *, budget_s: float, **arguments: Any) -> Message:
        """The mover's answer. Raises the MountkitError it sent, StoreUnavailable when the budget is spent."""
        with trio.move_on_after(budget_s):
            while True:
                await self._connected.wait()
                answer = await self._try(op, arguments)
                if answer is None:
                    continue
                if "error" in answer.body:
                    raise errors.from_json(answer.body["error"])
                return answer
        raise errors.StoreUnavailable(f"the mover did not answer `{op}` within {budget_s:g} s")

    async def _try(self, op: str, arguments: dict[str, Any]) -> Message | None:
        """One attempt; None if the connection broke meanwhile."""
        if self._channel is None:
            return None
        ident = next(self._ids)
        event, answers = trio.Event(), list[Message | None]()
        self._waiting[ident] = event, answers
        try:
            await self._channel.send({"op": op, "id": ident, **arguments})
            await event.wait()
            return answers[0]
        except ChannelClosed:
            await trio.lowlevel.checkpoint()
            return None
        finally:
            del self._waiting[ident]

    async def tell(self, op: str, **arguments: Any) -> None:
        """Sends something that needs no answer; it is lost if nobody is there."""
        if self._channel is not None:
            try:
                await self._channel.send({"op": op, **arguments})
            except ChannelClosed:
                return

    def note_opened(self, object_id: int) -> None:
        """Has the mover told, in a moment and with others, that this file was opened from the cache, if it listens."""
        if self.listens and len(self._opened) < _MOST_OPENED:
            self._opened.append(object_id)
            self._somebody_opened.set()

    def note_entered(self, directory_id: int) -> None:
        """Has the mover told, in a moment and with others, that somebody begins to read this directory."""
        self._entered.append(directory_id)
        self._somebody_opened.set()

    async def _tell_opened(self) -> None:
        while True:
            await self._somebody_opened.wait()
            await trio.sleep(_OPENED_S)
            self._somebody_opened = trio.Event()
            opened, self._opened = self._opened, []
            entered, self._entered = self._entered, []
            if entered:
                await self.tell("entered", directories=entered)
            if opened and (answer := await self._try("opened", {"objects": opened})) is not None:
                self.listens = bool(answer.body.get("listens", True))
