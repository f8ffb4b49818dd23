"""Threads for uploads: work goes out from the trio thread, and what came of it comes back to it, in batches."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable

import trio

from mountkit.errors import MountkitError
from mountkit.mover.multipart import SINGLE_BYTES
from mountkit.mover.queue import FetchQueue, Priority
from mountkit.mover.upload_jobs import StampChanged

log = logging.getLogger(__name__)
MAX_THREADS = 32

Work = Callable[[], object]
OnEnd = Callable[[object, Exception | None], None]


class _Job:
    """Work for a thread of the queue; its end is told on the trio thread."""

    def __init__(self, owner: UploadThreads, work: Work, on_end: OnEnd, held_bytes: int) -> None:
        self.priority = Priority.READAHEAD if held_bytes > SINGLE_BYTES // 4 else Priority.DEMAND
        self.held_bytes = held_bytes
        self._owner, self._work, self._on_end = owner, work, on_end

    def run(self) -> None:
        result: object = None
        error: Exception | None = None
        try:
            result = self._work()
        except (MountkitError, StampChanged) as exc:
            error = exc
        except Exception as exc:
            log.exception("an upload failed in a way nobody foresaw")
            error = MountkitError(f"failed in a way nobody foresaw: {exc!r}")
        self._owner.arrived(functools.partial(self._on_end, result, error))


class UploadThreads:
    """Made on the trio thread, which owns it; `on_news` is called there when something has come back."""

    def __init__(self, on_news: Callable[[], None]) -> None:
        self._on_news = on_news
        self._queue: FetchQueue[_Job] = FetchQueue(max_threads=MAX_THREADS)
        self._arrived: deque[Callable[[], None]] = deque()
        self._woken = False
        self._token = trio.lowlevel.current_trio_token()

    def close(self) -> None:
        """Lets idle threads end; work that waits is dropped."""
        self._queue.close()

    def submit(self, work: Work, on_end: OnEnd, held_bytes: int) -> None:
        """Runs `work` on a thread; `settle` then calls `on_end` with its result or its error."""
        self._queue.put(_Job(self, work, on_end, held_bytes))

    def settle(self) -> bool:
        """Tells every end that has come; whether there was any."""
        self._woken = False  # first: what comes from here on wakes us again
        count = len(self._arrived)
        for _ in range(count):
            self._arrived.popleft()()
        return bool(count)

    def arrived(self, act: Callable[[], None]) -> None:
        """On a thread."""
        self._arrived.append(act)
        if not self._woken:
            self._woken = True
            try:
                self._token.run_sync_soon(self._on_news)
            except trio.RunFinishedError:
                log.debug("the mover ended before this arrived")
