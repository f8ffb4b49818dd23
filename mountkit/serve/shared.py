"""Memory the processes of one mount share: the servers' counters, what they have in their hands, and backing files.

It is a memfd that the keeper makes and every server maps, so it survives the death of any of them.

In flight. Each server reads requests into this memory, so there is no moment in which only a server that may die knows
what the kernel has given it. Before it reads the next one, it has answered the last or has written its number down at a
place, where the request itself is kept, too, if it has to wait. Below Linux 6.9 the next server of the slot does again
what it finds there.

Backing files. All opens of one inode in passthrough must name the same backing id (the kernel answers EIO otherwise),
whichever server answers them, so the ids stand here with the number of opens that use them, and with which file it is:
one that was spoilt, fetched again and sealed again is another file, which cannot be opened natively while somebody
holds the old one; until then the inode is barred. The table is guarded by
flock on a descriptor of each process's own: the kernel lets go of it when a holder dies. A server killed between its
entry here and its answer leaves a count too high: one backing file stays open until the unmount, nothing worse.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

MAX_SERVERS = 8
_PLACES = 4000
WAITING_PLACES = range(1, _PLACES - 64)
"""For requests that wait; place 0 is none."""
INJECTED_PLACES = range(_PLACES - 64, _PLACES)
"""For the last requests that were given to libfuse, which does not tell when it has answered one."""
_SLOT_BYTES = 32768
_PLACES_OFFSET = 192
_TABLE_OFFSET = MAX_SERVERS * _SLOT_BYTES
_BACKINGS = 1 << 16
_BACKING = struct.Struct("<QiIQ")  # inode, backing id, opens, which file (0: barred)
_REQUEST_OFFSET = _TABLE_OFFSET + _BACKINGS * _BACKING.size
_REQUEST_BYTES = (1 << 20) + 8192
_REQUEST_UNIQUE = 8  # where fuse_in_header has it
_WAITING_OFFSET = _REQUEST_OFFSET + MAX_SERVERS * _REQUEST_BYTES
_WAITING_BYTES = 512
_SLOT_WAITING_BYTES = _PLACES * _WAITING_BYTES
_TOTAL = _WAITING_OFFSET + MAX_SERVERS * _SLOT_WAITING_BYTES


@dataclass(slots=True)
class ServerCounters:
    """What one server slot has done since the mount; a server that takes over a slot goes on counting."""

    requests: int = 0
    lookups: int = 0
    opens: int = 0
    passthrough_opens: int = 0
    fetched_opens: int = 0
    """Opens of files whose first bytes had to come from the bucket."""
    reads: int = 0
    read_bytes: int = 0
    hits: int = 0
    misses: int = 0
    errors: int = 0
    resent: int = 0
    pss_bytes: int = 0
    """Memory of the server that has the slot now, of some seconds ago."""

    def __add__(self, other: ServerCounters) -> ServerCounters:
        return ServerCounters(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


_COUNTERS = struct.Struct(f"<{len(fields(ServerCounters))}Q")
_SERVER = struct.Struct("<QQ")  # pid, when it began
_UNIQUE = struct.Struct("<Q")


class AnotherFileIsOpen(Exception):
    """Somebody holds the inode open natively with a file that is no longer the sealed one."""


class BackingTableFull(Exception):
    """More different files are open in passthrough than the table holds."""


class _Backing(NamedTuple):
    """An entry of the table of backing files."""

    inode: int
    number: int
    opens: int
    file: int
    """0: barred."""


class _FileLock:
    """Held by one process at a time; the kernel lets go of it when its holder dies."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


