"""A simulated S3 endpoint in a process of its own: a bucket of any size without a byte on disk, read-only, unsigned.

`python -m tests.sim --directories 1000 --files 1000` serves the bucket `sim` with keys `d0000/f000000.jpg`, and
`--keys FILE` one with the keys of a file, each a line in hexadecimal, whatever bytes they are. Bodies are the key
repeated to 1,000 bytes. Prints its port, then serves until its stdin closes.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import hashlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, quote, unquote_to_bytes

SIZE = 1000
_DATE = "2026-01-01T00:00:00.000Z"


def body_of(key: str | bytes) -> bytes:
    text = key.encode() if isinstance(key, str) else key
    return (text * (SIZE // len(text) + 1))[:SIZE]


def etag_of(key: bytes) -> str:
    return hashlib.md5(key).hexdigest()


Listed = tuple[list[bytes], list[bytes], bytes]
"""(keys, common prefixes, next token) of one page."""


class _Bucket(Protocol):
    def holds(self, key: bytes) -> bool: ...
    def listing(self, prefix: bytes, delimiter: bytes, after: bytes, limit: int) -> Listed: ...


class KeyedBucket:
    """The keys it is given, whatever they are."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys = sorted(set(keys))
        self._all = set(self._keys)

    def holds(self, key: bytes) -> bool:
        return key in self._all

    def listing(self, prefix: bytes, delimiter: bytes, after: bytes, limit: int) -> Listed:
        """(keys, common prefixes, next token) of one page; a token is the last thing shown."""
        keys: list[bytes] = []
        prefixes: list[bytes] = []
        position = bisect.bisect_left(self._keys, max(prefix, after))
        last = b""
        while position < len(self._keys) and self._keys[position].startswith(prefix):
            key = self._keys[position]
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                shown = prefix + rest[: rest.index(delimiter) + 1]
                position = bisect.bisect_left(self._keys, shown[:-1] + bytes([shown[-1] + 1]), position)
                group = prefixes
            else:
                shown, group = key, keys
                position += 1
            if shown <= after:
                continue
            if len(keys) + len(prefixes) == limit:
                return keys, prefixes, last
            group.append(shown)
            last = shown
        return keys, prefixes, b""


class Bucket:
    """Keys by arithmetic: `directories` × `files`."""

    def __init__(self, directories: int, files: int) -> None:
        self.directories, self.files = directories, files

    def key(self, number: int) -> str:
        return f"d{number // self.files:04d}/f{number % self.files:06d}.jpg"

    def holds(self, wanted: bytes) -> bool:
        key = wanted.decode("latin-1")
        try:
            directory, name = int(key[1:5]), int(key[7:13])
        except ValueError:
            return False
        return directory < self.directories and name < self.files and self.key(directory * self.files + name) == key

    def listing(self, prefix: bytes, delimiter: bytes, after: bytes, limit: int) -> Listed:
        """(keys, common prefixes, next token) of one page."""
        keys, prefixes, token = self._listing(prefix.decode("latin-1"), bool(delimiter), after.decode("latin-1"), limit)
        return [key.encode() for key in keys], [name.encode() for name in prefixes], token.encode()

    def _listing(self, prefix: str, delimiter: bool, after: str, limit: int) -> tuple[list[str], list[str], str]:
        keys: list[str] = []
        prefixes: list[str] = []
        if delimiter and "/" not in prefix:
            found = [d for d in (f"d{n:04d}/" for n in range(self.directories)) if d.startswith(prefix) and d > after]
            page = found[:limit]
            return keys, page, page[-1] if len(found) > limit else ""
        number = self._first(prefix, after)
        total = self.directories * self.files
        while number < total and len(keys) < limit:
            key = self.key(number)
            if not key.startswith(prefix):
                return keys, prefixes, ""
            keys.append(key)
            number += 1
        more = number < total and self.key(number).startswith(prefix)
        return keys, prefixes, keys[-1] if more and keys else ""

    def _first(self, prefix: str, after: str) -> int:
        low, high = 0, self.directories * self.files
        while low < high:
            middle = (low + high) // 2
            key = self.key(middle)
            if key < prefix or key <= after:
                low = middle + 1
            else:
                high = middle
        return low


