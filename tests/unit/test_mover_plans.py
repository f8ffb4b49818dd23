"""Readahead and the fetch queue."""

import threading
import time
from collections.abc import Callable

from mountkit.cache.content import BLOCK_BYTES, PART_BYTES
from mountkit.mover.queue import SWEEP_THREADS, FetchQueue, Priority
from mountkit.mover.readahead import Readahead

GIB = 1 << 30


def _read(readahead: Readahead, offsets: list[int], length: int = 128 << 10, size: int = GIB) -> list[range]:
    return [plan for offset in offsets for plan in readahead.observe(1, size, offset, length)]


def test_a_first_read_fetches_nothing_ahead() -> None:
    assert _read(Readahead(), [0]) == []


def test_random_reads_fetch_nothing_ahead() -> None:
    offsets = [(n * 7919 * BLOCK_BYTES) % GIB for n in range(1, 200)]
    assert _read(Readahead(), offsets) == []


def test_a_sequential_reader_gets_every_part_planned_once_and_in_order() -> None:
    plans = _read(Readahead(), list(range(0, GIB, BLOCK_BYTES)), BLOCK_BYTES)
    parts = [part for plan in plans for part in plan]
    assert parts == sorted(set(parts))
    assert parts[-1] == GIB // PART_BYTES - 1
    assert parts[0] * PART_BYTES <= 4 * BLOCK_BYTES


