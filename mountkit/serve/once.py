"""Requests that are answered once: what a writable mount's answers have in common, whatever is asked.

A question is answered from this machine, or when the bucket has been asked. A mutation commits its effect and its
answer in one transaction, under the kernel's number of the request; when the kernel hands it out again after a server's
death, or the next server does it again, that answer is given and nothing is done twice.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from typing import TypeVar

from mountkit.serve import messages
from mountkit.serve import output_messages as out
from mountkit.serve.asking import Asking, MustAsk
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.responder import Responder
from mountkit.serve.shared import SharedMemory
from mountkit.serve.values import Done, FileSystemError
from mountkit.serve.wire import Wire
from mountkit.staging.journal import Journal

RESEND = messages.UNIQUE_RESEND
T = TypeVar("T")


class OnceResponder(Responder):
    """Raw answers of the one server of a writable mount, less what each request means."""

    def __init__(
        self,
        wire: Wire,
        bucket: InputFileSystem,
        shared: SharedMemory,
        slot: int,
        *,
        journal: Journal,
        asking: Asking,
    ) -> None:
        super().__init__(wire, bucket, shared, slot)
        self._journal, self._asking = journal, asking

    def _ask(self, unique: int, pid: int, question: Callable[[], T], answer: Callable[[T], object]) -> None:
        """Answers a question at once, or when the bucket has been asked."""
        try:
            found = question()
        except MustAsk as need:
            first = need
        else:
            answer(found)
            return

        async def wait() -> None:
            answer(await self._asking.settle(first, question))

        wait.__qualname__ = question.__qualname__  # whose failure it is, in the log
        self._start(unique, pid, wait)

    def _mutate(self, unique: int, pid: int, change: Callable[[], bytes | None]) -> None:
        """Does something once, however often the kernel hands it out, and answers."""
        _, opcode, *_ = messages.IN_HEADER.unpack_from(self._wire.buffer)
        request = unique & ~RESEND
        if self._again or unique & RESEND:
            body = self._journal.reply(request, opcode)
            if body is not None:
                self._wire.send(out.reply(unique, body))
                return

        def attempt() -> bytes:
            failure: Done | None = None
            with self._journal.transaction():
                try:
                    body = change() or b""
                    self._journal.remember_reply(request, opcode, body)
                except Done as exc:
                    failure = exc
            if failure is not None:
                raise FileSystemError(failure.errno)
            return body

        attempt.__qualname__ = change.__qualname__
        self._ask(unique, pid, attempt, lambda body: self._wire.send(out.reply(unique, body)))

    def _fail(self, unique: int, exc: Exception, what: Callable[..., object]) -> None:
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            exc = FileSystemError(exc.errno)
        elif isinstance(exc, sqlite3.OperationalError) and exc.sqlite_errorcode == sqlite3.SQLITE_FULL:
            exc = FileSystemError(errno.ENOSPC)
        super()._fail(unique, exc, what)
