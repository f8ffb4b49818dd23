"""Answers to GETs: checked against what was asked before a byte is given out, and counted to the last one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import obstore
import obstore.exceptions

from mountkit.errors import BadAnswer, ObjectChanged, StoreError, StoreUnavailable
from mountkit.store.api import ObjectInfo
from mountkit.store.etags import normal_etag, same_etag
from mountkit.store.signed import let_go

if TYPE_CHECKING:
    from collections.abc import Mapping

    from urllib3.response import BaseHTTPResponse

    from mountkit.store.answers import Asked
    from mountkit.store.lean import Stream
    from mountkit.store.signed import SignedHTTP
    from mountkit.store.statistics import Counters

ONE_PIECE_BYTES = 1 << 20
"""Up to here a body comes as one piece without a copy; a larger one in pieces of at least this size."""
# obstore reports a key that its Path refuses as ValueError and a few system errors as OSError.
OBSTORE_ERRORS = (obstore.exceptions.BaseError, ValueError, OSError)
_MICROSECONDS = 1_000_000


def mtime_ns(when: datetime) -> int:
    delta = when - datetime(1970, 1, 1, tzinfo=UTC)
    return ((delta.days * 86_400 + delta.seconds) * _MICROSECONDS + delta.microseconds) * 1000


def header_mtime_ns(headers: Mapping[str, str]) -> int:
    """Last-Modified; 0 where it is missing or makes no sense."""
    try:
        return mtime_ns(parsedate_to_datetime(headers.get("last-modified", "")).astimezone(UTC))
    except (ValueError, TypeError, OverflowError):
        return 0


def require_object(headers: Mapping[str, str]) -> None:
    """Raises BadAnswer for a 200 that is no object's: the login page of a network has neither ETag nor time."""
    if not headers.get("etag") and not headers.get("last-modified"):
        raise BadAnswer(
            "the answer is no object of an S3 server: it has neither an ETag nor a time",
            "is the endpoint an S3 server, and does no login page stand in the way?",
        )


def agree(info: ObjectInfo, etag: str, size: int) -> None:
    """Raises unless an answer with this ETag and total size is one about `info`: ObjectChanged for another version,
    BadAnswer where the ETag says that it is this one and the length contradicts (a proxy cut it off)."""
    if same_etag(etag, info.etag) and size != info.size and not etag.startswith("W/"):
        raise BadAnswer(f"{info.key.decode('utf-8', 'replace')} came with a length that is not this version's")
    if not same_etag(etag, info.etag) or size != info.size:
        raise ObjectChanged(f"{info.key.decode('utf-8', 'replace')} holds another version than the one asked for")


class FastBody:
    """A body of obstore's."""

    def __init__(
        self, info: ObjectInfo, length: int, result: obstore.GetResult, asked: Asked, counts: Counters
    ) -> None:
        self.info, self._length, self._result = info, length, result
        self._asked, self._counts = asked, counts

    def chunks(self) -> Iterator[memoryview]:
        """The bytes asked for; see `api.Body`."""
        came = 0
        try:
            if self._length <= ONE_PIECE_BYTES:
                pieces: Iterator[memoryview] = iter((memoryview(self._result.bytes()),))
            else:
                pieces = map(memoryview, self._result.stream(min_chunk_size=ONE_PIECE_BYTES))
            for piece in pieces:
                came += len(piece)
                if came > self._length:
                    break
                self._counts.add("bytes_received", len(piece))
                if len(piece):
                    yield piece
        except OBSTORE_ERRORS as exc:
            self._counts.add("errors")
            raise StoreUnavailable(
                f"{self._asked.endpoint} stopped sending {self._asked.what} after {came} of {self._length} bytes"
            ) from exc
        _check_length(came, self._length, self._asked, self._counts)


class StreamedBody:
    """A long body straight from its socket."""

    def __init__(
        self, info: ObjectInfo, length: int, stream: Stream, asked: Asked, wire: SignedHTTP, counts: Counters
    ) -> None:
        self.info, self._length, self._stream = info, length, stream
        self._asked, self._wire, self._counts = asked, wire, counts

    def chunks(self) -> Iterator[memoryview]:
        """The bytes asked for; see `api.Body`."""
        try:
            _check_length(self._stream.length, self._length, self._asked, self._counts)
            for piece in self._wire.streamed(self._asked, self._stream, ONE_PIECE_BYTES):
                self._counts.add("bytes_received", len(piece))
                yield memoryview(piece)
        except StoreUnavailable:
            self._counts.add("errors")
            raise


class PlainBody:
    """A body of the signed HTTP path."""

    def __init__(
        self,
        info: ObjectInfo,
        length: int,
        response: BaseHTTPResponse,
        asked: Asked,
        wire: SignedHTTP,
        counts: Counters,
    ) -> None:
        self.info, self._length, self._response = info, length, response
        self._asked, self._wire, self._counts = asked, wire, counts

    def chunks(self) -> Iterator[memoryview]:
        """The bytes asked for; see `api.Body`."""
        came = 0
        try:
            for piece in self._wire.pieces(self._asked, self._response, ONE_PIECE_BYTES):
                came += len(piece)
                if came > self._length:
                    break
                self._counts.add("bytes_received", len(piece))
                if piece:
                    yield memoryview(piece)
        except StoreError:
            self._counts.add("errors")
            raise
        finally:
            let_go(self._response)
        _check_length(came, self._length, self._asked, self._counts)


def _check_length(came: int, length: int, asked: Asked, counts: Counters) -> None:
    if came != length:
        counts.add("errors")
        much = "more" if came > length else "less"
        raise BadAnswer(f"{asked.endpoint} sent {much} of {asked.what} than asked for")


def answered_info(
    info: ObjectInfo, etag: str | None, modified_ns: int, size: int, version_id: str | None
) -> ObjectInfo:
    """`info` with the version the answer names, after the answer was found to be about it."""
    agree(info, normal_etag(etag, modified_ns, size), size)
    return info._replace(version_id=version_id) if version_id and version_id != info.version_id else info


def plain_size(headers: Mapping[str, str], status: int, offset: int, length: int, size: int) -> int:
    """The total size that a 200 or 206 tells. Raises BadAnswer where it is not the range asked for."""
    if status == 200:
        total = headers.get("content-length", "")
        if (offset, length) != (0, size):
            raise BadAnswer("the server ignored the range asked for", "does a proxy on the way drop Range headers?")
        return int(total) if total.isascii() and total.isdigit() else size  # chunked: the bytes are counted anyway
    unit, _, rest = headers.get("content-range", "").partition(" ")
    span, _, total = rest.partition("/")
    total = str(size) if total == "*" else total
    if unit != "bytes" or span != f"{offset}-{offset + length - 1}" or not total.isdigit():
        if unit == "bytes" and total.isdigit() and int(total) != size:
            return int(total)  # the object has another size now, which says more than the range does
        raise BadAnswer("the server sent another range than the one asked for")
    return int(total)
