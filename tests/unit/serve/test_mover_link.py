"""The connection to the mover: requests outlive it, budgets end, nobody is stranded."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mountkit import ipc
from mountkit.errors import AccessDenied, StoreUnavailable
from mountkit.ipc import Channel, Message, Progress
from mountkit.serve.mover_link import MoverLink
from tests.unit.mover.harness import in_trio

Handler = Callable[[Message, Progress], Awaitable[dict[str, Any]]]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "mover")


def listener(path: str) -> trio.socket.SocketType:
    """A listening socket made without a thread, in whose time the clock would jump."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(8)
    return trio.socket.from_stdlib_socket(sock)


@asynccontextmanager
async def mover(path: str, handler: Handler) -> AsyncIterator[trio.CancelScope]:
    """A mover at `path`; cancelling the scope is its death."""
    with listener(path) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ipc.serve, sock, lambda channel: ipc.answer_requests(channel, handler))
            yield nursery.cancel_scope
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def linked(path: str, hello: dict[str, Any] | None = None) -> AsyncIterator[MoverLink]:
    async with trio.open_nursery() as nursery:
        link = MoverLink(path, hello)
        await nursery.start(link.run)
        yield link
        nursery.cancel_scope.cancel()


async def echo(request: Message, _: Progress) -> dict[str, Any]:
    return {"got": request.body}


@in_trio
async def test_answers_find_who_asked(path: str, clock: MockClock) -> None:
    async def handler(request: Message, progress: Progress) -> dict[str, Any]:
        await progress({"half": True})
        await trio.sleep(request.body["n"] % 3)
        return {"n": request.body["n"]}

    answers = dict[int, int]()

    async def ask(link: MoverLink, n: int) -> None:
        answers[n] = (await link.call("count", budget_s=10, n=n)).body["n"]

    async with mover(path, handler), linked(path) as link:
        async with trio.open_nursery() as nursery:
            for n in range(9):
                nursery.start_soon(ask, link, n)
    assert answers == {n: n for n in range(9)}


@in_trio
async def test_the_movers_error_is_raised_by_its_name(path: str, clock: MockClock) -> None:
    async def handler(*_: object) -> dict[str, Any]:
        raise AccessDenied("not yours", "ask")

    async with mover(path, handler), linked(path) as link:
        with pytest.raises(AccessDenied, match="not yours"):
            await link.call("open", budget_s=10)


@in_trio
async def test_a_request_outlives_the_movers_death(path: str, clock: MockClock) -> None:
    """[failures-1]"""
    asked = trio.Event()

    async def hang(*_: object) -> dict[str, Any]:
        asked.set()
        await trio.sleep_forever()
        raise AssertionError

    answers = list[Message]()
    async with linked(path) as link:
        lost = link.lost

        async def ask() -> None:
            answers.append(await link.call("fetch", budget_s=10, object=7))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            async with mover(path, hang) as life:
                await asked.wait()
                life.cancel()
            await lost.wait()
            assert link.lost is not lost and not link.lost.is_set()
            async with mover(path, echo):
                with trio.fail_after(9):
                    while not answers:
                        await wait_all_tasks_blocked()
                        await trio.sleep(0.1)
    assert answers[0].body["got"]["object"] == 7


@in_trio
async def test_a_request_without_a_mover_fails_when_its_budget_is_spent(path: str, clock: MockClock) -> None:
    """[failures-2]"""
    async with linked(path) as link:
        begun = trio.current_time()
        with pytest.raises(StoreUnavailable, match="within 5 s"):
            await link.call("fetch", budget_s=5)
        assert trio.current_time() - begun == pytest.approx(5)


