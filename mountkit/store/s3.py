"""S3: one bucket behind the store protocol, over plain sockets (long GETs), obstore (short ones, and all over TLS) and
signed plain HTTP (everything else).

obstore hides statuses and error codes. When it fails before the body, the same GET is sent once more by the plain way,
which either names the reason or is the answer; threads that fail within the same second share a transient verdict, so
that a server in trouble does not get twice the requests.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import obstore
import obstore.exceptions

from mountkit.errors import (
    AccessDenied,
    BadAnswer,
    ObjectChanged,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
)
from mountkit.sources import BucketURL
from mountkit.store import answers, listing
from mountkit.store.access import Access, Wallet, find_access
from mountkit.store.api import DESCRIBING, Body, ObjectInfo, Page
from mountkit.store.bodies import (
    OBSTORE_ERRORS,
    ONE_PIECE_BYTES,
    FastBody,
    PlainBody,
    StreamedBody,
    answered_info,
    header_mtime_ns,
    mtime_ns,
    plain_size,
    require_object,
)
from mountkit.store.bounded import within
from mountkit.store.etags import made_up_etag, normal_etag
from mountkit.store.fast import fast_store
from mountkit.store.keys import plain_name, quoted
from mountkit.store.s3_many import ManyGets
from mountkit.store.s3_writes import S3Writes
from mountkit.store.signed import SignedHTTP, Timeouts, for_check, let_go
from mountkit.store.statistics import Counters, StoreStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from obstore import GetOptions
    from urllib3.response import BaseHTTPResponse

    from mountkit.store.lean import Stream

CHECK_S = 10.0
_VERDICT_S = 1.0
_REFRESH_S = 5.0
_META = "x-amz-meta-"


def connect(
    url: BucketURL,
    *,
    keys: tuple[str, str] | None = None,
    region: str = "",
    connect_timeout_s: float = 3.0,
    stall_timeout_s: float = 10.0,
    request_timeout_s: float = 600.0,
    answer_timeout_s: float = 10.0,
    document_timeout_s: float = 60.0,
) -> S3Store:
    """The bucket `url` names, its region found out by one HEAD, or `region` where that was done before.

    `keys` (access key, secret) replace boto3's chain. `request_timeout_s` bounds a whole GET, body included;
    `answer_timeout_s` the wait for a HEAD or for the next bytes of a listing, `document_timeout_s` a whole page. Raises
    UsageError, CredentialsError, WrongRegion, BucketMissing, StoreUnavailable; whether reading is allowed is found out
    by `S3Store.check`.
    """
    wallet = Wallet(url, keys)
    timeouts = Timeouts(connect_timeout_s, stall_timeout_s, request_timeout_s, answer_timeout_s, document_timeout_s)
    access = find_access(url, region)
    if not region:
        access = _in_its_region(url, access, SignedHTTP(access, wallet, for_check(timeouts, CHECK_S)))
    return S3Store(access, wallet, timeouts)


def _in_its_region(url: BucketURL, access: Access, wire: SignedHTTP) -> Access:
    asked = wire.asked("reach")
    response = within(CHECK_S, asked, lambda: wire.send("HEAD", asked))
    asked = wire.asked("reach")
    let_go(response)
    wire.close()
    region = response.headers.get("x-amz-bucket-region", "")
    if not region or region == access.region:
        if response.status == 404:
            raise answers.refused(asked, 404, response.headers, b"")
        return access
    if not access.region_is_explicit:
        return access.in_region(url, region)
    if response.status == 200:
        return access  # this server takes the region the user named, whatever it calls its own
    raise answers.wrong_region(asked, region)


class S3Store(S3Writes):
    """One S3 bucket; implements `api.Store`. Made by `connect`."""

    def __init__(self, access: Access, wallet: Wallet, timeouts: Timeouts) -> None:
        self.access = access
        self._wallet, self._timeouts = wallet, timeouts
        self._wire = SignedHTTP(access, wallet, timeouts)
        self._fast = fast_store(access, wallet, timeouts)
        self._counts = Counters()
        self._plus: listing.Plus | None = None
        self._asks_versions = True
        self._verdict: tuple[float, StoreUnavailable] | None = None
        self._refresh_lock = threading.Lock()
        self._refreshed_at, self._refresh_helped = -_REFRESH_S, False

    def __repr__(self) -> str:
        return f"<S3Store {self.access.bucket} at {self.access.base} in {self.access.region}>"

    def statistics(self) -> StoreStatistics:
        return self._counts.statistics()

    def close(self) -> None:
        """Lets go of connections; obstore closes its own when they idle."""
        self._wire.close()

    def check(self, prefix: bytes) -> None:
        """One listing of one key, to find out whether the bucket is there, ours to list and awake. At most 10 s."""
        asked = self._wire.asked("list")
        within(CHECK_S, asked, lambda: self.list_page(prefix, limit=1))

    def refresh_credentials(self) -> bool:
        """Looks for credentials anew; whether there are others than before. Threads that ask together share it."""
        with self._refresh_lock:
            if time.monotonic() - self._refreshed_at >= _REFRESH_S:
                self._refresh_helped = self._wallet.look_again()
                if self._refresh_helped:
                    self._fast = fast_store(self.access, self._wallet, self._timeouts)
                self._refreshed_at = time.monotonic()
            return self._refresh_helped

    def many(self) -> ManyGets[Any] | None:
        """A way to get whole small objects many at once; None where requests do not go straight to the server."""
        connections = self._wire.connections
        if connections is None:
            return None
        return ManyGets(self.access, self._wallet, connections, self._counts, patience_s=self._timeouts.stall_s)

    # ---- listing and HEAD

    def list_page(self, prefix: bytes, *, delimiter: bytes = b"/", token: str = "", limit: int = 1000) -> Page:
        """One page of keys; see `api.Store.list_page`."""
        request = listing.ListRequest(prefix, delimiter, token, limit)
        asked = self._wire.asked("list")
        body = self._listing(asked, request)
        try:
            return listing.parse_page(body, request, self._plus)
        except listing.AmbiguousPlusError:
            probe = self._listing(asked, listing.ListRequest(prefix + listing.PROBE_PREFIX, limit=1))
            self._plus = listing.parse_plus(probe)
            return listing.parse_page(body, request, self._plus)
        except BadAnswer:
            self._counts.add("errors")
            raise

    def _listing(self, asked: answers.Asked, request: listing.ListRequest) -> bytes:
        self._counts.add("list")
        try:
            return self._wire.document(asked, request.query())
        except StoreError as exc:
            raise self._counted(exc) from exc.__cause__

    def head(self, key: bytes) -> ObjectInfo:
        """What the bucket holds under `key` now; see `api.Store.head`."""
        asked = self._wire.asked("look at", key)
        self._counts.add("head")
        try:
            response = self._wire.send("HEAD", asked)
        except StoreError as exc:
            raise self._counted(exc) from exc.__cause__
        let_go(response)
        if response.status == 200:
            return _head_info(key, response)
        if response.status in (400, 401, 403):
            raise self._counted(self._spoken_refusal(asked, response))
        raise self._counted(self._wire.refusal(asked, response))

    def _spoken_refusal(self, asked: answers.Asked, head: BaseHTTPResponse) -> StoreError:
        """Why a HEAD was refused: it has no body to say so, a GET of its first byte has."""
        self._counts.add("get")
        response = self._wire.send("GET", asked, headers={"Range": "bytes=0-0"})
        try:
            if response.status >= 300:
                return self._wire.refusal(asked, response)
            return self._wire.refusal(asked, head)
        finally:
            let_go(response)

    # ---- GET

    def get(self, info: ObjectInfo, offset: int, length: int) -> Body:
        """The bytes of exactly this version; see `api.Store.get`.

        Asking for a version by its id takes a right of its own (s3:GetObjectVersion): where that is refused, If-Match
        is used from then on.
        """
        versioned = bool(info.version_id) and self._asks_versions
        try:
            return self._get(info, offset, length, versioned)
        except AccessDenied:
            if not versioned:
                raise
            body = self._get(info, offset, length, False)
            self._asks_versions = False
            return body

    def _get(self, info: ObjectInfo, offset: int, length: int, versioned: bool) -> Body:
        name = plain_name(info.key)
        asked = self._wire.asked("read", info.key)
        if name is None:
            return self._plain_get(asked, info, offset, length, versioned)
        if length > ONE_PIECE_BYTES and self._wire.streams:
            return self._streamed_get(asked, info, offset, length, versioned)
        self._counts.add("get")
        try:
            result = obstore.get(self._fast, name, options=_options(info, offset, length, versioned))
            meta = result.meta
        except FileNotFoundError as exc:
            raise ObjectMissing(f"there is no {asked.what}") from exc
        except obstore.exceptions.PreconditionError as exc:
            raise ObjectChanged(f"{asked.what} holds another version than the one asked for") from exc
        except OBSTORE_ERRORS:
            self._raise_verdict()
            return self._plain_get(asked, info, offset, length, versioned)
        if meta["e_tag"] is None and not meta["last_modified"].timestamp():
            require_object({})
        found = answered_info(info, meta["e_tag"], mtime_ns(meta["last_modified"]), meta["size"], meta["version"])
        if tuple(result.range) != (offset, offset + length):
            self._counts.add("errors")
            raise BadAnswer("the server sent another range than the one asked for")
        return FastBody(found, length, result, asked, self._counts)

    def _streamed_get(self, asked: answers.Asked, info: ObjectInfo, offset: int, length: int, versioned: bool) -> Body:
        query, headers = _asking(info, offset, length, versioned)
        self._counts.add("get")
        stream = self._wire.stream(asked, query, headers)
        if stream is None:
            self._raise_verdict()
            return self._plain_get(asked, info, offset, length, versioned)
        with self._closed_on_error(stream):
            if stream.status not in (200, 206):
                raise self._judged(self._wire.refusal_streamed(asked, stream))
            found = _plainly_answered(info, stream.headers, stream.status, offset, length)
        return StreamedBody(found, length, stream, asked, self._wire, self._counts)

    def _plain_get(self, asked: answers.Asked, info: ObjectInfo, offset: int, length: int, versioned: bool) -> Body:
        query, headers = _asking(info, offset, length, versioned)
        self._counts.add("get")
        try:
            response = self._wire.send("GET", asked, query=query, headers=headers)
        except StoreError as exc:
            raise self._judged(exc) from exc.__cause__
        with self._closed_on_error(response):
            if response.status not in (200, 206):
                raise self._judged(self._wire.refusal(asked, response))
            found = _plainly_answered(info, response.headers, response.status, offset, length)
        return PlainBody(found, length, response, asked, self._wire, self._counts)

    # ---- errors

    @contextlib.contextmanager
    def _closed_on_error(self, answer: Stream | BaseHTTPResponse) -> Iterator[None]:
        """Closes an answer whose head turns out to be none of the object's; one that lies is counted."""
        try:
            yield
        except StoreError as exc:
            answer.close()
            if isinstance(exc, BadAnswer):
                self._counts.add("errors")
            raise

    def _judged(self, error: StoreError) -> StoreError:
        """Counts the error; a transient one is also what other threads that fail now are told."""
        if isinstance(error, StoreUnavailable):
            self._verdict = (time.monotonic(), error)
        return self._counted(error)

    def _raise_verdict(self) -> None:
        verdict = self._verdict
        if verdict and time.monotonic() - verdict[0] < _VERDICT_S:
            known = verdict[1]
            raise self._counted(StoreUnavailable(known.sentence, known.hint, slow_down=known.slow_down))


