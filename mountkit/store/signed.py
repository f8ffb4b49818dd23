"""Signed plain HTTP: any request, any key, with status, headers and error document at hand.

Listings, HEADs, all writing, odd keys and second opinions go this way; hot GETs go through obstore. One request is one
attempt: no retry, no redirect followed. Safe for threads; connections are kept alive.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from urllib3 import exceptions as http

from mountkit import __version__
from mountkit.errors import BadAnswer, StoreError, StoreUnavailable
from mountkit.store import answers
from mountkit.store.access import Access, Wallet
from mountkit.store.answers import Asked
from mountkit.store.keys import quoted
from mountkit.store.lean import Answer, LeanHTTP, NoAnswer, Stream, Unusable
from mountkit.store.payload import Payload

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

USER_AGENT = f"mountkit/{__version__}"
_MAX_DOCUMENT_BYTES = 64 << 20
_CONNECTIONS = 64
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Timeouts:
    connect_s: float
    stall_s: float
    """Between two pieces of an answer, and until its first."""
    request_s: float
    """For a whole GET of an object, body included."""
    answer_s: float = 10.0
    """As `stall_s`, for HEADs and listings."""
    document_s: float = 60.0
    """For a whole listing page."""
    write_s: float = 60.0
    """Until the answer to bytes that were sent."""
    copy_s: float = 300.0
    """The same where the store has to copy or put together what may be 5 GB."""


class SignedHTTP:
    """Requests to one bucket."""

    def __init__(self, access: Access, wallet: Wallet, timeouts: Timeouts) -> None:
        self.access, self._wallet, self._timeouts = access, wallet, timeouts
        self._manager = _manager(access, timeouts)
        self._proxy_headers = dict(getattr(self._manager, "proxy_headers", None) or {})
        self._lean = _lean(access, timeouts)
        self._absolute = bool(access.proxy) and not access.is_tls  # a plain proxy wants to be told the whole URL

    def __repr__(self) -> str:
        return f"<SignedHTTP {self.access.base}>"

    def close(self) -> None:
        self._manager.clear()
        if self._lean is not None:
            self._lean.close()

    def asked(self, verb: str, key: bytes | None = None) -> Asked:
        """What an error about such a request says. Never waits for credentials."""
        access = self.access
        return Asked(access.bucket, access.endpoint, access.region, verb, key, self._wallet.shown)

    def document(self, asked: Asked, query: str) -> bytes:
        """The body of a GET on the bucket itself."""
        deadline = time.monotonic() + self._timeouts.document_s
        response = self.send("GET", asked, query=query)
        with _closing(response):
            if response.status != 200:
                raise self.refusal(asked, response)
            return self._body(asked, response, deadline)

    def written(
        self,
        method: str,
        asked: Asked,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        payload: Payload | None = None,
        slow: bool = False,
    ) -> tuple[Mapping[str, str], bytes]:
        """Headers and body of the answer to a write, which is a success also by its body: S3 says 200 to some before
        it knows, and then sends an error document. `slow` ones take the store minutes."""
        limit_s = self._timeouts.copy_s if slow else self._timeouts.write_s
        if answer := self._lean_answer(method, asked, query, headers, payload, limit_s):
            if answer.status >= 300:
                raise answers.refused(asked, answer.status, answer.headers, answer.body)
            if error := answers.error_in(asked, answer.headers, answer.body):
                raise error
            return answer.headers, answer.body
        response = self.send(method, asked, query=query, signed=headers, payload=payload, wait_s=limit_s)
        with _closing(response):
            if response.status >= 300:
                raise self.refusal(asked, response)
            body = self._body(asked, response, time.monotonic() + limit_s)
            if error := answers.error_in(asked, response.headers, body):
                raise error
            return response.headers, body

    def _lean_answer(
        self,
        method: str,
        asked: Asked,
        query: str,
        headers: Mapping[str, str] | None,
        payload: Payload | None,
        wait_s: float,
    ) -> Answer | None:
        """The answer to a small write by way of `lean`; None where that is not the way to send it."""
        body = payload.body() if payload is not None else b""
        if self._lean is None or not isinstance(body, bytes):
            return None
        target, every = self._lean_head(method, asked, query, headers, payload)
        every["Content-Length"] = str(len(body))
        try:
            return self._lean.request(method, target, every, body, wait_s)
        except Unusable:
            return None
        except NoAnswer as exc:
            raise answers.unreached(asked, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")) from exc
        except OSError as exc:
            raise answers.unreached(asked, exc) from exc

    @property
    def connections(self) -> LeanHTTP | None:
        """Where connections straight to the server come from; None where requests do not go straight to it."""
        return self._lean

    @property
    def streams(self) -> bool:
        """Whether `stream` is a way to this server."""
        return self._lean is not None and self._lean.streams

    def stream(self, asked: Asked, query: str, headers: Mapping[str, str]) -> Stream | None:
        """The answer to a GET of an object by way of `lean`, its body still to come; None where none came that way,
        and the same request by `send` would say why."""
        assert self._lean is not None
        target, every = self._lean_head("GET", asked, query, None, None)
        try:
            return self._lean.stream(target, {**every, **headers}, self._timeouts.stall_s)
        except (Unusable, NoAnswer, OSError):
            return None

    def _lean_head(
        self, method: str, asked: Asked, query: str, signed: Mapping[str, str] | None, payload: Payload | None
    ) -> tuple[str, dict[str, str]]:
        """The target and the headers of a request by way of `lean`."""
        url, target = self._place(asked, query)
        every = {"Host": urlsplit(url).netloc, "User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        return target, every | self._signature(method, url, signed or {}, payload)

    def _place(self, asked: Asked, query: str) -> tuple[str, str]:
        """The URL that a request is signed for, and the target of its first line."""
        base = urlsplit(self.access.base)
        path = base.path if asked.key is None else f"{base.path}/{quoted(asked.key)}"
        target = f"{path or '/'}{'?' if query else ''}{query}"
        return f"{base.scheme}://{base.netloc}{target}", target

    @property
    def signs_payloads(self) -> bool:
        """Whether the bytes themselves are signed: TLS protects them as well, and costs less."""
        return not self.access.is_tls

    def send(
        self,
        method: str,
        asked: Asked,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        signed: Mapping[str, str] | None = None,
        payload: Payload | None = None,
        wait_s: float | None = None,
    ) -> BaseHTTPResponse:
        """The answer, whatever its status, its body unread: read or close it. Raises StoreError for no answer.

        `signed` are headers that belong under the signature (all of x-amz-*); `headers` need not.
        """
        base = urlsplit(self.access.base)
        url, target = self._place(asked, query)
        every = {
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "identity",
            **self._signature(method, url, signed or {}, payload),
            **(headers or {}),
        }
        if payload is not None:
            every["Content-Length"] = str(payload.size)
        if self._absolute:
            # What the manager would add. An absolute URL also has its `.` and `..` segments normalised by urllib3: keys
            # that hold those cannot be read through a proxy without TLS (the signature or the ETag would not fit).
            every |= self._proxy_headers
        try:
            pool = self._manager.connection_from_host(base.hostname, base.port, base.scheme)
            # urlopen of the pool, not of the manager: the manager's normalises `..` away.
            return pool.urlopen(
                method,
                url if self._absolute else target,
                body=payload.body() if payload is not None else None,
                headers=every,
                retries=False,
                redirect=False,
                timeout=self._timeout(wait_s, about_names=method == "HEAD" or asked.key is None),
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
            )
        except (http.HTTPError, OSError) as exc:
            raise answers.unreached(asked, exc) from exc

    def _timeout(self, wait_s: float | None, *, about_names: bool) -> urllib3.Timeout:
        times = self._timeouts
        if wait_s is None:
            wait_s = times.answer_s if about_names else times.stall_s
        return urllib3.Timeout(connect=times.connect_s, read=wait_s)

    def refusal(self, asked: Asked, response: BaseHTTPResponse) -> StoreError:
        """The error for an answer that is no success; reads its body."""
        deadline = time.monotonic() + self._timeouts.stall_s
        try:
            body = self._body(asked, response, deadline)
        except StoreError:
            body = b""  # the status has to do
        return answers.refused(asked, response.status, response.headers, body)

    def refusal_streamed(self, asked: Asked, stream: Stream) -> StoreError:
        """The error for an answer that is no success; reads its body."""
        try:
            body = b"".join(self.streamed(asked, stream, 1 << 18)) if stream.length <= _MAX_DOCUMENT_BYTES else b""
        except StoreError:
            body = b""  # the status has to do
        return answers.refused(asked, stream.status, stream.headers, body)

    def pieces(self, asked: Asked, response: BaseHTTPResponse, size: int) -> Iterator[bytes]:
        """The body of `response` as it comes, in pieces of at most `size` bytes."""
        deadline = time.monotonic() + self._timeouts.request_s
        try:
            for piece in response.stream(size, decode_content=False):
                if time.monotonic() > deadline:
                    raise StoreUnavailable(f"{asked.endpoint} took too long to send {asked.what}")
                yield piece
        except (http.HTTPError, OSError) as exc:
            raise _broken(asked, exc) from exc

    def streamed(self, asked: Asked, stream: Stream, size: int) -> Iterator[bytes]:
        """The body of `stream` as it comes, in pieces of at most `size` bytes. Raises StoreUnavailable."""
        deadline = time.monotonic() + self._timeouts.request_s
        try:
            for piece in stream.pieces(size):
                if time.monotonic() > deadline:
                    raise StoreUnavailable(f"{asked.endpoint} took too long to send {asked.what}")
                yield piece
        except (NoAnswer, OSError) as exc:
            raise _broken(asked, exc) from exc

    def _body(self, asked: Asked, response: BaseHTTPResponse, deadline: float) -> bytes:
        pieces, count = [], 0
        for piece in self.pieces(asked, response, 1 << 18):
            pieces.append(piece)
            count += len(piece)
            if count > _MAX_DOCUMENT_BYTES:
                raise BadAnswer("the answer is far larger than a listing can be", "is the endpoint an S3 server?")
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"{asked.endpoint} took too long to answer")
        return b"".join(pieces)

    def _signature(self, method: str, url: str, given: Mapping[str, str], payload: Payload | None) -> dict[str, str]:
        """The headers that S3 wants signed, and the signature over them; Range and the like may stay outside."""
        headers = {**given, **({"x-amz-request-payer": "requester"} if self.access.requester_pays else {})}
        if not self._wallet.signs:
            return headers
        request = AWSRequest(method, url, headers=headers)
        sha256 = payload.sha256 if payload is not None else _EMPTY_SHA256
        _Signer(sha256, self._wallet.current(), "s3", self.access.region).add_auth(request)
        return {str(name): str(value) for name, value in request.headers.items()}


class _Signer(S3SigV4Auth):
    """botocore's signature, over a body whose hash is known."""

    def __init__(self, sha256: str, *args: Any) -> None:
        super().__init__(*args)
        self._sha256 = sha256

    def payload(self, _request: AWSRequest) -> str:
        return self._sha256


