"""The raw answers of a writable mount's server: what is undone when an operation cannot be committed."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from mountkit.serve import messages, session
from mountkit.serve import output_messages as out
from mountkit.serve.asking import MustAsk
from mountkit.serve.output_responder import OutputResponder
from mountkit.serve.shared import SharedMemory
from mountkit.serve.values import FileSystemError
from tests.unit.mover.harness import in_trio, settled
from tests.unit.serve.outputs import RW, Outputs
from tests.unit.serve.test_responder import FakeFiles, FakeWire

_CREATE_IN = struct.Struct("<IIII")


class Native:
    """A server that opens files in passthrough, over a kernel that counts backing files."""

    def __init__(self, outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backings: set[int] = set()
        self.wire, self._fd = FakeWire(), SharedMemory.create()
        files: Any = FakeFiles()
        shared = SharedMemory(self._fd)
        self._responder = OutputResponder(self.wire, outputs.fs, files, shared, 0, passthrough=True)  # type: ignore[arg-type]
        monkeypatch.setattr(session, "open_backing", self._open)
        monkeypatch.setattr(session, "close_backing", lambda _, number: self.backings.remove(number))
        self._opened = 0

    def _open(self, _kernel: int, _fd: int) -> int:
        self._opened += 1
        self.backings.add(self._opened)
        return self._opened

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Requests may have to wait meanwhile."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._responder.run)
            yield
            nursery.cancel_scope.cancel()

    def create(self, name: bytes) -> int:
        """The errno of the answer."""
        self.begin_create(name)
        return self.wire.errors()[-1]

    def begin_create(self, name: bytes) -> None:
        rest = _CREATE_IN.pack(RW, 0o100644, 0, 0) + name + b"\0"
        request = messages.IN_HEADER.pack(40 + len(rest), out.CREATE, 8, 1, 0, 0, 0, 0, 0) + rest
        self.wire.buffer[: len(request)] = request
        self._responder.handlers()[out.CREATE](8, 1, 0, len(request))

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def native(out: Outputs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Native]:
    made = Native(out, monkeypatch)
    yield made
    made.close()


@in_trio
async def test_a_create_that_cannot_be_committed_keeps_no_backing_file_and_may_be_repeated(
    out: Outputs, native: Native, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next file gets the same inode number: the backing file of this one would bar it."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    caplog.set_level("INFO")
    with monkeypatch.context() as once:
        once.setattr(out.journal, "remember_reply", full)
        assert native.create(b"a") == errno.ENOSPC
    assert native.backings == set()
    assert "create was answered with ENOSPC" in caplog.text
    assert native.create(b"a") == 0
    assert len(native.backings) == 1


@in_trio
async def test_the_log_names_what_failed_after_the_bucket_was_asked(
    out: Outputs, native: Native, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refused() -> None:
        raise FileSystemError(errno.EACCES)

    def asks(*_: object) -> None:
        raise MustAsk("it", refused)

    caplog.set_level("INFO")
    monkeypatch.setattr(out.fs.entries, "create", asks)
    async with native.waiting():
        native.begin_create(b"a")
        await settled()
    assert native.wire.errors() == [errno.EACCES]
    assert "create was answered with EACCES" in caplog.text
