"""The raw answers of a server: what is answered at once, what waits, what is begun again, who is let go."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mountkit.cache.checked import Missing
from mountkit.cache.objects import Stamp
from mountkit.cache.reader import SealedFile
from mountkit.catalog.values import SEALED_BIT
from mountkit.serve import messages, session
from mountkit.serve.messages import Attributes
from mountkit.serve.responder import Responder
from mountkit.serve.shared import ServerCounters, SharedMemory
from mountkit.serve.values import DirectoryEntry, FileSystemError, Found, NotNow
from tests.unit.mover.harness import in_trio, settled

UNIQUE, INODE = 8, 77
FILE = Attributes(INODE, 0o100444, 10, 0, 1, 0, 0)


class FakeWire:
    """The kernel's side: a request in the buffer, answers in a list."""

    def __init__(self) -> None:
        self.buffer = bytearray(4096)
        self.kernel = -1
        self.sent: list[bytes] = []
        self.somebody_waits = True

    def send(self, *pieces: bytes) -> bool:
        self.sent.append(b"".join(pieces))
        return self.somebody_waits

    def errors(self) -> list[int]:
        """The errno of each answer, 0 for none."""
        return [-messages.OUT_HEADER.unpack_from(answer)[1] for answer in self.sent]


@dataclass
class FakeFiles:
    """A file system that says what a test gives it, one after another, and the last one for ever."""

    counters: ServerCounters = field(default_factory=ServerCounters)
    says: dict[str, list[Any]] = field(default_factory=dict)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    budget_s: float = 10.0
    is_barred: Callable[[int], bool] = lambda _: False

    def __post_init__(self) -> None:
        self.names = self.listing = self.doubts = self

    def _say(self, name: str, *arguments: Any) -> Any:
        self.asked.append((name, *arguments))
        answers = self.says[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def lookup_now(self, parent: int, name: bytes) -> Any:
        return self._say("lookup_now", parent, name)

    async def lookup(self, parent: int, name: bytes) -> Any:
        answer = self._say("lookup", parent, name)
        if callable(answer):
            return await answer()
        return answer

    def attributes_now(self, inode: int) -> Any:
        return self._say("attributes_now", inode)

    def read_now(self, inode: int, offset: int, size: int) -> Any:
        return self._say("read_now", inode, offset, size)

    async def read(self, inode: int, offset: int, size: int) -> Any:
        return self._say("read", inode, offset, size)

    def note_read(self, *_: int) -> None:
        return None

    def sealed_now(self, inode: int) -> Any:
        return self._say("sealed_now", inode)

    def fresh_after(self) -> float:
        return float(self._say("fresh_after"))

    def entries_now(self, inode: int, cookie: int, *, fresh_after: float) -> Any:
        return self._say("entries_now", inode, cookie, fresh_after)

    async def patiently(self, wait: Callable[[], Awaitable[None]]) -> None:
        deadline = trio.current_time() + self.budget_s
        while True:
            try:
                return await wait()
            except NotNow:
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(0.1)


@dataclass
class Bench:
    wire: FakeWire
    files: FakeFiles
    shared: SharedMemory
    responder: Responder

    def ask(self, opcode: int, rest: bytes = b"", *, inode: int = INODE, pid: int = 0, unique: int = UNIQUE) -> None:
        request = messages.IN_HEADER.pack(40 + len(rest), opcode, unique, inode, 0, 0, pid, 0, 0) + rest
        self.wire.buffer[: len(request)] = request
        self.responder.handlers()[opcode](unique, inode, pid, len(request))
        self.wire.buffer[: len(request)] = bytes(len(request))  # the next request comes

    def ask_name(self, name: bytes, **more: Any) -> None:
        self.ask(messages.LOOKUP, name + b"\0", **more)

    def ask_piece(self, opcode: int, offset: int, size: int) -> None:
        self.ask(opcode, messages._READ_IN.pack(INODE, offset, size, 0))


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    fd = SharedMemory.create()
    memory = SharedMemory(fd)
    yield memory
    memory.close()
    os.close(fd)


@asynccontextmanager
async def answering(shared: SharedMemory, **says: list[Any]) -> AsyncIterator[Bench]:
    wire, files = FakeWire(), FakeFiles(says=says)
    responder = Responder(wire, files, shared, 0)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await nursery.start(responder.run)
        yield Bench(wire, files, shared, responder)
        nursery.cancel_scope.cancel()


@in_trio
async def test_what_is_known_is_answered_in_the_same_turn(shared: SharedMemory) -> None:
    async with answering(shared, lookup_now=[Found(FILE, 2.0), Found(None, 2.0)]) as bench:
        bench.ask_name(b"cat.jpg")
        bench.ask_name(b"dog.jpg")
        assert bench.wire.sent == [messages.entry(UNIQUE, FILE, 2.0), messages.negative_entry(UNIQUE, 2.0)]
        assert [asked[2] for asked in bench.files.asked] == [b"cat.jpg", b"dog.jpg"]
        assert (bench.files.counters.requests, bench.files.counters.lookups) == (2, 2)


@in_trio
async def test_what_has_to_wait_is_written_down_until_it_is_answered(shared: SharedMemory) -> None:
    """Below Linux 6.9 the keeper answers a dead server's requests from there."""
    came = trio.Event()

    async def later() -> Found:
        await came.wait()
        return Found(FILE, 2.0)

    async with answering(shared, lookup_now=[None], lookup=[later]) as bench:
        bench.ask_name(b"cat.jpg")
        await settled()
        assert bench.wire.sent == []
        assert shared.in_flight(0) == {UNIQUE}
        came.set()
        await settled()
        assert bench.wire.sent == [messages.entry(UNIQUE, FILE, 2.0)]
        assert shared.in_flight(0) == set()


@in_trio
async def test_what_meets_a_catalog_that_moves_is_begun_again_with_its_own_request(
    shared: SharedMemory, clock: MockClock
) -> None:
    """[failures-7] Another request lies in the buffer by then."""
    piece = b"some bytes"
    says = {"read_now": [NotNow(), NotNow(), piece], "attributes_now": [NotNow(), (FILE, 1.0)]}
    async with answering(shared, **says) as bench:
        bench.ask_piece(messages.READ, 4096, 10)
        bench.ask(messages.GETATTR)
        assert bench.wire.sent == []
        await trio.sleep(1)
        assert bench.files.asked.count(("read_now", INODE, 4096, 10)) == 3
        assert sorted(bench.wire.sent) == sorted(
            [messages.data_header(UNIQUE, 10) + piece, messages.attributes(UNIQUE, FILE, 1.0)]
        )
        assert bench.files.counters.errors == 0


@in_trio
async def test_a_catalog_that_stays_away_is_eio_when_the_budget_is_spent(
    shared: SharedMemory, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """[failures-2]"""
    caplog.set_level("INFO")
    async with answering(shared, attributes_now=[NotNow()]) as bench:
        started = trio.current_time()
        bench.ask(messages.GETATTR)
        while not bench.wire.sent:
            await trio.sleep(0.1)
        assert bench.wire.errors() == [errno.EIO]
        assert trio.current_time() - started == pytest.approx(10.0, abs=0.5)
        assert bench.files.counters.errors == 1
        assert "EIO" in caplog.text


@pytest.mark.parametrize(
    ("raised", "counted"),
    [(errno.ENOENT, 0), (errno.ESTALE, 0), (errno.ENODATA, 0), (errno.EACCES, 1), (errno.ENOSPC, 1)],
)
def test_errors_reach_the_caller_and_only_those_that_are_faults_count(
    shared: SharedMemory, raised: int, counted: int
) -> None:
    @in_trio
    async def test() -> None:
        async with answering(shared, attributes_now=[FileSystemError(raised)]) as bench:
            bench.ask(messages.GETATTR)
            assert bench.wire.errors() == [raised]
            assert bench.files.counters.errors == counted

    test()


@in_trio
async def test_what_nobody_foresaw_is_eio_and_the_server_goes_on(
    shared: SharedMemory, caplog: pytest.LogCaptureFixture
) -> None:
    says = {"attributes_now": [ZeroDivisionError(), (FILE, 1.0)], "lookup_now": [None], "lookup": [KeyError("x")]}
    async with answering(shared, **says) as bench:
        bench.ask(messages.GETATTR)
        bench.ask_name(b"x")
        await settled()
        bench.ask(messages.GETATTR)
        assert bench.wire.errors() == [errno.EIO, errno.EIO, 0]
        assert caplog.text.count("nobody foresaw") == 2


@in_trio
async def test_who_was_killed_while_he_waits_is_let_go(shared: SharedMemory, clock: MockClock) -> None:
    """[failures-2]"""
    with subprocess.Popen(["true"]) as caller:
        caller.wait()
    async with answering(shared, lookup_now=[None], lookup=[trio.sleep_forever]) as bench:
        bench.ask_name(b"dead", pid=caller.pid)
        bench.ask_name(b"alive", pid=os.getpid(), unique=UNIQUE + 2)
        bench.ask_name(b"unseen", pid=0, unique=UNIQUE + 4)
        await trio.sleep(3)
        assert bench.wire.sent == [messages.failed(UNIQUE, errno.EINTR)]
        assert shared.in_flight(0) == {UNIQUE + 2, UNIQUE + 4}


@in_trio
async def test_a_read_of_what_is_missing_waits_and_counts_as_a_miss(shared: SharedMemory) -> None:
    async with answering(shared, read_now=[Missing(0, 0)], read=[b"bytes"]) as bench:
        bench.ask_piece(messages.READ, 0, 5)
        await settled()
        assert bench.wire.sent == [messages.data_header(UNIQUE, 5) + b"bytes"]
        counters = bench.files.counters
        assert (counters.hits, counters.misses, counters.reads, counters.read_bytes) == (0, 1, 1, 5)


@in_trio
async def test_entries_that_do_not_fit_are_left_for_the_next_request(shared: SharedMemory) -> None:
    entries = [DirectoryEntry(b"name%d" % n, n, FILE, 1.0) for n in range(5)]
    record = messages.directory_entry(b"name0", 0, FILE, 1.0)
    async with answering(shared, fresh_after=[0.0], entries_now=[entries]) as bench:
        bench.ask_piece(messages.READDIRPLUS, 0, 3 * len(record) + 5)
        assert bench.wire.sent[0][16:].count(b"name") == 3


@in_trio
async def test_one_readdir_keeps_its_freshness_and_a_clock_set_back_does_not_ask_the_future(
    shared: SharedMemory,
) -> None:
    async with answering(shared, fresh_after=[1000.0, 1000.0, 1030.0, 400.0], entries_now=[[]]) as bench:
        for cookie in (0, 17, 23):
            bench.ask_piece(messages.READDIRPLUS, cookie, 4096)
        asked = [asked[3] for asked in bench.files.asked if asked[0] == "entries_now"]
        assert asked == [1000.0, 1000.0, 400.0]


@in_trio
async def test_a_native_open_that_nobody_waits_for_is_taken_back(
    shared: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    monkeypatch.setattr(session, "open_backing", lambda *_: 5)
    monkeypatch.setattr(session, "close_backing", lambda _fd, number: closed.append(number))
    inode = INODE | SEALED_BIT

    files = [SealedFile(os.open("/dev/null", os.O_RDONLY), Stamp(1, 2, 3, 4, b"")) for _ in range(2)]
    async with answering(shared, sealed_now=list[Any](files)) as bench:
        bench.ask(messages.OPEN, inode=inode)
        assert bench.wire.sent == [messages.opened(UNIQUE, inode, bench_flags(), 5)]
        bench.wire.somebody_waits = False
        bench.ask(messages.OPEN, inode=inode)
        assert closed == [], "the first open still uses it"
        bench.ask(messages.RELEASE, inode=inode)
        assert closed == [5]


def bench_flags() -> int:
    return messages.FOPEN_PASSTHROUGH | messages.FOPEN_NOFLUSH


@in_trio
async def test_a_file_sealed_again_while_the_old_one_is_open_is_looked_up_anew(
    shared: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[bytes-1]"""
    monkeypatch.setattr(session, "open_backing", lambda *_: 5)
    inode = INODE | SEALED_BIT
    old, new = (SealedFile(os.open("/dev/null", os.O_RDONLY), Stamp(1, 2, ctime, 4, b"")) for ctime in (3, 9))
    async with answering(shared, sealed_now=[old, new]) as bench:
        bench.ask(messages.OPEN, inode=inode)
        assert not bench.files.is_barred(inode)
        bench.ask(messages.OPEN, inode=inode)
        assert bench.wire.errors() == [0, errno.ESTALE]
        assert bench.files.is_barred(inode)


@in_trio
async def test_a_release_that_is_handed_out_again_counts_once(
    shared: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    monkeypatch.setattr(session, "close_backing", lambda _fd, number: closed.append(number))
    inode = INODE | SEALED_BIT
    for _ in range(2):
        shared.acquire_backing(inode, 1, lambda: 5)
    async with answering(shared) as bench:
        with contextlib.suppress(OSError):
            bench.ask(messages.RELEASE, inode=inode)
            bench.ask(messages.RELEASE, inode=inode, unique=UNIQUE | messages.UNIQUE_RESEND)
        assert closed == [], "one handle is still open"
        assert bench.wire.errors() == [0, 0]
