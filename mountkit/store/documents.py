"""The XML of writing: what completes an upload or deletes many keys, and what comes back.

Keys travel percent-encoded in listings, because XML cannot carry every byte a key may hold. Answers that are no such
document raise BadAnswer; an error document in a 200 is the caller's to look for (`error_in`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from mountkit.errors import BadAnswer
from mountkit.store.api import Part, UploadInfo
from mountkit.store.etags import normal_etag
from mountkit.store.payload import CRC32C

_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
# XML 1.0 cannot say these at all, and a reader may turn a carriage return into a newline.
_UNSPEAKABLE = re.compile("[\x00-\x1f\x7f\ufffe\uffff]")


def completion(parts: Sequence[Part]) -> bytes:
    """The body of CompleteMultipartUpload."""
    lines = []
    for part in parts:
        crc = part.checksum.removeprefix(CRC32C) if part.checksum.startswith(CRC32C) else ""
        checksum = f"<ChecksumCRC32C>{crc}</ChecksumCRC32C>" if crc else ""
        lines.append(f"<Part><PartNumber>{part.number}</PartNumber><ETag>{escape(part.etag)}</ETag>{checksum}</Part>")
    return f"<CompleteMultipartUpload {_NAMESPACE}>{''.join(lines)}</CompleteMultipartUpload>".encode()


def deletion(keys: Sequence[bytes]) -> bytes:
    """The body of DeleteObjects, which answers only with what failed. Each key must be `speakable`."""
    lines = "".join(f"<Object><Key>{escape(key.decode())}</Key></Object>" for key in keys)
    return f"<Delete {_NAMESPACE}>{lines}<Quiet>true</Quiet></Delete>".encode()


def speakable(key: bytes) -> bool:
    """Whether XML can hold the key."""
    try:
        return not _UNSPEAKABLE.search(key.decode())
    except UnicodeDecodeError:
        return False


def tree(body: bytes) -> ET.Element:
    """The document, its tags without namespace. Raises BadAnswer."""
    if b"<!" in body[:1000]:
        raise BadAnswer("the answer holds a document type, which no answer of S3 has")
    try:
        root = ET.fromstring(body.strip())  # noqa: S314 - no document type, so no entities
    except (ET.ParseError, ValueError, LookupError) as exc:
        raise BadAnswer("the answer is no XML, or was cut off", "is the endpoint an S3 server?") from exc
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    return root


def text_of(node: ET.Element, name: str) -> str:
    return (node.findtext(name) or "").strip()


def upload_id(body: bytes) -> str:
    found = text_of(tree(body), "UploadId")
    if not found:
        raise BadAnswer("the answer to the begin of an upload does not name it")
    return found


def etag_of(node: ET.Element) -> str:
    """The ETag an answer tells. Raises BadAnswer where there is none."""
    found = text_of(node, "ETag")
    if not found:
        raise BadAnswer("the answer to a write names no ETag")
    return normal_etag(found, 0, 0)


def checksum_of(node: ET.Element) -> str:
    found = text_of(node, "ChecksumCRC32C")
    return f"{CRC32C}{found}" if found else ""


def modified_ns(node: ET.Element) -> int:
    """LastModified of a copy; 0 where there is none."""
    try:
        when = datetime.fromisoformat(text_of(node, "LastModified"))
    except ValueError:
        return 0
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1e6) * 1000


def parts(root: ET.Element) -> Iterator[Part]:
    """The parts of a page of ListParts."""
    for node in root.iter("Part"):
        number, size = text_of(node, "PartNumber"), text_of(node, "Size")
        if not (number.isdigit() and size.isdigit()):
            raise BadAnswer("a part of the listing has no number or no size")
        yield Part(int(number), etag_of(node), int(size), checksum_of(node))


def uploads(root: ET.Element) -> Iterator[UploadInfo]:
    """The uploads of a page of ListMultipartUploads."""
    encoded = text_of(root, "EncodingType") == "url"
    for node in root.iter("Upload"):
        name = node.findtext("Key") or ""
        # `+` is a space only where a server escapes as forms do; our own keys are compared, not shown
        key = unquote_to_bytes(name.replace("+", " ")) if encoded else name.encode("utf-8", "surrogatepass")
        yield UploadInfo(key, text_of(node, "UploadId"))


def refused_deletes(root: ET.Element) -> Iterator[tuple[bytes, str, str]]:
    """Key, code and message of each key that was not deleted."""
    for node in root.iter("Error"):
        key = (node.findtext("Key") or "").encode("utf-8", "surrogatepass")
        yield key, text_of(node, "Code"), text_of(node, "Message")
