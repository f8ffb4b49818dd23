"""Whole small objects, many at once on one thread: their bytes, or a failure that `get` has the words for."""

from __future__ import annotations

import calendar
import os
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from mountkit.sources import BucketURL
from mountkit.store import s3
from mountkit.store.api import ObjectInfo
from mountkit.store.keys import quoted
from mountkit.store.multiget import MultiGet, Whole
from mountkit.store.s3_many import Failed, Got, ManyGets
from mountkit.store.signed import _Signer
from mountkit.store.sigv4 import GetSigner
from tests.certificates import self_signed, server_tls
from tests.servers import SeaweedServer
from tests.store.raw_server import CLOSE, Piece, RawServer, Request, answer
from tests.store.raw_store import KEYS, always, opened, said

BODY = bytes(range(251)) * 400
ETAG = '"abc"'
INFO = ObjectInfo(b"k", len(BODY), ETAG, 1, "STANDARD", "")
HEADERS = {"ETag": ETAG, "Last-Modified": "Sat, 21 Nov 2026 12:00:00 GMT"}
WHOLE = answer(200, BODY, headers=HEADERS)
TROUBLE, NO_TROUBLE = Failed(server_is_in_trouble=True), Failed(server_is_in_trouble=False)
ODD_KEYS = (
    b"plain.jpg",
    b"a b/c+d",
    "ä/€/\U0001f600".encode(),
    b"x//y/../.",
    b"%41#?&=;:@!$'()*,[]",
    b"~.-_",
    b"\xff\xfe",
)


def patient(server: RawServer) -> s3.S3Store:
    return opened(server, stall_timeout_s=20.0)


def many(store: s3.S3Store) -> ManyGets[str]:
    gets = store.many()
    assert gets is not None
    return gets


def ended(gets: ManyGets[str], count: int) -> dict[str, Got | Failed]:
    """What the next `count` GETs came to."""
    found: dict[str, Got | Failed] = {}
    deadline = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {found.keys()} have ended"
        found.update(gets.wait())
    return found


def came_to(store: s3.S3Store, info: ObjectInfo = INFO) -> Got | Failed:
    gets = many(store)
    assert gets.start("it", info)
    outcome = ended(gets, 1)["it"]
    gets.close()
    return outcome


@pytest.mark.parametrize("token", [None, "a/session+token=="])
@pytest.mark.parametrize("requester_pays", [False, True])
@pytest.mark.parametrize("key", ODD_KEYS)
def test_it_signs_as_botocore_does(key: bytes, requester_pays: bool, token: str | None) -> None:
    credentials = ReadOnlyCredentials("AKIA", "a/secret+key", token)
    path = f"/data/{quoted(key)}"
    given = {"x-amz-request-payer": "requester"} if requester_pays else {}
    request = AWSRequest("GET", f"http://store.test:9000{path}", headers=given)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    _Signer(empty, credentials, "s3", "eu-west-1").add_auth(request)
    theirs = {name.lower(): value for name, value in request.headers.items()}
    now = calendar.timegm(time.strptime(theirs["x-amz-date"], "%Y%m%dT%H%M%SZ"))
    signer = GetSigner("store.test:9000", "eu-west-1", requester_pays=requester_pays)
    ours = {name.lower(): value for name, value in signer.headers(credentials, path, now=now).items()}
    assert ours == theirs


def test_the_key_of_another_day_or_secret_is_another() -> None:
    signer = GetSigner("h", "r")
    one, other = ReadOnlyCredentials("A", "one", None), ReadOnlyCredentials("A", "other", None)
    day = 86_400.0
    signatures = [signer.headers(keys, "/k", now=now)["Authorization"] for keys in (one, other) for now in (0.0, day)]
    fresh = [GetSigner("h", "r").headers(k, "/k", now=now)["Authorization"] for k in (one, other) for now in (0.0, day)]
    assert signatures == fresh
    assert len(set(signatures)) == 4


