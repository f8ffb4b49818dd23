"""Names and measures: which object version bytes belong to, and how it is divided into parts and blocks.

A part is the unit of checking and of partial fetches, a block (8 parts) the unit of index rows. Pure arithmetic; knows
no files.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple, NewType

PART_BYTES = 128 << 10
PARTS_PER_BLOCK = 8
BLOCK_BYTES = PART_BYTES * PARTS_PER_BLOCK

ContentId = NewType("ContentId", bytes)


def content_id(key: bytes, etag: str, size: int) -> ContentId:
    """The 16 bytes that name one version of an object, whatever the catalog calls it."""
    tag, length = etag.encode("utf-8", "surrogatepass"), b"%d" % size
    lengths = (len(field).to_bytes(8, "little") for field in (key, tag, length))
    first, second, third = lengths
    return ContentId(blake2b(first + key + second + tag + third + length, digest_size=16).digest())


def parts_in(size: int) -> int:
    return -(-size // PART_BYTES)


def blocks_in(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def parts_of_block(size: int, index: int) -> int:
    """How many parts block `index` of an object of `size` bytes has."""
    return min(PARTS_PER_BLOCK, parts_in(size) - index * PARTS_PER_BLOCK)


def full_mask(size: int, index: int) -> int:
    """The part bitmask of a complete block."""
    return (1 << parts_of_block(size, index)) - 1


def part_span(size: int, first_part: int, last_part: int) -> tuple[int, int]:
    """Where the parts first_part … last_part begin and end in the object."""
    return first_part * PART_BYTES, min(size, (last_part + 1) * PART_BYTES)


class BlockPieces(NamedTuple):
    """What a run of parts has in one block: parts `first` … `last` of `block`, counted within the block."""

    block: int
    first: int
    last: int


def by_block(first_part: int, last_part: int) -> Iterator[BlockPieces]:
    """The run of parts, block by block."""
    for index in range(first_part // PARTS_PER_BLOCK, last_part // PARTS_PER_BLOCK + 1):
        start = index * PARTS_PER_BLOCK
        yield BlockPieces(index, max(first_part - start, 0), min(last_part - start, PARTS_PER_BLOCK - 1))


def runs(parts: list[int]) -> list[range]:
    """Ascending part numbers as ranges."""
    found: list[range] = []
    for part in parts:
        if found and found[-1].stop == part:
            found[-1] = range(found[-1].start, part + 1)
        else:
            found.append(range(part, part + 1))
    return found