@in_trio
async def test_a_request_to_a_mover_that_hangs_fails_when_its_budget_is_spent(path: str, clock: MockClock) -> None:
    """[failures-2]"""

    async def hang(request: Message, progress: Progress) -> dict[str, Any]:
        if request.body["op"] == "hang":
            await trio.sleep(30)
        return {"n": 1}

    async with mover(path, hang), linked(path) as link:
        with pytest.raises(StoreUnavailable):
            await link.call("hang", budget_s=5)
        await trio.sleep(40)  # its late answer disturbs nobody
        assert (await link.call("quick", budget_s=5)).body["n"] == 1


@in_trio
async def test_every_connection_begins_with_hello(path: str, clock: MockClock) -> None:
    seen = list[str]()

    async def handler(request: Message, _: Progress) -> dict[str, Any]:
        seen.append(request.body["op"])
        return {}

    async with linked(path, {"op": "hello"}) as link:
        for _ in range(2):
            async with mover(path, handler):
                await link.call("stats", budget_s=5)
                lost = link.lost
            await lost.wait()
    assert seen == ["hello", "stats"] * 2


@in_trio
async def test_who_waits_for_a_connection_gets_it_although_the_first_hello_failed(
    path: str, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[failures-1]"""
    real, attempts = Channel.connect, list[Channel]()

    async def connect(where: str) -> Channel:
        channel = await real(where)
        attempts.append(channel)
        if len(attempts) == 1:
            channel._socket.shutdown(socket.SHUT_RDWR)
        return channel

    monkeypatch.setattr(Channel, "connect", connect)
    async with linked(path, {"op": "hello"}) as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.linked)
        nursery.start_soon(lambda: link.call("stats", budget_s=5))
        await wait_all_tasks_blocked()
        async with mover(path, echo):
            with trio.fail_after(4):
                await link.call("stats", budget_s=5)
                await link.linked()
                while nursery.child_tasks:
                    await trio.sleep(0.1)
    assert len(attempts) == 2


@in_trio
async def test_a_request_cut_off_while_it_was_sent_is_sent_again(path: str, clock: MockClock) -> None:
    """[failures-1]"""
    answers = list[Message]()
    async with linked(path) as link, trio.open_nursery() as nursery:

        async def ask() -> None:
            answers.append(await link.call("fetch", budget_s=10, padding="x" * (8 << 20)))

        with listener(path) as deaf:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
            accepted, _ = await deaf.accept()
            await trio.sleep(1)
            assert not answers
            accepted.close()
        async with mover(path, echo):
            with trio.fail_after(8):
                while len(answers) < 2:
                    await trio.sleep(0.1)


@in_trio
async def test_what_is_told_needs_no_answer_and_no_mover(path: str, clock: MockClock) -> None:
    told = list[dict[str, Any]]()

    async def handler(request: Message, _: Progress) -> dict[str, Any]:
        told.append(request.body)
        return {}

    async with linked(path) as link:
        await link.tell("hint", offset=1)
        async with mover(path, handler):
            await link.linked()
            await link.tell("hint", offset=2)
            await link.call("stats", budget_s=5)
    assert [body.get("offset") for body in told] == [2, None]


@in_trio
async def test_the_mover_hears_of_opens_together_for_as_long_as_it_listens(path: str, clock: MockClock) -> None:
    heard = list[Any]()

    async def handler(request: Message, _: Progress) -> dict[str, Any]:
        heard.append(request.body.get("objects") or request.body.get("directories"))
        return {"listens": len(heard) < 4}

    async with linked(path) as link:
        link.note_opened(1)
        await trio.sleep(1)
        async with mover(path, handler):
            await link.linked()
            link.note_entered(7)
            for ident in (2, 3):
                link.note_opened(ident)
            await trio.sleep(1)
            assert (heard, link.listens) == ([[7], [2, 3]], True), "the first was told to nobody"
            for ident in (4, 5, 6):
                link.note_opened(ident)
                await trio.sleep(1)
            assert (heard[2:], link.listens) == ([[4], [5]], False)
            link.listens = True
            for ident in range(10_000):
                link.note_opened(ident)
            await trio.sleep(1)
            assert len(heard[-1]) < 5000
