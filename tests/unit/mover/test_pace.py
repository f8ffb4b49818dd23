"""How many fetches run for nobody, by how late the mover is."""

from __future__ import annotations

from mountkit.mover.pace import Pace

SOON, BETWEEN, LATE = 0.001, 0.008, 0.05


def after(pace: Pace, lag_s: float, times: int, *, full: bool = True) -> int:
    for _ in range(times):
        pace.answered(lag_s, full=full)
    return pace.limit


def test_it_grows_to_all_there_are_while_the_mover_answers_soon() -> None:
    assert after(Pace(80), SOON, 500) == 80


def test_it_shrinks_to_a_few_while_the_mover_is_late_and_never_to_none() -> None:
    assert after(Pace(80), LATE, 500) == 4


def test_in_between_it_stays() -> None:
    pace = Pace(80)
    before = pace.limit
    assert after(pace, BETWEEN, 100) == before


def test_a_limit_that_keeps_nothing_from_running_does_not_grow() -> None:
    pace = Pace(80)
    before = pace.limit
    assert after(pace, SOON, 100, full=False) == before


def test_it_recovers_within_hundreds_of_answers() -> None:
    pace = Pace(80)
    after(pace, LATE, 500)
    assert after(pace, SOON, 160) == 80
