"""What a write says to the server, and what is made of answers that no decent server would give."""

from __future__ import annotations

import base64
import hashlib

import pytest

from mountkit.errors import (
    AccessDenied,
    BadAnswer,
    BucketMissing,
    ObjectChanged,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UploadMissing,
)
from mountkit.store.api import ObjectInfo, Part, Properties
from mountkit.store.retry import RetryingStore
from tests.fakes.memory_store import MemoryStore, content
from tests.store.raw_server import RawServer, answer
from tests.store.raw_store import always, opened

CRC = base64.b64encode((0xE3069283).to_bytes(4, "big")).decode()
DATA = b"123456789"
ETAG = '"e"'
PARTS = [Part(1, '"p1"', 6_000_000, "crc32c:AAAAAA=="), Part(2, '"p2"', 5, "crc32c:AAAAAA==")]

pytestmark = pytest.mark.usefixtures("no_aws")


def taken(**headers: str) -> bytes:
    return answer(200, headers={"ETag": ETAG} | {name.replace("_", "-"): value for name, value in headers.items()})


def error_document(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>It is {code}</Message></Error>".encode()


def test_until_a_server_confirms_crc32c_the_md5_goes_with_it() -> None:
    with RawServer(always(taken(x_amz_checksum_crc32c=CRC))) as server:
        store = opened(server)
        assert store.put_object(b"a", DATA).checksum == f"crc32c:{CRC}"
        store.put_object(b"a", DATA)
        _, first, second = server.requests
        assert first.headers["content-md5"] == base64.b64encode(hashlib.md5(DATA).digest()).decode()
        assert first.headers["x-amz-checksum-crc32c"] == second.headers["x-amz-checksum-crc32c"] == CRC
        assert "content-md5" not in second.headers and first.body == DATA


def test_a_server_without_crc32c_gets_the_md5_alone() -> None:
    with RawServer(always(taken())) as server:
        store = opened(server)
        assert store.put_object(b"a", DATA).checksum == ""
        store.put_object(b"a", DATA)
        assert "content-md5" in server.requests[2].headers
        assert "x-amz-checksum-crc32c" not in server.requests[2].headers


def test_every_amazon_header_is_signed_and_so_are_the_bytes() -> None:
    properties = Properties("text/plain", {"mode": "33188"}, "GLACIER_IR", "aws:kms:arn:aws:kms:eu:1:key/k")
    with RawServer(always(taken())) as server:
        opened(server).put_object(b"a", DATA, properties, if_absent=True)
        headers = server.requests[1].headers
        signed = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
        assert {name for name in headers if name.startswith("x-amz-")} <= set(signed)
        assert headers["x-amz-content-sha256"] == hashlib.sha256(DATA).hexdigest()
        assert headers["x-amz-storage-class"] == "GLACIER_IR" and headers["if-none-match"] == "*"
        assert headers["x-amz-server-side-encryption"] == "aws:kms"
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "arn:aws:kms:eu:1:key/k"
        assert headers["x-amz-meta-mode"] == "33188" and headers["content-type"] == "text/plain"


def test_a_copy_that_keeps_the_metadata_says_nothing_of_it_but_class_and_key() -> None:
    copied = b"<CopyObjectResult><ETag>&quot;e&quot;</ETag></CopyObjectResult>"
    properties = Properties("text/plain", {"mode": "33188"}, "GLACIER_IR", "aws:kms:key-1")
    with RawServer(always(answer(200, copied))) as server:
        info = opened(server).copy_object(ObjectInfo(b"a", 1, ETAG, 0), b"b", properties, keep_metadata=True)
        headers = server.requests[-1].headers
    assert info.storage_class == headers["x-amz-storage-class"] == "GLACIER_IR"
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
    assert headers["x-amz-metadata-directive"] == "COPY"
    assert not {"content-type", "x-amz-meta-mode"} & set(headers)


REFUSALS: list[tuple[int, str, type[StoreError]]] = [
    (403, "AccessDenied", AccessDenied),
    (403, "QuotaExceeded", StoreFull),
    (507, "", StoreFull),
    (404, "NoSuchBucket", BucketMissing),
    (412, "PreconditionFailed", ObjectChanged),
    (409, "ConditionalRequestConflict", StoreUnavailable),
    (400, "BadDigest", StoreUnavailable),
    (503, "SlowDown", StoreUnavailable),
    (500, "", StoreUnavailable),
]


@pytest.mark.parametrize(("status", "code", "kind"), REFUSALS)
def test_a_refused_put_has_its_name(status: int, code: str, kind: type[StoreError]) -> None:
    with RawServer(always(answer(status, code=code))) as server:
        with pytest.raises(kind) as caught:
            opened(server).put_object(b"a", DATA)
        assert (type(caught.value) is kind and "s3://data" in str(caught.value)) or server.endpoint in str(caught.value)


def test_a_server_that_cannot_do_something_is_not_asked_again() -> None:
    with RawServer(always(answer(501, code="NotImplemented"))) as server, pytest.raises(StoreError) as caught:
        opened(server).copy_object(ObjectInfo(b"a", 1, ETAG, 0), b"b")
    assert not caught.value.transient


@pytest.mark.parametrize(("code", "kind"), [("InternalError", StoreUnavailable), ("InvalidPart", UploadMissing)])
def test_a_completion_that_says_200_and_then_an_error_is_an_error(code: str, kind: type[StoreError]) -> None:
    with RawServer(always(answer(200, error_document(code)))) as server, pytest.raises(kind):
        opened(server).complete_upload(b"a", "u", PARTS)


def test_a_copy_that_says_200_and_then_an_error_is_an_error() -> None:
    with RawServer(always(answer(200, error_document("SlowDown")))) as server:
        with pytest.raises(StoreUnavailable) as caught:
            opened(server).copy_object(ObjectInfo(b"a", 1, ETAG, 0), b"b")
        assert caught.value.slow_down


@pytest.mark.parametrize("body", [b"", b"<html>login</html>", b"<CompleteMultipartUploadResult/>", b"<!DOCTYPE x>"])
def test_a_completion_without_an_etag_is_a_bad_answer(body: bytes) -> None:
    with RawServer(always(answer(200, body))) as server, pytest.raises(BadAnswer):
        opened(server).complete_upload(b"a", "u", PARTS)


def test_a_completion_names_parts_with_their_checksums() -> None:
    done = b"<CompleteMultipartUploadResult><ETag>&quot;x-2&quot;</ETag></CompleteMultipartUploadResult>"
    with RawServer(always(answer(200, done))) as server:
        info = opened(server).complete_upload(b"a", "u", PARTS)
        assert (info.etag, info.size) == ('"x-2"', 6_000_005) and info.checksum.endswith("-2")
        assert server.requests[1].body.count(b"<ChecksumCRC32C>AAAAAA==</ChecksumCRC32C>") == 2


def test_keys_that_many_could_not_be_deleted_with_are_named() -> None:
    refused = b"<DeleteResult><Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    with RawServer(always(answer(200, refused))) as server:
        failed = opened(server).delete_objects([b"a", b"b"])
    assert list(failed) == [b"b"] and isinstance(failed[b"b"], AccessDenied)


def test_what_was_half_sent_when_the_connection_broke_is_unavailable() -> None:
    with RawServer(always(b"")) as server, pytest.raises(StoreUnavailable):
        opened(server).put_object(b"a", content(3_000_000))


def test_a_write_is_sent_again_while_its_failure_may_pass() -> None:
    inner = MemoryStore()
    store = RetryingStore(inner, sleep=lambda _: None)
    inner.fail_next(StoreUnavailable("down"), times=2)
    store.put_object(b"a", DATA)
    upload = store.create_upload(b"b")
    inner.lose_answer_of("upload_part")
    part = store.upload_part(b"b", upload, 1, DATA)
    store.complete_upload(b"b", upload, [part])
    assert inner.data(b"a") == inner.data(b"b") == DATA
    assert store.statistics().retries == 3


def test_a_completion_whose_answer_was_lost_is_upload_missing_the_second_time() -> None:
    inner = MemoryStore()
    store = RetryingStore(inner, sleep=lambda _: None)
    upload = store.create_upload(b"b")
    part = store.upload_part(b"b", upload, 1, DATA)
    inner.lose_answer_of("complete_upload")
    with pytest.raises(UploadMissing):
        store.complete_upload(b"b", upload, [part])
    assert inner.data(b"b") == DATA