def test_a_real_server_gives_a_hundred_of_them_at_once(seaweed: SeaweedServer) -> None:
    seaweed.create_bucket("many")
    client = seaweed.client()
    bodies = {f"d/ä {n}": bytes([n % 251]) * (n * 97) for n in range(1, 120)}
    for key, body in bodies.items():
        client.put_object(Bucket="many", Key=key, Body=body)
    admin = seaweed.environment()
    keys = admin["AWS_ACCESS_KEY_ID"], admin["AWS_SECRET_ACCESS_KEY"]
    store = s3.connect(BucketURL("many", endpoint=seaweed.endpoint), keys=keys, stall_timeout_s=20.0)
    gets = many(store)
    for key in bodies:
        assert gets.start(key, store.head(key.encode()))
    got = {key: bytes(one.body) for key, one in ended(gets, len(bodies)).items() if isinstance(one, Got)}
    assert got == bodies
    gets.close()


def test_a_connection_is_used_again_and_everything_is_said_that_a_get_says() -> None:
    with RawServer(always(WHOLE)) as server:
        store = patient(server)
        before = server.connections
        gets = many(store)
        for _ in range(5):
            assert gets.start("it", INFO)
            (outcome,) = ended(gets, 1).values()
            assert isinstance(outcome, Got)
            assert outcome.body == BODY
        gets.close()
        assert server.connections == before + 1
        request = server.requests[-1]
        assert (request.method, request.target) == ("GET", "/data/k")
        assert request.headers["if-match"] == ETAG
        assert f"Credential={KEYS[0]}/" in request.headers["authorization"]
        assert store.statistics().get == 5
        assert store.statistics().bytes_received == 5 * len(BODY)