def test_the_window_grows_with_what_was_consumed_and_is_bounded() -> None:
    readahead = Readahead()
    ahead = []
    planned = 0
    for offset in range(0, GIB // 2, BLOCK_BYTES):
        for plan in readahead.observe(1, GIB, offset, BLOCK_BYTES):
            planned = plan.stop * PART_BYTES
        ahead.append(planned - offset)
    assert ahead[2] <= 4 * 3 * BLOCK_BYTES + 4 * BLOCK_BYTES
    assert max(ahead) <= 130 * BLOCK_BYTES
    assert ahead[-1] >= 100 * BLOCK_BYTES


def test_gets_are_one_to_eight_mebibytes() -> None:
    lengths = {len(plan) * PART_BYTES for plan in _read(Readahead(), list(range(0, GIB, BLOCK_BYTES)), BLOCK_BYTES)}
    assert min(lengths) == BLOCK_BYTES
    assert max(lengths) == 8 * BLOCK_BYTES


def test_a_jump_ends_the_run() -> None:
    readahead = Readahead()
    _read(readahead, list(range(0, 64 * BLOCK_BYTES, BLOCK_BYTES)), BLOCK_BYTES)
    assert _read(readahead, [800 * BLOCK_BYTES]) == []


def test_reads_that_arrive_out_of_order_are_one_run() -> None:
    offsets = [n * BLOCK_BYTES for n in (0, 2, 1, 3, 5, 4, 7, 6, 8, 9, 10, 11)]
    assert _read(Readahead(), offsets, BLOCK_BYTES)


def test_readers_the_cache_does_not_keep_share_a_small_window() -> None:
    readahead, planned = Readahead(), dict[int, int]()
    for offset in range(0, 64 * BLOCK_BYTES, BLOCK_BYTES):
        for reader in range(8):
            for plan in readahead.observe(reader, GIB, offset, BLOCK_BYTES, kept=False):
                planned[reader] = plan.stop * PART_BYTES
        ahead = [end - offset - BLOCK_BYTES for end in planned.values()]
        assert offset < 16 * BLOCK_BYTES or sum(ahead) <= 32 * BLOCK_BYTES
    assert len(planned) == 8


def test_a_crowd_that_the_cache_does_not_keep_gets_only_what_it_asks_for() -> None:
    readahead, plans = Readahead(), 0
    for offset in range(0, 16 * BLOCK_BYTES, BLOCK_BYTES):
        for reader in range(60):
            found = readahead.observe(reader, GIB, offset, BLOCK_BYTES, kept=False)
            plans += len(found) if offset > 4 * BLOCK_BYTES else 0
    assert plans == 0


class _Job:
    held_bytes = 1

    def __init__(self, priority: Priority, log: list["_Job"], gate: threading.Event | None = None) -> None:
        self.priority, self._log, self._gate = priority, log, gate
        self.done = threading.Event()

    def run(self) -> None:
        if self._gate:
            self._gate.wait(5)
        self._log.append(self)
        self.done.set()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_most_urgent_job_runs_first_and_a_promoted_one_only_once() -> None:
    queue, log, gate = FetchQueue[_Job](max_threads=1), list[_Job](), threading.Event()
    blocker = _Job(Priority.DEMAND, log, gate)
    queue.put(blocker)
    sweep, ahead, late = (_Job(p, log) for p in (Priority.SWEEP, Priority.READAHEAD, Priority.SWEEP))
    for job in (sweep, ahead, late):
        queue.put(job)
    queue.promote(late, Priority.DEMAND)
    gate.set()
    for job in (sweep, ahead, late):
        assert job.done.wait(5)
    assert log == [blocker, late, ahead, sweep]
    queue.close()


def test_a_sweep_leaves_threads_to_who_waits_and_a_promoted_job_gets_one() -> None:
    queue, log, gate = FetchQueue[_Job](), list[_Job](), threading.Event()
    sweeps = [_Job(Priority.SWEEP, log, gate) for _ in range(SWEEP_THREADS + 5)]
    for job in sweeps:
        queue.put(job)
    waiting = sweeps[-1]
    demand = _Job(Priority.DEMAND, log)
    queue.put(demand)
    assert demand.done.wait(5)
    waiting._gate = None
    queue.promote(waiting, Priority.DEMAND)
    assert waiting.done.wait(5)
    assert log == [demand, waiting]
    _wait_until(lambda: queue.statistics().running <= SWEEP_THREADS)
    gate.set()
    assert all(job.done.wait(5) for job in sweeps)
    queue.close()


def test_more_of_a_sweep_runs_while_the_mover_answers_soon_and_less_while_it_is_late() -> None:
    queue, log, gate = FetchQueue[_Job](), list[_Job](), threading.Event()
    few = queue.statistics().running
    for _ in range(SWEEP_THREADS):
        queue.put(_Job(Priority.SWEEP, log, gate))
    for _ in range(400):
        queue.answered(0.05)
    last = _Job(Priority.SWEEP, log, gate)
    for _ in range(400):
        queue.answered(0.001)
    queue.put(last)
    deadline = time.monotonic() + 5
    while queue.statistics().running <= few + 16:
        assert time.monotonic() < deadline
        queue.answered(0.001)
        queue.put(_Job(Priority.SWEEP, log, gate))
        time.sleep(0.001)
    gate.set()
    assert last.done.wait(5)
    queue.close()


def test_slow_down_halves_and_success_recovers() -> None:
    now = [0.0]
    queue, log = FetchQueue[_Job](max_threads=64, clock=lambda: now[0]), list[_Job]()
    queue.slow_down()
    assert queue.statistics().limit == 32
    queue.slow_down()
    assert queue.statistics().limit == 32, "one step a second"
    now[0] = 1.0
    queue.slow_down()
    assert queue.statistics().limit == 16
    jobs = [_Job(Priority.DEMAND, log) for _ in range(200)]
    for job in jobs:
        queue.put(job)
    assert all(job.done.wait(5) for job in jobs)
    assert queue.statistics().limit > 20
    queue.close()


def test_a_burst_gets_as_many_threads_as_jobs_although_one_is_idle() -> None:
    queue, log = FetchQueue[_Job](max_threads=8), list[_Job]()
    first = _Job(Priority.DEMAND, log)
    queue.put(first)
    assert first.done.wait(5)
    together = threading.Barrier(5)

    class Meets(_Job):
        def run(self) -> None:
            together.wait(5)
            super().run()

    jobs = [Meets(Priority.DEMAND, log) for _ in range(5)]
    for job in jobs:
        queue.put(job)
    assert all(job.done.wait(5) for job in jobs)
    queue.close()
