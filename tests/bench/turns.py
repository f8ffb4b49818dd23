"""What the server of a writable mount spends on each request, the kernel left out: `python -m tests.bench.turns`.

Requests are put before its responder as the wire would put them, over a journal and staging files on the disk. CPU time
of this process, medians over all requests of a kind, so that the figures hold on a busy machine, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from mountkit.serve import messages, session
from mountkit.serve import output_messages as out
from mountkit.serve.output_responder import OutputResponder
from mountkit.serve.shared import SharedMemory
from tests.unit.serve.outputs import Outputs
from tests.unit.serve.test_responder import FakeFiles, FakeWire

_FLAGS = os.O_WRONLY | os.O_CREAT
_WARM_FILES, _SMALL_BYTES, _PAGE_BYTES = 300, 20_000, 4096


class Server:
    """A responder whose requests come from here; `spent_ns` is what each of a kind took."""

    def __init__(self, outputs: Outputs, *, passthrough: bool) -> None:
        self._outputs, self._wire, self._unique = outputs, FakeWire(), 0
        self._wire.buffer = bytearray(2 << 20)
        files: Any = FakeFiles()
        shared = SharedMemory(SharedMemory.create())
        wire: Any = self._wire
        self._handlers = OutputResponder(wire, outputs.fs, files, shared, 0, passthrough=passthrough).handlers()
        self.spent_ns: dict[str, list[int]] = defaultdict(list)

    def ask(self, kind: str, opcode: int, inode: int, rest: bytes) -> bytes:
        """The answer to one request."""
        self._unique += 2
        pid, length = os.getpid(), messages.IN_HEADER.size + len(rest)
        head = messages.IN_HEADER.pack(length, opcode, self._unique, inode, 0, 0, pid, 0, 0)
        self._wire.buffer[:length] = head + rest
        began = time.process_time_ns()
        self._handlers[opcode](self._unique, inode, pid, length)
        self.spent_ns[kind].append(time.process_time_ns() - began)
        return self._wire.sent.pop()

    def create(self, directory: int, name: bytes) -> tuple[int, int]:
        """A new file: its inode and handle."""
        answer = self.ask("create", out.CREATE, directory, struct.pack("<IIII", _FLAGS, 0o100644, 0, 0) + name + b"\0")
        (inode,), (handle,) = struct.unpack_from("<Q", answer, 16), struct.unpack_from("<Q", answer, 144)
        return inode, handle

    def small(self, directory: int, name: bytes, data: bytes) -> None:
        """A small file as the kernel has it made: six requests, its bytes written natively."""
        self.ask("getattr", messages.GETATTR, directory, bytes(16))
        self.ask("lookup", messages.LOOKUP, directory, name + b"\0")
        inode, handle = self.create(directory, name)
        os.pwrite(self._outputs.fs.files.descriptor(inode), data, 0)
        self.ask("getxattr", out.GETXATTR, inode, struct.pack("<II", 0, 0) + b"security.capability\0")
        self.ask("flush", out.FLUSH, inode, struct.pack("<QIIQ", handle, 0, 0, 0))
        self.ask("release", messages.RELEASE, inode, struct.pack("<QIIQ", handle, 0, 0, 0))


def _small_files(outputs: Outputs, count: int) -> None:
    server, directory, data = Server(outputs, passthrough=True), outputs.mkdir("d"), os.urandom(_SMALL_BYTES)
    for number in range(_WARM_FILES):
        server.small(directory, b"warm-%d" % number, data)
    server.spent_ns.clear()
    for number in range(count):
        server.small(directory, b"%d" % number, data)
    each = {kind: statistics.median(taken) / 1000 for kind, taken in server.spent_ns.items()}
    print(f"a small file: {sum(each.values()):.0f} us:", ", ".join(f"{kind} {us:.0f}" for kind, us in each.items()))


def _writes(outputs: Outputs, count: int) -> None:
    server = Server(outputs, passthrough=False)
    inode, handle = server.create(1, b"large")
    server.spent_ns.clear()
    for number in range(count):
        head = struct.pack("<QQIIQII", handle, number * _PAGE_BYTES, _PAGE_BYTES, 0, 0, 0, 0)
        server.ask("write", out.WRITE, inode, head + bytes(_PAGE_BYTES))
    print(f"a write of 4 KiB: {statistics.median(server.spent_ns['write']) / 1000:.1f} us")


def _measured(base: Path, work: Callable[[Outputs, int], None], count: int) -> None:
    directory_fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    outputs = Outputs(directory_fd)
    outputs.holds()
    work(outputs, count)
    os.close(directory_fd)


async def _all(base: Path, count: int) -> None:
    for name, work in (("small", _small_files), ("writes", _writes)):
        (base / name).mkdir()
        _measured(base / name, work, count)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.turns", description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure (default: a temporary one)")
    given = parser.parse_args()
    session.open_backing, session.close_backing = (lambda *_: 1), (lambda *_: None)
    with tempfile.TemporaryDirectory(prefix="mountkit-bench-", dir=given.dir) as base:
        trio.run(_all, Path(base), given.count)


if __name__ == "__main__":
    main()
