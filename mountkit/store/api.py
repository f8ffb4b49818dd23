"""The store protocol: what mountkit asks of a bucket. This file is the law; the contract suite quotes it.

A store is bound to one bucket. Keys are bytes, exactly as the bucket holds them (any bytes S3 allows, also `//`, `.`,
`..`, control characters, a leading or trailing `/`). All methods block, are safe to call from many threads at once,
and raise only the StoreError family of `mountkit.errors`. One call is one request (no hidden retries: `retry` decides).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from mountkit.errors import StoreError

MIN_PART_BYTES = 5 << 20
"""What each part of a multipart upload must have, but for the last."""
MAX_PARTS = 10_000
MAX_COPY_BYTES = 5 << 30
"""A larger object is copied part by part."""
DESCRIBING: Final = frozenset(
    {"cache-control", "content-disposition", "content-encoding", "content-language", "expires"}
    | {"x-amz-website-redirect-location"}
)
"""Headers that an object carries beside content type and user metadata; names in lower case."""
MAX_DELETES = 1000
"""Keys in one `delete_objects`."""

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


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
    checksum: str = ""
    """`crc32c:BASE64` where a write's answer confirmed one; of a multipart upload with `-N` at its end."""
    content_type: str = ""
    """Of a HEAD only, as is `metadata`."""
    metadata: Mapping[str, str] = _NONE
    """User metadata: names in lower case, without `x-amz-meta-`."""
    headers: Mapping[str, str] = _NONE
    """Those of DESCRIBING that it has; of a HEAD only, as is `sse`."""
    sse: str = ""
    """As in Properties."""


@dataclass(frozen=True, slots=True)
class Properties:
    """What an object carries beside its bytes."""

    content_type: str = ""
    """Empty: what the server takes by default."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """As in ObjectInfo; values are printable ASCII."""
    storage_class: str = ""
    """Empty: the bucket's default."""
    sse: str = ""
    """`AES256`, `aws:kms` or `aws:kms:KEY`; empty: the bucket's default."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of DESCRIBING."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart upload, as the server confirmed it."""

    number: int
    """From 1 on."""
    etag: str
    size: int
    checksum: str = ""
    """`crc32c:BASE64`; empty where the server knows none, or does not tell (some listings of parts)."""


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """A multipart upload that was begun and neither completed nor aborted."""

    key: bytes
    upload_id: str


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


class Chunks(Protocol):
    """Bytes to send that need not be in memory at once."""

    size: int

    def chunks(self) -> Iterator[bytes | memoryview]:
        """All bytes, in order. Every call begins anew; a sum other than `size` tears the request."""
        ...


@dataclass(frozen=True, slots=True)
class Hashed:
    """Bytes whose SHA-256 somebody has computed already."""

    data: bytes | Chunks
    sha256: str

    @property
    def size(self) -> int:
        return len(self.data) if isinstance(self.data, bytes) else self.data.size


Data = bytes | bytearray | memoryview | Hashed | Chunks


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

    # Writing. What is sent carries a checksum that the server compares (CRC32C where it knows it, else MD5), so that
    # no damaged bytes are ever stored. A write that raises StoreUnavailable or BadAnswer may have happened.
    # With `if_absent` it happens only if there is no object of that key, with `if_match` only if there is one with
    # that ETag; else ObjectChanged (some servers answer ObjectMissing to `if_match` where there is none).

    def put_object(
        self,
        key: bytes,
        data: Data,
        properties: Properties | None = None,
        *,
        if_absent: bool = False,
        if_match: str = "",
    ) -> ObjectInfo:
        """Puts `data` (at most 5 GiB) under `key`, as a whole or not at all; `mtime_ns` is the server's clock.

        Raises AccessDenied, StoreFull, ObjectChanged, BucketMissing, …
        """
        ...

    def copy_object(
        self, source: ObjectInfo, key: bytes, properties: Properties | None = None, *, keep_metadata: bool = False
    ) -> ObjectInfo:
        """Has the store put what `source` names (at most MAX_COPY_BYTES) under `key`, which may be the same.

        Without `properties` content type and metadata come along; with, these take their place. With `keep_metadata`
        all that describes the source comes along, and `properties` say storage class and encryption alone.

        Where `source.etag` is not empty, raises ObjectChanged if the source is another version by now (some servers do
        not look). Raises ObjectMissing if there is no source.
        """
        ...

    def delete_object(self, key: bytes) -> None:
        """Removes `key`; no error if there is none."""
        ...

    def delete_objects(self, keys: Sequence[bytes]) -> dict[bytes, StoreError]:
        """Removes up to MAX_DELETES keys; those it could not remove, and why."""
        ...

    def create_upload(self, key: bytes, properties: Properties | None = None) -> str:
        """Begins a multipart upload: its id. Nothing is under `key` before `complete_upload`."""
        ...

    def upload_part(self, key: bytes, upload_id: str, number: int, data: Data) -> Part:
        """Sends one part; a later one of the same number takes its place. Raises UploadMissing."""
        ...

    def upload_part_copy(
        self, key: bytes, upload_id: str, number: int, source: ObjectInfo, offset: int, length: int
    ) -> Part:
        """One part made of the bytes [offset, offset + length) of `source`, copied by the store itself.

        Raises as `copy_object`, and UploadMissing.
        """
        ...

    def complete_upload(
        self, key: bytes, upload_id: str, parts: Sequence[Part], *, if_absent: bool = False, if_match: str = ""
    ) -> ObjectInfo:
        """Makes `key` the parts, which are in the order of their numbers; `size` is their sum.

        Raises UploadMissing also where this very upload was completed before (its answer got lost): look at `key`.
        """
        ...

    def abort_upload(self, key: bytes, upload_id: str) -> None:
        """Gives the upload up and frees its parts; no error if it is not there."""
        ...

    def list_parts(self, key: bytes, upload_id: str) -> list[Part]:
        """All parts the server has of an upload, by number. Raises UploadMissing."""
        ...

    def list_uploads(self, prefix: bytes) -> list[UploadInfo]:
        """All multipart uploads under way to keys that start with `prefix`."""
        ...

    def close(self) -> None:
        """Lets go of connections. Further calls are undefined."""
        ...
