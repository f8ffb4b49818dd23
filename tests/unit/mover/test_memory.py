"""Memory parts: bounded, but never at the cost of who waits."""

from __future__ import annotations

from mountkit.cache.content import PART_BYTES, ContentId
from mountkit.mover.memory import MemoryParts

ONE = memoryview(bytes(PART_BYTES))
A, B = ContentId(b"a" * 16), ContentId(b"b" * 16)


def test_the_most_recent_parts_are_kept() -> None:
    memory = MemoryParts(2 * PART_BYTES)
    for number in range(4):
        memory.put(A, number, ONE)
    assert [number for number in range(4) if (A, number) in memory] == [2, 3]


def test_a_pinned_part_stays_until_its_last_waiter_lets_go() -> None:
    memory = MemoryParts(2 * PART_BYTES)
    memory.pin(A, [0])
    memory.pin(A, [0])
    memory.put(A, 0, ONE)
    memory.unpin(A, [0])
    for number in range(5):
        memory.put(B, number, ONE)
    assert memory.get(A, 0) == bytes(PART_BYTES)
    assert repr(memory) == "<MemoryParts 2 parts, 1 pinned>"
    memory.unpin(A, [0])
    memory.put(B, 9, ONE)
    assert memory.get(A, 0) is None
