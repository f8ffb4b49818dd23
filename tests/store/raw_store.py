"""Our store on a server that says what a test wants: `with RawServer(always(answer(404))) as s: opened(s).head(…)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mountkit.sources import BucketURL
from mountkit.store import s3
from tests.store.raw_server import Piece, RawServer, Request, answer

KEYS = ("AKIATESTADMIN0000001", "the-secret-nobody-may-see")


def opened(server: RawServer, **settings: Any) -> s3.S3Store:
    """The bucket `data`, with little patience."""
    url = BucketURL("data", endpoint=server.endpoint)
    return s3.connect(url, keys=KEYS, **({"connect_timeout_s": 1.0, "stall_timeout_s": 0.4} | settings))


def said(respond: Callable[[Request], Iterable[Piece]]) -> Callable[[Request], Iterable[Piece]]:
    """`respond` for everything but the HEAD of the bucket."""
    return lambda request: [answer(200)] if request.target == "/data" else respond(request)


def always(*pieces: Piece) -> Callable[[Request], Iterable[Piece]]:
    return said(lambda request: pieces)
