"""Listings: the query of ListObjectsV2 and the strict parser of its answer.

Keys are asked for in URL encoding, because XML cannot carry every byte a key may hold, and come out as exact bytes.
What all servers send, `<Contents>` after `<Contents>` of the same plain fields, is cut by a regular expression that has
to account for every byte (100,000 keys in 0.27 s); a page that is not so plain, and the rest of this one, goes through
the C parser of XML (0.62 s; boto3 needs 7.5 s).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from urllib.parse import quote, unquote, unquote_to_bytes
from xml.etree import ElementTree as ET

from mountkit.errors import BadAnswer
from mountkit.store.api import ObjectInfo, Page
from mountkit.store.etags import normal_etag
from mountkit.store.scan import Scanned, scan

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DOCTYPE = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)
PROBE_PREFIX = b"mountkit + "
"""The end of a prefix whose echo shows how a server writes a space and a plus sign. It begins with the prefix that is
listed: listing another may be forbidden."""
_SIZE_DIGITS = 18
"""More bytes no object has, and Python refuses to read numbers of thousands of digits."""


class Plus(Enum):
    """What `+` means in an escaped key: S3 writes a space so; servers that escape as in a path mean the sign itself."""

    SPACE = "space"
    ITSELF = "itself"


class AmbiguousPlusError(Exception):
    """The page holds a `+` and nothing that tells what it means."""


@dataclass(frozen=True, slots=True)
class ListRequest:
    prefix: bytes
    delimiter: bytes = b""
    token: str = ""
    limit: int = 1000

    def query(self) -> str:
        """The canonical query string: sorted by name, everything reserved escaped, as the signature wants it."""
        items = [("encoding-type", b"url"), ("list-type", b"2"), ("max-keys", str(self.limit).encode())]
        items.append(("prefix", self.prefix))
        if self.delimiter:
            items.append(("delimiter", self.delimiter))
        if self.token:
            items.append(("continuation-token", self.token.encode()))
        return "&".join(f"{name}={quote(value, safe='~')}" for name, value in sorted(items))


def parse_page(body: bytes, request: ListRequest, plus: Plus | None = Plus.SPACE) -> Page:
    """The page that `body` holds. Raises BadAnswer for anything that is no complete listing of what was asked for.

    With `plus` unknown (None), raises AmbiguousPlusError if the keys cannot be read without knowing.
    """
    scanned = scan(body)
    root = _tree(scanned.rest if scanned else body)
    encoded = _text(root, "EncodingType") == "url"
    decode = _decoder(body, plus) if encoded else _raw
    truncated = _text(root, "IsTruncated")
    token = _text(root, "NextContinuationToken")
    if truncated not in ("true", "false"):
        raise BadAnswer("the listing does not say whether it is complete")
    if truncated == "true" and not token:
        raise BadAnswer(
            "the listing says that it goes on, but not where", "the server may not know ListObjectsV2, which is needed"
        )
    times: dict[str, int] = {}
    if scanned:
        objects = tuple(_objects(scanned, decode, times))
    else:
        objects = tuple(_object(node, decode, times) for node in root.iter("Contents"))
    prefixes = tuple(decode(_text(node, "Prefix")) for node in root.iter("CommonPrefixes"))
    page = Page(objects, prefixes, token if truncated == "true" else "")
    _check(page, request)
    _check_place(root, page, request)
    return page


def parse_plus(body: bytes) -> Plus:
    """What `+` means on this server, from its answer to a listing of a prefix that ends in PROBE_PREFIX."""
    echo = _text(_tree(body), "Prefix")
    # S3 and SeaweedFS's keys: `%2B+`; moto: `%2B%20`; Go's PathEscape: `+%20`. An echo without escapes says nothing.
    return Plus.ITSELF if "+" in echo and "%20" in echo else Plus.SPACE


def _tree(body: bytes) -> ET.Element:
    if _DOCTYPE.search(body):
        raise BadAnswer("the answer to a listing request holds a document type, which no listing has")
    try:
        root = ET.fromstring(_without_namespace(body))  # noqa: S314 - no document type, so no entities
    except (ET.ParseError, ValueError, LookupError) as exc:
        raise BadAnswer(
            "the answer to a listing request is no XML, or was cut off", "is the endpoint an S3 server?"
        ) from exc
    if root.tag.rpartition("}")[2] != "ListBucketResult":
        raise BadAnswer("the answer to a listing request is no listing", "is the endpoint an S3 server?")
    return root


def _without_namespace(body: bytes) -> bytes:
    # The namespace of the root element makes every tag `{http://…}Key`; without it, the tags are plain and faster.
    head, separator, rest = body[:1000].partition(b" xmlns=")
    if not separator or head.count(b"<") > 2 or not rest:
        return body
    end = rest.find(rest[:1], 1)
    return body if end < 0 else head + rest[end + 1 :] + body[1000:]


def _text(node: ET.Element, name: str) -> str:
    return node.findtext(name) or ""


def _objects(scanned: Scanned, decode: Callable[[str], bytes], times: dict[str, int]) -> Iterator[ObjectInfo]:
    for key, mtime, tag, size, storage in scanned.entries:
        when = times.get(mtime)
        if when is None:
            when = times[mtime] = _time_ns(mtime)
        count = int(size)
        etag = tag if len(tag) > 2 and tag[0] == tag[-1] == '"' else normal_etag(tag, when, count)
        name = decode(key) if "%" in key or "+" in key else key.encode()
        yield ObjectInfo(name, count, etag, when, storage or "STANDARD")


def _object(node: ET.Element, decode: Callable[[str], bytes], times: dict[str, int]) -> ObjectInfo:
    fields = {child.tag: child.text or "" for child in node}
    key, size, mtime = fields.get("Key"), fields.get("Size"), fields.get("LastModified")
    if not key or not size or not mtime or not (size.isascii() and size.isdigit() and len(size) <= _SIZE_DIGITS):
        raise BadAnswer("an entry of the listing has no key, no size or no time")
    when = times.get(mtime)
    if when is None:
        when = times[mtime] = _time_ns(mtime)
    count, storage = int(size), fields.get("StorageClass") or "STANDARD"
    return ObjectInfo(decode(key), count, normal_etag(fields.get("ETag"), when, count), when, storage)


def _time_ns(text: str) -> int:
    try:
        when = datetime.fromisoformat(text)
    except ValueError as exc:
        raise BadAnswer("an entry of the listing has a time that makes no sense") from exc
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return (when - _EPOCH) // _MICROSECOND * 1000


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _unquoted(text: str) -> bytes:
    return unquote_to_bytes(text) if "%" in text else text.encode("utf-8", "surrogatepass")


def _unquoted_plus(text: str) -> bytes:
    return _unquoted(text.replace("+", " ") if "+" in text else text)


def _decoder(body: bytes, plus: Plus | None) -> Callable[[str], bytes]:
    if plus is Plus.ITSELF:
        return _unquoted
    if plus is None:
        # Only keys matter, but a `+` anywhere in the page is rare enough to ask once.
        if b"+" in body:
            raise AmbiguousPlusError
        return _unquoted
    return _unquoted_plus


def _check_place(root: ET.Element, page: Page, request: ListRequest) -> None:
    """Raises BadAnswer unless this is the page asked for, and whole, as far as the answer tells.

    Caches and load balancers have given out pages twice and left some out. KeyCount counts common prefixes on AWS and
    leaves them out on some other servers, so only too few entries are wrong.
    """
    if page.next_token and page.next_token == request.token:
        raise BadAnswer("the listing goes on where it already was: the same page would come for ever")
    echo = _text(root, "ContinuationToken")
    if echo and request.token and request.token not in (echo, unquote(echo)):
        raise BadAnswer("the answer is another page of the listing than the one asked for")
    count = _text(root, "KeyCount")
    if count.isascii() and count.isdigit() and int(count[:10]) > len(page.objects) + len(page.prefixes):
        raise BadAnswer("the page of the listing has fewer entries than it says")


def _check(page: Page, request: ListRequest) -> None:
    prefix, delimiter = request.prefix, request.delimiter
    if prefix and not all(each.key.startswith(prefix) for each in page.objects):
        raise BadAnswer("the listing holds a key outside of the prefix asked for")
    for each in page.prefixes:
        if not each.startswith(prefix) or not delimiter or not each.endswith(delimiter):
            raise BadAnswer("the listing holds a common prefix that was not asked for")
