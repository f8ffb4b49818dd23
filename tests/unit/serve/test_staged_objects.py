"""Objects of the bucket that are to be changed."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from mountkit.serve.asking import MustAsk
from mountkit.serve.values import Done, FileSystemError
from tests.unit.serve.outputs import RW, Outputs


@pytest.fixture
def staging(out: Outputs, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bucket holds `x`, and a mover stages what it is asked to; the numbers of the files it was given."""
    out.holds("x")
    numbers: list[int] = []

    async def call(op: str, *, budget_s: float, **arguments: Any) -> dict[str, Any]:
        assert op == "stage"
        numbers.append(arguments["file"])
        os.pwrite(out.staging.descriptor(arguments["file"]), b"abc", 0)
        await trio.lowlevel.checkpoint()
        return {}

    monkeypatch.setattr(out.fs.overlay, "call", call)
    return numbers


def opened(out: Outputs) -> int:
    """The errno of opening `x` to change it, the bucket asked as often as need be."""
    row = out.fs.names.lookup(1, b"x").row
    return settled(out, lambda: out.fs.files.open(row.id, RW) if row else None)


def settled(out: Outputs, operation: Callable[[], object]) -> int:
    async def ask() -> int:
        return await asked(out, operation)

    return trio.run(ask)


async def asked(out: Outputs, operation: Callable[[], object]) -> int:
    failure: Done | None = None

    def attempt() -> None:
        nonlocal failure
        with out.journal.transaction():
            try:
                operation()
            except Done as exc:
                failure = exc

    try:
        try:
            attempt()
        except MustAsk as need:
            await out.fs.names.asking.settle(need, attempt)
    except FileSystemError as exc:
        return exc.errno
    return failure.errno if failure else 0


@contextlib.contextmanager
def no_commit(out: Outputs) -> Iterator[None]:
    """As on a full disk."""
    out.journal.db.execute(
        "CREATE TRIGGER full BEFORE INSERT ON entry BEGIN SELECT raise(ROLLBACK, 'database or disk is full'); END"
    )
    try:
        yield
    finally:
        out.journal.db.execute("DROP TRIGGER full")


def test_an_object_to_be_changed_has_to_be_staged_first(out: Outputs) -> None:
    out.holds("x")
    row = out.fs.names.lookup(1, b"x").row
    assert row is not None
    with pytest.raises(MustAsk) as caught:
        out.do(out.fs.files.open, row.id, RW)
    assert caught.value.about == ("stage", row.id)


def test_a_staged_object_takes_the_name(out: Outputs, staging: list[int]) -> None:
    assert opened(out) == errno.ESTALE
    node = out.fs.names.lookup(1, b"x").node
    assert node is not None
    assert [node.file] == staging == out.staging.numbers()


def test_what_was_staged_in_vain_takes_no_room(out: Outputs, staging: list[int]) -> None:
    """The name is gone when the bytes are there."""
    row = out.fs.names.lookup(1, b"x").row
    assert row is not None

    def opening() -> None:
        if staging and out.fs.names.lookup(1, b"x").exists:
            out.fs.entries.unlink(1, b"x")
        out.fs.files.open(row.id, RW)

    assert settled(out, opening) == errno.ESTALE
    assert len(staging) == 1
    assert out.staging.numbers() == []
    assert out.journal.db.execute("SELECT count(*) FROM file").fetchone() == (0,)


def test_a_journal_that_cannot_be_written_leaves_nothing_staged_and_the_next_open_stages_anew(
    out: Outputs, staging: list[int]
) -> None:
    with no_commit(out), pytest.raises(sqlite3.Error):
        opened(out)
    assert out.staging.numbers() == []
    assert opened(out) == errno.ESTALE
    assert len(out.staging.numbers()) == 1
    assert len(staging) == 2


def test_two_who_open_an_object_at_once_get_one_file(out: Outputs, staging: list[int]) -> None:
    row = out.fs.names.lookup(1, b"x").row
    assert row is not None
    found: list[int] = []

    async def open_twice() -> None:
        async def open_once() -> None:
            found.append(await asked(out, lambda: out.fs.files.open(row.id, RW)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_once)
            nursery.start_soon(open_once)

    trio.run(open_twice)
    assert found == [errno.ESTALE, errno.ESTALE]
    assert len(out.staging.numbers()) == 1


def test_who_shares_staged_bytes_with_an_open_that_fails_stages_them_again(out: Outputs, staging: list[int]) -> None:
    row = out.fs.names.lookup(1, b"x").row
    assert row is not None
    found: dict[str, int] = {}

    def fails() -> None:
        out.fs.files.open(row.id, RW) if not staging else None
        raise FileSystemError(errno.ENOSPC)

    async def open_both() -> None:
        async def open_once(name: str, operation: Callable[[], object]) -> None:
            found[name] = await asked(out, operation)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_once, "one", fails)
            nursery.start_soon(open_once, "other", lambda: out.fs.files.open(row.id, RW))

    trio.run(open_both)
    assert found == {"one": errno.ENOSPC, "other": errno.ESTALE}
    assert len(out.staging.numbers()) == 1
