"""A cache in a directory of its own, and objects whose bytes betray where they belong."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mountkit.cache.content import PART_BYTES, ContentId, content_id, parts_in
from mountkit.cache.files import object_name, segment_name
from mountkit.cache.index_writer import BlockRow
from mountkit.cache.policy import Limits
from mountkit.cache.reader import CacheReader
from mountkit.cache.writer import CacheWriter

LIFE = b"first life......"
NEXT_LIFE = b"second life....."
PLENTY = Limits(1 << 40, 0.0)
PART = PART_BYTES
BLOCK = 8 * PART_BYTES
_PATTERN = bytes(range(251)) * (3 + (5 << 20) // 251)


@dataclass(frozen=True)
class Thing:
    """An object version: byte i is (seed + i) % 251."""

    seed: int
    size: int

    @property
    def content(self) -> ContentId:
        return content_id(b"key/%d" % self.seed, f"etag-{self.seed}", self.size)

    def data(self, start: int = 0, stop: int | None = None) -> bytes:
        stop = self.size if stop is None else min(stop, self.size)
        first = (self.seed + start) % 251
        return _PATTERN[first : first + max(0, stop - start)]

    def parts(self, first: int, last: int) -> bytes:
        return self.data(first * PART, (last + 1) * PART)

    @property
    def last_part(self) -> int:
        return parts_in(self.size) - 1


class Box:
    """The cache directory `path` with writers and readers opened on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def writer(self, *, life: bytes = LIFE, limits: Limits = PLENTY, segment_bytes: int = 4 << 20) -> CacheWriter:
        return CacheWriter.open(self.fd, limits, life, segment_bytes=segment_bytes)

    def reader(self) -> CacheReader:
        return CacheReader.open(self.fd)

    def segments(self) -> list[Path]:
        return sorted((self.path / "segments").glob("*.seg"))

    def own_file(self, thing: Thing) -> Path:
        return self.path / object_name(thing.content)

    def segment(self, number: int) -> Path:
        return self.path / segment_name(number)


@contextmanager
def opened(path: Path) -> Iterator[Box]:
    box = Box(path)
    try:
        yield box
    finally:
        os.close(box.fd)


def put(writer: CacheWriter, *things: Thing) -> list[BlockRow]:
    """Write and commit the whole objects."""
    rows = [row for thing in things for row in writer.write(thing.content, thing.size, 0, thing.data())]
    writer.commit(rows)
    return rows


def put_parts(writer: CacheWriter, thing: Thing, parts: Iterable[int]) -> None:
    for part in parts:
        writer.commit(writer.write(thing.content, thing.size, part, thing.parts(part, part)))


def get(reader: CacheReader, thing: Thing, start: int = 0, length: int | None = None) -> object:
    return reader.read(thing.content, thing.size, start, thing.size if length is None else length, wait=True)


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    mode = path.stat().st_mode & 0o777
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 0x40]))
    path.chmod(mode)
