"""Memory parts: bytes the cache did not take, kept for whoever asked for them.

Pinned parts stay until their last waiter has let go; of the others the most recent are kept. A part is dropped only
when a new one comes, so whoever has just been woken finds what he waited for.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from mountkit.cache.content import PART_BYTES, ContentId

MEMORY_BYTES = 64 << 20


class MemoryParts:
    """Owned by the fetcher's thread. `limit_bytes` bounds what nobody waits for."""

    def __init__(self, limit_bytes: int = MEMORY_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._parts: OrderedDict[tuple[ContentId, int], bytes] = OrderedDict()
        self._pins: Counter[tuple[ContentId, int]] = Counter()
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<MemoryParts {len(self._parts)} parts, {len(self._pins)} pinned>"

    def put(self, content: ContentId, first_part: int, data: memoryview) -> None:
        for number, start in enumerate(range(0, len(data), PART_BYTES), first_part):
            piece = bytes(data[start : start + PART_BYTES])
            old = self._parts.pop((content, number), b"")
            self._parts[content, number] = piece
            self._bytes += len(piece) - len(old)
        excess = self._bytes - self._limit_bytes
        if excess > 0:
            self._drop(excess)

    def get(self, content: ContentId, part: int) -> bytes | None:
        return self._parts.get((content, part))

    def __contains__(self, key: tuple[ContentId, int]) -> bool:
        return key in self._parts

    def pin(self, content: ContentId, parts: Iterable[int]) -> None:
        """These parts stay, once they are here, until `unpin` was called as often."""
        self._pins.update((content, part) for part in parts)

    def unpin(self, content: ContentId, parts: Iterable[int]) -> None:
        for part in parts:
            key = content, part
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]

    def _drop(self, excess: int) -> None:
        doomed = []
        for key, piece in self._parts.items():
            if key not in self._pins:
                doomed.append(key)
                excess -= len(piece)
                if excess <= 0:
                    break
        for key in doomed:
            self._bytes -= len(self._parts.pop(key))
