"""Pauses between tries while there is trouble."""

from __future__ import annotations

from mountkit.errors import StoreUnavailable
from mountkit.mover.upload_patience import UploadPatience

DOWN = StoreUnavailable("down")


def test_pauses_double_up_to_half_a_minute_and_begin_anew_once_something_worked() -> None:
    patience, now, pauses = UploadPatience(), 0.0, []
    for _ in range(8):
        patience.met(DOWN, now)
        pauses.append(patience.paused_until - now)
        now = patience.paused_until
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    patience.over()
    patience.met(DOWN, now)
    assert patience.paused_until == now + 1


def test_many_that_met_trouble_together_are_one_try() -> None:
    patience = UploadPatience()
    for _ in range(100):
        patience.met(DOWN, 10.0)
    assert patience.paused_until == 11.0


def test_in_trouble_one_at_a_time_finds_out_whether_it_is_over() -> None:
    patience = UploadPatience()
    assert patience.allowed(0.0, limit=190, under_way=2) == 190
    patience.met(DOWN, 0.0)
    assert [patience.allowed(now, limit=192, under_way=0) for now in (0.5, 1.0)] == [0, 1]
    assert patience.allowed(1.0, limit=191, under_way=1) == 0
    assert patience.trouble
    patience.over()
    assert patience.allowed(1.0, limit=192, under_way=0) == 192 and not patience.trouble
