"""The writing half of the store protocol, sentence by sentence, against memory, moto and SeaweedFS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mountkit.errors import ObjectChanged, ObjectMissing, UploadMissing
from mountkit.store.api import MIN_PART_BYTES, ObjectInfo, Properties
from tests.fakes.memory_store import content
from tests.servers import MotoServer
from tests.store.contract import Bench, ServerBench, read

PART = MIN_PART_BYTES
PROPERTIES = Properties("text/x-log", {"mtime": "1354040105.123456789", "mode": "33188"})


def is_moto(bench: Bench) -> bool:
    return isinstance(bench, ServerBench) and isinstance(bench.server, MotoServer)


class Pieces:
    """Bytes that are not in memory at once."""

    def __init__(self, data: bytes) -> None:
        self.size, self._data = len(data), data

    def chunks(self) -> Iterator[bytes]:
        for start in range(0, self.size, 100_000):
            yield self._data[start : start + 100_000]


def test_what_was_put_is_what_is_read(bench: Bench) -> None:
    for size in (0, 1, 20_000, 1_000_000):
        data = content(size, 5)
        put = bench.store.put_object(b"d/a", data)
        held = bench.store.head(b"d/a")
        assert (put.key, put.size, put.etag) == (b"d/a", size, held.etag) and held.size == size
        assert abs(put.mtime_ns - held.mtime_ns) <= 2 * 10**9
        if size:
            assert read(bench.store, held) == data


def test_data_may_come_in_pieces(bench: Bench) -> None:
    data = content(1_234_567, 9)
    put = bench.store.put_object(b"pieces", Pieces(data))
    assert read(bench.store, put) == data
    assert put.etag == bench.store.put_object(b"buffer", bytearray(data)).etag


def test_an_object_keeps_its_content_type_and_metadata(bench: Bench) -> None:
    bench.store.put_object(b"a", b"x", PROPERTIES)
    held = bench.store.head(b"a")
    assert (held.content_type, dict(held.metadata)) == (PROPERTIES.content_type, dict(PROPERTIES.metadata))


def test_an_object_keeps_what_else_describes_it(bench: Bench) -> None:
    headers = {"content-encoding": "gzip", "cache-control": "no-cache", "content-disposition": 'inline; filename="a"'}
    properties = Properties("text/plain", {"a": "1"}, headers=headers)
    bench.store.put_object(b"put", b"x", properties)
    upload = bench.store.create_upload(b"parts", properties)
    bench.store.complete_upload(b"parts", upload, [bench.store.upload_part(b"parts", upload, 1, b"x")])
    bench.store.copy_object(bench.store.head(b"put"), b"copy", properties)
    for key in (b"put", b"parts", b"copy"):
        assert dict(bench.store.head(key).headers) == headers


def test_a_put_is_confirmed_with_its_checksum(bench: Bench) -> None:
    assert bench.store.put_object(b"a", b"123456789").checksum == "crc32c:4waSgw=="


def test_storage_class_and_encryption_are_asked_for(bench: Bench) -> None:
    without_keys = isinstance(bench, ServerBench) and not is_moto(bench)  # SeaweedFS encrypts only with a KMS
    for sse in ("",) if without_keys else ("", "AES256"):
        bench.store.put_object(b"a", b"x", Properties(storage_class="STANDARD", sse=sse))
        assert bench.store.head(b"a").storage_class == "STANDARD"


def test_if_absent_puts_once(bench: Bench) -> None:
    bench.store.put_object(b"a", b"first", if_absent=True)
    with pytest.raises(ObjectChanged):
        bench.store.put_object(b"a", b"second", if_absent=True)
    assert read(bench.store, bench.store.head(b"a")) == b"first"


def test_if_match_puts_over_that_version_only(bench: Bench) -> None:
    first = bench.store.put_object(b"a", b"first")
    second = bench.store.put_object(b"a", b"second", if_match=first.etag)
    with pytest.raises(ObjectChanged):
        bench.store.put_object(b"a", b"third", if_match=first.etag)
    assert bench.store.head(b"a").etag == second.etag
    with pytest.raises((ObjectChanged, ObjectMissing)):
        bench.store.put_object(b"nowhere", b"third", if_match=first.etag)


def test_a_copy_has_the_bytes_and_by_default_the_metadata(bench: Bench) -> None:
    source = bench.store.put_object(b"dir/from it", content(30_000), PROPERTIES)
    copy = bench.store.copy_object(source, b"to")
    held = bench.store.head(b"to")
    assert (copy.key, copy.size, copy.etag) == (b"to", 30_000, held.etag)
    assert held.metadata == PROPERTIES.metadata and held.content_type == PROPERTIES.content_type
    assert read(bench.store, held) == content(30_000)


def test_a_copy_that_keeps_the_metadata_asks_for_class_and_encryption_alone(bench: Bench) -> None:
    source = bench.store.put_object(b"from", content(100), PROPERTIES)
    bench.store.copy_object(source, b"to", Properties("text/x-other", {"other": "1"}, "STANDARD"), keep_metadata=True)
    held = bench.store.head(b"to")
    assert held.metadata == PROPERTIES.metadata and held.content_type == PROPERTIES.content_type
    assert held.storage_class == "STANDARD" and read(bench.store, held) == content(100)


def test_a_copy_onto_itself_changes_the_metadata(bench: Bench) -> None:
    source = bench.store.put_object(b"a", content(100), PROPERTIES)
    bench.store.copy_object(source, b"a", Properties("text/plain", {"mode": "33261"}))
    held = bench.store.head(b"a")
    assert dict(held.metadata) == {"mode": "33261"} and held.content_type == "text/plain"
    assert read(bench.store, held) == content(100)


def test_a_copy_of_another_version_is_refused(bench: Bench) -> None:
    old = bench.store.put_object(b"a", b"old")
    bench.store.put_object(b"a", b"new")
    if not is_moto(bench):  # moto does not look at the condition
        with pytest.raises(ObjectChanged):
            bench.store.copy_object(old._replace(version_id=""), b"b")
    with pytest.raises(ObjectMissing):
        bench.store.copy_object(ObjectInfo(b"nowhere", 1, "", 0), b"b")


def test_deleting_what_is_not_there_is_no_error(bench: Bench) -> None:
    bench.store.put_object(b"a", b"x")
    bench.store.delete_object(b"a")
    bench.store.delete_object(b"a")
    with pytest.raises(ObjectMissing):
        bench.store.head(b"a")


def test_many_keys_are_deleted_at_once_also_odd_ones(bench: Bench) -> None:
    odd = [b"a&b<c>", "é\u2028".encode(), b"a b+c%20", b"tab\there", b"x//y", b"\x01"]
    keys = [key for key in odd if bench.takes(key)] + [f"k/{n}".encode() for n in range(20)]
    for key in keys:
        bench.store.put_object(key, b"x")
    assert bench.store.delete_objects([*keys, b"nowhere"]) == {}
    assert bench.store.list_page(b"", delimiter=b"").objects == ()


def test_an_upload_is_seen_once_it_is_complete_and_whole(bench: Bench) -> None:
    data = content(2 * PART + 77, 3)
    upload = bench.store.create_upload(b"u/large", PROPERTIES)
    parts = [
        bench.store.upload_part(b"u/large", upload, number + 1, data[number * PART : (number + 1) * PART])
        for number in (2, 0, 1)
    ]
    with pytest.raises(ObjectMissing):
        bench.store.head(b"u/large")
    parts.sort(key=lambda part: part.number)
    done = bench.store.complete_upload(b"u/large", upload, parts)
    held = bench.store.head(b"u/large")
    assert (done.size, done.etag) == (held.size, held.etag) == (len(data), held.etag)
    assert dict(held.metadata) == dict(PROPERTIES.metadata) and held.content_type == PROPERTIES.content_type
    assert read(bench.store, held) == data
    assert bench.store.list_uploads(b"") == []


def test_parts_and_uploads_under_way_are_listed(bench: Bench) -> None:
    upload = bench.store.create_upload(b"u/a b", None)
    other = bench.store.create_upload(b"v", None)
    first = bench.store.upload_part(b"u/a b", upload, 1, content(PART))
    third = bench.store.upload_part(b"u/a b", upload, 3, b"end")
    listed = bench.store.list_parts(b"u/a b", upload)
    assert [(p.number, p.etag, p.size) for p in listed] == [(p.number, p.etag, p.size) for p in (first, third)]
    assert [(found.key, found.upload_id) for found in bench.store.list_uploads(b"u/")] == [(b"u/a b", upload)]
    for key, ident in ((b"u/a b", upload), (b"v", other)):
        bench.store.abort_upload(key, ident)
        bench.store.abort_upload(key, ident)
    assert bench.store.list_uploads(b"") == []
    if not is_moto(bench):  # moto fails with a KeyError of its own
        with pytest.raises(UploadMissing):
            bench.store.upload_part(b"u/a b", upload, 2, b"x")


def test_a_part_sent_again_takes_the_place_of_the_first(bench: Bench) -> None:
    upload = bench.store.create_upload(b"a", None)
    bench.store.upload_part(b"a", upload, 1, b"wrong")
    right = bench.store.upload_part(b"a", upload, 1, b"right")
    bench.store.complete_upload(b"a", upload, [right])
    assert read(bench.store, bench.store.head(b"a")) == b"right"


def test_a_part_may_be_copied_inside_of_the_bucket(bench: Bench) -> None:
    source = bench.store.put_object(b"source key", content(PART + 1000, 8))
    upload = bench.store.create_upload(b"a", None)
    parts = [
        bench.store.upload_part_copy(b"a", upload, 1, source, 0, PART),
        bench.store.upload_part_copy(b"a", upload, 2, source, 17, 500),
    ]
    assert [part.size for part in parts] == [PART, 500]
    bench.store.complete_upload(b"a", upload, parts)
    expected = content(PART + 1000, 8)
    assert read(bench.store, bench.store.head(b"a")) == expected[:PART] + expected[17:517]


def test_completing_obeys_if_absent(bench: Bench) -> None:
    bench.store.put_object(b"a", b"there")
    upload = bench.store.create_upload(b"a", None)
    part = bench.store.upload_part(b"a", upload, 1, b"new")
    with pytest.raises(ObjectChanged):
        bench.store.complete_upload(b"a", upload, [part], if_absent=True)
    assert read(bench.store, bench.store.head(b"a")) == b"there"
    bench.store.abort_upload(b"a", upload)


def test_an_upload_that_is_not_there_is_upload_missing(bench: Bench) -> None:
    upload = bench.store.create_upload(b"a", None)
    part = bench.store.upload_part(b"a", upload, 1, b"x")
    bench.store.abort_upload(b"a", upload)
    with pytest.raises(UploadMissing):
        bench.store.list_parts(b"a", upload)
    if not is_moto(bench):  # moto fails with a KeyError of its own
        with pytest.raises(UploadMissing):
            bench.store.complete_upload(b"a", upload, [part])
