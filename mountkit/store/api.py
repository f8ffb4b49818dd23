"""The store protocol: what mountkit asks of a bucket. This file is the law; the contract suite quotes it.

A store is bound to one bucket. Keys are bytes, exactly as the bucket holds them (any bytes S3 allows, also `//`, `.`,
`..`, control characters, a leading or trailing `/`). All methods block, are safe to call from many threads at once,
and raise only the StoreError family of `mountkit.errors`. One call is one request (no hidden retries: `retry` decides).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class ObjectInfo(NamedTuple):
    """One version of one object, as a listing or a HEAD tells it."""

    key: bytes
    size: int
    etag: str
    """With its quotes, as the server writes it; a server without ETags gets `"<mtime_ns>-<size>"`."""
    mtime_ns: int
    storage_class: str = "STANDARD"
    version_id: str = ""
    """Empty where the server did not say (listings never do) or the bucket has no versions."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, in the byte order of the keys (a common prefix sorts as itself, with its `/`)."""

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[bytes, ...]
    """Common prefixes, each ending in the delimiter; empty without delimiter."""
    next_token: str
    """Continuation token; "" on the last page."""


class Body(Protocol):
    """An open answer: `info` of the object version it belongs to, and its bytes as they come."""

    info: ObjectInfo

    def chunks(self) -> Iterator[memoryview]:
        """The bytes asked for, in order, in pieces of any size >= 1.

        Their sum is exactly the length asked for: a short, long or torn body raises BadAnswer or StoreUnavailable
        in mid-iteration; so does a body that yields nothing for the stall timeout.
        """
        ...


class Store(Protocol):
    """One bucket."""

    def head(self, key: bytes) -> ObjectInfo:
        """What the bucket holds under `key` now. Raises ObjectMissing, AccessDenied, StoreUnavailable, …"""
        ...

    def get(self, info: ObjectInfo, offset: int, length: int) -> Body:
        """The bytes [offset, offset + length) of exactly the version `info` names; 0 <= offset, 1 <= length,
        offset + length <= info.size.

        Returns once the headers are there and agree: ETag equal to `info.etag`, Content-Range and total size as asked
        (some servers ignore conditions or ranges; that is found out here). Where `info.version_id` is set, that version
        is asked for; otherwise the request carries If-Match. Raises ObjectChanged (412, or another ETag or size),
        ObjectMissing (404), ObjectArchived (403 InvalidObjectState), BadAnswer (a range that was not asked for).
        """
        ...

    def list_page(self, prefix: bytes, *, delimiter: bytes = b"/", token: str = "", limit: int = 1000) -> Page:
        """One page of the keys that start with `prefix`, after the page that gave `token`.

        With `delimiter`, keys that hold it after the prefix are rolled up into `prefixes`. The key equal to `prefix`
        itself (a directory marker) is among the objects. Raises BadAnswer on XML that is no listing.
        """
        ...

    def close(self) -> None:
        """Lets go of connections. Further calls are undefined."""
        ...
