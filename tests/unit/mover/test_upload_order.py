"""Which operations may go now: rules in plain data, and a model that tries orders at random."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from mountkit.mover.upload_order import UploadOrder
from mountkit.staging.queue import Operation
from mountkit.staging.schema import OperationKind, OperationState

PUT, COPY, DELETE = OperationKind.PUT, OperationKind.COPY, OperationKind.DELETE


def op(seq: int, kind: OperationKind = PUT, key: bytes = b"", **fields: Any) -> Operation:
    values: dict[str, Any] = {
        "file": seq,
        "size": 1,
        "mtime_ns": 0,
        "ctime_ns": 0,
        "live": False,
        "metadata": None,
        "source_key": None,
        "source_etag": "",
        "ordered": kind is DELETE,
        "queued_at": 0.0,
    }
    return Operation(seq=seq, kind=kind, key=key or b"%d" % seq, **(values | fields))


def ready(order: UploadOrder, now: float = 100.0, limit: int = 100) -> list[int]:
    return [each.seq for group in order.next_ready(now, limit) for each in group]


def filled(*operations: Operation) -> UploadOrder:
    order = UploadOrder()
    for each in operations:
        order.add(each)
    return order


def test_a_put_lingers_unless_somebody_waits_for_it() -> None:
    order = filled(op(1, queued_at=10.0), op(2, queued_at=10.0))
    assert ready(order, 10.5) == [] and order.next_due() == 11.0
    order.hurry([2])
    assert ready(order, 10.5) == [2]
    assert ready(order, 11.0) == [1]


def test_a_marker_lingers_as_well() -> None:
    order = filled(op(1, queued_at=10.0, ordered=True))
    assert ready(order, 10.5) == [] and order.next_due() == 11.0
    assert ready(order, 11.0) == [1]


def test_hurrying_a_marker_hurries_what_it_waits_for() -> None:
    order = filled(op(1, queued_at=10.0), op(2, queued_at=10.0, ordered=True), op(3, queued_at=10.0))
    order.hurry([2])
    assert ready(order, 10.0) == [1]
    order.remove(1)
    assert ready(order, 10.0) == [2]


def test_operations_that_share_a_key_take_turns() -> None:
    order = filled(op(1, key=b"a"), op(2, COPY, b"b", source_key=b"a"), op(3, key=b"a"), op(4, key=b"b"))
    for seq in (1, 2):
        assert ready(order) == [seq]
        order.remove(seq)
    assert ready(order) == [3, 4]


def test_deletes_in_a_row_go_together_and_stop_at_anything_else() -> None:
    order = filled(*(op(n, DELETE) for n in (1, 2, 5)), op(6, ordered=True), op(7, DELETE))
    assert [[each.seq for each in group] for group in order.next_ready(100.0, 9)] == [[1, 2, 5]]
    for seq in (1, 2, 5):
        order.remove(seq)
    assert ready(order) == [6]


def test_deletes_that_are_refused_do_not_let_later_ones_pass() -> None:
    order = filled(op(1, DELETE), op(2, DELETE))
    assert ready(order) == [1, 2]
    order.remove(2)
    order.failed(op(1, DELETE))
    order.add(op(3, DELETE))
    assert ready(order) == [] and order.blocker(3) is not None


def test_what_was_cancelled_frees_who_waited() -> None:
    order = filled(op(1, queued_at=99.9), op(2, ordered=True))
    assert ready(order) == []
    order.remove(1)
    assert ready(order) == [2]


def test_a_failed_one_that_goes_frees_who_was_blocked_by_it() -> None:
    order = filled(op(1, COPY, b"b", source_key=b"a"))
    ready(order)
    order.failed(replace(op(1, COPY, b"b", source_key=b"a"), state=OperationState.FAILED))
    order.add(op(2, key=b"a"))
    assert ready(order) == []
    order.remove(1)
    assert ready(order) == [2]


def test_stale_ones_in_a_row_end_with_the_one_that_stands_in_for_all() -> None:
    puts = [op(n, key=b"a", file=7) for n in (1, 2, 3)]
    order = filled(*puts, op(4, ordered=True))
    for put in puts[:2]:
        assert ready(order) == [put.seq]
        assert order.stale(put) == []
    assert ready(order) == [3]
    assert sorted(order.remove(3)) == [1, 2]
    assert ready(order) == [4]


@pytest.mark.parametrize(
    "follows", [op(2, DELETE, b"a"), op(2, key=b"a", file=8), op(2, key=b"a", file=1, ordered=True)]
)
def test_a_stale_one_is_over_once_something_else_follows_under_its_key(follows: Operation) -> None:
    stale = op(1, key=b"a")
    order = filled(stale)
    assert ready(order) == [1] and order.stale(stale) is None
    order.put_back(stale, not_before=101.0)
    order.add(follows)
    assert ready(order, 102.0) == [1]
    assert order.stale(stale) == [1]
    assert ready(order) == [2]


def test_with_what_stands_in_for_it_a_stale_one_is_cancelled_and_what_had_failed_is_not() -> None:
    failed = op(1, key=b"a", state=OperationState.FAILED)
    order = filled(failed, op(2, key=b"a", file=7), op(3, key=b"a", file=7), op(4, DELETE, b"b"))
    assert ready(order) == [2] and order.stale(op(2, key=b"a", file=7)) == []
    assert order.cancelled(3) == [2]
    assert 1 in order.failures
    assert order.cancelled(1) == [] and ready(order) == [4]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_ends_keeps_the_rules_and_ends_everything(seed: int) -> None:
    chance = random.Random(seed)
    keys = [b"a", b"b", b"c", b"d"]
    order, everything = UploadOrder(), []
    for seq in range(1, 60):
        kind = chance.choice([PUT, PUT, PUT, COPY, DELETE])
        source = chance.choice(keys) if kind is COPY else None
        ordered = kind is DELETE or chance.random() < 0.2
        everything.append(op(seq, kind, chance.choice(keys), source_key=source, ordered=ordered))
    for each in everything:
        order.add(each)
    running: dict[int, Operation] = {}
    over: list[int] = []
    while len(over) < len(everything):
        for group in order.next_ready(100.0, chance.randint(1, 4)):
            for each in group:
                before = [o for o in everything if o.seq < each.seq and o.seq not in over]
                if each.ordered:
                    assert all(o in group for o in before)
                assert not any(set(o.keys) & set(each.keys) for o in before if o not in group)
                running[each.seq] = each
        seq = chance.choice(list(running))
        each = running.pop(seq)
        if chance.random() < 0.2:
            order.put_back(each)
        else:
            order.remove(seq)
            over.append(seq)
    assert len(order) == 0 and order.next_due() is None