def _broken(asked: Asked, exc: http.HTTPError | NoAnswer | OSError) -> StoreError:
    if isinstance(exc, http.TimeoutError | TimeoutError):
        return StoreUnavailable(f"{asked.endpoint} stopped sending {asked.what} in the middle")
    return StoreUnavailable(f"the connection to {asked.endpoint} broke off while it sent {asked.what}")


@contextlib.contextmanager
def _closing(response: BaseHTTPResponse) -> Iterator[None]:
    """Gives the connection back if the body was read to its end, and closes it otherwise."""
    try:
        yield
    finally:
        let_go(response)


def let_go(response: BaseHTTPResponse) -> None:
    """Gives a fully read answer's connection back to the pool, closes any other."""
    if getattr(response, "length_remaining", None) == 0:
        response.drain_conn()  # of nothing; http.client wants every answer read to its end, also one without body
        response.release_conn()
    else:
        response.close()


def for_check(timeouts: Timeouts, total_s: float) -> Timeouts:
    """Timeouts that are none longer than `total_s`."""
    return replace(
        timeouts,
        connect_s=min(timeouts.connect_s, total_s),
        stall_s=min(timeouts.stall_s, total_s),
        answer_s=min(timeouts.answer_s, total_s),
        request_s=total_s,
        document_s=min(timeouts.document_s, total_s),
    )


def _lean(access: Access, timeouts: Timeouts) -> LeanHTTP | None:
    """None behind a proxy."""
    base = urlsplit(access.base)
    if access.proxy or not base.hostname:
        return None
    port = base.port or (443 if access.is_tls else 80)
    return LeanHTTP(base.hostname, port, access.tls_context() if access.is_tls else None, timeouts.connect_s)


def _manager(access: Access, timeouts: Timeouts) -> urllib3.PoolManager:
    settings: dict[str, Any] = {
        "num_pools": 4,
        "maxsize": _CONNECTIONS,
        "timeout": urllib3.Timeout(connect=timeouts.connect_s, read=timeouts.stall_s),
        "retries": False,
    }
    if access.is_tls or access.proxy.startswith("https"):
        settings["ssl_context"] = access.tls_context()
    if not access.proxy:
        return urllib3.PoolManager(**settings)
    parts = urlsplit(access.proxy)
    if parts.username:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        settings["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=secret)
    return urllib3.ProxyManager(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", **settings)
