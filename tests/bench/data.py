"""What the endpoint serves: many small files in 20 directories, some large ones, two buckets of keys without bodies.

Made once below a directory and found again; 4.2 GB at full size.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

CLASSES = 20
LARGE_BYTES, PART_BYTES, PARTS = 1 << 30, 128 << 20, 8
_MIB = 1 << 20
_DATE = 1767225600  # every object's time, so that its ETag is the same in each run


def image_key(number: int) -> str:
    return f"train/class{number % CLASSES:02d}/img_{number:06d}.jpg"


def image_keys(count: int, *, order: str, seed: int = 1) -> list[str]:
    """`shuffled` or `listed`: the files of an epoch in the order they are read."""
    if order == "listed":
        return [image_key(n) for start in range(CLASSES) for n in range(start, count, CLASSES)]
    numbers = list(range(count))
    random.Random(seed).shuffle(numbers)
    return [image_key(n) for n in numbers]


def ensure(root: Path, *, images: int) -> int:
    """Makes what is missing below `root`; how many images there are, `images` unless there were some before."""
    block = random.Random(3).randbytes(_MIB)
    if not (root / "images.keys").exists():
        _make_images(root / "images", images, block)
    _ensure_large(root / "large", block)
    for bucket in ("images", "large"):
        if not (root / f"{bucket}.keys").exists():
            _write_keys(root / f"{bucket}.keys", _found(root / bucket))
    for bucket, keys in (("million", _million()), ("flat", _flat())):
        (root / bucket).mkdir(exist_ok=True)
        if not (root / f"{bucket}.keys").exists():
            _write_keys(root / f"{bucket}.keys", ((key, 100_000, f"{n:x}") for n, key in enumerate(keys)))
    return (root / "images.keys").read_bytes().count(b"\n")


def _make_images(bucket: Path, count: int, block: bytes) -> None:
    sizes = random.Random(7)
    for number in range(count):
        size = sizes.randint(60_000, 140_000)
        start = sizes.randrange(0, _MIB - size)
        path = bucket / image_key(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(number.to_bytes(8, "big") + block[start : start + size])
        os.utime(path, (_DATE, _DATE))


def _ensure_large(bucket: Path, block: bytes) -> None:
    bucket.mkdir(parents=True, exist_ok=True)
    sizes = {"shard-1g.bin": LARGE_BYTES} | {f"part-{n}.bin": PART_BYTES for n in range(PARTS)}
    for number, (name, size) in enumerate(sizes.items()):
        path = bucket / name
        if path.exists() and path.stat().st_size == size:
            continue
        with path.open("wb") as file:
            for mib in range(size // _MIB):
                file.write((number * 10_000 + mib).to_bytes(8, "big") + block[8:])
        os.utime(path, (_DATE, _DATE))


def _found(bucket: Path) -> Iterator[tuple[str, int, str]]:
    """Key, size and ETag of each file, as nginx will say it: seconds and size in hexadecimal."""
    for path in bucket.rglob("*"):
        if path.is_file():
            status = path.stat()
            yield path.relative_to(bucket).as_posix(), status.st_size, f"{int(status.st_mtime):x}-{status.st_size:x}"


def _million() -> Iterator[str]:
    return (f"d{directory:04d}/f{number:06d}.jpg" for directory in range(1000) for number in range(1000))


def _flat() -> Iterator[str]:
    return (f"all/f{number:06d}.jpg" for number in range(100_000))


def _write_keys(path: Path, rows: Iterable[tuple[str, int, str]]) -> None:
    """The endpoint's listing: sorted as S3 sorts, by bytes."""
    lines = sorted(f"{key}\t{size}\t{etag}\n".encode() for key, size, etag in rows)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(b"".join(lines))
    temporary.rename(path)
