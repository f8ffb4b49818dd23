"""The fetch queue: which bytes to get next, by priority, on a pool of threads whose size follows the server's patience.

Threads, because obstore works outside the GIL and a blocked read costs nothing. The queue itself is plain data under
one lock; what a job does is not its business.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mountkit.mover.pace import Pace

MAX_THREADS = 128
SWEEP_THREADS = 80
"""How many of these a sweep may have at once, if the mover keeps up (`pace`): who waits always finds one free."""
_MIN_THREADS = 4
_MAX_BYTES = 96 << 20
"""Bytes that may be on their way at once; a job counts for what it holds in memory, not for its whole length."""
_PACE_S = 1.0


class Priority(enum.IntEnum):
    """A reader waits for demand; readahead is expected soon; a sweep (warm) takes what is left."""

    DEMAND = 0
    READAHEAD = 1
    SWEEP = 2


class Job(Protocol):
    """Something to do on a thread. `held_bytes` is what it keeps in memory while it runs."""

    priority: Priority
    held_bytes: int

    def run(self) -> None:
        """Must not raise."""
        ...


J = TypeVar("J", bound=Job)


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    waiting: int
    running: int
    limit: int
    threads: int


class FetchQueue(Generic[J]):
    """Runs jobs, most urgent first. `slow_down` halves how many run at once; success brings it back step by step."""

    def __init__(self, *, max_threads: int = MAX_THREADS, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._max_threads = max_threads
        self._limit = float(max_threads)
        self._condition = threading.Condition()
        self._heap: list[tuple[int, int, J]] = []
        self._joint_heap: list[tuple[int, int, J]] = []
        self._ring: Callable[[], None] | None = None
        self._order = itertools.count()
        self._running = self._threads = self._idle = 0
        self._pace = Pace(min(SWEEP_THREADS, max_threads))
        self._sweeps: set[J] = set()
        """What runs of the lowest priority, as it was when it began."""
        self._bytes = 0
        self._slowed_at = -_PACE_S
        self._closed = False

    def __repr__(self) -> str:
        return f"<FetchQueue {self.statistics()}>"

    def put(self, job: J, *, joint: bool = False) -> None:
        """Has the job run; a `joint` one together with others, where somebody does that (`serve_joint`)."""
        with self._condition:
            if joint and self._ring is not None:
                self._push_joint(job)
            else:
                self._push(job)

    def promote(self, job: J, priority: Priority) -> None:
        """Makes a job more urgent; if it runs already, nothing happens."""
        with self._condition:
            if job.priority <= priority:
                return
            job.priority = priority
            if any(entry[2] is job for entry in self._heap):
                self._push(job)  # the older entry is passed over
            elif any(entry[2] is job for entry in self._joint_heap):
                self._push_joint(job)

    def slow_down(self) -> None:
        """The server asked for fewer requests: half as many at once, at most one step a second."""
        with self._condition:
            now = self._clock()
            if now - self._slowed_at >= _PACE_S:
                self._slowed_at = now
                self._limit = max(_MIN_THREADS, self._limit / 2)

    def answered(self, lag_s: float) -> None:
        """The mover's trio thread answered a call of one of our threads after so long."""
        with self._condition:
            full = len(self._sweeps) >= self._pace.limit
            self._pace.answered(lag_s, full=full)
            self._wake_some()

    # ---- joint jobs: one thread runs many -----------------------------------------------------------------------
    def serve_joint(self, ring: Callable[[], None]) -> None:
        """Joint jobs are left to the caller from now on; `ring` is called, from any thread, when one may run."""
        with self._condition:
            self._ring = ring

    def take_joint(self) -> J | None:
        """The next joint job if it may run now; `ended_joint` must follow."""
        with self._condition:
            return None if self._closed else self._pop(self._joint_heap)

    def ended_joint(self, job: J) -> None:
        with self._condition:
            self._settle(job)
            self._wake_some()

    def leave_joint(self, unfinished: Collection[J]) -> None:
        """Ends `serve_joint`: what was taken and is `unfinished`, what waits and what comes is for our own threads."""
        with self._condition:
            self._ring = None
            for job in unfinished:
                self._settle(job)
            waiting, self._joint_heap = self._joint_heap, []
            for job in (*unfinished, *(job for priority, _, job in sorted(waiting) if priority == job.priority)):
                self._push(job)

    @property
    def closed(self) -> bool:
        return self._closed

    def statistics(self) -> QueueStatistics:
        with self._condition:
            waiting = len(self._heap) + len(self._joint_heap)
            return QueueStatistics(waiting, self._running, int(self._limit), self._threads)

    def close(self) -> None:
        """Lets idle threads end; jobs that wait are dropped."""
        with self._condition:
            self._closed = True
            self._heap.clear()
            self._joint_heap.clear()
            self._condition.notify_all()
            if self._ring is not None:
                self._ring()

    def _push(self, job: J) -> None:
        heapq.heappush(self._heap, (job.priority, next(self._order), job))
        if not self._may_run(job.priority):
            return  # the thread that ends one of its kind takes it: no need to wake another
        # An idle thread counts until it wakes, so a burst must not be left to the one it saw idle each time.
        if self._idle < len(self._heap) and self._threads < self._max_threads:
            self._threads += 1
            threading.Thread(target=self._work, name=f"fetch-{self._threads}", daemon=True).start()
        self._condition.notify()

    def _push_joint(self, job: J) -> None:
        assert self._ring is not None
        heapq.heappush(self._joint_heap, (job.priority, next(self._order), job))
        if self._may_run(job.priority):
            self._ring()

    def _wake_some(self) -> None:
        """Whoever may take a job now and might not know it."""
        if self._heap and self._idle and self._may_run(self._heap[0][0]):
            self._condition.notify()
        if self._joint_heap and self._ring is not None and self._may_run(self._joint_heap[0][0]):
            self._ring()

    def _pop(self, heap: list[tuple[int, int, J]]) -> J | None:
        """The most urgent job of the heap if it may run, counted as running."""
        while heap and self._may_run(heap[0][0]):
            priority, _, job = heapq.heappop(heap)
            if priority != job.priority:  # promoted: its newer entry ran or will run
                continue
            self._running += 1
            self._bytes += job.held_bytes
            if priority == Priority.SWEEP:
                self._sweeps.add(job)
            return job
        return None

    def _work(self) -> None:
        job = self._take(None)
        while job is not None:
            try:
                job.run()
            except BaseException:
                self._take(job, last=True)
                raise
            job = self._take(job)

    def _take(self, done: J | None, *, last: bool = False) -> J | None:
        """The next job for the thread that has `done` one; in one turn of the lock, so that no other wakes for it."""
        with self._condition:
            if done is not None:
                self._settle(done)
            self._idle += 1
            while not self._closed and not last:
                if (job := self._pop(self._heap)) is not None:
                    self._idle -= 1
                    self._wake_some()
                    return job
                if done is not None:  # what it has held is free for a joint job
                    done = None
                    self._wake_some()
                self._condition.wait()
            self._idle -= 1
            self._threads -= 1
            return None

    def _may_run(self, priority: int) -> bool:
        if priority == Priority.SWEEP and len(self._sweeps) >= self._pace.limit:
            return False
        return self._running < int(self._limit) and self._bytes < _MAX_BYTES

    def _settle(self, job: J) -> None:
        self._sweeps.discard(job)
        self._running -= 1
        self._bytes -= job.held_bytes
        self._limit = min(self._max_threads, self._limit + 1 / self._limit)
