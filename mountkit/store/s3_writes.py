"""S3's writing half: puts, copies, deletes and multipart uploads as signed plain HTTP.

Which checksum a server knows is learnt from its answers: one that knows CRC32C repeats it. Until then the MD5 goes with
it; a server that confirms none gets the MD5 alone from then on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from mountkit.errors import BadAnswer, ObjectChanged, ObjectMissing, StoreError, StoreUnavailable, UploadMissing
from mountkit.store import answers, documents
from mountkit.store.api import MAX_DELETES, Data, ObjectInfo, Part, Properties, UploadInfo
from mountkit.store.etags import normal_etag
from mountkit.store.keys import quoted
from mountkit.store.payload import CRC32C, Payload, composite
from mountkit.store.signed import SignedHTTP
from mountkit.store.statistics import Counters

_META = "x-amz-meta-"
_CHECKSUM = "x-amz-checksum-crc32c"
_PAGE = 1000


class S3Writes:
    """One bucket, for writing; implements the second half of `api.Store`."""

    _wire: SignedHTTP
    _counts: Counters
    _knows_crc32c: bool | None = None
    """None: not yet known."""

    def put_object(
        self,
        key: bytes,
        data: Data,
        properties: Properties | None = None,
        *,
        if_absent: bool = False,
        if_match: str = "",
    ) -> ObjectInfo:
        """Puts one object; see `api.Store.put_object`."""
        payload = self._payload(data)
        headers = {**_properties(properties), **_conditions(if_absent, if_match), **self._checksums(payload)}
        answer, _ = self._write("put", key, headers=headers, payload=payload)
        self._counts.add("bytes_sent", payload.size)
        return _put_info(key, payload.size, answer, self._learn(answer, payload))

    def copy_object(
        self, source: ObjectInfo, key: bytes, properties: Properties | None = None, *, keep_metadata: bool = False
    ) -> ObjectInfo:
        """Copies inside the bucket; see `api.Store.copy_object`."""
        headers = self._copied(source)
        if properties is not None and keep_metadata:
            headers |= {"x-amz-metadata-directive": "COPY", **_placement(properties)}
        elif properties is not None:
            headers |= {"x-amz-metadata-directive": "REPLACE", **_properties(properties)}
        answer, body = self._write("copy", key, headers=headers, slow=True)
        root = documents.tree(body)
        return ObjectInfo(
            key=key,
            size=source.size,
            etag=documents.etag_of(root),
            mtime_ns=documents.modified_ns(root) or _date_ns(answer),
            storage_class=(properties.storage_class if properties else "") or "STANDARD",
            version_id=_version(answer),
            checksum=documents.checksum_of(root),
        )

    def delete_object(self, key: bytes) -> None:
        """Removes one key; see `api.Store.delete_object`."""
        try:
            self._write("delete", key, method="DELETE", verb="delete")
        except ObjectMissing:
            return  # not S3's answer, but some servers'

    def delete_objects(self, keys: Sequence[bytes]) -> dict[bytes, StoreError]:
        """Removes many keys; see `api.Store.delete_objects`."""
        assert len(keys) <= MAX_DELETES
        together = [key for key in keys if documents.speakable(key)]
        failed: dict[bytes, StoreError] = {}
        for key in keys:
            if not documents.speakable(key):
                try:
                    self.delete_object(key)
                except StoreError as exc:
                    failed[key] = exc
        return failed | (self._delete_together(together) if together else {})

    def _delete_together(self, keys: Sequence[bytes]) -> dict[bytes, StoreError]:
        payload = Payload(documents.deletion(keys), signed=self._wire.signs_payloads, md5=True)
        asked = self._wire.asked("delete")
        self._counts.add("delete")
        headers = {"Content-MD5": payload.md5, "Content-Type": "application/xml"}
        try:
            _, body = self._wire.written("POST", asked, query="delete=", headers=headers, payload=payload)
        except StoreError as exc:
            raise self._counted(exc) from exc.__cause__
        failed: dict[bytes, StoreError] = {}
        for key, code, message in documents.refused_deletes(documents.tree(body)):
            error = answers.refusal_of(self._wire.asked("delete", key), code, message)
            if not isinstance(error, ObjectMissing):
                failed[key] = self._counted(error)
        return failed

    # ---- multipart

    def create_upload(self, key: bytes, properties: Properties | None = None) -> str:
        """Begins an upload; see `api.Store.create_upload`."""
        headers = _properties(properties)
        if self._knows_crc32c is not False:
            headers["x-amz-checksum-algorithm"] = "CRC32C"
        answer, body = self._write("put", key, method="POST", query="uploads=", headers=headers)
        if self._knows_crc32c is None:
            self._knows_crc32c = answer.get("x-amz-checksum-algorithm", "").upper() == "CRC32C"
        return documents.upload_id(body)

    def upload_part(self, key: bytes, upload_id: str, number: int, data: Data) -> Part:
        """Sends a part; see `api.Store.upload_part`."""
        payload = self._payload(data)
        query = f"partNumber={number}&uploadId={_escaped(upload_id)}"
        answer, _ = self._write(
            "put", key, query=query, headers=self._checksums(payload), payload=payload, of=upload_id
        )
        self._counts.add("bytes_sent", payload.size)
        etag = answer.get("etag", "")
        if not etag:
            raise self._counted(BadAnswer("the answer to a part names no ETag"))
        return Part(number, normal_etag(etag, 0, 0), payload.size, self._learn(answer, payload))

    def upload_part_copy(
        self, key: bytes, upload_id: str, number: int, source: ObjectInfo, offset: int, length: int
    ) -> Part:
        """A part copied by the store; see `api.Store.upload_part_copy`."""
        headers = self._copied(source)
        if (offset, length) != (0, source.size):
            headers["x-amz-copy-source-range"] = f"bytes={offset}-{offset + length - 1}"
        query = f"partNumber={number}&uploadId={_escaped(upload_id)}"
        _, body = self._write("copy", key, query=query, headers=headers, slow=True, of=upload_id)
        root = documents.tree(body)
        return Part(number, documents.etag_of(root), length, documents.checksum_of(root))

    def complete_upload(
        self, key: bytes, upload_id: str, parts: Sequence[Part], *, if_absent: bool = False, if_match: str = ""
    ) -> ObjectInfo:
        """Puts the parts together; see `api.Store.complete_upload`."""
        payload = Payload(documents.completion(parts), signed=self._wire.signs_payloads)
        headers = {**_conditions(if_absent, if_match), "Content-Type": "application/xml"}
        query = f"uploadId={_escaped(upload_id)}"
        answer, body = self._write(
            "put", key, method="POST", query=query, headers=headers, payload=payload, slow=True, of=upload_id
        )
        root = documents.tree(body)
        return ObjectInfo(
            key=key,
            size=sum(part.size for part in parts),
            etag=documents.etag_of(root),
            mtime_ns=_date_ns(answer),
            version_id=_version(answer),
            checksum=composite(parts),
        )

    def abort_upload(self, key: bytes, upload_id: str) -> None:
        """Gives an upload up; see `api.Store.abort_upload`."""
        try:
            self._write("delete", key, method="DELETE", query=f"uploadId={_escaped(upload_id)}", of=upload_id)
        except UploadMissing:
            return

    def list_parts(self, key: bytes, upload_id: str) -> list[Part]:
        """The parts of an upload; see `api.Store.list_parts`."""
        found: list[Part] = []
        marker = 0
        while True:
            query = f"max-parts={_PAGE}&part-number-marker={marker}&uploadId={_escaped(upload_id)}"
            _, body = self._write("list", key, method="GET", query=query, verb="list", of=upload_id)
            root = documents.tree(body)
            found += documents.parts(root)
            after = documents.text_of(root, "NextPartNumberMarker")
            if documents.text_of(root, "IsTruncated") != "true" or not after.isdigit() or int(after) <= marker:
                return sorted(found, key=lambda part: part.number)
            marker = int(after)

    def list_uploads(self, prefix: bytes) -> list[UploadInfo]:
        """Uploads under way; see `api.Store.list_uploads`."""
        return list(self._uploads(prefix))

    def _uploads(self, prefix: bytes) -> Iterator[UploadInfo]:
        marker: tuple[bytes, str] | None = None
        while True:
            items = {
                "encoding-type": "url",
                "max-uploads": str(_PAGE),
                "prefix": quote(prefix, safe="~"),
                "uploads": "",
            }
            if marker is not None:
                items |= {"key-marker": quote(marker[0], safe="~"), "upload-id-marker": _escaped(marker[1])}
            query = "&".join(f"{name}={value}" for name, value in sorted(items.items()))
            _, body = self._write("list", None, method="GET", query=query, verb="list")
            root = documents.tree(body)
            page = list(documents.uploads(root))
            yield from (found for found in page if found.key.startswith(prefix))
            if documents.text_of(root, "IsTruncated") != "true" or not page:
                return
            after = page[-1].key, page[-1].upload_id
            if after == marker:
                raise BadAnswer("the listing of uploads does not advance")
            marker = after

    # ---- inside

    def _write(
        self,
        kind: str,
        key: bytes | None,
        *,
        method: str = "PUT",
        query: str = "",
        headers: Mapping[str, str] | None = None,
        payload: Payload | None = None,
        verb: str = "write",
        slow: bool = False,
        of: str = "",
    ) -> tuple[Mapping[str, str], bytes]:
        """One request, counted as `kind`; `of` names the upload it is about, which a bare 404 then means."""
        asked = self._wire.asked(verb, key)
        self._counts.add(kind)
        if payload is None and method in ("PUT", "POST"):
            payload = _NOTHING
        try:
            return self._wire.written(method, asked, query=query, headers=headers, payload=payload, slow=slow)
        except ObjectMissing as exc:
            if of and kind != "copy":
                raise UploadMissing(f"the multipart upload of {asked.what} is not there any more") from exc
            raise
        except StoreError as exc:
            raise self._counted(exc) from exc.__cause__

    def _payload(self, data: Data) -> Payload:
        return Payload(data, signed=self._wire.signs_payloads, md5=not self._knows_crc32c)

    def _checksums(self, payload: Payload) -> dict[str, str]:
        headers = {"Content-MD5": payload.md5} if payload.md5 else {}
        if self._knows_crc32c is not False:
            headers |= {_CHECKSUM: payload.crc32c, "x-amz-sdk-checksum-algorithm": "CRC32C"}
        return headers

    def _learn(self, answer: Mapping[str, str], payload: Payload) -> str:
        """The checksum that the answer confirms, or ""."""
        confirmed = answer.get(_CHECKSUM, "") == payload.crc32c
        if self._knows_crc32c is None:
            self._knows_crc32c = confirmed
        return f"{CRC32C}{payload.crc32c}" if confirmed else ""

    def _copied(self, source: ObjectInfo) -> dict[str, str]:
        version = f"?versionId={quoted(source.version_id.encode())}" if source.version_id else ""
        headers = {"x-amz-copy-source": f"/{self._wire.access.bucket}/{quoted(source.key)}{version}"}
        return headers | ({"x-amz-copy-source-if-match": source.etag} if source.etag else {})

    def _counted(self, error: StoreError) -> StoreError:
        if not isinstance(error, ObjectMissing | ObjectChanged | UploadMissing):
            self._counts.add("errors")
        if isinstance(error, StoreUnavailable) and error.slow_down:
            self._counts.add("slow_downs")
        return error


_NOTHING = Payload(b"")


def _escaped(text: str) -> str:
    return quote(text, safe="~")


def _properties(properties: Properties | None) -> dict[str, str]:
    if properties is None:
        return {}
    headers = {f"{_META}{name}": value for name, value in properties.metadata.items()}
    if properties.content_type:
        headers["Content-Type"] = properties.content_type
    return {**headers, **properties.headers, **_placement(properties)}


def _placement(properties: Properties) -> dict[str, str]:
    """Storage class and encryption: a copy takes neither from its source."""
    headers = {"x-amz-storage-class": properties.storage_class} if properties.storage_class else {}
    algorithm, separator, key = properties.sse.partition("aws:kms:")
    if separator:
        headers["x-amz-server-side-encryption"] = "aws:kms"
        headers["x-amz-server-side-encryption-aws-kms-key-id"] = key
    elif algorithm:
        headers["x-amz-server-side-encryption"] = algorithm
    return headers


def _conditions(if_absent: bool, if_match: str) -> dict[str, str]:
    if if_absent:
        return {"If-None-Match": "*"}
    return {"If-Match": if_match} if if_match else {}


def _put_info(key: bytes, size: int, answer: Mapping[str, str], checksum: str) -> ObjectInfo:
    when = _date_ns(answer)
    etag = normal_etag(answer.get("etag"), when, size)
    return ObjectInfo(key, size, etag, when, version_id=_version(answer), checksum=checksum)


def _version(answer: Mapping[str, str]) -> str:
    found = answer.get("x-amz-version-id", "")
    return "" if found == "null" else found


def _date_ns(answer: Mapping[str, str]) -> int:
    """The server's clock at its answer, which is LastModified to the second; ours where it does not say."""
    try:
        return int(parsedate_to_datetime(answer.get("date", "")).timestamp()) * 10**9
    except ValueError:
        return int(time.time()) * 10**9
