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
