"""Requests that are answered once: what a writable mount's answers have in common, whatever is asked.

A question is answered from this machine, or when the bucket has been asked. A mutation commits its effect and its
answer in one transaction, under the kernel's number of the request; when the kernel hands it out again after a server's
death, that answer is given and nothing is done twice. Where the kernel hands out nothing again, the requests a dead
server had in its hands are found in shared memory and done by the next.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mountkit.serve import messages
from mountkit.serve import output_messages as out
from mountkit.serve.asking import Asking, MustAsk
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.responder import Responder
from mountkit.serve.shared import SharedMemory
from mountkit.serve.values import Done, FileSystemError
from mountkit.serve.wire import RawHandler, Wire
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
        self._again = False

    def do_again(self, handlers: dict[int, RawHandler]) -> None:
        """Does by these handlers what a dead server had in its hands, where the kernel does not hand it out again.

        Perhaps it was done, perhaps even answered: then its transaction says so, and the kernel ignores the answer.
        """
        buffer = self._wire.buffer
        requests = self._shared.waiting(self._slot)
        length, _, newest, *_ = messages.IN_HEADER.unpack_from(buffer)
        requests = [each for each in requests if each[0] != newest] + [(newest, bytes(buffer[:length]))]
        self._shared.clear_in_flight(self._slot)
        self._again = True
        for unique, request in requests:
            length, opcode, found, inode, _, _, pid, _, _ = messages.IN_HEADER.unpack_from(request.ljust(40, b"\0"))
            handler = handlers.get(opcode)
            if found != unique or length > len(request):
                self._wire.send(messages.failed(unique, errno.ESTALE))  # the kernel asks once more
            elif handler is not None:
                buffer[:length] = request[:length]
                handler(unique, inode, pid, length)
        self._again = False

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

        self._ask(unique, pid, attempt, lambda body: self._wire.send(out.reply(unique, body)))

    def _start(self, unique: int, pid: int, wait: Callable[[], Awaitable[None]]) -> None:
        length, *_ = messages.IN_HEADER.unpack_from(self._wire.buffer)
        if self._places:
            self._shared.store_waiting(self._places[-1], self._wire.buffer[:length])
        super()._start(unique, pid, wait)

    def _fail(self, unique: int, exc: Exception, what: Callable[..., object]) -> None:
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            exc = FileSystemError(exc.errno)
        elif isinstance(exc, sqlite3.OperationalError) and exc.sqlite_errorcode == sqlite3.SQLITE_FULL:
            exc = FileSystemError(errno.ENOSPC)
        super()._fail(unique, exc, what)
