"""Errors: what a server's refusal, or no answer at all, is called in mountkit.

Decided on codes, statuses and exception types, never on the text of a message. No sentence holds a secret; an access
key id is shown by its ends.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import BadStatusLine
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

from urllib3 import exceptions as http

from mountkit.errors import (
    AccessDenied,
    BadAnswer,
    BucketMissing,
    CredentialsError,
    ObjectArchived,
    ObjectChanged,
    ObjectMissing,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UploadMissing,
    WrongRegion,
)

_TLS_RECORD = ("\x15\x03", "\x16\x03")
_SPOKE_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
_UNPRINTABLE = re.compile(r"[^ -~]+")
_SKEW_S = 60
_ERROR_DOCUMENT = re.compile(rb"\s*(<\?xml[^>]*\?>)?\s*<Error\b")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request was for, in words an error needs."""

    bucket: str
    endpoint: str
    region: str
    verb: str = "reach"
    """`list`, `read`, `look at`, `write`, `delete` or `reach`."""
    key: bytes | None = None
    access_key: str = ""
    """Shortened; empty for unsigned requests."""

    @property
    def what(self) -> str:
        return f"s3://{self.bucket}" + ("" if self.key is None else f"/{self.key.decode('utf-8', 'replace')}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is no success."""

    asked: Asked
    status: int
    code: str
    message: str
    region: str
    """Where the server says the bucket is, or ""."""
    clock_off_s: float
    """How far our clock is ahead of the server's; 0.0 where it does not say."""


def shortened(access_key: str) -> str:
    """An access key id as an error may show it."""
    return f"{access_key[:4]}…{access_key[-4:]}" if len(access_key) > 11 else f"{access_key[:2]}…"


def refused(asked: Asked, status: int, headers: Mapping[str, str], body: bytes) -> StoreError:
    """The error for an answer with a status that is no success."""
    fields = _fields(body)
    region = headers.get("x-amz-bucket-region") or fields.get("Region", "")
    message = _UNPRINTABLE.sub(" ", fields.get("Message", ""))[:200]
    refusal = Refusal(asked, status, fields.get("Code", ""), message, region, _clock_off_s(headers.get("date")))
    make = _BY_CODE.get(refusal.code) or _BY_STATUS.get(status)
    if make is None and status >= 500:
        make = _server_error
    return (make or _other)(refusal)


def refusal_of(asked: Asked, code: str, message: str) -> StoreError:
    """The error for one key of several in one request, as the answer's document tells it."""
    refusal = Refusal(asked, 200, code, _UNPRINTABLE.sub(" ", message)[:200], "", 0.0)
    return _BY_CODE.get(code, _other)(refusal)


def error_in(asked: Asked, headers: Mapping[str, str], body: bytes) -> StoreError | None:
    """The error that a 200 turned out to be, if it did: S3 answers copies and completions before it knows."""
    return refused(asked, 500, headers, body) if _ERROR_DOCUMENT.match(body) else None


def _fields(body: bytes) -> dict[str, str]:
    """The elements of S3's error document; empty for anything else (nginx answers in HTML, HEAD not at all)."""
    if b"<Error" not in body or b"<!" in body:
        return {}
    try:
        root = ET.fromstring(body)  # noqa: S314 - no document type, so no entities
    except (ET.ParseError, ValueError, LookupError):
        return {}
    return {node.tag.rpartition("}")[2]: (node.text or "").strip() for node in root.iter()}


def _clock_off_s(date: str | None) -> float:
    try:
        return time.time() - parsedate_to_datetime(date).timestamp() if date else 0.0
    except ValueError:
        return 0.0


def _bucket_missing(refusal: Refusal) -> StoreError:
    asked = refusal.asked
    return BucketMissing(f"there is no bucket `{asked.bucket}` at {asked.endpoint}", "check the name and the endpoint")


def _missing(refusal: Refusal) -> StoreError:
    if refusal.asked.key is None:
        return _bucket_missing(refusal)
    return ObjectMissing(f"there is no {refusal.asked.what}")


def _changed(refusal: Refusal) -> StoreError:
    return ObjectChanged(f"{refusal.asked.what} holds another version than the one asked for")


def _unknown_key(refusal: Refusal) -> StoreError:
    asked = refusal.asked
    return CredentialsError(
        f"the server at {asked.endpoint} does not know the access key `{asked.access_key}`",
        "check AWS_ACCESS_KEY_ID or the profile; keys of another provider or account do not work here",
    )


def _wrong_secret(refusal: Refusal) -> StoreError:
    return CredentialsError(
        f"the secret does not fit the access key `{refusal.asked.access_key}`: the server refuses the signature",
        "check AWS_SECRET_ACCESS_KEY, or the secret in the profile, for missing or added characters",
    )


def _expired(refusal: Refusal) -> StoreError:
    return CredentialsError(
        f"the session token of the access key `{refusal.asked.access_key}` has expired",
        "log in again (aws sso login, or new temporary credentials); a profile that can renew itself avoids this",
    )


def _bad_token(refusal: Refusal) -> StoreError:
    return CredentialsError(
        f"the server does not accept the session token that came with `{refusal.asked.access_key}`",
        "AWS_SESSION_TOKEN must belong to the access key; unset it for a permanent key",
    )


def _skewed(refusal: Refusal) -> StoreError:
    off = refusal.clock_off_s
    how = ""
    if abs(off) >= _SKEW_S:
        how = f" by {abs(off) / 60:.0f} minutes ({'ahead' if off > 0 else 'behind'})"
    return CredentialsError(
        f"this machine's clock is off{how}, so the server refuses signatures", "set the clock (NTP)"
    )


def _denied(refusal: Refusal) -> StoreError:
    asked = refusal.asked
    who = f"the access key `{asked.access_key}`" if asked.access_key else "everybody (unsigned requests)"
    hint = {
        "list": "listing needs s3:ListBucket on the bucket",
        "read": "reading needs s3:GetObject on the bucket's objects, and kms:Decrypt where they are encrypted",
        "look at": "looking at an object needs s3:GetObject; without s3:ListBucket a missing one is refused, too",
        "write": "writing needs s3:PutObject on the bucket's objects, and kms:GenerateDataKey where they are encrypted",
        "delete": "deleting needs s3:DeleteObject on the bucket's objects; renaming a file needs it, too",
    }.get(asked.verb, "ask the bucket's owner for access")
    if not asked.access_key:
        hint = "the bucket is not public; drop --anonymous and give credentials"
    return AccessDenied(f"{who} may not {asked.verb} {asked.what}", hint)


def _upload_missing(refusal: Refusal) -> StoreError:
    return UploadMissing(f"the multipart upload of {refusal.asked.what} is not there any more")


def _full(refusal: Refusal) -> StoreError:
    why = refusal.code or f"HTTP {refusal.status}"
    return StoreFull(
        f"the server at {refusal.asked.endpoint} has no room for {refusal.asked.what}: {why}",
        "make room in the bucket, or have its quota raised",
    )


def _damaged(refusal: Refusal) -> StoreError:
    return StoreUnavailable(f"{refusal.asked.what} arrived damaged: {refusal.code}", "the network changes bytes")


def _archived(refusal: Refusal) -> StoreError:
    return ObjectArchived(
        f"{refusal.asked.what} is archived and cannot be read", "restore it first (aws s3api restore-object)"
    )


def wrong_region(asked: Asked, region: str) -> WrongRegion:
    """`region` is where the bucket is, or ""."""
    where = f"is in {region}" if region else "is in another region"
    return WrongRegion(
        f"the bucket `{asked.bucket}` {where}, the request went to {asked.region}",
        f"mountkit follows the bucket's region by itself unless you set one; drop `--region {asked.region}`",
        region=region,
    )


def _elsewhere(refusal: Refusal) -> StoreError:
    return wrong_region(refusal.asked, refusal.region)


def _bad_signature_header(refusal: Refusal) -> StoreError:
    return _elsewhere(refusal) if refusal.region else _other(refusal)


def _slow_down(refusal: Refusal) -> StoreError:
    return StoreUnavailable(
        f"the server at {refusal.asked.endpoint} asks for fewer requests (HTTP {refusal.status})",
        "mountkit slows down by itself",
        slow_down=True,
    )


def _server_error(refusal: Refusal) -> StoreError:
    named = f" {refusal.code}" if refusal.code else ""
    return StoreUnavailable(
        f"the server at {refusal.asked.endpoint} failed (HTTP {refusal.status}{named})", "the fault is the server's"
    )


def _gone_version(refusal: Refusal) -> StoreError:
    return _missing(refusal) if refusal.asked.key is not None else _other(refusal)


def _other(refusal: Refusal) -> StoreError:
    said = " ".join(text for text in (refusal.code, refusal.message) if text)
    hint = "is the endpoint an S3 server?" if not refusal.code else ""
    if not refusal.code and refusal.status == 400 and refusal.asked.endpoint.startswith("http://"):
        hint = "if the server speaks TLS, write its endpoint with https://"
    sentence = f"the server at {refusal.asked.endpoint} would not {refusal.asked.verb} {refusal.asked.what}"
    return StoreError(f"{sentence}: HTTP {refusal.status}{' ' if said else ''}{said}", hint)


_BY_CODE: dict[str, Callable[[Refusal], StoreError]] = {
    "NoSuchBucket": _bucket_missing,
    "InvalidBucketName": _bucket_missing,
    "NoSuchKey": _missing,
    "NoSuchVersion": _missing,
    "NoSuchUpload": _upload_missing,
    "InvalidPart": _upload_missing,
    "InvalidPartOrder": _upload_missing,
    "QuotaExceeded": _full,
    "XMinioStorageFull": _full,
    "XMinioAdminBucketQuotaExceeded": _full,
    "BadDigest": _damaged,
    "XAmzContentSHA256Mismatch": _damaged,
    "XAmzContentChecksumMismatch": _damaged,
    "IncompleteBody": _damaged,
    "PreconditionFailed": _changed,
    "InvalidRange": _changed,  # the range lay inside of the version asked for, so there is a shorter one now
    "InvalidAccessKeyId": _unknown_key,
    "SignatureDoesNotMatch": _wrong_secret,
    "ExpiredToken": _expired,
    "ExpiredTokenException": _expired,
    "TokenRefreshRequired": _expired,
    "InvalidToken": _bad_token,
    "RequestTimeTooSkewed": _skewed,
    "RequestExpired": _skewed,
    "AccessDenied": _denied,
    "AllAccessDisabled": _denied,
    "AccountProblem": _denied,
    "InvalidObjectState": _archived,
    "PermanentRedirect": _elsewhere,
    "TemporaryRedirect": _elsewhere,
    "IllegalLocationConstraintException": _elsewhere,
    "AuthorizationHeaderMalformed": _bad_signature_header,
    "InvalidRegion": _elsewhere,
    "SlowDown": _slow_down,
    "ServiceUnavailable": _slow_down,
    "RequestLimitExceeded": _slow_down,
    "Throttling": _slow_down,
    "ThrottlingException": _slow_down,
    "TooManyRequests": _slow_down,
    "BandwidthLimitExceeded": _slow_down,
    "RequestTimeout": _server_error,
    "OperationAborted": _server_error,
    "ConditionalRequestConflict": _server_error,
    "NotImplemented": _other,
    "InternalError": _server_error,
}
_BY_STATUS: dict[int, Callable[[Refusal], StoreError]] = {
    301: _elsewhere,
    307: _elsewhere,
    401: _denied,
    403: _denied,
    404: _missing,
    405: _gone_version,  # a version that is a delete marker
    408: _server_error,
    412: _changed,
    416: _changed,
    429: _slow_down,
    501: _other,
    503: _slow_down,
    507: _full,
}


def unreached(asked: Asked, exc: http.HTTPError | OSError) -> StoreError:
    """The error for a request that got no usable answer."""
    where, cause = asked.endpoint, _root(exc)
    host = urlsplit(where).hostname or where
    if isinstance(cause, ssl.SSLCertVerificationError):
        return StoreError(
            f"the certificate of {where} is not trusted: {cause.verify_message}",
            "for a private CA, set AWS_CA_BUNDLE to its certificate file",
        )
    if isinstance(cause, ssl.SSLError):
        return _tls_error(where, cause)
    if isinstance(exc, http.ProxyError):
        return StoreUnavailable(
            f"the proxy on the way to {where} does not let us through", "check HTTPS_PROXY, NO_PROXY"
        )
    if isinstance(exc, http.NameResolutionError) or isinstance(cause, socket.gaierror):
        return StoreUnavailable(f"the name `{host}` does not resolve", "check the endpoint, the network and the DNS")
    if isinstance(exc, http.ConnectTimeoutError) and isinstance(cause, TimeoutError):
        return StoreUnavailable(f"{where} does not answer: no connection in time", "a firewall may drop the packets")
    if isinstance(cause, ConnectionRefusedError):
        return StoreUnavailable(f"nobody listens at {where}: connection refused", "check the endpoint and its port")
    if isinstance(exc, http.TimeoutError) or isinstance(cause, TimeoutError):
        return StoreUnavailable(
            f"{where} accepted the request and then said nothing in time",
            "check the endpoint: is it an S3 server, and is it overloaded?",
        )
    line = str(getattr(cause, "line", "")).strip("'\"") if isinstance(cause, BadStatusLine) else ""
    if line.startswith(_TLS_RECORD):
        return StoreError(f"{where} speaks TLS, the request did not", "write the endpoint with https://")
    if line:
        return BadAnswer(f"what answers at {where} does not speak HTTP", "check the endpoint and its port")
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else type(cause).__name__
    hint = "check the endpoint and the network"
    if where.startswith("http://"):  # a TLS server that hangs up on plain words
        hint += "; a server that speaks TLS needs https://"
    return StoreUnavailable(f"the connection to {where} failed: {reason}", hint)


def _tls_error(where: str, cause: ssl.SSLError) -> StoreError:
    if cause.reason in _SPOKE_NO_TLS:
        return StoreError(f"{where} does not speak TLS", "write the endpoint with http:// if that is meant")
    return StoreUnavailable(
        f"the TLS connection to {where} failed: {cause.reason or type(cause).__name__}", "does this port speak TLS?"
    )


def _root(exc: BaseException) -> BaseException:
    """The first cause: urllib3 wraps what the socket said up to three times."""
    for _ in range(6):
        inner = exc.__cause__ or next((a for a in getattr(exc, "args", ()) if isinstance(a, BaseException)), None)
        inner = inner or getattr(exc, "original_error", None) or exc.__context__
        if inner is None or isinstance(exc, ssl.SSLError):
            break
        exc = inner
    return exc
