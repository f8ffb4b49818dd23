"""One GET of an object's bytes: made on a queue's thread, its length checked, landed in the cache in whole parts.

What the cache does not take goes to the host as it came. Nothing in here knows who asked.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import trio

from mountkit.cache.content import BLOCK_BYTES, PART_BYTES, ContentId, content_id
from mountkit.cache.faults import CacheBroken, CacheFull, DiskFull
from mountkit.cache.index_writer import BlockRow
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.values import ObjectRow
from mountkit.errors import BadAnswer, MountkitError
from mountkit.mover.queue import Priority
from mountkit.store.api import Body, ObjectInfo

log = logging.getLogger(__name__)


def parts_of(offset: int, length: int) -> range:
    """The parts that the bytes [offset, offset + length) lie in."""
    return range(offset // PART_BYTES, -(-(offset + length) // PART_BYTES))


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object version and the name its bytes have in the cache."""

    row: ObjectRow
    content: ContentId

    @classmethod
    def of(cls, row: ObjectRow) -> Wanted:
        return cls(row, content_id(row.key, row.etag, row.size))

    @property
    def parts(self) -> range:
        return parts_of(0, self.row.size)

    @property
    def info(self) -> ObjectInfo:
        row = self.row
        return ObjectInfo(row.key, row.size, row.etag, row.mtime_ns, row.storage_class, row.version_id)


class Source(Protocol):
    """The store behind its retries (`store.retry`)."""

    def get(self, info: ObjectInfo, offset: int, length: int, *, spent_s: float = 0.0) -> Body: ...


class Host(Protocol):
    """Whom a fetch works for. `landed`, `ended` and `from_thread` are called on the queue's thread."""

    store: Source
    cache: CacheWriter
    on_version: Callable[[int, str], None]
    on_cache_trouble: Callable[[Exception], None]

    def from_thread(self, act: Callable[[], None]) -> None:
        """Has `act` called on the trio thread soon."""

    def landed(self, arrival: Arrival) -> None:
        """Parts have come."""

    def ended(self, fetch: Fetch, error: MountkitError | None, *, wake: bool) -> None:
        """Nothing more comes. Without `wake` whoever calls says `wake` himself, soon."""


class Fetch:
    """One GET under way, or waiting for its turn."""

    def __init__(
        self,
        host: Host,
        wanted: Wanted,
        parts: range,
        priority: Priority,
        on_end: Callable[[MountkitError | None], None] | None = None,
        *,
        around_cache: bool = False,
    ) -> None:
        self.wanted, self.parts, self.priority, self.on_end = wanted, parts, priority, on_end
        self.around_cache = around_cache
        self.held_bytes = min(2 * BLOCK_BYTES, len(parts) * PART_BYTES)
        self.error: MountkitError | None = None
        self.failed: frozenset[int] = frozenset()
        """The parts that had not landed when it ended with `error`."""
        self.changed = trio.Event()
        """Set, and replaced by a new one, whenever some of the parts have landed or the fetch has ended."""
        self.begun_at = self.spent_s = 0.0
        """When the joint thread took it, and how long it has tried in vain."""
        self._host = host

    def __repr__(self) -> str:
        return f"<Fetch {self.wanted.row.key!r} parts {self.parts.start}-{self.parts.stop} {self.priority.name}>"

    def bytes_of(self, parts: range) -> int:
        return min(parts.stop * PART_BYTES, self.wanted.row.size) - parts.start * PART_BYTES

    @property
    def is_joint(self) -> bool:
        """Whether it is for all of a small object, which can be had with less ado."""
        row = self.wanted.row
        return 0 < row.size <= BLOCK_BYTES and self.parts == self.wanted.parts and not self.around_cache

    def run(self) -> None:
        """On a queue thread."""
        self._end_after(self._stream)

    def got(self, data: memoryview, version_id: str) -> None:
        """Somebody else has made the GET, and this is all of the object. The host is woken only if somebody waits."""

        def land() -> None:
            self._note_version(version_id)
            self._land(0, data)

        self._end_after(land, wake=self.priority == Priority.DEMAND)

    def _end_after(self, act: Callable[[], None], *, wake: bool = True) -> None:
        error: MountkitError | None = None
        try:
            act()
        except MountkitError as exc:
            error = exc
        except Exception as exc:
            log.exception("fetching %r failed in a way nobody foresaw", self.wanted.row.key)
            error = MountkitError(f"fetching failed: {exc!r}")
        self._host.ended(self, error, wake=wake)

    def _stream(self) -> None:
        row = self.wanted.row
        offset = self.parts.start * PART_BYTES
        length = min(self.parts.stop * PART_BYTES, row.size) - offset
        body = self._host.store.get(self.wanted.info, offset, length, spent_s=self.spent_s)
        self._note_version(body.info.version_id)
        chunks: Iterable[memoryview] = body.chunks()
        if row.size <= BLOCK_BYTES:  # a small object is one record, however many pieces it comes in
            pieces = list(chunks)
            chunks = pieces if len(pieces) == 1 else [memoryview(b"".join(pieces))]
        self._land_parts(chunks)

    def _note_version(self, version_id: str) -> None:
        row = self.wanted.row
        if version_id and version_id != row.version_id:
            self._host.from_thread(lambda: self._host.on_version(row.id, version_id))

    def _land_parts(self, chunks: Iterable[memoryview]) -> None:
        """Lands whole parts straight from the chunks; only a part that two chunks share is copied together."""
        part, held = self.parts.start, bytearray()
        end = min(self.parts.stop * PART_BYTES, self.wanted.row.size)
        for chunk in chunks:
            if part * PART_BYTES + len(held) + len(chunk) > end:
                raise BadAnswer(f"the answer for {self.wanted.row.key!r} was longer than asked for")
            rest = chunk
            if held:
                take = min(PART_BYTES, end - part * PART_BYTES) - len(held)
                held += rest[:take]
                rest = rest[take:]
                if part * PART_BYTES + len(held) in ((part + 1) * PART_BYTES, end):
                    self._land(part, memoryview(held))
                    part, held = part + 1, bytearray()
            whole = len(rest) if part * PART_BYTES + len(rest) == end else len(rest) // PART_BYTES * PART_BYTES
            if whole and not held:
                self._land(part, rest[:whole])
                part += -(-whole // PART_BYTES)
                rest = rest[whole:]
            held += rest
        if part != self.parts.stop or held:
            raise BadAnswer(f"the answer for {self.wanted.row.key!r} had another length than asked for")

    def _land(self, first: int, data: memoryview) -> None:
        host, wanted = self._host, self.wanted
        rows: tuple[BlockRow, ...] = ()
        refused = False
        if self.around_cache:
            refused = True
        else:
            try:
                rows = host.cache.write(wanted.content, wanted.row.size, first, data)
            except (CacheFull, CacheBroken) as exc:
                refused = True
                if isinstance(exc, CacheBroken | DiskFull):  # its own limits are no trouble
                    host.from_thread(functools.partial(host.on_cache_trouble, exc))
        count = -(-len(data) // PART_BYTES)
        host.landed(Arrival(self, range(first, first + count), rows, data, refused))


@dataclass(frozen=True, slots=True)
class Arrival:
    """Parts that have come: `rows` name them in the cache, unless it `refused` them."""

    fetch: Fetch
    parts: range
    rows: tuple[BlockRow, ...]
    data: memoryview
    refused: bool
