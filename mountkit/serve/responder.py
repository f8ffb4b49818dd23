"""The hot operations, answered raw on the wire: LOOKUP, GETATTR, OPEN, READ, RELEASE, FORGET, and those on directories.

What is on this machine is answered in the same turn (no task, no socket pair, no libfuse: half the cost of the same
answer through pyfuse3); what has to wait gets a task with a budget. OPEN must be answered here in any case: pyfuse3
cannot hand the kernel a backing file. A waiting task ends early when its caller is being killed, so `kill -9` of a
reader never has to wait for a slow bucket.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterable

import trio

from mountkit.cache.checked import Missing
from mountkit.cache.reader import SealedFile
from mountkit.catalog.values import SEALED_BIT, Kind
from mountkit.catalog.values import DirectoryEntry as NamedEntry
from mountkit.serve import messages, session
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.shared import WAITING_PLACES, AnotherFileIsOpen, BackingTableFull, SharedMemory
from mountkit.serve.values import DirectoryEntry, FileSystemError, Found, NotNow
from mountkit.serve.wire import RawHandler, Wire

log = logging.getLogger(__name__)
_SIGKILL_BIT = 1 << 8
_LISTINGS = 1024
_NOTE_S = 1.0
_ANSWERS = frozenset(
    {errno.ENOENT, errno.ESTALE, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EXDEV}
    | {errno.ENODATA, errno.ERANGE, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENAMETOOLONG}
    | {errno.EPERM, errno.ELOOP, errno.EILSEQ}
)
"""What a file system answers to a question or a wrong request: nobody failed."""
_KINDS = {Kind.FILE: stat.S_IFREG >> 12, Kind.DIRECTORY: stat.S_IFDIR >> 12}
_PLAIN = messages.FOPEN_KEEP_CACHE | messages.FOPEN_NOFLUSH
"""A handle read through us: its pages stay (an inode is one version), and it has nothing to flush."""


class Responder:
    """Raw answers of one server. `run` must run as long as the wire does."""

    def __init__(self, wire: Wire, files: InputFileSystem, shared: SharedMemory, slot: int) -> None:
        self._wire, self._shared, self._slot = wire, shared, slot
        self._files, self._names, self._listing = files, files.names, files.listing
        self._places = list(reversed(WAITING_PLACES))
        self._again = False
        """Whether what is done now was in a dead server's hands."""
        self._count = files.counters
        files.names.is_barred = shared.is_barred
        self._tasks: trio.Nursery | None = None
        self._waiting: dict[int, tuple[int, trio.CancelScope]] = {}
        self._unfinished = 0
        wire.may_linger = lambda: not self._unfinished
        self._somebody_waits = trio.Event()
        self._listing_started: dict[int, float] = {}
        self._noted_at = -_NOTE_S

    def handlers(self) -> dict[int, RawHandler]:
        answered = {
            messages.LOOKUP: self._lookup,
            messages.GETATTR: self._getattr,
            messages.OPEN: self._open,
            messages.READ: self._read,
            messages.RELEASE: self._release,
            messages.OPENDIR: self._opendir,
            messages.READDIR: self._readdir,
            messages.READDIRPLUS: self._readdirplus,
            messages.RELEASEDIR: self._releasedir,
        }
        unanswered = (messages.FORGET, messages.BATCH_FORGET, messages.INTERRUPT)
        mine = {opcode: self._guarded(operation) for opcode, operation in answered.items()}
        # Python's open() asks each file whether it is a terminal.
        return mine | {messages.IOCTL: self._refusal(errno.ENOTTY)} | dict.fromkeys(unanswered, self._no_answer)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as self._tasks:
            self._tasks.start_soon(self._watch_callers)
            task_status.started()

    def do_again(self, handlers: dict[int, RawHandler]) -> None:
        """Does by these handlers what a dead server had in its hands, where the kernel does not hand it out again.

        Perhaps it was done, perhaps even answered: then the kernel ignores the answer.
        """
        buffer = self._wire.buffer
        waiting = self._shared.waiting(self._slot)
        taken = {place for place, _, _ in waiting}
        self._places = [place for place in self._places if place not in taken]
        length, _, newest, *_ = messages.IN_HEADER.unpack_from(buffer)
        self._again = True
        # This server may die here, too: the newest goes first, as its place in the buffer is needed for the others.
        if newest:
            self._begin_again(handlers, newest, bytes(buffer[:length]))
        begun = {newest}
        for place, unique, request in waiting:
            if unique not in begun:
                begun.add(unique)
                self._begin_again(handlers, unique, request)
            self._shared.store_in_flight(self._slot, place, 0)
            if place in WAITING_PLACES:
                self._places.append(place)
        self._again = False

    # ---- operations ----------------------------------------------------------------------------------------
    def _no_answer(self, _unique: int, _inode: int, _pid: int, _length: int) -> None:
        """FORGET: inode numbers are row ids, there is nothing to forget. INTERRUPT: see `_watch_callers`."""

    def _lookup(self, unique: int, parent: int, pid: int, length: int) -> None:
        name = messages.lookup_name(self._wire.buffer, length)
        self._count.lookups += 1

        def answer(found: Found) -> None:
            if found.attributes is None:
                self._wire.send(messages.negative_entry(unique, found.timeout_s))
            else:
                self._wire.send(messages.entry(unique, found.attributes, found.timeout_s))

        async def wait() -> None:
            answer(await self._names.lookup(parent, name))

        found = self._names.lookup_now(parent, name)
        if found is not None:
            answer(found)
        else:
            self._start(unique, pid, wait)

    def _getattr(self, unique: int, inode: int, _pid: int, _length: int) -> None:
        self._wire.send(messages.attributes(unique, *self._names.attributes_now(inode)))

    def _open(self, unique: int, inode: int, pid: int, _length: int) -> None:
        self._count.opens += 1
        if inode & SEALED_BIT:
            self._open_sealed(unique, inode, pid)
            return

        async def wait() -> None:
            await self._files.prepare_open(inode)
            self._wire.send(messages.opened(unique, inode, _PLAIN))

        if self._files.can_open_now(inode):
            self._wire.send(messages.opened(unique, inode, _PLAIN))
        else:
            self._count.fetched_opens += 1
            self._start(unique, pid, wait)

    def _open_sealed(self, unique: int, inode: int, pid: int) -> None:
        def now() -> bool:
            sealed = self._files.sealed_now(inode)
            if sealed is None:
                return False
            try:
                backing_id = self._shared.acquire_backing(
                    inode, _number_of(sealed), lambda: session.open_backing(self._wire.kernel, sealed.fd)
                )
            except AnotherFileIsOpen:
                raise FileSystemError(errno.ESTALE) from None  # the next lookup answers the inode that is read by us
            except BackingTableFull:
                raise FileSystemError(errno.ENFILE) from None
            except OSError as exc:
                log.warning("cannot open inode %d in passthrough: %s", inode, exc)
                raise FileSystemError(errno.EIO) from exc
            finally:
                os.close(sealed.fd)
            self._count.passthrough_opens += 1
            flags = messages.FOPEN_PASSTHROUGH | messages.FOPEN_NOFLUSH
            if not self._wire.send(messages.opened(unique, inode, flags, backing_id)):
                self._shared.release_backing(inode, self._close_backing)
            return True

        async def wait() -> None:
            await self._files.verify_sealed(inode)
            if not now():
                raise FileSystemError(errno.ESTALE)

        if not now():
            self._start(unique, pid, wait)

    def _release(self, unique: int, inode: int, _pid: int, _length: int) -> None:
        if inode & SEALED_BIT and not self._again and not unique & messages.UNIQUE_RESEND:
            self._shared.release_backing(inode, self._close_backing)
        self._wire.send(messages.failed(unique, 0))

    def _read(self, unique: int, inode: int, pid: int, _length: int) -> None:
        offset, size = messages.read_request(self._wire.buffer)

        def answer(data: bytes) -> None:
            self._count.reads += 1
            self._count.read_bytes += len(data)
            self._wire.send(messages.data_header(unique, len(data)), data)
            note = self._files.note_read(inode, offset, size)
            if note and self._tasks:
                self._tasks.start_soon(self._files.tell_read, *note, size)

        async def wait() -> None:
            answer(await self._files.read(inode, offset, size))

        data = self._files.read_now(inode, offset, size)
        if isinstance(data, bytes):
            self._count.hits += 1
            answer(data)
        else:
            self._count.misses += isinstance(data, Missing)
            self._start(unique, pid, wait)

    def _opendir(self, unique: int, inode: int, _pid: int, _length: int) -> None:
        # The kernel keeps the names it reads, so that most readdirs never reach us.
        kept = self._listing.open_directory(inode)
        flags = messages.FOPEN_CACHE_DIR | (messages.FOPEN_KEEP_CACHE if kept else 0)
        self._wire.send(messages.opened(unique, inode, flags))

    def _releasedir(self, unique: int, _inode: int, _pid: int, _length: int) -> None:
        self._wire.send(messages.failed(unique, 0))

    def _readdir(self, unique: int, inode: int, pid: int, _length: int) -> None:
        cookie, size = messages.read_request(self._wire.buffer)
        fresh_after = self._begun(inode, cookie)

        def answer(entries: list[NamedEntry]) -> None:
            name = messages.directory_name
            self._send_records(unique, size, (name(e.name, e.cookie, e.inode, _KINDS[e.kind]) for e in entries))

        async def wait() -> None:
            answer(await self._listing.names(inode, cookie, fresh_after=fresh_after))

        entries = self._listing.names_now(inode, cookie, fresh_after=fresh_after)
        if entries is not None:
            answer(entries)
        else:
            self._start(unique, pid, wait)

    def _readdirplus(self, unique: int, inode: int, pid: int, _length: int) -> None:
        cookie, size = messages.read_request(self._wire.buffer)
        fresh_after = self._begun(inode, cookie)

        def answer(entries: list[DirectoryEntry]) -> None:
            entry = messages.directory_entry
            self._send_records(unique, size, (entry(*e) for e in entries))

        async def wait() -> None:
            answer(await self._listing.entries(inode, cookie, fresh_after=fresh_after))

        entries = self._listing.entries_now(inode, cookie, fresh_after=fresh_after)
        if entries is not None:
            answer(entries)
        else:
            self._start(unique, pid, wait)

    def _begun(self, inode: int, cookie: int) -> float:
        """How fresh the listing must be for the readdir of this directory that goes on at `cookie`."""
        if cookie == 0 or inode not in self._listing_started:
            self._listing_started[inode] = self._listing.fresh_after()
            if len(self._listing_started) > _LISTINGS:
                del self._listing_started[next(iter(self._listing_started))]
        return min(self._listing_started[inode], self._listing.fresh_after())  # the clock may have been set back

    def _send_records(self, unique: int, size: int, records: Iterable[bytes]) -> None:
        """As many as fit: the kernel asks again for what comes after the last one."""
        pieces, room = [], size
        for record in records:
            room -= len(record)
            if room < 0:
                break
            pieces.append(record)
        data = b"".join(pieces)
        self._wire.send(messages.data_header(unique, len(data)), data)

    # ---- inside --------------------------------------------------------------------------------------------
    def _guarded(self, operation: RawHandler) -> RawHandler:
        """The operation with its failures turned into answers: the one catch-all of those that do not wait."""

        def handler(unique: int, inode: int, pid: int, length: int) -> None:
            self._count.requests += 1
            try:
                operation(unique, inode, pid, length)
            except NotNow:
                request = bytes(memoryview(self._wire.buffer)[:length])

                async def again() -> None:
                    # The request lies in the buffer again while the operation is begun, and not longer.
                    self._wire.buffer[: len(request)] = request
                    operation(unique, inode, pid, length)

                self._start(unique, pid, again)
            except Exception as exc:
                self._fail(unique, exc, operation)

        return handler

    def _fail(self, unique: int, exc: Exception, what: Callable[..., object]) -> None:
        number = errno.EIO
        if isinstance(exc, FileSystemError):
            number = exc.errno
        else:
            log.error("a request failed in a way nobody foresaw", exc_info=exc)
        if number not in _ANSWERS:
            self._count.errors += 1
            self._note_failure(number, exc, what)
        self._wire.send(messages.failed(unique, number))

    def _note_failure(self, number: int, exc: Exception, what: Callable[..., object]) -> None:
        """Says in the log why somebody got an error, at most once a second: a dead bucket fails thousands."""
        now = trio.current_time()
        if now - self._noted_at >= _NOTE_S:
            self._noted_at = now
            name = what.__qualname__.split(".")[1].strip("_")
            cause = f": {exc.__cause__}" if exc.__cause__ else ""
            log.info("%s was answered with %s%s", name, errno.errorcode.get(number, number), cause)

    def _refusal(self, number: int) -> RawHandler:
        def refuse(unique: int, _inode: int, _pid: int, _length: int) -> None:
            self._wire.send(messages.failed(unique, number))

        return refuse

    def _start(self, unique: int, pid: int, wait: Callable[[], Awaitable[None]]) -> None:
        assert self._tasks is not None
        place = self._places.pop() if self._places else 0
        length, *_ = messages.IN_HEADER.unpack_from(self._wire.buffer)
        self._shared.store_waiting(self._slot, place, self._wire.buffer[:length])
        self._shared.store_in_flight(self._slot, place, unique)
        self._unfinished += 1
        self._tasks.start_soon(self._finish, unique, place, pid, wait)

    def _begin_again(self, handlers: dict[int, RawHandler], unique: int, request: bytes) -> None:
        length, opcode, found, inode, _, _, pid, _, _ = messages.IN_HEADER.unpack_from(request.ljust(40, b"\0"))
        handler = handlers.get(opcode)
        if found != unique or length > len(request) or handler is None:
            self._wire.send(messages.failed(unique, errno.ESTALE))  # the kernel asks once more
        else:
            self._wire.buffer[:length] = request[:length]
            handler(unique, inode, pid, length)

    async def _finish(self, unique: int, place: int, pid: int, wait: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope() as scope:
            self._waiting[unique] = pid, scope
            self._somebody_waits.set()
            try:
                await self._names.doubts.patiently(wait)
            except Exception as exc:
                self._fail(unique, exc, wait)
            finally:
                self._unfinished -= 1
                if self._waiting.get(unique, (0, None))[1] is scope:  # an operation begun again may wait by now
                    del self._waiting[unique]
        if scope.cancelled_caught:
            self._wire.send(messages.failed(unique, errno.EINTR))
        if place:
            self._shared.store_in_flight(self._slot, place, 0)
            self._places.append(place)

    async def _watch_callers(self) -> None:
        """Once a second looks whether somebody who waits is being killed, and lets him go."""
        while True:
            await self._somebody_waits.wait()
            await trio.sleep(1.0)
            if not self._waiting:
                self._somebody_waits = trio.Event()
            for pid, scope in list(self._waiting.values()):
                if _is_dying(pid):
                    scope.cancel()

    def _close_backing(self, backing_id: int) -> None:
        session.close_backing(self._wire.kernel, backing_id)


def _number_of(sealed: SealedFile) -> int:
    """A number for this very file in this very state."""
    return hash(sealed.stamp[:4]) & 0xFFFFFFFFFFFFFFFF or 1


def _is_dying(pid: int) -> bool:
    """Whether the thread `pid` is gone or has a SIGKILL pending; False for callers of another pid namespace (0)."""
    if pid == 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's: it is there
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith(("SigPnd:", "ShdPnd:")) and int(line.split()[1], 16) & _SIGKILL_BIT:
                    return True
    except (OSError, ValueError):  # also where hidepid keeps other users' processes from us
        return False
    return False