def _asking(info: ObjectInfo, offset: int, length: int, versioned: bool) -> tuple[str, dict[str, str]]:
    """Query and headers that ask for these bytes of this version."""
    headers = {} if (offset, length) == (0, info.size) else {"Range": f"bytes={offset}-{offset + length - 1}"}
    if not versioned and not _is_made_up(info):
        headers["If-Match"] = info.etag
    return f"versionId={quoted(info.version_id.encode())}" if versioned else "", headers


def _plainly_answered(
    info: ObjectInfo, headers: Mapping[str, str], status: int, offset: int, length: int
) -> ObjectInfo:
    """What a 200 or 206 is about, if it is the answer to what was asked. Raises BadAnswer, ObjectChanged."""
    require_object(headers)
    size = plain_size(headers, status, offset, length, info.size)
    return answered_info(info, headers.get("etag"), header_mtime_ns(headers), size, headers.get("x-amz-version-id"))


def _options(info: ObjectInfo, offset: int, length: int, versioned: bool) -> GetOptions:
    options: dict[str, object] = {}
    if (offset, length) != (0, info.size):
        options["range"] = (offset, offset + length)
    if versioned:
        options["version"] = info.version_id
    elif not _is_made_up(info):
        options["if_match"] = info.etag
    return options  # type: ignore[return-value]


