"""One timed piece of work over a directory, in a process of its own: `python -m tests.bench.work NAME DIR …`.

Prints one JSON line: seconds, how much was done, and for epochs how many files were done after each half second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from typing import Any

from tests.bench import data

_CHUNK = 1 << 20
_BATCH = 32
_TICK_S = 0.5
_READ_BYTES = 128 << 10


def _read(path: str) -> int:
    descriptor, done = os.open(path, os.O_RDONLY), 0
    while piece := os.read(descriptor, _CHUNK):
        done += len(piece)
    os.close(descriptor)
    return done


def _read_all(paths: list[str]) -> int:
    return sum(map(_read, paths))


def _read_at(job: tuple[str, list[int]]) -> int:
    path, offsets = job
    descriptor = os.open(path, os.O_RDONLY)
    done = sum(len(os.pread(descriptor, _READ_BYTES, offset)) for offset in offsets)
    os.close(descriptor)
    return done


def epoch(directory: str, count: int, workers: int, *, order: str, total: int) -> dict[str, Any]:
    """Files opened, read and closed once each, in batches of 32 over the workers."""
    paths = [f"{directory}/{key}" for key in data.image_keys(total, order=order)[:count]]
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    progress: list[tuple[float, int]] = []
    size, began = 0, time.perf_counter()
    with multiprocessing.Pool(workers) as pool:
        for number, got in enumerate(pool.imap(_read_all, batches), 1):
            size += got
            at = time.perf_counter() - began
            if not progress or at - progress[-1][0] >= _TICK_S or number == len(batches):
                progress.append((round(at, 3), min(count, number * _BATCH)))
    return {"done": len(paths), "unit": "files/s", "bytes": size, "progress": progress}


def sequential(directory: str, *_: int) -> dict[str, Any]:
    """One large file from start to end."""
    size = _read(f"{directory}/shard-1g.bin")
    return {"done": size / 1e6, "unit": "MB/s", "bytes": size}


def parallel(directory: str, *_: int) -> dict[str, Any]:
    """Eight large files at once, each by a process."""
    with multiprocessing.Pool(data.PARTS) as pool:
        size = sum(pool.map(_read, [f"{directory}/part-{n}.bin" for n in range(data.PARTS)], 1))
    return {"done": size / 1e6, "unit": "MB/s", "bytes": size}


def scattered(directory: str, count: int, workers: int) -> dict[str, Any]:
    """Reads of 128 KB at random places of one large file."""
    rnd, each = random.Random(5), count // workers
    offsets = [[rnd.randrange(0, data.LARGE_BYTES - _READ_BYTES) for _ in range(each)] for _ in range(workers)]
    with multiprocessing.Pool(workers) as pool:
        size = sum(pool.map(_read_at, [(f"{directory}/shard-1g.bin", mine) for mine in offsets], 1))
    return {"done": each * workers, "unit": "reads/s", "bytes": size}


def walk(directory: str, *_: int) -> dict[str, Any]:
    """Every name of a tree."""
    entries = sum(len(directories) + len(files) for _, directories, files in os.walk(directory))
    return {"done": entries, "unit": "entries/s", "bytes": 0}


def listed(directory: str, *_: int) -> dict[str, Any]:
    """Every name of one directory, with its status."""
    with os.scandir(f"{directory}/all") as found:
        sizes = [entry.stat().st_size for entry in found]
    return {"done": len(sizes), "unit": "entries/s", "bytes": 0}


_WORKS: dict[str, Callable[..., dict[str, Any]]] = {
    "seq": sequential,
    "seqpar": parallel,
    "rand": scattered,
    "walk": walk,
    "ls": listed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=["img", "imgseq", *_WORKS])
    parser.add_argument("directory")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--total", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=8)
    given = parser.parse_args()
    multiprocessing.set_start_method("fork")
    began = time.perf_counter()
    if given.work in ("img", "imgseq"):
        order = "shuffled" if given.work == "img" else "listed"
        result = epoch(given.directory, given.count, given.workers, order=order, total=given.total)
    else:
        result = _WORKS[given.work](given.directory, given.count, given.workers)
    seconds = time.perf_counter() - began
    print(json.dumps({**result, "seconds": round(seconds, 4), "rate": round(result["done"] / seconds, 2)}))


if __name__ == "__main__":
    main()
