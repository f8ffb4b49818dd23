"""Every way a bucket can fail has its name, its cause in the sentence, and a way out in the hint."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from mountkit import errors
from mountkit.errors import (
    AccessDenied,
    BadAnswer,
    BucketMissing,
    CredentialsError,
    ObjectArchived,
    ObjectChanged,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
    WrongRegion,
)
from mountkit.sources import BucketURL
from mountkit.store import s3
from mountkit.store.api import ObjectInfo
from tests.certificates import self_signed, server_tls
from tests.fakes.memory_store import content
from tests.servers import MotoServer, SeaweedServer, free_ports
from tests.store.raw_server import CLOSE, Piece, RawServer, Request, answer
from tests.store.raw_store import KEYS, always, opened, said

INFO = ObjectInfo(b"dir/key", 3000, '"e"', 1_767_225_600_000_000_000)
ODD = ObjectInfo(b"dir//key", 3000, '"e"', 1_767_225_600_000_000_000)
DATA = content(3000)
LISTING = answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")

pytestmark = pytest.mark.usefixtures("no_aws")


def found(etag: str = '"e"', span: str = "bytes 0-999/3000", body: bytes = DATA[:1000], status: int = 206) -> bytes:
    headers = {"ETag": etag, "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    return answer(status, body, headers=headers | ({"Content-Range": span} if span else {}))


@pytest.fixture(params=[INFO, ODD], ids=["fast", "plain"])
def info(request: pytest.FixtureRequest) -> Iterator[ObjectInfo]:
    """An object that is read by obstore, and one that is not."""
    yield request.param


# ---- what the server says

REFUSALS: list[tuple[int, str, type[StoreError], str]] = [
    (404, "NoSuchBucket", BucketMissing, "no bucket `data`"),
    (404, "NoSuchKey", ObjectMissing, "there is no s3://data/dir/"),
    (404, "", ObjectMissing, "there is no s3://data/dir/"),
    (403, "AccessDenied", AccessDenied, "`AKIA…0001` may not read s3://data/dir/"),
    (403, "", AccessDenied, "may not read"),
    (403, "InvalidAccessKeyId", CredentialsError, "does not know the access key `AKIA…0001`"),
    (403, "SignatureDoesNotMatch", CredentialsError, "the secret does not fit"),
    (400, "ExpiredToken", CredentialsError, "has expired"),
    (400, "InvalidToken", CredentialsError, "does not accept the session token"),
    (403, "InvalidObjectState", ObjectArchived, "is archived"),
    (412, "PreconditionFailed", ObjectChanged, "another version"),
    (416, "InvalidRange", ObjectChanged, "another version"),
    (503, "SlowDown", StoreUnavailable, "asks for fewer requests"),
    (429, "", StoreUnavailable, "asks for fewer requests"),
    (500, "InternalError", StoreUnavailable, "HTTP 500 InternalError"),
    (502, "", StoreUnavailable, "HTTP 502"),
    (400, "RequestTimeout", StoreUnavailable, "HTTP 400 RequestTimeout"),
    (400, "Surprising", StoreError, "HTTP 400 Surprising It is Surprising"),
]


@pytest.mark.parametrize(("status", "code", "kind", "words"), REFUSALS, ids=[f"{r[0]}-{r[1]}" for r in REFUSALS])
def test_a_refused_get_is_named(info: ObjectInfo, status: int, code: str, kind: type[StoreError], words: str) -> None:
    with RawServer(always(answer(status, code=code))) as server:
        store = opened(server)
        with pytest.raises(StoreError) as caught:
            store.get(info, 0, 1000)
    # obstore says no more than 404, so a bucket that vanished shows as a missing object there
    if info is INFO and code == "NoSuchBucket":
        kind, words = ObjectMissing, "there is no"
    assert type(caught.value) is kind
    assert words in caught.value.sentence
    if kind is StoreUnavailable:
        assert caught.value.slow_down == (status in (429, 503))  # type: ignore[attr-defined]
    assert KEYS[1] not in repr(caught.value) + caught.value.hint and KEYS[0] not in caught.value.sentence
    assert errors.from_json(caught.value.to_json()).sentence == caught.value.sentence


def test_slow_downs_and_errors_are_counted() -> None:
    with RawServer(always(answer(503, code="SlowDown"))) as server:
        store = opened(server)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                store.get(INFO, 0, 1000)
        counted = store.statistics()
    # the first failure is looked into by a second request, the others within the second share what it said
    assert (counted.get, counted.slow_downs, counted.errors) == (4, 3, 3)


def test_a_refused_head_is_asked_why() -> None:
    def respond(request: Request) -> Iterable[Piece]:
        return [answer(403)] if request.method == "HEAD" else [answer(403, code="InvalidAccessKeyId")]

    with RawServer(said(respond)) as server, pytest.raises(CredentialsError, match="does not know"):
        opened(server).head(b"a")


def test_a_clock_that_is_off_is_told_by_how_much() -> None:
    date = formatdate(time.time() - 7200, usegmt=True)
    refusal = answer(403, b"<Error><Code>RequestTimeTooSkewed</Code></Error>", headers={"Date": date})
    with RawServer(always(refusal)) as server, pytest.raises(CredentialsError, match=r"120 minutes \(ahead\)"):
        opened(server).list_page(b"")


def test_listing_and_reading_have_hints_of_their_own() -> None:
    with RawServer(always(answer(403, code="AccessDenied"))) as server:
        store = opened(server)
        with pytest.raises(AccessDenied) as listing:
            store.check(b"")
        with pytest.raises(AccessDenied) as reading:
            store.get(INFO, 0, 10)
    assert "s3:ListBucket" in listing.value.hint and "s3:GetObject" in reading.value.hint


# ---- answers that contradict the request


def test_a_fine_answer_is_taken(info: ObjectInfo) -> None:
    with RawServer(always(found())) as server:
        body = opened(server).get(info, 0, 1000)
        assert b"".join(body.chunks()) == DATA[:1000]


CONTRADICTIONS: list[tuple[str, bytes, type[StoreError]]] = [
    ("the range is ignored", found(span="", body=DATA, status=200), BadAnswer),
    ("another range comes", found(span="bytes 1-1000/3000", body=DATA[1:1001]), BadAnswer),
    ("a shorter range comes", found(span="bytes 0-998/3000", body=DATA[:999]), BadAnswer),
    ("the condition is ignored", found(etag='"other"'), ObjectChanged),
    ("the size is another", found(span="bytes 0-999/3001", etag='"other"'), ObjectChanged),
    ("the size contradicts the ETag", found(span="bytes 0-999/3001"), BadAnswer),
]


@pytest.mark.parametrize(("said_", "raw", "kind"), CONTRADICTIONS, ids=[c[0] for c in CONTRADICTIONS])
def test_an_answer_that_contradicts_the_request_is_refused(
    info: ObjectInfo, said_: str, raw: bytes, kind: type[StoreError]
) -> None:
    with RawServer(always(raw)) as server, pytest.raises(kind):
        opened(server).get(info, 0, 1000)


def test_a_server_without_etags_is_believed_by_time_and_size(info: ObjectInfo) -> None:
    plain = ObjectInfo(info.key, 3000, '"1767225600000000000-3000"', INFO.mtime_ns)
    raw = found().replace(b'ETag: "e"\r\n', b"")
    with RawServer(always(raw)) as server:
        store = opened(server)
        assert b"".join(store.get(plain, 0, 1000).chunks()) == DATA[:1000]
        assert "if-match" not in server.requests[-1].headers
        with pytest.raises(ObjectChanged):
            store.get(ObjectInfo(info.key, 3000, '"1767225601000000000-3000"', INFO.mtime_ns + 10**9), 0, 1000)


def test_a_short_body_is_an_error_in_mid_iteration(info: ObjectInfo) -> None:
    with RawServer(always(found()[:-300], CLOSE)) as server:
        body = opened(server).get(info, 0, 1000)
        with pytest.raises((StoreUnavailable, BadAnswer)):
            list(body.chunks())


@pytest.mark.parametrize("sent", [700, 1300])
def test_a_chunked_body_of_another_length_than_asked_for_is_an_error(info: ObjectInfo, sent: int) -> None:
    """HTTP itself sees nothing wrong with it: no length was promised but in Content-Range."""
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", found().partition(b"\r\n\r\n")[0])
    raw = head + b"\r\n\r\n" + b"%x\r\n" % sent + DATA[:sent] + b"\r\n0\r\n\r\n"
    with RawServer(always(raw)) as server:
        body = opened(server).get(info, 0, 1000)
        with pytest.raises(StoreError):
            list(body.chunks())


def test_a_body_that_stalls_is_an_error_after_the_stall_timeout(info: ObjectInfo) -> None:
    never = threading.Event()
    with RawServer(always(found()[:-300], never)) as server:
        body = opened(server).get(info, 0, 1000)
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            list(body.chunks())
        assert time.monotonic() - start < 3
        never.set()


def test_a_server_that_never_answers_is_an_error_after_the_stall_timeout(info: ObjectInfo) -> None:
    never = threading.Event()
    with RawServer(always(never)) as server:
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="said nothing in time"):
            opened(server).get(info, 0, 1000)
        assert time.monotonic() - start < 3
        never.set()


@pytest.mark.parametrize("body", [b"", b"<html></html>", b"garbage", b"<ListBucketResult><Contents>"])
def test_garbage_for_a_listing_is_a_bad_answer(body: bytes) -> None:
    with RawServer(always(answer(200, body))) as server, pytest.raises(BadAnswer):
        opened(server).check(b"")


def test_the_meaning_of_a_plus_is_asked_for_once() -> None:
    def respond(request: Request) -> Iterable[Piece]:
        echo = "mountkit%20+%20" if "prefix=mountkit" in request.target else ""
        entry = "<Contents><Key>a+b</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>1</Size></Contents>"
        text = f"<Prefix>{echo}</Prefix><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
        return [answer(200, f"<ListBucketResult>{text}{'' if echo else entry}</ListBucketResult>".encode())]

    with RawServer(said(respond)) as server:
        store = opened(server)
        for _ in range(2):
            assert [each.key for each in store.list_page(b"").objects] == [b"a+b"]
        assert len(server.requests) == 1 + 3


def test_a_version_that_may_not_be_named_is_asked_for_by_its_etag(info: ObjectInfo) -> None:
    def respond(request: Request) -> Iterable[Piece]:
        return [answer(403, code="AccessDenied") if "versionId" in request.target else found()]

    version = ObjectInfo(info.key, 3000, '"e"', INFO.mtime_ns, version_id="v/1")
    with RawServer(said(respond)) as server:
        store = opened(server)
        for _ in range(2):
            assert b"".join(store.get(version, 0, 1000).chunks()) == DATA[:1000]
        assert server.requests[-1].headers["if-match"] == '"e"'
        assert sum("versionId=v%2F1" in each.target for each in server.requests[-2:]) == 0


# ---- no answer


def unreachable(endpoint: str, **settings: Any) -> StoreError:
    start = time.monotonic()
    with pytest.raises(StoreError) as caught:
        s3.connect(BucketURL("data", endpoint=endpoint), keys=KEYS, connect_timeout_s=0.5, **settings).check(b"")
    assert time.monotonic() - start < 5
    return caught.value


def test_a_refused_port_is_named() -> None:
    error = unreachable(f"http://127.0.0.1:{free_ports(1)[0]}")
    assert isinstance(error, StoreUnavailable) and "connection refused" in error.sentence


def test_a_name_that_does_not_resolve_is_named() -> None:
    error = unreachable("http://no-such-host.invalid")
    assert isinstance(error, StoreUnavailable) and "`no-such-host.invalid` does not resolve" in error.sentence


def test_a_black_hole_is_named_after_the_connect_timeout() -> None:
    # A listener whose backlog is full answers no SYN, as a firewall that drops packets.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        crowd = [socket.socket() for _ in range(4)]
        for each in crowd:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        error = unreachable(f"http://127.0.0.1:{listener.getsockname()[1]}")
        for each in crowd:
            each.close()
    assert isinstance(error, StoreUnavailable) and "no connection in time" in error.sentence


def test_a_port_that_speaks_no_http_is_named() -> None:
    with RawServer(lambda request: [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", CLOSE]) as server:
        error = unreachable(server.endpoint)
    assert isinstance(error, BadAnswer) and "does not speak HTTP" in error.sentence


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key, in one file."""

    return self_signed(tmp_path_factory.mktemp("tls") / "certificate.pem")


