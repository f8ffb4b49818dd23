"""The checksums of cached bytes."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from mountkit.cache.checksum import crc, part_crcs, wrong_parts
from mountkit.cache.content import PART_BYTES

DATA = bytes(range(251)) * (2 * PART_BYTES // 251 + 1)


@given(st.binary(max_size=2000))
def test_a_checksum_is_the_crc32_of_zlib_as_caches_of_earlier_versions_have_it(data: bytes) -> None:
    assert crc(data) == zlib.crc32(data).to_bytes(4, "little")


def test_every_part_has_one_and_the_last_may_be_short() -> None:
    data = DATA[: 2 * PART_BYTES + 5]
    parts = [data[:PART_BYTES], data[PART_BYTES : 2 * PART_BYTES], data[2 * PART_BYTES :]]
    assert part_crcs(memoryview(data)) == b"".join(map(crc, parts))


def test_the_part_with_a_flipped_bit_is_named() -> None:
    data = bytearray(DATA[: 2 * PART_BYTES + 5])
    crcs = [zlib.crc32(data[at : at + PART_BYTES]) for at in range(0, len(data), PART_BYTES)]
    assert wrong_parts(memoryview(data), crcs) == []
    data[PART_BYTES + 7] ^= 4
    assert wrong_parts(memoryview(data), crcs) == [1]
