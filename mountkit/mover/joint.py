"""The joint thread: runs the fetches of whole small objects, as many at once as the queue allows, on one thread.

It knows one way to get an object, the cheapest. A fetch that does not succeed by it goes back to the queue, to a thread
that has all the patience of the store's retries; while the server is in trouble, all of them do. So do all from then on
if this thread fails as nobody foresaw: readers wait for what it has, and cheapness is nothing to them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from mountkit.mover.fetch import Fetch
from mountkit.mover.queue import FetchQueue
from mountkit.store.api import ObjectInfo
from mountkit.store.s3_many import Failed, Got

log = logging.getLogger(__name__)
_PAUSE_S = 1.0


class Gets(Protocol):
    """What `store.s3_many.ManyGets` does; all but `wake` belong to the joint thread."""

    def start(self, tag: Fetch, info: ObjectInfo) -> bool: ...
    def wait(self) -> Iterator[tuple[Fetch, Got | Failed]]: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


class JointThread:
    """Begun by `start`; ends when the queue is closed."""

    def __init__(
        self,
        queue: FetchQueue[Fetch],
        gets: Gets,
        *,
        after_batch: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`after_batch` is called, on the joint thread, when some objects have come that nobody was woken for."""
        self._queue, self._gets, self._after_batch, self._clock = queue, gets, after_batch, clock
        self._pauses_until = 0.0
        self._under_way: dict[Fetch, None] = {}

    def __repr__(self) -> str:
        return f"<JointThread {self._gets!r}>"

    def start(self) -> None:
        self._queue.serve_joint(self._gets.wake)
        threading.Thread(target=self._work, name="fetch-joint", daemon=True).start()

    def _work(self) -> None:
        try:
            self._serve()
        except Exception:
            log.exception("getting small objects jointly failed in a way nobody foresaw; threads do it from now on")
            self._leave()
        finally:
            self._gets.close()

    def _leave(self) -> None:
        """Everything goes to the queue's threads, also what has come but may not have landed."""
        for fetch in self._under_way:
            fetch.spent_s = self._clock() - fetch.begun_at
        self._queue.leave_joint(self._under_way)
        with contextlib.suppress(Exception):  # it may be what has failed
            self._after_batch()

    def _serve(self) -> None:
        while not self._queue.closed:
            self._begin_some()
            some_came = False
            for fetch, outcome in self._gets.wait():
                some_came |= self._end(fetch, outcome)
                self._begin_some()
            if some_came:
                self._after_batch()

    def _begin_some(self) -> None:
        while (fetch := self._queue.take_joint()) is not None:
            self._under_way[fetch] = None
            fetch.begun_at = self._clock()
            if self._clock() < self._pauses_until or not self._gets.start(fetch, fetch.wanted.info):
                self._give_back(fetch)

    def _end(self, fetch: Fetch, outcome: Got | Failed) -> bool:
        """Whether the object has come."""
        if isinstance(outcome, Failed):
            if outcome.server_is_in_trouble:
                self._pauses_until = self._clock() + _PAUSE_S
            self._give_back(fetch)
            return False
        fetch.got(outcome.body, outcome.version_id)
        del self._under_way[fetch]
        self._queue.ended_joint(fetch)
        return True

    def _give_back(self, fetch: Fetch) -> None:
        fetch.spent_s = self._clock() - fetch.begun_at
        del self._under_way[fetch]
        self._queue.ended_joint(fetch)
        self._queue.put(fetch)
