"""FUSE messages of a writable mount as bytes: what requests say, and answers that `messages` has not.

Pure, as `messages`. Requests are read from the wire's buffer, which is only theirs until the handler returns: whatever
is kept is copied.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from mountkit.serve import messages
from mountkit.serve.messages import IN_HEADER, OUT_HEADER, Attributes

SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK = 4, 5, 6, 8, 9, 10, 11, 12, 13
WRITE, STATFS, FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH = 16, 17, 20, 21, 22, 23, 24, 25
OPENDIR, RELEASEDIR, FSYNCDIR, ACCESS, CREATE = 27, 29, 30, 34, 35
FALLOCATE, RENAME2, LSEEK, COPY_FILE_RANGE, TMPFILE, STATX = 43, 45, 46, 47, 51, 52

_SETATTR_IN: Final = struct.Struct("<IIQQQqqqIIIIIIII")
_TIME_NOW, _NOW_ATIME = 1 << 8, 1 << 7
_GETATTR_IN: Final = struct.Struct("<IIQ")
_CREATE_IN: Final = struct.Struct("<IIII")
_OPEN_IN: Final = struct.Struct("<II")
_RELEASE_IN: Final = struct.Struct("<QIIQ")
_FLUSH_IN: Final = struct.Struct("<QIIQ")
_WRITE_IN: Final = struct.Struct("<QQIIQII")
_RENAME_IN: Final = struct.Struct("<Q")
_RENAME2_IN: Final = struct.Struct("<QII")
_XATTR_IN: Final = struct.Struct("<II")
_STATFS_OUT: Final = struct.Struct("<QQQQQIIII24x")
_OPEN_OUT: Final = struct.Struct("<QIi")

Buffer = bytes | bytearray | memoryview
_BODY: Final = IN_HEADER.size
_CALLER_AT: Final = 24


def caller(buffer: Buffer) -> tuple[int, int]:
    """(uid, gid) of whoever asks."""
    uid, gid = struct.unpack_from("<II", buffer, _CALLER_AT)
    return uid, gid


class Changes(NamedTuple):
    """What a SETATTR asks for; None: leave it."""

    handle: int | None
    size: int | None
    mode: int | None
    uid: int | None
    gid: int | None
    atime_ns: int | None
    mtime_ns: int | None


def changes(buffer: Buffer, now_ns: int) -> Changes:
    """The body of a SETATTR."""
    valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = _SETATTR_IN.unpack_from(
        buffer, _BODY
    )
    when_read = now_ns if valid & _NOW_ATIME else atime * 1_000_000_000 + atime_ns
    when_changed = now_ns if valid & _TIME_NOW else mtime * 1_000_000_000 + mtime_ns
    return Changes(
        handle if valid & 1 << 6 else None,
        size if valid & 1 << 3 else None,
        mode if valid & 1 else None,
        uid if valid & 1 << 1 else None,
        gid if valid & 1 << 2 else None,
        when_read if valid & 1 << 4 else None,
        when_changed if valid & 1 << 5 else None,
    )


def name(buffer: Buffer, length: int, at: int = 0) -> bytes:
    """The one name that ends a request, after `at` bytes of its body."""
    return bytes(buffer[_BODY + at : length - 1])


def two_names(buffer: Buffer, length: int, at: int = 0) -> tuple[bytes, bytes]:
    """The two names that end a request."""
    first, _, second = bytes(buffer[_BODY + at : length - 1]).partition(b"\0")
    return first, second


def create_request(buffer: Buffer, length: int) -> tuple[int, int, bytes]:
    """(flags, mode, name) of a CREATE."""
    flags, mode, _, _ = _CREATE_IN.unpack_from(buffer, _BODY)
    return flags, mode, name(buffer, length, _CREATE_IN.size)


def mode_and_name(buffer: Buffer, length: int, *, node: bool) -> tuple[int, bytes]:
    """(mode, name) of a MKNOD or MKDIR."""
    (mode,) = struct.unpack_from("<I", buffer, _BODY)
    return mode, name(buffer, length, 16 if node else 8)


def open_flags(buffer: Buffer) -> int:
    """The flags of an OPEN."""
    flags: int = _OPEN_IN.unpack_from(buffer, _BODY)[0]
    return flags


def handle_of(buffer: Buffer) -> int:
    """The handle that begins a RELEASE, FLUSH, FSYNC, READ, READDIRPLUS or RELEASEDIR."""
    return int.from_bytes(buffer[_BODY : _BODY + 8], "little")


def write_request(buffer: Buffer) -> tuple[int, int, int, int]:
    """(handle, offset, size, where in the buffer the bytes begin) of a WRITE."""
    handle, offset, size, *_ = _WRITE_IN.unpack_from(buffer, _BODY)
    return handle, offset, size, _BODY + _WRITE_IN.size


def rename_request(buffer: Buffer, length: int, *, second: bool) -> tuple[int, int, bytes, bytes]:
    """(new directory, flags, old name, new name) of a RENAME or RENAME2."""
    if second:
        directory, flags, _ = _RENAME2_IN.unpack_from(buffer, _BODY)
        return directory, flags, *two_names(buffer, length, _RENAME2_IN.size)
    (directory,) = _RENAME_IN.unpack_from(buffer, _BODY)
    return directory, 0, *two_names(buffer, length, _RENAME_IN.size)


def xattr_request(buffer: Buffer, length: int) -> tuple[int, bytes]:
    """(size of the answer's room, name) of a GETXATTR or LISTXATTR."""
    size, _ = _XATTR_IN.unpack_from(buffer, _BODY)
    return size, name(buffer, length, _XATTR_IN.size)


def set_xattr_request(buffer: Buffer, length: int) -> tuple[bytes, bytes, int]:
    """(name, value, flags) of a SETXATTR."""
    size, flags = _XATTR_IN.unpack_from(buffer, _BODY)
    text = bytes(buffer[_BODY + _XATTR_IN.size : length])
    return text[: len(text) - size].rstrip(b"\0").lstrip(b"\0"), text[len(text) - size :] if size else b"", flags


# ---- answers -------------------------------------------------------------------------------------------------------
def reply(unique: int, body: bytes) -> bytes:
    """Any answer that is no error."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def entry_body(values: Attributes, entry_s: float, attributes_s: float) -> bytes:
    """A name's inode, with separate lives of the name and of its attributes."""
    return messages.entry_record(values, entry_s, attributes_s)


def created_body(values: Attributes, entry_s: float, attributes_s: float, opened: bytes) -> bytes:
    """Answer to CREATE: the inode, and how it was opened."""
    return messages.entry_record(values, entry_s, attributes_s) + opened


def opened_body(handle: int, flags: int, backing_id: int = 0) -> bytes:
    return _OPEN_OUT.pack(handle, flags, backing_id)


def written_body(size: int) -> bytes:
    return struct.pack("<II", size, 0)


def xattr_size_body(size: int) -> bytes:
    return struct.pack("<II", size, 0)


def statfs_body(*, blocks: int, free: int, block_bytes: int) -> bytes:
    return _STATFS_OUT.pack(blocks, free, free, 1 << 40, 1 << 40, block_bytes, 255, block_bytes, 0)