def test_a_certificate_that_is_not_trusted_is_named(certificate: Path) -> None:
    with RawServer(always(LISTING), server_tls(certificate)) as server:
        error = unreachable(server.endpoint)
    assert "certificate" in error.sentence and "AWS_CA_BUNDLE" in error.hint and not error.transient


def test_a_bundle_makes_both_paths_trust_it(
    certificate: Path, info: ObjectInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with RawServer(always(found()), server_tls(certificate)) as server:
        assert b"".join(opened(server).get(info, 0, 1000).chunks()) == DATA[:1000]
        assert len(server.requests) == 2  # no second opinion was needed


def test_tls_against_a_plain_port_is_named(moto: MotoServer) -> None:
    error = unreachable(moto.endpoint.replace("http://", "https://"))
    assert "does not speak TLS" in error.sentence and "http://" in error.hint


def test_plain_http_against_a_tls_port_is_named(certificate: Path) -> None:
    with RawServer(always(LISTING), server_tls(certificate)) as server:
        error = unreachable(f"http://127.0.0.1:{server.port}")
    assert "speaks TLS" in error.sentence or "connection" in error.sentence


# ---- regions


def test_the_region_a_redirect_names_is_followed() -> None:
    def respond(request: Request) -> Iterable[Piece]:
        here = "/eu-central-1/" in request.headers["authorization"]
        headers = {"x-amz-bucket-region": "eu-central-1"}
        return [LISTING if here else answer(301, code="PermanentRedirect", headers=headers)]

    with RawServer(respond) as server:
        store = opened(server)
        store.check(b"")
    assert store.access.region == "eu-central-1"


def test_a_region_set_by_hand_is_an_error_that_names_both() -> None:
    moved = answer(400, code="AuthorizationHeaderMalformed", headers={"x-amz-bucket-region": "eu-central-1"})
    with RawServer(lambda request: [moved]) as server:
        url = BucketURL("data", endpoint=server.endpoint, region="us-west-2")
        with pytest.raises(WrongRegion, match="is in eu-central-1, the request went to us-west-2") as caught:
            s3.connect(url, keys=KEYS)
    assert caught.value.region == "eu-central-1" and "`--region us-west-2`" in caught.value.hint


def test_moto_tells_the_region_of_a_bucket(moto: MotoServer) -> None:
    moto.create_bucket("european", "eu-west-3")
    store = s3.connect(BucketURL("european", endpoint=moto.endpoint), keys=KEYS)
    assert store.access.region == "eu-west-3"
    store.check(b"")


# ---- real refusals


def seaweed_store(seaweed: SeaweedServer, access: str, secret: str, bucket: str = "data") -> s3.S3Store:
    return s3.connect(BucketURL(bucket, endpoint=seaweed.endpoint), keys=(access, secret))


def test_seaweed_does_not_know_the_access_key(seaweed: SeaweedServer) -> None:
    store = seaweed_store(seaweed, "AKIANOBODYKNOWS00001", "x")
    with pytest.raises(CredentialsError, match="does not know the access key `AKIA…0001`"):
        store.check(b"")


def test_seaweed_refuses_a_wrong_secret(seaweed: SeaweedServer) -> None:
    store = seaweed_store(seaweed, seaweed.access_key, "wrong")
    with pytest.raises(CredentialsError, match="secret does not fit"):
        store.check(b"")
    with pytest.raises(CredentialsError, match="secret does not fit"):
        store.get(INFO, 0, 10)
    with pytest.raises(CredentialsError, match="secret does not fit"):
        store.head(b"a")


def test_seaweed_has_no_such_bucket(seaweed: SeaweedServer) -> None:
    with pytest.raises(BucketMissing, match="no bucket `nowhere`"):
        seaweed_store(seaweed, seaweed.access_key, seaweed.secret_key, "nowhere").check(b"")


def test_seaweed_lets_a_lister_list_but_not_read(seaweed: SeaweedServer) -> None:
    seaweed.client().put_object(Bucket="data", Key="errors/a", Body=b"x")
    store = seaweed_store(seaweed, seaweed.lister_access_key, seaweed.lister_secret_key)
    store.check(b"errors/")
    (info,) = store.list_page(b"errors/").objects
    with pytest.raises(AccessDenied, match=re.escape("may not read s3://data/errors/a")):
        store.get(info, 0, 1)


def test_moto_refuses_to_read_what_is_archived(moto: MotoServer) -> None:
    moto.client().put_object(Bucket="data", Key="archived", Body=b"x" * 10, StorageClass="GLACIER")
    store = s3.connect(BucketURL("data", endpoint=moto.endpoint), keys=KEYS)
    (info,) = store.list_page(b"archived").objects
    assert info.storage_class == "GLACIER"
    with pytest.raises(ObjectArchived, match="is archived"):
        store.get(info, 0, 10)
