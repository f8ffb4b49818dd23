"""Requests of a writable mount, as the kernel lays them out."""

from __future__ import annotations

import struct

from mountkit.serve import output_messages as out
from mountkit.serve.messages import IN_HEADER, Attributes


def request(body: bytes, opcode: int = 0, uid: int = 0, gid: int = 0) -> bytes:
    return IN_HEADER.pack(IN_HEADER.size + len(body), opcode, 2, 1, uid, gid, 77, 0, 0) + body


def test_the_caller_is_in_the_header() -> None:
    assert out.caller(request(b"", uid=12, gid=34)) == (12, 34)


def test_a_setattr_says_only_what_is_valid() -> None:
    valid = 1 << 3 | 1 << 5 | 1 << 6
    body = struct.pack("<IIQQQqqqIIIIIIII", valid, 0, 5, 100, 0, 1, -2, 3, 4, 5, 6, 0o644, 0, 1, 2, 0)
    found = out.changes(request(body), now_ns=9)
    assert found == (5, 100, None, None, None, None, -2_000_000_000 + 5)


def test_a_setattr_may_mean_now() -> None:
    body = struct.pack("<IIQQQqqqIIIIIIII", 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8, *[0] * 15)
    found = out.changes(request(body), now_ns=9)
    assert (found.atime_ns, found.mtime_ns) == (9, 9)


def test_names_end_requests() -> None:
    both = request(b"one\0two\0")
    assert out.two_names(both, len(both)) == (b"one", b"two")
    rename = request(struct.pack("<QII", 9, 1, 0) + b"a b\0c\0")
    assert out.rename_request(rename, len(rename), second=True) == (9, 1, b"a b", b"c")
    create = request(struct.pack("<IIII", 0o101, 0o644, 0, 0) + b"new\0")
    assert out.create_request(create, len(create)) == (0o101, 0o644, b"new")
    mkdir = request(struct.pack("<II", 0o755, 0) + b"d\0")
    assert out.mode_and_name(mkdir, len(mkdir), node=False) == (0o755, b"d")


def test_an_xattr_may_be_empty_or_hold_zeros() -> None:
    for value in (b"", b"\0\0", b"a\0b"):
        found = request(struct.pack("<II", len(value), 1) + b"user.x\0" + value)
        assert out.set_xattr_request(found, len(found)) == (b"user.x", value, 1)


def test_a_write_names_its_place_and_where_its_bytes_begin() -> None:
    body = struct.pack("<QQIIQII", 7, 4096, 3, 0, 0, 0, 0) + b"abc"
    handle, offset, size, begin = out.write_request(request(body))
    assert (handle, offset, request(body)[begin : begin + size]) == (7, 4096, b"abc")


def test_answers_have_the_sizes_of_the_kernels_structures() -> None:
    shown = Attributes(5, 0o100644, 3, 10**18, 1, 0, 0)
    assert len(out.entry_body(shown, 1.0, 0.0)) == 128
    assert len(out.created_body(shown, 1.0, 0.0, out.opened_body(1, 2, 3))) == 144
    assert len(out.statfs_body(blocks=1, free=1, block_bytes=4096)) == 80
    assert len(out.written_body(4)) == 8
