"""FUSE messages as bytes: the few the wire answers by itself, as include/uapi/linux/fuse.h (7.41) lays them out.

Pure: no descriptor, no state. Times are given as integers of nanoseconds, timeouts as seconds (infinity allowed).
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, INIT = 1, 2, 3, 14, 15, 18, 26
INTERRUPT, IOCTL, BATCH_FORGET, READDIRPLUS = 36, 39, 42, 44
OPENDIR, READDIR, RELEASEDIR = 27, 28, 29
UNIQUE_RESEND = 1 << 63
"""Set in `unique` of a request the kernel hands out a second time (Linux 6.9)."""

NOTIFY_INVAL_ENTRY, NOTIFY_RESEND = 3, 7
FOPEN_KEEP_CACHE, FOPEN_CACHE_DIR, FOPEN_NOFLUSH, FOPEN_PASSTHROUGH = 1 << 1, 1 << 3, 1 << 5, 1 << 7
READDIRPLUS_AUTO = 1 << 14
"""The kernel asks for attributes with the names only where somebody wants them."""
HANDLE_KILLPRIV_V2, INIT_EXT = 1 << 28, 1 << 30
PASSTHROUGH_FLAG2 = 1 << 5  # FUSE_PASSTHROUGH is bit 37 of the 64 flags
MAX_STACK_DEPTH = 2

IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ENTRY_OUT = struct.Struct("<IiQQQQQIIQQQQQQIIIIIIIIII")
_ATTR_OUT = struct.Struct("<IiQQIIQQQQQQIIIIIIIIII")
_OPEN_OUT = struct.Struct("<IiQQIi")
_DIRENT = struct.Struct("<QQII")
_READ_IN = struct.Struct("<QQII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHII")
_FOREVER_S = 10 * 365 * 86400
_BLOCK = 128 * 1024


class Attributes(NamedTuple):
    """What stat shows of one inode."""

    inode: int
    mode: int
    size: int
    mtime_ns: int
    links: int
    uid: int
    gid: int


def _timeout(seconds: float) -> tuple[int, int]:
    if not math.isfinite(seconds):
        return _FOREVER_S, 0
    whole = int(seconds)
    return whole, int((seconds - whole) * 1e9)


def _attr(a: Attributes) -> tuple[int, ...]:
    seconds, nanoseconds = divmod(a.mtime_ns, 1_000_000_000)
    inode, mode, size, _, links, uid, gid = a
    blocks = (size + 511) >> 9
    times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)
    return (inode, size, blocks, *times, mode, links, uid, gid, 0, _BLOCK, 0)


def entry(unique: int, attributes: Attributes, timeout_s: float) -> bytes:
    """Answer to LOOKUP: the inode, valid for `timeout_s`."""
    s, ns = _timeout(timeout_s)
    return _ENTRY_OUT.pack(_ENTRY_OUT.size, 0, unique, attributes.inode, 0, s, s, ns, ns, *_attr(attributes))


def negative_entry(unique: int, timeout_s: float) -> bytes:
    """Answer to LOOKUP: no such name, and the kernel need not ask again for `timeout_s`."""
    s, ns = _timeout(timeout_s)
    return _ENTRY_OUT.pack(_ENTRY_OUT.size, 0, unique, 0, 0, s, 0, ns, 0, *([0] * 16))


def attributes(unique: int, values: Attributes, timeout_s: float) -> bytes:
    """Answer to GETATTR."""
    s, ns = _timeout(timeout_s)
    return _ATTR_OUT.pack(_ATTR_OUT.size, 0, unique, s, ns, 0, *_attr(values))


def opened(unique: int, handle: int, flags: int, backing_id: int = 0) -> bytes:
    """Answer to OPEN."""
    return _OPEN_OUT.pack(_OPEN_OUT.size, 0, unique, handle, flags, backing_id)


def entry_record(values: Attributes, entry_s: float, attributes_s: float) -> bytes:
    """The body of an answer that names an inode."""
    (s, ns), (attr_s, attr_ns) = _timeout(entry_s), _timeout(attributes_s)
    return _ENTRY.pack(values.inode, 0, s, attr_s, ns, attr_ns) + _ATTR.pack(*_attr(values))


def failed(unique: int, errno: int) -> bytes:
    """Answer to anything: it failed with `errno` (positive), or is done where `errno` is 0."""
    return OUT_HEADER.pack(OUT_HEADER.size, -errno, unique)


def data_header(unique: int, length: int) -> bytes:
    """What stands before `length` bytes of an answer to READ or READDIRPLUS."""
    return OUT_HEADER.pack(OUT_HEADER.size + length, 0, unique)


def directory_entry(name: bytes, cookie: int, values: Attributes, timeout_s: float) -> bytes:
    """One record of a READDIRPLUS answer. With `timeout_s` < 0 it is shown only, without becoming a known dentry."""
    length = len(name)
    padding = b"\0" * (-length & 7)
    dirent = _DIRENT.pack(values.inode, cookie, length, values.mode >> 12) + name + padding
    if timeout_s < 0:
        return _ENTRY.pack(0, 0, 0, 0, 0, 0) + _ATTR.pack(*_attr(values)) + dirent
    s, ns = _timeout(timeout_s)
    return _ENTRY.pack(values.inode, 0, s, s, ns, ns) + _ATTR.pack(*_attr(values)) + dirent


def directory_name(name: bytes, cookie: int, inode: int, kind: int) -> bytes:
    """One record of a READDIR answer; `kind` as in the upper bits of a mode."""
    length = len(name)
    return _DIRENT.pack(inode, cookie, length, kind) + name + b"\0" * (-length & 7)


def read_request(buffer: bytes | bytearray | memoryview) -> tuple[int, int]:
    """(offset, size) of a READ or READDIRPLUS request."""
    _handle, offset, size, _flags = _READ_IN.unpack_from(buffer, IN_HEADER.size)
    return offset, size


def lookup_name(buffer: bytes | bytearray | memoryview, length: int) -> bytes:
    """The name a LOOKUP of `length` bytes asks for."""
    return bytes(buffer[IN_HEADER.size : length - 1])


def interrupted_unique(buffer: bytes | bytearray | memoryview) -> int:
    """The request an INTERRUPT is about."""
    return int.from_bytes(buffer[IN_HEADER.size : IN_HEADER.size + 8], "little")


def kernel_offers_passthrough(init_request: bytes) -> bool:
    """Whether the kernel that sent this FUSE_INIT can open a backing file."""
    flags = int.from_bytes(init_request[IN_HEADER.size + 12 : IN_HEADER.size + 16], "little")
    flags2 = int.from_bytes(init_request[IN_HEADER.size + 16 : IN_HEADER.size + 20], "little")
    return bool(flags & INIT_EXT and flags2 & PASSTHROUGH_FLAG2)


def patched_init_reply(
    reply: bytes, *, passthrough: bool, plain_readdir: bool = False, writable: bool = False
) -> bytes:
    """libfuse's answer to INIT with what it cannot say: more requests in the background, passthrough, and
    `plain_readdir`, that names may be asked for without attributes.

    A writable mount promises to clear set-user-id bits itself (it is mounted nosuid): else the kernel asks for
    `security.capability` before every single write, also in passthrough.
    """
    patched = bytearray(reply)
    fields = list(_INIT_OUT.unpack_from(patched, OUT_HEADER.size))
    fields[4], fields[5] = 64, 48  # max_background, congestion_threshold
    if plain_readdir:
        fields[3] |= READDIRPLUS_AUTO
    if writable:
        fields[3] |= HANDLE_KILLPRIV_V2
    if passthrough:
        fields[3] |= INIT_EXT
        fields[10] |= PASSTHROUGH_FLAG2
        fields[11] = MAX_STACK_DEPTH
    _INIT_OUT.pack_into(patched, OUT_HEADER.size, *fields)
    return bytes(patched)


def init_reply_shape(reply: bytes) -> tuple[int, ...]:
    """What two servers of one session must agree on: the protocol, flags and sizes libfuse negotiated."""
    return _INIT_OUT.unpack_from(reply, OUT_HEADER.size)


def resend() -> bytes:
    """Notification: hand out again every request that is in flight (Linux 6.9)."""
    return OUT_HEADER.pack(OUT_HEADER.size, NOTIFY_RESEND, 0)


def invalidate_entry(parent: int, name: bytes) -> bytes:
    """Notification: forget what `name` in `parent` leads to."""
    body = struct.pack("<QII", parent, len(name), 0) + name + b"\0"
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), NOTIFY_INVAL_ENTRY, 0) + body
