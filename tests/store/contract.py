"""What a bucket must offer for the contract suite, and the three buckets it runs against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from mountkit.sources import BucketURL
from mountkit.store import s3
from mountkit.store.api import ObjectInfo, Store
from tests.fakes.memory_store import MemoryStore
from tests.servers import MotoServer, S3Server


class Bench(Protocol):
    """A bucket of one's own, and the hands to change it."""

    store: Store

    def put(self, key: bytes, data: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def takes(self, key: bytes) -> bool:
        """Whether this server can hold such a key at all."""
        ...


class MemoryBench:
    def __init__(self) -> None:
        self.store = MemoryStore()

    def put(self, key: bytes, data: bytes) -> None:
        self.store.put(key, data)

    def delete(self, key: bytes) -> None:
        self.store.delete(key)

    def takes(self, key: bytes) -> bool:
        return True


@dataclass
class ServerBench:
    server: S3Server
    bucket: str

    def __post_init__(self) -> None:
        self._client: Any = self.server.client()
        self.server.create_bucket(self.bucket)
        self.store = open_store(self.server, self.bucket)

    def put(self, key: bytes, data: bytes) -> None:
        self._client.put_object(Bucket=self.bucket, Key=key.decode(), Body=data)

    def delete(self, key: bytes) -> None:
        self._client.delete_object(Bucket=self.bucket, Key=key.decode())

    def takes(self, key: bytes) -> bool:
        if isinstance(self.server, MotoServer):
            # werkzeug folds nothing but cuts the first slashes of a path and ends it at a newline; XML of moto's
            # listings is not escaped for control characters either, but keys are URL-encoded there.
            return not key.startswith(b"/")
        segments = key.split(b"/")
        return (
            b"\\" not in key
            and not any(s in (b"", b".", b"..") for s in segments)
            and not any(c < 0x20 or c == 0x7F for c in key)
        )


def open_store(server: S3Server, bucket: str, **settings: Any) -> s3.S3Store:
    keys = (server.access_key, server.secret_key)
    return s3.connect(BucketURL(bucket, endpoint=server.endpoint), keys=keys, **settings)


def read(store: Store, info: ObjectInfo, offset: int = 0, length: int | None = None) -> bytes:
    body = store.get(info, offset, info.size - offset if length is None else length)
    return b"".join(body.chunks())
