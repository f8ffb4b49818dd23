"""Payloads: bytes to be sent, with the checksums that a server compares before it stores them.

CRC32C of awscrt (44 GB/s) rather than of Python packages that hold the interpreter for it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from mountkit.store.api import Chunks, Data, Hashed, Part

CRC32C = "crc32c:"
UNSIGNED = "UNSIGNED-PAYLOAD"
_STEP_BYTES = 1 << 18
"""Pieces in which bytes are handed to a socket: its timeout is for one of them, however slow the network."""


def crc32c(data: bytes | memoryview, before: int = 0) -> int:
    """The checksum of `data` after bytes whose checksum was `before`."""
    from awscrt.checksums import crc32c as checksum  # 0.06 s, for which the readers of a dead mover need not wait

    return int(checksum(data, before))


class Payload:
    """`data`, read once for its checksums and once for sending."""

    def __init__(self, data: Data, *, signed: bool = True, md5: bool = False) -> None:
        """`signed`: with the SHA-256 that a signature over the bytes needs."""
        known = data.sha256 if isinstance(data, Hashed) else ""
        self._data = data.data if isinstance(data, Hashed) else data
        self.size = len(data) if isinstance(data, bytes | bytearray | memoryview) else data.size
        sha256, digest, crc = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        for piece in self._pieces():
            crc = crc32c(piece, crc)
            if signed and not known:
                sha256.update(piece)
            if md5:
                digest.update(piece)
        self.sha256 = (known or sha256.hexdigest()) if signed else UNSIGNED
        self.crc32c = base64.b64encode(crc.to_bytes(4, "big")).decode()
        self.md5 = base64.b64encode(digest.digest()).decode() if md5 else ""

    def __repr__(self) -> str:
        return f"<Payload {self.size} bytes>"

    def body(self) -> bytes | Iterator[Any]:
        """What urllib3 sends; each call begins anew."""
        if isinstance(self._data, bytes) and self.size <= _STEP_BYTES:
            return self._data
        return self._pieces()

    def _pieces(self) -> Iterator[bytes | memoryview]:
        if isinstance(self._data, bytes | bytearray | memoryview):
            view = memoryview(self._data)
            return (view[start : start + _STEP_BYTES] for start in range(0, len(view), _STEP_BYTES))
        chunked: Chunks = self._data
        return chunked.chunks()


def composite(found: Sequence[Part]) -> str:
    """The checksum of a completed upload: that of its parts' checksums; "" where one has none."""
    pieces = [part.checksum for part in found]
    if not pieces or not all(piece.startswith(CRC32C) for piece in pieces):
        return ""
    joined = b"".join(base64.b64decode(piece.removeprefix(CRC32C)) for piece in pieces)
    return f"{CRC32C}{base64.b64encode(crc32c(joined).to_bytes(4, 'big')).decode()}-{len(pieces)}"
