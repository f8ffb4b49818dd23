"""When a tree or a large file is swept, and what it may cost: the policy alone, with a clock of its own."""

from __future__ import annotations

import random

import pytest

from mountkit.cache.content import BLOCK_BYTES
from mountkit.mover.sweep import BEGIN_FILES, REST_S, LargeFile, LargeFiles, Sweeps, Tree

SIZE = 100_000


def key(number: int, *, classes: int = 20) -> bytes:
    return b"train/c%02d/%06d" % (number % classes, number)


def opened(sweeps: Sweeps, numbers: list[int], *, start: float = 0.0, step: float = 0.01) -> Tree | None:
    found = None
    for at, number in enumerate(numbers):
        tree, begins = sweeps.opened(start + at * step, key(number), SIZE)
        assert begins == (tree is not None and found is None)
        found = tree or found
    return found


def test_forty_distinct_files_begin_a_sweep_of_what_they_have_in_common() -> None:
    numbers = random.Random(1).sample(range(20_000), BEGIN_FILES)
    sweeps = Sweeps(b"")
    assert opened(sweeps, numbers[:-1]) is None
    tree = opened(sweeps, numbers[-1:], start=1.0)
    assert tree is not None
    assert tree.prefix == b"train/"


def test_files_of_one_directory_begin_a_sweep_of_it_alone() -> None:
    tree = opened(Sweeps(b""), [20 * n for n in range(BEGIN_FILES)])
    assert tree is not None
    assert tree.prefix == b"train/c00/"


def test_nothing_above_the_mounted_prefix_is_swept() -> None:
    numbers = random.Random(1).sample(range(20_000), BEGIN_FILES)
    tree = opened(Sweeps(b"train/"), numbers)
    assert tree is not None
    assert tree.prefix == b"train/"


@pytest.mark.parametrize(("numbers", "step"), [([7] * 200, 0.01), (list(range(200)), 1.0)])
def test_the_same_file_again_or_one_now_and_then_begins_nothing(numbers: list[int], step: float) -> None:
    assert opened(Sweeps(b""), numbers, step=step) is None


def test_a_hundred_random_files_cost_at_most_four_times_their_bytes() -> None:
    sweeps = Sweeps(b"")
    tree = opened(sweeps, random.Random(1).sample(range(20_000), 100))
    assert tree is not None
    assert 0 < tree.allowance(1.0) <= 3 * 100 * SIZE


def test_an_epoch_comes_to_full_speed() -> None:
    tree = opened(Sweeps(b""), random.Random(1).sample(range(20_000), 500), step=0.001)
    assert tree is not None
    assert tree.allowance(0.5) >= 20_000 * SIZE


def test_what_was_swept_is_taken_off_and_a_pause_is_a_rest() -> None:
    tree = opened(Sweeps(b""), list(range(BEGIN_FILES)), step=0.0)
    assert tree is not None
    allowed = tree.allowance(0.0)
    tree.swept_bytes += SIZE
    assert tree.allowance(REST_S) == allowed - SIZE
    assert tree.allowance(REST_S + 0.01) == 0
    tree.demand(10.0, key(999), SIZE)
    assert tree.allowance(10.0) > 0
    assert repr(tree) == f"<Tree b'train/' 41 files, {SIZE} of {41 * SIZE} B swept>"


def test_a_tree_forgotten_for_minutes_has_to_be_found_anew() -> None:
    sweeps = Sweeps(b"")
    tree = opened(sweeps, list(range(BEGIN_FILES)))
    assert tree is not None
    assert sweeps.opened(400.0, key(1), SIZE) == (None, False)
    assert tree.ended


def test_a_tree_above_takes_over() -> None:
    sweeps = Sweeps(b"")
    below = opened(sweeps, [20 * n for n in range(BEGIN_FILES)])
    above = opened(sweeps, [n for n in range(2000) if n % 20][: 2 * BEGIN_FILES], start=1.0)
    assert below is not None
    assert above is not None
    assert (below.ended, above.prefix) == (True, b"train/")
    assert sweeps.opened(3.0, key(0), SIZE) == (above, False)


def test_of_a_large_file_an_open_counts_for_one_block() -> None:
    tree = Tree(b"")
    tree.demand(0.0, b"large", 1 << 30)
    assert tree.demanded_bytes == BLOCK_BYTES


def random_reads(count: int) -> tuple[LargeFile, int]:
    files, rng, begun = LargeFiles(), random.Random(1), 0
    for at in range(count):
        file, begins = files.read(at * 0.001, 1, rng.randrange(1 << 30), 128 << 10)
        begun += begins
    return file, begun


def test_many_random_reads_of_a_large_file_begin_its_sweep_once() -> None:
    assert random_reads(39)[1] == 0
    assert random_reads(400)[1] == 1


@pytest.mark.parametrize("count", [40, 200, 2000])
def test_random_reads_are_answered_by_at_most_eight_bytes_for_one(count: int) -> None:
    file, _ = random_reads(count)
    assert file.demanded_bytes <= count * (128 << 10)
    assert 2.4 * file.demanded_bytes < file.allowance(count * 0.001) <= 5 * file.demanded_bytes


def test_a_sequential_reader_begins_no_sweep_of_its_file() -> None:
    """Also where several servers take the kernel's reads ahead, so that they are heard of in another order."""
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [2, 0, 3, 1]):
        files = LargeFiles()
        blocks = [at + block for at in range(0, 1024, 4) for block in order]
        assert not any(files.read(0.0, 1, block * BLOCK_BYTES, BLOCK_BYTES)[1] for block in blocks), order


def test_of_too_many_large_files_the_longest_unread_is_forgotten() -> None:
    files = LargeFiles()
    first, _ = files.read(0.0, 0, 0, 1)
    for number in range(1, 65):
        files.read(0.0, number, 0, 1)
    assert first.ended
    assert first.allowance(0.0) == 0
