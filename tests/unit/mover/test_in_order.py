"""Files opened in the order of their directory, and what is fetched before they are opened."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mountkit.mover.in_order import InOrder


@dataclass(frozen=True)
class File:
    id: int
    size: int = 100_000


def listing(count: int = 20_000, size: int = 100_000) -> InOrder[File]:
    def following(file: File, n: int) -> list[File]:
        return [File(ident, size) for ident in range(file.id + 1, min(count, file.id + 1 + n))]

    return InOrder(following)


def read(order: InOrder[File], idents: list[int]) -> list[int]:
    """Opens the files as a reader would; the order of what was fetched ahead."""
    fetched: dict[int, None] = {}
    for ident in idents:
        fetched.update((file.id, None) for file in order.opened(File(ident), cold=ident not in fetched))
    return list(fetched)


def test_the_third_file_in_order_starts_a_window_that_doubles() -> None:
    order = listing()
    assert read(order, [0, 1]) == []
    assert read(order, [2]) == [3, 4, 5, 6]
    assert read(order, [3, 4]) == list(range(7, 21))


def test_a_reader_in_order_waits_for_three_files_of_thousands() -> None:
    assert set(range(2000)) - set(read(listing(), list(range(2000)))) == {0, 1, 2}


def test_the_window_is_bounded_in_files_and_bytes() -> None:
    fetched = read(listing(), list(range(1000)))
    assert 1000 < max(fetched) <= 1000 + 128
    order = listing(size=4 << 20)
    ahead = [file.id for ident in range(50) for file in order.opened(File(ident, 4 << 20), cold=ident < 3)]
    assert max(ahead) - 49 <= 16


def test_workers_that_read_stretches_side_by_side_are_runs_of_their_own() -> None:
    idents = [stretch * 32 + at for turn in range(5) for at in range(32) for stretch in range(turn * 8, turn * 8 + 8)]
    missed = set(idents) - set(read(listing(), idents))
    assert len(missed) <= 3 * 8 * 2


def test_random_opens_fetch_next_to_nothing() -> None:
    idents = random.Random(1).sample(range(20_000), 100)
    assert len(read(listing(), idents)) <= 8


def test_every_other_file_in_order_fetches_no_more_than_a_window() -> None:
    fetched = read(listing(), list(range(0, 2000, 2)))
    assert len(fetched) <= 2 * 1000


def test_a_file_that_was_cached_is_no_reason_to_guess() -> None:
    order = listing()
    assert [order.opened(File(ident), cold=False) for ident in range(10)] == [[]] * 10