class _Protocol(asyncio.Protocol):
    def __init__(self, bucket: _Bucket) -> None:
        self._bucket = bucket
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            self._transport.write(self._answer(head.decode("latin-1")))

    def _answer(self, head: str) -> bytes:
        method, target, _ = head.split("\r\n", 1)[0].split(" ", 2)
        path, _, query = target.partition("?")
        _, _, key = unquote_to_bytes(path.removeprefix("/")).partition(b"/")
        if not key:
            return self._list(parse_qs(query, encoding="latin-1"), method)
        if not self._bucket.holds(key):
            return _response(404, b"<Error><Code>NoSuchKey</Code></Error>", method)
        fields = {
            "ETag": f'"{etag_of(key)}"',
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        }
        data = body_of(key)
        ranges = [line.split("=", 1)[1] for line in head.split("\r\n") if line.lower().startswith("range:")]
        if ranges:
            first, _, last = ranges[0].partition("-")
            start, stop = int(first), min(int(last or SIZE - 1) + 1, SIZE)
            fields["Content-Range"] = f"bytes {start}-{stop - 1}/{SIZE}"
            return _response(206, data[start:stop], method, fields)
        return _response(200, data, method, fields)

    def _list(self, query: dict[str, list[str]], method: str) -> bytes:
        def given(name: str) -> bytes:
            return query.get(name, [""])[0].encode("latin-1")

        token = given("continuation-token")
        after = bytes.fromhex(token.decode()) if token else given("start-after")
        limit = int(given("max-keys") or 1000)
        prefix = given("prefix")
        keys, prefixes, more = self._bucket.listing(prefix, given("delimiter"), after, limit)
        token = more.hex().encode()
        parts = [
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>sim</Name>'
            f"<Prefix>{quote(prefix)}</Prefix><KeyCount>{len(keys) + len(prefixes)}</KeyCount>"
            f"<MaxKeys>{limit}</MaxKeys>"
            f"<EncodingType>url</EncodingType><IsTruncated>{'true' if token else 'false'}</IsTruncated>"
        ]
        if token:
            parts.append(f"<NextContinuationToken>{token.decode()}</NextContinuationToken>")
        parts += [
            f"<Contents><Key>{quote(key)}</Key><LastModified>{_DATE}</LastModified><ETag>&quot;{etag_of(key)}&quot;</ETag>"
            f"<Size>{SIZE}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in keys
        ]
        parts += [f"<CommonPrefixes><Prefix>{quote(name)}</Prefix></CommonPrefixes>" for name in prefixes]
        return _response(200, "".join([*parts, "</ListBucketResult>"]).encode(), method)


def _response(status: int, body: bytes, method: str, fields: dict[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "x-amz-bucket-region: us-east-1"]
    lines += [f"{name}: {value}" for name, value in (fields or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else body)


async def _serve(bucket: _Bucket) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Protocol(bucket), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


class SimServer:
    """The endpoint as a context manager."""

    def __init__(self, directories: int = 0, files: int = 0, *, keys: Path | None = None) -> None:
        """`keys`: a file with a key a line, in hexadecimal."""
        self._command = [sys.executable, "-m", "tests.sim", "--directories", str(directories), "--files", str(files)]
        if keys is not None:
            self._command += ["--keys", str(keys)]

    def __enter__(self) -> SimServer:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate(timeout=10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directories", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--keys", type=Path)
    arguments = parser.parse_args()
    if arguments.keys:
        asyncio.run(_serve(KeyedBucket(map(bytes.fromhex, arguments.keys.read_text().split()))))
    else:
        asyncio.run(_serve(Bucket(arguments.directories, arguments.files)))
