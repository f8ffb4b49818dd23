"""Fetching object bytes into the cache: one fetch a part however many ask, rows committed in batches.

`need` is the one way in. Bytes that the cache does not take (full, broken, or not worth keeping) stay in a small memory
for whoever asked. Jobs run on the queue's threads; everything else on the mover's trio thread.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

import trio

from mountkit.cache.content import PART_BYTES, ContentId, runs
from mountkit.cache.faults import CacheBroken, CacheFull
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.values import ObjectRow
from mountkit.errors import MountkitError
from mountkit.mover.fetch import Arrival, Fetch, Source, Wanted, parts_of
from mountkit.mover.memory import MemoryParts
from mountkit.mover.queue import FetchQueue, Priority

log = logging.getLogger(__name__)
_ATTEMPTS = 3
T = TypeVar("T")


def _drained(waiting: deque[T]) -> list[T]:
    """What is in it now, in order; other threads go on appending."""
    return [waiting.popleft() for _ in range(len(waiting))]


class Fetcher:
    """Brings parts of objects into the cache, once each. One trio thread owns it; `run` must run in it."""

    def __init__(
        self,
        store: Source,
        cache: CacheWriter,
        queue: FetchQueue[Fetch],
        *,
        on_failure: Callable[[ObjectRow, MountkitError], None],
        on_version: Callable[[int, str], None],
        on_cache_trouble: Callable[[Exception], None],
        on_landed: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """`on_landed` hears of every batch of bytes, and whether the cache took some of it."""
        self.store, self.cache = store, cache
        self.on_version, self.on_cache_trouble = on_version, on_cache_trouble
        self.idle = trio.Event()
        self.landed_bytes = 0
        self._on_failure, self._on_landed = on_failure, on_landed
        self._queue = queue
        self._memory = MemoryParts()
        self._coming_bytes = 0
        self._in_flight: dict[tuple[ContentId, int], Fetch] = {}
        self._arrived: deque[Arrival] = deque()
        self._finished: deque[tuple[Fetch, MountkitError | None]] = deque()
        self._woken = False
        self._woken_at = 0.0
        self._something = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None

    def __repr__(self) -> str:
        return f"<Fetcher {len(self._in_flight)} parts in flight>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commits what has arrived, in batches: under load a batch is what came while the last one was committed."""
        self._token = trio.lowlevel.current_trio_token()
        task_status.started()
        while True:
            await self._something.wait()
            self._something = trio.Event()
            self._settle()

    # ---- asking --------------------------------------------------------------------------------------------
    async def need(self, wanted: Wanted, parts: range, priority: Priority, *, around_cache: bool = False) -> None:
        """Returns once these parts are cached or in memory. Raises the StoreError that prevented it.

        `around_cache`: in memory, whatever the cache says that it has; for one whose disk fails.
        Cancelling the caller does not cancel the fetch, which others may share. What is only in memory is sure to be
        there until the caller's next await.
        """
        self._memory.pin(wanted.content, parts)
        try:
            for _ in range(_ATTEMPTS):
                fetches = self.start(wanted, parts, priority, around_cache=around_cache)
                if not fetches:
                    return
                for fetch in fetches:
                    await self._until_landed(fetch, wanted.content, parts)
        finally:
            self._memory.unpin(wanted.content, parts)
        raise MountkitError(f"the cache does not keep {wanted.row.key!r} long enough to be read")

    def start(self, wanted: Wanted, parts: range, priority: Priority, *, around_cache: bool = False) -> list[Fetch]:
        """Starts what of these parts is neither here nor on its way; the fetches that bring them all."""
        fetches: list[Fetch] = []
        fresh: list[int] = []
        for missing in [parts] if around_cache else self._missing(wanted, parts):
            for part in missing:
                key = wanted.content, part
                fetch = self._in_flight.get(key)
                if fetch is not None:
                    if fetch not in fetches:
                        fetches.append(fetch)
                        self._queue.promote(fetch, priority)
                elif key not in self._memory:
                    fresh.append(part)
        return fetches + [
            self._launch(Fetch(self, wanted, run, priority, around_cache=around_cache)) for run in runs(fresh)
        ]

    def sweep(
        self,
        wanted: Wanted,
        parts: range,
        on_end: Callable[[MountkitError | None], None],
        *,
        known_missing: bool = False,
    ) -> list[int]:
        """As `start`, at the lowest priority and for nobody: the bytes of each GET that this takes.

        `on_end` is called as often, later, with what went wrong. `known_missing`: the cache was asked a moment ago.
        """
        key = wanted.content
        missing = [parts] if known_missing else self._missing(wanted, parts)
        fresh = [
            part
            for run in missing
            for part in run
            if (key, part) not in self._in_flight and (key, part) not in self._memory
        ]
        fetches = [self._launch(Fetch(self, wanted, run, Priority.SWEEP, on_end)) for run in runs(fresh)]
        return [fetch.bytes_of(fetch.parts) for fetch in fetches]

    def _launch(self, fetch: Fetch) -> Fetch:
        content = fetch.wanted.content
        for part in fetch.parts:
            self._in_flight[content, part] = fetch
        self._coming_bytes += fetch.bytes_of(fetch.parts)
        self._queue.put(fetch, joint=fetch.is_joint)
        return fetch

    def gather(self, wanted: Wanted, offset: int, length: int) -> bytes | None:
        """These bytes from cache and memory; None if some are in neither."""
        pieces = []
        end = min(offset + length, wanted.row.size)
        for part in parts_of(offset, end - offset):
            start = part * PART_BYTES
            size = min(PART_BYTES, wanted.row.size - start)
            piece = self._memory.get(wanted.content, part)
            if piece is None:
                piece = self._cached(wanted, start, size)
            if piece is None:
                return None
            pieces.append(piece[max(0, offset - start) : end - start])
        return b"".join(pieces)

    def lacking(self, files: list[Wanted]) -> list[Wanted]:
        """Those of these files of at most one block that the cache does not have, in one look at it."""
        try:
            complete = self.cache.complete_among([(wanted.content, wanted.row.size) for wanted in files])
        except (CacheFull, CacheBroken) as exc:
            self.on_cache_trouble(exc)
            return []
        return [wanted for wanted in files if wanted.content not in complete]

    def keeps_apart(self, wanted: Wanted, parts: range) -> bool:
        """Whether some of these parts are in memory only, so that no reader of the cache finds them."""
        return any((wanted.content, part) in self._memory for part in parts)

    def lacking_bytes(self, wanted: Wanted, parts: range) -> int:
        """How many bytes of these parts are not in the cache."""
        return sum(
            min(missing.stop * PART_BYTES, wanted.row.size) - missing.start * PART_BYTES
            for missing in self._missing(wanted, parts)
        )

    def room_for(self, ahead_bytes: int) -> bool:
        """Whether the cache will take so much more beside what is on its way already."""
        return self.cache.admits(self._coming_bytes + ahead_bytes)

    @property
    def busy(self) -> bool:
        return bool(self._in_flight)

    def _missing(self, wanted: Wanted, parts: range) -> list[range]:
        try:
            return self.cache.missing(wanted.content, wanted.row.size, parts.start, parts.stop - 1)
        except (CacheFull, CacheBroken) as exc:
            self.on_cache_trouble(exc)
            return [parts]

    def _cached(self, wanted: Wanted, offset: int, length: int) -> bytes | None:
        try:
            return self.cache.read(wanted.content, wanted.row.size, offset, length)
        except (CacheFull, CacheBroken) as exc:
            self.on_cache_trouble(exc)
            return None

    async def _until_landed(self, fetch: Fetch, content: ContentId, parts: range) -> None:
        mine = [part for part in parts if part in fetch.parts]
        while any(self._in_flight.get((content, part)) is fetch for part in mine):
            await fetch.changed.wait()
        if fetch.error is not None and not fetch.failed.isdisjoint(mine):
            raise fetch.error

    # ---- arriving ------------------------------------------------------------------------------------------
    def from_thread(self, act: Callable[[], None]) -> None:
        """Has `act` called on the trio thread soon."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(act)
        except trio.RunFinishedError:
            log.debug("the mover ended before this arrived")

    def landed(self, arrival: Arrival) -> None:
        """On a queue thread."""
        self._arrived.append(arrival)
        if arrival.parts != arrival.fetch.parts:  # else its end follows at once
            self.wake()

    def ended(self, fetch: Fetch, error: MountkitError | None, *, wake: bool) -> None:
        """On a queue thread."""
        self._finished.append((fetch, error))
        if wake:
            self.wake()

    def wake(self) -> None:
        """Has what has arrived looked at. From any thread."""
        # One call into trio for all that comes until it is looked at: each costs a system call and the GIL.
        if not self._woken:
            self._woken = True
            self._woken_at = time.perf_counter()
            self.from_thread(self._something_came)

    def _something_came(self) -> None:
        self._something.set()

    def _settle(self) -> None:
        self._queue.answered(time.perf_counter() - self._woken_at)
        self._woken = False  # first: what comes from here on wakes us again
        finished = _drained(self._finished)  # before the arrivals: a fetch ends after its last bytes came
        arrived = _drained(self._arrived)
        rows = [row for arrival in arrived for row in arrival.rows]
        committed = True
        if rows:
            try:
                self.cache.commit(rows)
            except (CacheFull, CacheBroken) as exc:
                committed = False
                self.on_cache_trouble(exc)
        if arrived:
            self._on_landed(bool(rows) and committed)
        touched: dict[Fetch, None] = {}
        for arrival in arrived:
            if arrival.refused or (arrival.rows and not committed):
                self._memory.put(arrival.fetch.wanted.content, arrival.parts.start, arrival.data)
            self.landed_bytes += len(arrival.parts) * PART_BYTES
            self._leave(arrival.fetch, arrival.parts)
            touched[arrival.fetch] = None
        for fetch, error in finished:
            fetch.error = error
            fetch.failed = frozenset(self._leave(fetch, fetch.parts))
            touched[fetch] = None
            if error is not None:
                self._on_failure(fetch.wanted.row, error)
            if fetch.on_end is not None:
                fetch.on_end(error)
        for fetch in touched:
            changed, fetch.changed = fetch.changed, trio.Event()
            changed.set()
        if not self._in_flight:
            self.idle.set()
            self.idle = trio.Event()

    def _leave(self, fetch: Fetch, parts: Iterable[int]) -> list[int]:
        """These parts are no longer on their way by this fetch; those that still were."""
        content = fetch.wanted.content
        left = [part for part in parts if self._in_flight.get((content, part)) is fetch]
        for part in left:
            del self._in_flight[content, part]
            self._coming_bytes -= fetch.bytes_of(range(part, part + 1))
        return left
