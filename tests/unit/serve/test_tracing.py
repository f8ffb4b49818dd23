"""Traces: what servers write down, and what a reader of the file is told."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountkit import tracefile
from mountkit.serve.tracing import Tracing


@pytest.fixture
def state_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def traced(state_fd: int, name: str) -> list[int]:
    with tracefile.reading(state_fd, name) as trace:
        return [ident for some in trace.ids() for ident in some]


def test_each_version_is_written_down_once_in_the_order_of_first_opens(state_fd: int) -> None:
    server = Tracing(state_fd)
    server.opened(1 << 40)
    tracefile.begin(state_fd, "run")
    for ident in (1 << 61, 7 + (5 << 32), 1 << 61, 8 + (5 << 32), 7 + (5 << 32)):
        server.opened(ident)
    assert traced(state_fd, "run") == [1 << 61, 7 + (5 << 32), 8 + (5 << 32)]


def test_every_open_after_begin_has_returned_is_seen(state_fd: int) -> None:
    server = Tracing(state_fd)
    for n in range(5):
        server.opened(100)
        tracefile.begin(state_fd, f"run-{n}")
        server.opened(n)
        assert traced(state_fd, f"run-{n}") == [n]


def test_traces_begin_and_end_independently_of_each_other(state_fd: int) -> None:
    clock = Clock()
    server = Tracing(state_fd, clock=clock)
    tracefile.begin(state_fd, "first")
    server.opened(1)
    tracefile.begin(state_fd, "second")
    clock.now += 1
    server.opened(1)
    server.opened(2)
    assert (traced(state_fd, "first"), traced(state_fd, "second")) == ([1, 2], [1, 2])
    tracefile.end(state_fd, "first")
    clock.now += 1
    server.opened(3)
    assert traced(state_fd, "second") == [1, 2, 3]
    with pytest.raises(tracefile.NoTrace), tracefile.reading(state_fd, "first"):
        pass
    tracefile.end(state_fd, "second")
    tracefile.end(state_fd, "second")
    assert os.listdir(state_fd) == []


def test_a_trace_that_begins_anew_gets_everything_again(state_fd: int) -> None:
    clock = Clock()
    server = Tracing(state_fd, clock=clock)
    for _ in range(2):
        tracefile.begin(state_fd, "run")
        clock.now += 1
        server.opened(1)
        assert traced(state_fd, "run") == [1]


def test_a_server_that_takes_over_goes_on_with_the_same_file(state_fd: int) -> None:
    tracefile.begin(state_fd, "run")
    Tracing(state_fd).opened(1)
    successor = Tracing(state_fd)
    successor.opened(2)
    successor.opened(1)
    assert traced(state_fd, "run") == [1, 2, 1]


def test_a_trace_that_is_full_says_so(state_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracefile, "LIMIT_BYTES", 4 * tracefile.ID_BYTES)
    clock = Clock()
    server = Tracing(state_fd, clock=clock)
    tracefile.begin(state_fd, "run")
    for ident in range(10):
        clock.now += 1
        server.opened(ident)
    assert len(traced(state_fd, "run")) == 3
    with tracefile.reading(state_fd, "run") as trace:
        assert not trace.is_complete


def test_a_trace_that_lacks_an_open_which_the_disk_did_not_take_says_so(
    state_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    server = Tracing(state_fd, clock=clock)
    tracefile.begin(state_fd, "run")
    server.opened(1)
    with tracefile.reading(state_fd, "run") as trace:
        assert trace.is_complete
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        server.opened(2)
    with tracefile.reading(state_fd, "run") as trace:
        assert not trace.is_complete, "at once: nobody may open anything any more"


def test_many_different_files_take_little_memory(state_fd: int) -> None:
    server = Tracing(state_fd)
    tracefile.begin(state_fd, "run")
    for ident in range(1 << 40, (1 << 40) + 200_000):
        server.opened(ident)
    (trace,) = server._traces.values()
    assert sum(map(len, trace._pages.values())) < 64 << 10


def test_versions_are_kept_as_long_as_a_trace_asks_for_them(state_fd: int) -> None:
    assert tracefile.oldest(state_fd) is None
    tracefile.begin(state_fd, "first")
    began = tracefile.oldest(state_fd)
    tracefile.begin(state_fd, "second")
    assert began and tracefile.oldest(state_fd) == began


def test_no_trace_is_put_where_a_link_leads(state_fd: int, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / tracefile.DIRECTORY).symlink_to("elsewhere")
    with pytest.raises(OSError):
        tracefile.begin(state_fd, "run")
    assert not list((tmp_path / "elsewhere").iterdir())