class SharedMemory:
    """One process's view of the memory."""

    def __init__(self, fd: int) -> None:
        """`fd` stays the caller's."""
        self._lock_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)  # flock belongs to an open file
        self._memory = mmap.mmap(self._lock_fd, _TOTAL)
        self._lock = _FileLock(self._lock_fd)

    @staticmethod
    def create() -> int:
        """A new memfd of the right size, close-on-exec."""
        fd = os.memfd_create("mountkit-shared", os.MFD_CLOEXEC)
        os.ftruncate(fd, _TOTAL)
        return fd

    def request_buffer(self, slot: int) -> memoryview:
        """Where the server of a slot reads requests to: who survives it finds there what it died over."""
        start = _REQUEST_OFFSET + slot * _REQUEST_BYTES
        return memoryview(self._memory)[start : start + _REQUEST_BYTES]

    def store_waiting(self, slot: int, place: int, request: bytes | memoryview) -> None:
        """Keeps a request of a server that waits at a place, if it is short; place 0 keeps none."""
        if place and len(request) <= _WAITING_BYTES:
            start = _WAITING_OFFSET + slot * _SLOT_WAITING_BYTES + place * _WAITING_BYTES
            self._memory[start : start + len(request)] = bytes(request)

    def waiting(self, slot: int) -> list[tuple[int, int, bytes]]:
        """(place, unique, what is kept there) of every request that waits, or waited when its server died."""
        first = _WAITING_OFFSET + slot * _SLOT_WAITING_BYTES
        starts = range(first, first + _SLOT_WAITING_BYTES, _WAITING_BYTES)
        return [
            (place, unique, self._memory[start : start + _WAITING_BYTES])
            for place, (unique, start) in enumerate(zip(self._uniques(slot), starts, strict=True))
            if unique
        ]

    def close(self) -> None:
        self._memory.close()
        os.close(self._lock_fd)

    def counters(self, slot: int) -> ServerCounters:
        return ServerCounters(*_COUNTERS.unpack_from(self._memory, slot * _SLOT_BYTES))

    def store_counters(self, slot: int, counters: ServerCounters) -> None:
        values = (getattr(counters, f.name) for f in fields(counters))
        _COUNTERS.pack_into(self._memory, slot * _SLOT_BYTES, *values)

    def store_server(self, slot: int, pid: int, started: int) -> None:
        """Notes which process, begun when, reads requests into the slot's memory from here on."""
        _SERVER.pack_into(self._memory, slot * _SLOT_BYTES + _COUNTERS.size, pid, started)

    def server(self, slot: int) -> tuple[int, int]:
        """The process that reads, or read, into the slot's memory; pid 0 if there was none."""
        pid, started = _SERVER.unpack_from(self._memory, slot * _SLOT_BYTES + _COUNTERS.size)
        return int(pid), int(started)

    def store_in_flight(self, slot: int, place: int, unique: int) -> None:
        """Notes that a server works on a request (0: no more) at one of its places; nothing at place 0."""
        if place:
            _UNIQUE.pack_into(self._memory, slot * _SLOT_BYTES + _PLACES_OFFSET + place * _UNIQUE.size, unique)

    def in_flight(self, slot: int) -> set[int]:
        """The requests a server works on, or worked on when it died; some may have been answered just now."""
        newest, *_ = _UNIQUE.unpack_from(self._memory, _REQUEST_OFFSET + slot * _REQUEST_BYTES + _REQUEST_UNIQUE)
        return {int(newest), *self._uniques(slot)} - {0}

    def clear_in_flight(self, slot: int) -> None:
        """Empties the places; the newest request stays where it is."""
        start = slot * _SLOT_BYTES + _PLACES_OFFSET
        self._memory[start : start + _PLACES * _UNIQUE.size] = bytes(_PLACES * _UNIQUE.size)

    def _uniques(self, slot: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{_PLACES}Q", self._memory, slot * _SLOT_BYTES + _PLACES_OFFSET)

    def total(self) -> ServerCounters:
        result = ServerCounters()
        for slot in range(MAX_SERVERS):
            result += self.counters(slot)
        return result

    def acquire_backing(self, inode: int, file: int, open_backing: Callable[[], int]) -> int:
        """The backing id of `inode`, opened by `open_backing` if no handle uses one; one more open is counted.

        `file` is a number for the file and its state, not 0. Raises what `open_backing` raises, BackingTableFull, and
        AnotherFileIsOpen, which bars the inode until its last handle is closed.
        """
        with self._lock:
            position, found = self._find(inode)
            if found is None:
                found = _Backing(inode, open_backing(), 0, file)
            if found.file != file:
                _BACKING.pack_into(self._memory, position, inode, found.number, found.opens, 0)
                raise AnotherFileIsOpen
            _BACKING.pack_into(self._memory, position, inode, found.number, found.opens + 1, file)
            return found.number

    def is_barred(self, inode: int) -> bool:
        """Whether the inode must not be opened natively now. Without the lock: an answer of a moment ago will do."""
        try:
            _, found = self._find(inode)
        except BackingTableFull:
            return False
        return found is not None and not found.file

    def release_backing(self, inode: int, close_backing: Callable[[int], None]) -> None:
        """One open fewer; the last one ends the backing id. An inode that is not there is passed over."""
        with self._lock:
            position, found = self._find(inode)
            if found is None:
                return
            if found.opens > 1:
                _BACKING.pack_into(self._memory, position, inode, found.number, found.opens - 1, found.file)
                return
            self._remove(position)
            close_backing(found.number)

    # An open-addressing hash table with linear probing; removal shifts later entries back, so there are no tombstones.
    def _home(self, inode: int) -> int:
        return (inode * 0x9E3779B97F4A7C15 >> 40) % _BACKINGS

    def _inode_at(self, index: int) -> int:
        inode: int = _BACKING.unpack_from(self._memory, _TABLE_OFFSET + index * _BACKING.size)[0]
        return inode

    def _find(self, inode: int) -> tuple[int, _Backing | None]:
        """Where the inode's entry is, or would be."""
        index = self._home(inode)
        for _ in range(_BACKINGS // 2):
            position = _TABLE_OFFSET + index * _BACKING.size
            found = _BACKING.unpack_from(self._memory, position)
            if found[0] == inode:
                return position, _Backing._make(found)
            if found[0] == 0:
                return position, None
            index = (index + 1) % _BACKINGS
        raise BackingTableFull

    def _remove(self, position: int) -> None:
        size = _BACKING.size
        hole = (position - _TABLE_OFFSET) // size
        index = hole
        while True:
            index = (index + 1) % _BACKINGS
            inode = self._inode_at(index)
            if inode == 0:
                break
            if (index - self._home(inode)) % _BACKINGS >= (index - hole) % _BACKINGS:
                start = _TABLE_OFFSET + index * size
                self._memory[_TABLE_OFFSET + hole * size : _TABLE_OFFSET + (hole + 1) * size] = self._memory[
                    start : start + size
                ]
                hole = index
        self._memory[_TABLE_OFFSET + hole * size : _TABLE_OFFSET + (hole + 1) * size] = bytes(size)
