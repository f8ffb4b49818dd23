"""How the order of uploads follows the journal."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from mountkit.mover.upload_mirror import UploadMirror
from mountkit.mover.upload_order import LINGER_S, UploadOrder
from mountkit.staging.queue import UploadJournal
from tests.unit.mover.staged import CANCELLED, PUT, HandServer

SOON_S, LATER_S = 0.1, 10.0


@pytest.fixture
def server(directory_fd: int) -> Iterator[HandServer]:
    server = HandServer(directory_fd)
    yield server
    server.close()


@pytest.fixture
def journal(directory_fd: int, server: HandServer) -> Iterator[UploadJournal]:
    journal = UploadJournal(directory_fd)
    yield journal
    journal.close()


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_what_was_cancelled_just_after_a_comparison_is_found_though_nothing_follows(
    server: HandServer, journal: UploadJournal
) -> None:
    order, clock = UploadOrder(), Clock()
    mirror = UploadMirror(journal, order, clock=clock)
    seq = server.stage(b"a", b"x")
    assert mirror.look() and seq in order
    server.cancel(seq)
    clock.now_s += SOON_S
    assert not mirror.look()
    clock.now_s += LATER_S
    assert mirror.look() and seq not in order


def test_what_is_new_is_taken_over_at_once_and_nothing_is_compared_without_a_change(
    server: HandServer, journal: UploadJournal
) -> None:
    order, clock = UploadOrder(), Clock()
    mirror = UploadMirror(journal, order, clock=clock)
    mirror.look()
    seq = server.stage(b"a", b"x")
    clock.now_s += SOON_S
    assert not mirror.look() and seq in order
    clock.now_s += LATER_S
    assert mirror.look()
    clock.now_s += LATER_S
    assert not mirror.look()


def test_what_a_cancelled_operation_stood_in_for_is_over_in_the_journal_too(
    server: HandServer, journal: UploadJournal
) -> None:
    order, clock = UploadOrder(), Clock()
    mirror = UploadMirror(journal, order, clock=clock)
    file = server.file(b"x")
    stale, later = (server.queue(PUT, b"a", file=file, old=True) for _ in range(2))
    mirror.look()
    ((taken,),) = order.next_ready(clock.now_s, 9)
    assert taken.seq == stale and order.stale(taken) == []
    server.cancel(later)
    clock.now_s += LATER_S
    assert mirror.look()
    assert stale not in order and later not in order
    assert server.state(stale) is CANCELLED


@pytest.mark.parametrize("off_s", [86_400.0, -86_400.0])
def test_what_was_queued_before_the_wall_clock_was_set_lingers_no_longer_than_anything(
    server: HandServer, journal: UploadJournal, off_s: float
) -> None:
    order, clock = UploadOrder(), Clock()
    seq = server.stage(b"a", b"x", queued_at=time.time() + off_s)
    UploadMirror(journal, order, clock=clock).look()
    ((ready,),) = order.next_ready(clock.now_s + LINGER_S, 9)
    assert ready.seq == seq