def test_over_tls_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = self_signed(tmp_path / "both.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    body = bytes(range(256)) * 2000  # some records of TLS
    with RawServer(always(answer(200, body, headers=HEADERS)), tls=server_tls(certificate)) as server:
        outcome = came_to(patient(server), INFO._replace(size=len(body)))
        assert isinstance(outcome, Got)
        assert outcome.body == body


def test_the_version_is_told() -> None:
    with RawServer(always(answer(200, BODY, headers=HEADERS | {"x-amz-version-id": "v7"}))) as server:
        outcome = came_to(patient(server))
        assert isinstance(outcome, Got)
        assert outcome.version_id == "v7"


@pytest.mark.parametrize(
    ("pieces", "outcome"),
    [
        ((answer(503, code="SlowDown"),), TROUBLE),
        ((answer(429, code="TooManyRequests"),), TROUBLE),
        ((answer(404, code="NoSuchKey"),), NO_TROUBLE),
        ((answer(412, code="PreconditionFailed"),), NO_TROUBLE),
        ((answer(403, code="ExpiredToken"),), NO_TROUBLE),
        ((answer(206, BODY, headers=HEADERS),), NO_TROUBLE),
        ((answer(200, BODY, headers=HEADERS | {"ETag": '"other"'}),), NO_TROUBLE),
        ((answer(200, BODY),), NO_TROUBLE),
        ((answer(200, BODY[:-1], headers=HEADERS),), TROUBLE),
        ((answer(200, BODY + b"x", headers=HEADERS),), TROUBLE),
        ((WHOLE + b"more than it promised",), TROUBLE),
        ((WHOLE[: len(WHOLE) // 2], CLOSE), TROUBLE),
        ((WHOLE[: len(WHOLE) // 2], threading.Event()), TROUBLE),
        ((threading.Event(),), TROUBLE),
        ((CLOSE,), TROUBLE),
        ((b"HTTP/1.1 20\xb2 OK\r\n\r\n",), TROUBLE),
        ((b"SSH-2.0-OpenSSH_9.2\r\n\r\n",), TROUBLE),
        ((b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,), TROUBLE),
        ((b"HTTP/1.1 200 OK\r\nETag: " + ETAG.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n",), TROUBLE),
    ],
    ids=[
        "slow down",
        "too many",
        "missing",
        "changed",
        "token",
        "a range",
        "another version",
        "no etag",
        "short",
        "long",
        "longer than promised",
        "breaks off",
        "stalls",
        "silent",
        "closes",
        "no number",
        "no HTTP",
        "endless head",
        "chunked",
    ],
)
def test_any_other_answer_is_a_failure(pieces: Iterable[Piece], outcome: Failed) -> None:
    with RawServer(always(*pieces)) as server:
        never_ends = any(isinstance(piece, threading.Event) for piece in pieces)
        assert came_to(opened(server) if never_ends else patient(server)) == outcome


def test_a_server_that_is_gone_is_a_failure_of_all_that_waits() -> None:
    with RawServer(always(WHOLE)) as server:
        store = opened(server)
    gets = many(store)
    for n in range(3):
        assert gets.start(str(n), INFO)
    assert set(ended(gets, 3).values()) == {TROUBLE}
    gets.close()


def test_a_connection_that_was_closed_while_idle_is_not_used() -> None:
    with RawServer(said(lambda _: [WHOLE, CLOSE])) as server:
        gets = many(patient(server))
        for _ in range(3):
            assert gets.start("it", INFO)
            (outcome,) = ended(gets, 1).values()
            assert isinstance(outcome, Got)
            list(gets.wait())  # hears of the end of the connection
        gets.close()


def test_one_slow_answer_does_not_hold_up_the_others() -> None:
    gate = threading.Event()

    def respond(request: Request) -> list[Piece]:
        return [WHOLE[:1000], gate, WHOLE[1000:]] if request.target.endswith("slow") else [WHOLE]

    with RawServer(said(respond)) as server:
        gets = many(patient(server))
        assert gets.start("slow", INFO._replace(key=b"slow"))
        for n in range(20):
            assert gets.start(str(n), INFO)
        assert all(isinstance(one, Got) for one in ended(gets, 20).values())
        gate.set()
        assert isinstance(ended(gets, 1)["slow"], Got)
        gets.close()


def test_what_only_a_get_can_ask_for_is_left_to_it() -> None:
    with RawServer(always(WHOLE)) as server:
        gets = many(opened(server))
        assert not gets.start("a version", INFO._replace(version_id="v"))
        for etag in ('"a\r\nX-Other: b"', '"\u20ac"', '"\x00"'):
            assert not gets.start("an ETag that is no header", INFO._replace(etag=etag))
        assert not gets.start("an object without an ETag", INFO._replace(etag=f'"0-{INFO.size}"'))
        gets.close()


def test_behind_a_proxy_nobody_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    access = s3.find_access(BucketURL("data", endpoint="http://store.test:9000"))
    wallet = s3.Wallet(BucketURL("data", anonymous=True))
    assert s3.S3Store(access, wallet, s3.Timeouts(1.0, 1.0, 1.0)).many() is None


def test_closed_in_any_state_it_leaves_no_descriptor() -> None:
    """The joint thread closes it after a failure that nobody foresaw, which may have come in the midst of a change."""
    before = len(os.listdir("/proc/self/fd"))
    pairs = [socket.socketpair() for _ in range(3)]
    ours = [pair[0] for pair in pairs]
    gets = MultiGet[str](ours.pop, patience_s=20.0)
    for n in range(3):
        gets.start(str(n), b"GET / HTTP/1.1\r\n\r\n", 10)
    while len(gets._connections) < 3:
        list(gets.wait())
    next(iter(gets._connections.values())).socket.close()
    gets.close()
    gets.wake()
    for _, theirs in pairs:
        theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_connection_that_fails_as_nobody_foresaw_is_a_failure_of_its_get_alone() -> None:
    def connect() -> socket.socket:
        if len(failed) < 3:
            failed.append(1)
            raise ValueError("unforeseen")
        return ours

    failed: list[int] = []
    ours, theirs = socket.socketpair()
    gets = MultiGet[str](connect, patience_s=20.0)
    for n in range(3):
        gets.start(str(n), b"GET / HTTP/1.1\r\n\r\n", 2)
        assert _next_ended(gets) == (str(n), None)
    gets.start("it", b"GET / HTTP/1.1\r\n\r\n", 2)
    with theirs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        tag, whole = _next_ended(gets)
        assert whole is not None
        assert (tag, bytes(whole.body)) == ("it", b"hi")
    gets.close()


def _next_ended(gets: MultiGet[str]) -> tuple[str, Whole | None]:
    deadline = time.monotonic() + 5
    while not (found := list(gets.wait())):
        assert time.monotonic() < deadline
    return found[0]
