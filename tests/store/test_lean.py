"""Small requests over plain sockets: connections that go away, answers of every shape, many threads at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mountkit.store.lean import LeanHTTP, NoAnswer, Unusable
from tests.servers import free_ports
from tests.store.raw_server import CLOSE, RawServer, answer

HEADERS = {"Host": "x", "Content-Length": "4"}


def client(server: RawServer) -> LeanHTTP:
    return LeanHTTP("127.0.0.1", server.port, None, 1.0)


def test_one_connection_serves_request_after_request() -> None:
    with RawServer(lambda request: [answer(200, request.body)]) as server:
        lean = client(server)
        bodies = [lean.request("PUT", "/k", HEADERS, b"%04d" % n, 2.0).body for n in range(20)]
        assert bodies == [b"%04d" % n for n in range(20)]
        lean.close()


def test_a_connection_that_the_server_closed_meanwhile_is_not_noticed() -> None:
    with RawServer(lambda request: [answer(200), CLOSE]) as server:
        lean = client(server)
        assert [lean.request("PUT", "/k", HEADERS, b"body", 2.0).status for _ in range(5)] == [200] * 5
        lean.close()


def test_a_body_in_chunks_is_put_together() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    with RawServer(lambda request: [b"HTTP/1.1 100 Continue\r\n\r\n", chunked]) as server:
        lean = client(server)
        assert [lean.request("PUT", "/k", HEADERS, b"body", 2.0).body for _ in range(2)] == [b"abcde"] * 2
        lean.close()


@pytest.mark.parametrize(
    "said",
    [
        b"220 ftp ready\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
    ],
)
def test_an_unusual_answer_is_left_to_others(said: bytes) -> None:
    with RawServer(lambda request: [said, CLOSE]) as server, pytest.raises(Unusable):
        client(server).request("PUT", "/k", HEADERS, b"body", 2.0)


def test_no_answer_and_no_server_are_two_things() -> None:
    with RawServer(lambda request: [CLOSE]) as server, pytest.raises(NoAnswer):
        client(server).request("PUT", "/k", HEADERS, b"body", 2.0)
    (port,) = free_ports(1)
    with pytest.raises(Unusable):
        LeanHTTP("127.0.0.1", port, None, 1.0).request("PUT", "/k", HEADERS, b"body", 2.0)


def test_a_silent_server_is_waited_for_no_longer_than_agreed() -> None:
    never = threading.Event()
    with RawServer(lambda request: [never]) as server, pytest.raises(TimeoutError):
        client(server).request("PUT", "/k", HEADERS, b"body", 0.2)


def test_64_threads_at_once_each_get_their_own_answer() -> None:
    with RawServer(lambda request: [answer(200, request.body)]) as server:
        lean = client(server)

        def one(number: int) -> bool:
            sent = b"%04d" % number
            return lean.request("PUT", "/k", HEADERS, sent, 10.0).body == sent

        with ThreadPoolExecutor(64) as threads:
            assert all(threads.map(one, range(500)))
        lean.close()


# ---- long bodies ---------------------------------------------------------------------------------------------
BODY = bytes(range(251)) * 1000


def test_a_long_body_comes_in_pieces_and_its_connection_is_used_again() -> None:
    with RawServer(lambda request: [answer(206, BODY)]) as server:
        lean = client(server)
        for _ in range(3):
            stream = lean.stream("/k", {"Host": "x"}, 2.0)
            assert (stream.status, stream.length) == (206, len(BODY))
            pieces = list(stream.pieces(100_000))
            assert b"".join(pieces) == BODY
            assert [len(piece) for piece in pieces] == [100_000, 100_000, 51_000]
        assert server.connections == 1
        lean.close()


def test_a_head_that_comes_in_two_parts_takes_nothing_of_the_body() -> None:
    said, late = answer(200, BODY), threading.Event()
    with RawServer(lambda request: [said[:25], late, said[25:]]) as server:
        threading.Timer(0.2, late.set).start()
        stream = client(server).stream("/k", {"Host": "x"}, 2.0)
        assert b"".join(stream.pieces(1 << 20)) == BODY


def test_a_body_that_breaks_off_or_stalls_is_no_whole_one() -> None:
    never = threading.Event()
    for then, error in ((CLOSE, NoAnswer), (never, TimeoutError)):
        with RawServer(lambda request, then=then: [answer(200, BODY)[:100_000], then]) as server:
            stream = client(server).stream("/k", {"Host": "x"}, 0.2)
            got = []
            with pytest.raises(error):
                got.extend(stream.pieces(1 << 16))
            assert BODY.startswith(b"".join(got))


def test_a_stream_that_is_given_up_leaves_no_connection_with_its_rest() -> None:
    with RawServer(lambda request: [answer(200, BODY)]) as server:
        lean = client(server)
        pieces = lean.stream("/k", {"Host": "x"}, 2.0).pieces(1000)
        next(pieces)
        pieces.close()
        assert b"".join(lean.stream("/k", {"Host": "x"}, 2.0).pieces(1 << 20)) == BODY
        lean.close()


def test_a_stream_of_unknown_length_is_left_to_others_and_a_silent_server_is_not_waited_for() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    with RawServer(lambda request: [chunked]) as server, pytest.raises(Unusable):
        client(server).stream("/k", {"Host": "x"}, 2.0)
    never = threading.Event()
    with RawServer(lambda request: [never]) as server, pytest.raises(TimeoutError):
        client(server).stream("/k", {"Host": "x"}, 0.2)
