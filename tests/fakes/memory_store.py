"""A bucket in memory: passes the contract suite, and fails when told to.

store = MemoryStore()
info = store.put(b"a", content(1000))
store.fail_next(StoreUnavailable("down"))       # the next call of any kind raises it
store.fail_next(AccessDenied("no"), call="list_page")
store.truncate_next(10)                         # the next body breaks after 10 bytes
store.gate.clear(); …; store.gate.set()         # calls wait in between
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from mountkit.errors import ObjectChanged, ObjectMissing, StoreError, StoreUnavailable
from mountkit.store.api import Body, ObjectInfo, Page
from mountkit.store.statistics import Counters, StoreStatistics


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that betray offsets: byte i is (seed + i) % 251."""
    cycle = bytes((seed + i) % 251 for i in range(251))
    return (cycle * (size // 251 + 1))[:size]


@dataclass
class _Held:
    info: ObjectInfo
    data: bytes


@dataclass
class MemoryStore:
    """Implements `mountkit.store.api.Store`."""

    chunk_bytes: int = 1 << 20
    versioned: bool = False
    """Old versions stay readable by their version_id; otherwise a replaced object is ObjectChanged."""
    gate: threading.Event = field(default_factory=threading.Event)
    """Every call waits until it is set; it is from the start."""
    calls: list[tuple[str, bytes]] = field(default_factory=list)
    """(method, key or prefix) of every call that was made."""

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._objects: dict[bytes, _Held] = {}
        self._versions: dict[tuple[bytes, str], _Held] = {}
        self._number = 0
        self._faults: list[tuple[str, StoreError]] = []
        self._truncate: list[int] = []
        self._counts = Counters()
        self.gate.set()

    # ---- what a test does to the bucket

    def put(
        self, key: bytes, data: bytes, *, mtime_ns: int = 1_767_225_600_000_000_000, storage_class: str = "STANDARD"
    ) -> ObjectInfo:
        """Puts a new version under `key`."""
        with self._lock:
            self._number += 1
            version = f"v{self._number}" if self.versioned else ""
            info = ObjectInfo(key, len(data), f'"etag-{self._number}"', mtime_ns, storage_class, version)
            self._objects[key] = self._versions[key, version] = _Held(info, data)
            return info

    def delete(self, key: bytes) -> None:
        with self._lock:
            self._objects.pop(key, None)

    def fail_next(self, error: StoreError, *, times: int = 1, call: str = "") -> None:
        """The next `times` calls (of the method `call`, if given) raise `error`."""
        self._faults += [(call, error)] * times

    def heal(self) -> None:
        """Forget the failures that are still to come."""
        self._faults.clear()

    def truncate_next(self, after_bytes: int) -> None:
        """The next body breaks off after so many bytes, as a lost connection would."""
        self._truncate.append(after_bytes)

    # ---- the protocol

    def head(self, key: bytes) -> ObjectInfo:
        self._enter("head", key)
        with self._lock:
            held = self._objects.get(key)
        if held is None:
            raise ObjectMissing(f"there is no {key!r}")
        return held.info

    def get(self, info: ObjectInfo, offset: int, length: int) -> Body:
        assert offset >= 0 and length >= 1 and offset + length <= info.size, (info, offset, length)
        self._enter("get", info.key)
        with self._lock:
            held = self._versions.get((info.key, info.version_id)) if info.version_id else self._objects.get(info.key)
        if held is None:
            raise ObjectMissing(f"there is no {info.key!r}")
        if held.info.etag != info.etag or held.info.size != info.size:
            raise ObjectChanged(f"{info.key!r} holds another version")
        cut = self._truncate.pop(0) if self._truncate else None
        return _MemoryBody(held.info, held.data[offset : offset + length], self.chunk_bytes, cut, self._counts)

    def list_page(self, prefix: bytes, *, delimiter: bytes = b"/", token: str = "", limit: int = 1000) -> Page:
        self._enter("list_page", prefix)
        with self._lock:
            keys = sorted(key for key in self._objects if key.startswith(prefix))
            rows: dict[bytes, ObjectInfo | None] = {}
            for key in keys:
                found = key.find(delimiter, len(prefix)) if delimiter else -1
                if found < 0:
                    rows[key] = self._listed(key)
                else:
                    rows[key[: found + len(delimiter)]] = None
        names = sorted(rows)
        start = bisect_right(names, bytes.fromhex(token)) if token else 0
        chosen = names[start : start + limit]
        objects = tuple(info for name in chosen if (info := rows[name]) is not None)
        prefixes = tuple(name for name in chosen if rows[name] is None)
        return Page(objects, prefixes, chosen[-1].hex() if start + limit < len(names) else "")

    def statistics(self) -> StoreStatistics:
        return self._counts.statistics()

    def close(self) -> None:
        pass

    # ----

    def _listed(self, key: bytes) -> ObjectInfo:
        info = self._objects[key].info
        return ObjectInfo(info.key, info.size, info.etag, info.mtime_ns, info.storage_class)

    def _enter(self, call: str, key: bytes) -> None:
        self.gate.wait()
        self._counts.add("list" if call == "list_page" else call)
        with self._lock:
            self.calls.append((call, key))
            for number, (which, error) in enumerate(self._faults):
                if which in ("", call):
                    del self._faults[number]
                    raise error


class _MemoryBody:
    def __init__(self, info: ObjectInfo, data: bytes, chunk_bytes: int, cut: int | None, counts: Counters) -> None:
        self.info, self._data, self._chunk_bytes, self._cut, self._counts = info, data, chunk_bytes, cut, counts

    def chunks(self) -> Iterator[memoryview]:
        data = memoryview(self._data)[: self._cut]
        for start in range(0, len(data), self._chunk_bytes):
            piece = data[start : start + self._chunk_bytes]
            self._counts.add("bytes_received", len(piece))
            yield piece
        if len(data) < len(self._data):
            raise StoreUnavailable(f"the body broke off after {len(data)} of {len(self._data)} bytes")