def _is_made_up(info: ObjectInfo) -> bool:
    return info.etag == made_up_etag(info.mtime_ns, info.size)


def _head_info(key: bytes, response: BaseHTTPResponse) -> ObjectInfo:
    headers = response.headers
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        raise BadAnswer("the answer to a HEAD does not tell the object's size")
    require_object(headers)
    size, modified = int(length), header_mtime_ns(headers)
    return ObjectInfo(
        key=key,
        size=size,
        etag=normal_etag(headers.get("etag"), modified, size),
        mtime_ns=modified,
        storage_class=headers.get("x-amz-storage-class") or "STANDARD",
        version_id=headers.get("x-amz-version-id", ""),
        content_type=headers.get("content-type", ""),
        metadata={
            name.lower().removeprefix(_META): value for name, value in headers.items() if name.lower().startswith(_META)
        },
        headers={name.lower(): value for name, value in headers.items() if name.lower() in DESCRIBING},
        sse=_encryption(headers),
    )


def _encryption(headers: Mapping[str, str]) -> str:
    """As in `api.Properties`; empty also for what that cannot name."""
    algorithm = headers.get("x-amz-server-side-encryption", "")
    key = headers.get("x-amz-server-side-encryption-aws-kms-key-id", "")
    if algorithm not in ("AES256", "aws:kms"):
        return ""
    return f"{algorithm}:{key}" if key and algorithm == "aws:kms" else algorithm
