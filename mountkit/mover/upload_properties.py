"""What an uploaded object carries beside its bytes: written so that s3fs and rclone read it, too.

`mtime` is seconds with a fraction, as rclone writes and both read; `mode`, `uid`, `gid` are decimal, as s3fs has them
(a symlink is an object whose mode says so and whose bytes are its target); `xattr` is s3fs's percent-encoded JSON.
`mountkit-put` names the operation: whoever lost the answer to a write finds in it whether that was his.
"""

from __future__ import annotations

import base64
import json
import mimetypes
from typing import Any
from urllib.parse import quote

from mountkit.config import OutputSettings
from mountkit.staging.queue import Operation
from mountkit.store.api import ObjectInfo, Properties

TOKEN = "mountkit-put"  # noqa: S105 - no secret
_DIRECTORY_TYPE, _PLAIN_TYPE = "application/x-directory", "application/octet-stream"
_XATTR = "xattr"
_NUMBERS: tuple[str, ...] = ("mode", "uid", "gid")
_TYPES = mimetypes.MimeTypes()  # Python's own table: what the host's files say differs from one to the next
_TYPES.add_type("application/json", ".jsonl")
_TYPES.add_type("application/yaml", ".yaml")
_TYPES.add_type("application/yaml", ".yml")
_TYPES.add_type("text/plain", ".log")


def token_of(journal: str, operation: Operation) -> str:
    """Names this operation with exactly these bytes."""
    return f"{journal}-{operation.seq}-{operation.ctime_ns:x}"


def properties_of(operation: Operation, settings: OutputSettings, journal: str) -> Properties:
    """For a PUT or a COPY. A COPY without metadata of its own keeps its source's and takes the rest from here."""
    given = operation.metadata or {}
    metadata: dict[str, str] = {name: str(given[name]) for name in _NUMBERS if name in given}
    if "mtime_ns" in given:
        metadata["mtime"] = _seconds(given["mtime_ns"])
    if given.get("xattrs"):
        metadata[_XATTR] = _xattrs(given["xattrs"])
    metadata[TOKEN] = token_of(journal, operation)
    return Properties(
        given.get("content_type") or content_type(operation.key), metadata, settings.storage_class, settings.sse
    )


def of_copy(operation: Operation, own: Properties, source: ObjectInfo) -> Properties:
    """What a copy carries: `own` (see `properties_of`), and of its source whatever that does not say."""
    kept = {name: value for name, value in source.metadata.items() if name != _XATTR or operation.metadata is None}
    by_name = not source.content_type or source.content_type == content_type(source.key)
    return Properties(
        own.content_type if by_name else source.content_type,
        {**kept, **own.metadata},
        own.storage_class or ("" if source.storage_class == "STANDARD" else source.storage_class),
        own.sse or source.sse,
        source.headers,
    )


def content_type(key: bytes) -> str:
    """By the name's ending."""
    if key.endswith(b"/"):
        return _DIRECTORY_TYPE
    guessed, encoding = _TYPES.guess_type(key.decode("utf-8", "replace"), strict=False)
    # a .tar.gz is not text in a compressed transfer: whoever downloads it wants it as it is
    return guessed if guessed and not encoding else _PLAIN_TYPE


def _seconds(ns: int) -> str:
    seconds, fraction = divmod(ns, 10**9)
    return f"{seconds}.{fraction:09d}"


def _xattrs(given: dict[str, Any]) -> str:
    values = {name: base64.b64encode(bytes.fromhex(value)).decode() for name, value in sorted(given.items())}
    return quote(json.dumps(values, separators=(",", ":")), safe="")
