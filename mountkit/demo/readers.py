"""Several processes that read every file once, in a shuffled order, as the workers of a training run do."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Epoch:
    """What reading everything once gave."""

    files: int
    size_bytes: int
    seconds: float
    failures: tuple[str, ...]
    """What could not be read, or had other bytes than were uploaded."""

    @property
    def rate(self) -> str:
        return f"{self.files / self.seconds:,.0f} files/s, {self.size_bytes / self.seconds / 1e6:,.0f} MB/s"


def read_epoch(
    directory: str, sums: dict[str, str], *, processes: int, seed: int, advance: Callable[[int], None]
) -> Epoch:
    """Reads every file of `sums` below `directory` and compares. `advance` is told how many more have been read."""
    paths = sorted(sums)
    random.Random(seed).shuffle(paths)  # noqa: S311
    pieces = [(directory, paths[i : i + _AT_ONCE]) for i in range(0, len(paths), _AT_ONCE)]
    failures: list[str] = []
    size_bytes = 0
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        pool.map(abs, range(processes))  # starting them is not reading
        started = time.monotonic()
        for answers in pool.imap_unordered(_read, pieces):
            for path, length, digest in answers:
                size_bytes += length
                if digest != sums[path]:
                    failures.append(f"{path}: {digest if ' ' in digest else 'wrong bytes'}")
            advance(len(answers))
        seconds = time.monotonic() - started
    return Epoch(len(paths), size_bytes, seconds, tuple(failures))


def _read(piece: tuple[str, Sequence[str]]) -> list[tuple[str, int, str]]:
    """(path, bytes, SHA-256 or the error) of each file."""
    directory, paths = piece
    found = []
    for path in paths:
        try:
            with open(os.path.join(directory, path), "rb") as file:
                content = file.read()
        except OSError as exc:
            found.append((path, 0, f"error: {os.strerror(exc.errno or 0)}"))
        else:
            found.append((path, len(content), hashlib.sha256(content).hexdigest()))
    return found
