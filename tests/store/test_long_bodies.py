"""GETs of more than a piece, straight from their socket: asked for once, never taken for what they are not."""

from __future__ import annotations

import threading

import pytest

from mountkit.errors import BadAnswer, MountkitError, ObjectChanged, StoreUnavailable
from mountkit.store.api import ObjectInfo
from mountkit.store.bodies import ONE_PIECE_BYTES
from mountkit.store.lean import LeanHTTP
from tests.store.raw_server import CLOSE, RawServer, Request, answer
from tests.store.raw_store import always, opened, said

BODY = bytes(range(251)) * 20_000
SIZE = len(BODY)
ETAG = '"abc"'
INFO = ObjectInfo(b"k", SIZE, ETAG, 1, "STANDARD", "")
HEADERS = {"ETag": ETAG, "Last-Modified": "Sat, 21 Nov 2026 12:00:00 GMT"}
WHOLE = answer(200, BODY, headers=HEADERS)


def ranged(request: Request) -> list[bytes]:
    first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
    start, stop = int(first), int(last) + 1
    return [answer(206, BODY[start:stop], headers=HEADERS | {"Content-Range": f"bytes {start}-{stop - 1}/{SIZE}"})]


def gets(server: RawServer) -> list[Request]:
    return [request for request in server.requests if request.method == "GET"]


def test_a_range_is_asked_for_once_and_comes_in_large_pieces() -> None:
    with RawServer(said(ranged)) as server:
        store = opened(server)
        chunks = [bytes(chunk) for chunk in store.get(INFO, 1000, 2 * ONE_PIECE_BYTES + 5).chunks()]
        assert b"".join(chunks) == BODY[1000 : 1000 + 2 * ONE_PIECE_BYTES + 5]
        assert [len(chunk) for chunk in chunks] == [ONE_PIECE_BYTES, ONE_PIECE_BYTES, 5]
        (request,) = gets(server)
        assert request.headers["if-match"] == ETAG
        assert request.headers["authorization"].startswith("AWS4-HMAC-SHA256 ")


def test_a_body_of_unknown_length_comes_by_another_way() -> None:
    head = b"HTTP/1.1 200 OK\r\nETag: " + ETAG.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"%x\r\n" % SIZE + BODY + b"\r\n0\r\n\r\n"
    with RawServer(always(chunked)) as server:
        assert b"".join(opened(server, stall_timeout_s=5.0).get(INFO, 0, SIZE).chunks()) == BODY


@pytest.mark.parametrize(
    ("said_instead", "error"),
    [
        (answer(503, code="SlowDown"), StoreUnavailable),
        (answer(412, code="PreconditionFailed"), ObjectChanged),
        (answer(206, BODY, headers=HEADERS | {"Content-Range": f"bytes 1-{SIZE}/{SIZE}"}), BadAnswer),
        (answer(200, BODY, headers=HEADERS | {"ETag": '"other"'}), ObjectChanged),
        (answer(200, b"<html>log in</html>"), BadAnswer),
    ],
    ids=["slow down", "changed", "another range", "another version", "a login page"],
)
def test_an_answer_that_is_not_the_object_is_an_error_before_its_bytes(
    said_instead: bytes, error: type[MountkitError]
) -> None:
    with RawServer(always(said_instead)) as server:
        with pytest.raises(error):
            opened(server).get(INFO, 0, SIZE)
        assert len(gets(server)) == 1, "its own words are enough"


@pytest.mark.parametrize("then", [CLOSE, threading.Event()], ids=["breaks off", "stalls"])
def test_a_torn_body_is_an_error_after_the_bytes_that_came(then: bytes | threading.Event) -> None:
    with RawServer(always(WHOLE[: SIZE // 2], then)) as server:
        got: list[bytes] = []
        with pytest.raises(StoreUnavailable):
            got.extend(bytes(chunk) for chunk in opened(server).get(INFO, 0, SIZE).chunks())
        assert BODY.startswith(b"".join(got))


@pytest.mark.parametrize("status", [412, 503])
def test_after_a_refusal_its_connection_serves_the_next_get(status: int) -> None:
    refused = iter([[answer(status, code="Refused")]])
    with RawServer(said(lambda request: next(refused, ranged(request)))) as server:
        store = opened(server)
        with pytest.raises(MountkitError):
            store.get(INFO, 1000, 2 * ONE_PIECE_BYTES)
        for _ in range(2):
            got = b"".join(store.get(INFO, 1000, 2 * ONE_PIECE_BYTES).chunks())
            assert got == BODY[1000 : 1000 + 2 * ONE_PIECE_BYTES]
        assert len({request.target for request in gets(server)}) == 1
        assert server.connections == 2, "the HEAD's and one for all GETs"


def test_closing_a_stream_that_was_read_to_its_end_closes_nobodys_connection() -> None:
    with RawServer(always(WHOLE)) as server:
        lean = LeanHTTP("127.0.0.1", server.port, None, 1.0)
        for _ in range(2):
            stream = lean.stream("/data/k", {"Host": "x"}, 2.0)
            assert b"".join(stream.pieces(ONE_PIECE_BYTES)) == BODY
            stream.close()
        assert server.connections == 1
        lean.close()
