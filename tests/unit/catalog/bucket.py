"""A bucket in a dict, listed by S3's rules, and a clock that moves when told."""

from __future__ import annotations

from collections.abc import Iterator

from mountkit.store.api import ObjectInfo, Page


class Clock:
    """Seconds since the epoch of the test; every `tick` is one."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds


def info(key: bytes, etag: str = "1", size: int = 3, *, mtime_ns: int = 10**18) -> ObjectInfo:
    quoted = f'"{etag * 32}"' if len(etag) == 1 else f'"{etag}"'
    return ObjectInfo(key, size, quoted, mtime_ns)


class Bucket:
    """Keys and versions. The key equal to the prefix is among the objects; a prefix sorts as itself."""

    def __init__(self, *keys: bytes) -> None:
        self.objects = {key: info(key) for key in keys}

    def list_page(self, prefix: bytes, token: bytes | None, limit: int) -> tuple[Page, bytes | None]:
        """One page after `token`, and the next token."""
        objects: list[ObjectInfo] = []
        prefixes: list[bytes] = []
        last = token
        for key in sorted(self.objects):
            if not key.startswith(prefix):
                continue
            cut = key.find(b"/", len(prefix)) + 1
            item = key[:cut] if cut else key
            if (last is not None and item <= last) or (prefixes and item == prefixes[-1]):
                continue
            if len(objects) + len(prefixes) == limit:
                return Page(tuple(objects), tuple(prefixes), "more"), last
            if cut:
                prefixes.append(item)
            else:
                objects.append(self.objects[key])
            last = item
        return Page(tuple(objects), tuple(prefixes), ""), None

    def pages(self, prefix: bytes, limit: int) -> Iterator[Page]:
        """All pages; each shows the bucket as it is when the page is asked for."""
        token: bytes | None = None
        while True:
            page, token = self.list_page(prefix, token, limit)
            yield page
            if token is None:
                return

    def below(self, prefix: bytes) -> list[ObjectInfo]:
        return [self.objects[key] for key in sorted(self.objects) if key.startswith(prefix)]
