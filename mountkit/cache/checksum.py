"""The checksum of cached bytes: the CRC-32 of zlib, computed by ISA-L, which is 13 times as fast (57 to 4.3 GB/s).

Every byte read cold is summed up three times: as it arrives, as it is sealed, and as it leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isal.isal_zlib import crc32

from mountkit.cache.content import PART_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

CRC_BYTES = 4


def crc(data: Buffer) -> bytes:
    """The CRC as it is stored, little-endian."""
    return crc32(data).to_bytes(CRC_BYTES, "little")


def part_crcs(view: memoryview) -> bytes:
    """The CRCs of consecutive parts, one after the other."""
    return b"".join(crc(view[at : at + PART_BYTES]) for at in range(0, view.nbytes, PART_BYTES))


def wrong_parts(view: memoryview, crcs: list[int]) -> list[int]:
    """Which of the consecutive parts in `view` do not have their CRC."""
    return [n for n, right in enumerate(crcs) if crc32(view[n * PART_BYTES : (n + 1) * PART_BYTES]) != right]
