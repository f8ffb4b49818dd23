"""A writable mount below Linux 6.9: the next server does again what a dead one had in hand, and may die over it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest

from mountkit.serve import messages
from mountkit.serve import output_messages as out
from mountkit.serve.output_responder import OutputResponder
from mountkit.serve.shared import INJECTED_PLACES, SharedMemory
from tests.unit.serve.outputs import Outputs
from tests.unit.serve.test_responder import FakeFiles, FakeWire


class Wire(FakeWire):
    """As a server's: requests lie in the shared memory."""

    def __init__(self, shared: SharedMemory) -> None:
        super().__init__()
        self.buffer: Any = shared.request_buffer(0)
        self.dies_at_answer = 0

    def send(self, *pieces: bytes) -> bool:
        if self.dies_at_answer == len(self.sent) + 1:
            raise KeyboardInterrupt
        return super().send(*pieces)


@pytest.fixture
def fd() -> Iterator[int]:
    fd = SharedMemory.create()
    yield fd
    os.close(fd)


def mkdir(unique: int, name: bytes) -> bytes:
    rest = (0o755).to_bytes(4, "little") + bytes(4) + name + b"\0"
    return messages.IN_HEADER.pack(40 + len(rest), out.MKDIR, unique, 1, 0, 0, 0, 0, 0) + rest


def left_by_a_dead_server(fd: int) -> None:
    """One request just read, two that wait, and one that libfuse had."""
    shared = SharedMemory(fd)
    newest = mkdir(10, b"newest")
    shared.request_buffer(0)[: len(newest)] = newest
    for place, unique in ((7, 4), (1, 6)):
        shared.store_waiting(0, place, mkdir(unique, b"dir-%d" % unique))
        shared.store_in_flight(0, place, unique)
    shared.store_in_flight(0, INJECTED_PLACES[0], 2)


def begin(fd: int, outputs: Outputs) -> tuple[Wire, OutputResponder]:
    shared = SharedMemory(fd)
    wire = Wire(shared)
    files: Any = FakeFiles()
    responder = OutputResponder(wire, outputs.fs, files, shared, 0, passthrough=False)  # type: ignore[arg-type]
    return wire, responder


def answered(wire: Wire) -> dict[int, int]:
    """The errno of the answer to each request."""
    heads = [messages.OUT_HEADER.unpack_from(answer) for answer in wire.sent]
    return {unique: -error for _, error, unique in heads}


def test_everything_is_done_again_and_what_libfuse_had_is_asked_once_more(directory_fd: int, fd: int) -> None:
    """[writing-5]"""
    left_by_a_dead_server(fd)
    outputs = Outputs(directory_fd)
    outputs.holds()
    wire, responder = begin(fd, outputs)
    responder.do_again(responder.handlers())
    assert answered(wire) == {10: 0, 4: 0, 6: 0, 2: errno.ESTALE}
    assert outputs.names() == ["dir-4", "dir-6", "newest"]
    assert SharedMemory(fd).waiting(0) == []


@pytest.mark.parametrize("answer", [1, 2, 3, 4])
def test_a_server_that_dies_while_it_does_things_again_leaves_the_rest_to_the_next(
    directory_fd: int, fd: int, answer: int
) -> None:
    """[writing-5] Below Linux 6.9 nobody else would ever answer them."""
    left_by_a_dead_server(fd)
    outputs = Outputs(directory_fd)
    outputs.holds()
    wire, responder = begin(fd, outputs)
    wire.dies_at_answer = answer
    with pytest.raises(KeyboardInterrupt):
        responder.do_again(responder.handlers())
    successors, responder = begin(fd, outputs)
    responder.do_again(responder.handlers())
    assert answered(wire) | answered(successors) == {10: 0, 4: 0, 6: 0, 2: errno.ESTALE}
    assert outputs.names() == ["dir-4", "dir-6", "newest"]
