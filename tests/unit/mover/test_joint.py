"""The joint thread: fetches of small objects end well by the cheap way, or go to a thread that has patience."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from mountkit.catalog.values import ObjectId, ObjectRow
from mountkit.errors import MountkitError
from mountkit.mover.fetch import Fetch, Wanted
from mountkit.mover.joint import JointThread
from mountkit.mover.queue import SWEEP_THREADS, FetchQueue, Priority
from mountkit.store.api import ObjectInfo
from mountkit.store.s3_many import Failed, Got


class FakeGets:
    """GETs whose ends the test decides."""

    def __init__(self) -> None:
        self.begun: list[Fetch] = []
        self.takes = True
        self.breaks_at = ""
        """The method that fails as nobody foresaw."""
        self.closed = threading.Event()
        self._ends: deque[tuple[Fetch, Got | Failed]] = deque()
        self._bell = threading.Event()

    def start(self, tag: Fetch, info: ObjectInfo) -> bool:
        assert info.key == tag.wanted.row.key
        self._may_break("start")
        if self.takes:
            self.begun.append(tag)
        return self.takes

    def end(self, fetch: Fetch, outcome: Got | Failed, *, ring: bool = True) -> None:
        self._ends.append((fetch, outcome))
        if ring:
            self._bell.set()

    def wait(self) -> Iterator[tuple[Fetch, Got | Failed]]:
        self._bell.wait()
        self._bell.clear()
        self._may_break("wait")
        while self._ends:
            yield self._ends.popleft()

    def _may_break(self, method: str) -> None:
        if self.breaks_at == method:
            raise RuntimeError("unforeseen")

    def wake(self) -> None:
        self._bell.set()

    def close(self) -> None:
        self.closed.set()
        self._may_break("close")


class OneFetch(Fetch):
    """A fetch that only notes what becomes of it."""

    def __init__(self, number: int, priority: Priority = Priority.SWEEP) -> None:
        row = ObjectRow(ObjectId(number), b"%d" % number, '"e"', 4, 0, "", "STANDARD", None)
        wanted = Wanted.of(row)
        super().__init__(None, wanted, wanted.parts, priority)  # type: ignore[arg-type]
        self.came: list[bytes | MountkitError] = []
        self.threaded = threading.Event()

    def got(self, data: memoryview, version_id: str) -> None:
        if data == b"breaks":
            raise RuntimeError("unforeseen")
        self.came.append(bytes(data) + version_id.encode())

    def run(self) -> None:
        self.threaded.set()


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.gets, self.queue = FakeGets(), FetchQueue[Fetch]()
        self.batches = 0
        self.batch_breaks = False
        JointThread(self.queue, self.gets, after_batch=self._batch_ends, clock=lambda: self.now).start()

    def _batch_ends(self) -> None:
        self.batches += 1
        if self.batch_breaks:
            raise RuntimeError("unforeseen")

    def put(self, fetch: OneFetch) -> OneFetch:
        assert fetch.is_joint
        self.queue.put(fetch, joint=True)
        return fetch


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.queue.close()
    assert bench.gets.closed.wait(5)
    until(lambda: not any(thread.name == "fetch-joint" for thread in threading.enumerate()))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_an_object_that_comes_lands_without_a_thread(bench: Bench) -> None:
    fetch = bench.put(OneFetch(1))
    until(lambda: bench.gets.begun == [fetch])
    assert bench.queue.statistics().running == 1
    bench.gets.end(fetch, Got(memoryview(b"data"), "v1"))
    until(lambda: fetch.came == [b"datav1"])
    until(lambda: bench.queue.statistics().running == 0)
    until(lambda: bench.batches == 1)
    assert not fetch.threaded.is_set()


@pytest.mark.parametrize("in_trouble", [False, True])
def test_one_that_fails_goes_to_a_thread(bench: Bench, in_trouble: bool) -> None:
    fetch = bench.put(OneFetch(1))
    until(lambda: bench.gets.begun == [fetch])
    bench.now = 7.0
    bench.gets.end(fetch, Failed(server_is_in_trouble=in_trouble))
    assert fetch.threaded.wait(5)
    assert fetch.spent_s == 7.0
    assert not fetch.came
    assert not bench.batches


def test_while_the_server_is_in_trouble_all_go_to_threads_and_then_no_longer(bench: Bench) -> None:
    first = bench.put(OneFetch(1))
    until(lambda: bench.gets.begun == [first])
    bench.gets.end(first, Failed(server_is_in_trouble=True))
    assert first.threaded.wait(5)
    second = bench.put(OneFetch(2))
    assert second.threaded.wait(5)
    bench.now = 1.0
    third = bench.put(OneFetch(3))
    until(lambda: bench.gets.begun == [first, third])


def test_what_the_cheap_way_does_not_take_goes_to_a_thread(bench: Bench) -> None:
    bench.gets.takes = False
    assert bench.put(OneFetch(1)).threaded.wait(5)


def test_no_more_of_a_sweep_runs_than_the_pace_allows_and_demand_comes_first(bench: Bench) -> None:
    sweeps = [bench.put(OneFetch(n)) for n in range(SWEEP_THREADS + 20)]
    until(lambda: len(bench.gets.begun) == 16)
    demand = bench.put(OneFetch(1000, Priority.DEMAND))
    until(lambda: bench.gets.begun[16:] == [demand])
    bench.gets.end(sweeps[0], Got(memoryview(b"data"), ""))
    until(lambda: bench.gets.begun[17:] == [sweeps[16]])


def test_a_promoted_one_is_begun_at_once_and_only_once(bench: Bench) -> None:
    sweeps = [bench.put(OneFetch(n)) for n in range(20)]
    until(lambda: len(bench.gets.begun) == 16)
    bench.queue.promote(sweeps[-1], Priority.DEMAND)
    until(lambda: bench.gets.begun[16:] == [sweeps[-1]])
    for fetch in sweeps[:16]:
        bench.gets.end(fetch, Got(memoryview(b"data"), ""))
    until(lambda: len(bench.gets.begun) == 20)
    assert len(set(bench.gets.begun)) == 20


def test_without_anybody_who_does_it_jointly_a_thread_does() -> None:
    queue, fetch = FetchQueue[Fetch](), OneFetch(1)
    queue.put(fetch, joint=True)
    assert fetch.threaded.wait(5)
    queue.close()


@pytest.mark.parametrize("method", ["wait", "got", "batch"])
def test_after_a_failure_that_nobody_foresaw_all_fetches_end_on_threads(
    bench: Bench, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """What was under way, what waited, and what comes later; it is said once, with where it happened."""
    waiting = [bench.put(OneFetch(n)) for n in range(SWEEP_THREADS + 20)]
    until(lambda: len(bench.gets.begun) == 16)
    waiting.append(bench.put(OneFetch(1000, Priority.DEMAND)))
    until(lambda: len(bench.gets.begun) == 17)
    came = [waiting.pop(0)] if method == "batch" else []
    bench.batch_breaks = method == "batch"
    bench.gets.breaks_at = method
    bench.gets.end(came[0] if came else waiting[0], Got(memoryview(b"data" if came else b"breaks"), ""))
    assert all(fetch.threaded.wait(5) for fetch in waiting)
    assert bench.gets.closed.wait(5)
    later = [OneFetch(2000), OneFetch(2001, Priority.DEMAND)]
    assert all(bench.put(fetch).threaded.wait(5) for fetch in later)
    until(lambda: bench.queue.statistics().running == bench.queue.statistics().waiting == 0)
    assert not any(fetch.threaded.is_set() for fetch in came)
    first = next(record for record in caplog.records if record.name == "mountkit.mover.joint")
    assert first.levelname == "ERROR"
    assert "RuntimeError: unforeseen" in str(first.exc_text)


def test_a_fetch_that_cannot_even_be_begun_goes_to_a_thread(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.gets.breaks_at = "start"
    fetch = bench.put(OneFetch(1))
    assert fetch.threaded.wait(5)
    assert caplog.records[0].exc_text


def test_what_has_come_before_such_a_failure_is_looked_at(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody was woken for it: that was to be done once for all of the batch."""
    first, second = bench.put(OneFetch(1)), bench.put(OneFetch(2))
    until(lambda: len(bench.gets.begun) == 2)
    bench.gets.end(first, Got(memoryview(b"data"), ""), ring=False)
    bench.gets.end(second, Got(memoryview(b"breaks"), ""))
    assert second.threaded.wait(5)
    until(lambda: bench.batches == 1)
    assert first.came == [b"data"]
    assert not first.threaded.is_set()


def test_a_promoted_one_that_waits_at_such_a_failure_runs_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    runs: list[OneFetch] = []
    fetches = [bench.put(OneFetch(n)) for n in range(SWEEP_THREADS + 20)]
    until(lambda: len(bench.gets.begun) == 16)
    for fetch in fetches:
        fetch.run = lambda fetch=fetch: runs.append(fetch)  # type: ignore[method-assign, misc]
    bench.queue.slow_down()
    for fetch in fetches[-8:]:
        bench.queue.promote(fetch, Priority.DEMAND)
    bench.gets.breaks_at = "wait"
    bench.gets.wake()
    until(lambda: len(runs) >= len(fetches))
    assert sorted(map(id, runs)) == sorted(map(id, fetches))
