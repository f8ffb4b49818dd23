"""The program in the container: `python -m sampling name=value…`, as Hydra's programs are called."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np

from . import pictures, report, selection
from .pictures import Picture
from .settings import Refused, Settings, parse

INPUT, OUTPUT = "/home/input_dir", "/home/output_dir"


def main(
    arguments: Sequence[str], surroundings: Mapping[str, str], *, given: str = INPUT, results: str = OUTPUT
) -> int:
    """The exit code: 0; 2 for wrong arguments, 1 for what could not be read or written, each with one sentence."""
    try:
        settings = parse(arguments, surroundings)
        run(settings, given, results)
    except Refused as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except OSError as exc:
        print(f"error: {exc.filename or 'a file'}: {exc.strerror or exc}", file=sys.stderr)
        return 1
    return 0


def run(settings: Settings, given: str, results: str) -> str:
    """Selects among the pictures below `given`; the directory of this run's results. Raises Refused, OSError."""
    for place, what in ((given, "input"), (results, "output")):
        if not os.path.isdir(place):
            raise Refused(f"there is no {what} directory at {place}; mount one there")
    started = time.localtime()
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    names = pictures.names(given)
    if not names:
        raise Refused(f"there is no picture below {given}")
    print(f"found {len(names)} pictures in {given}", flush=True)
    clock.lap("list")
    everything = pictures.read_all(
        given,
        names,
        workers=settings.num_workers,
        whole=settings.enable_corruptness_check,
        advance=_Progress(len(names)),
    )
    clock.lap("read")
    corrupt = [one for one in everything if one.embedding is None]
    readable = [one for one in everything if one.embedding is not None]
    twice = set(selection.duplicates(readable)) if settings.remove_exact_duplicates else set()
    good = [one for number, one in enumerate(readable) if number not in twice]
    print(f"{len(corrupt)} are corrupt, {len(twice)} are exact duplicates", flush=True)
    if not good:
        raise Refused("none of the pictures can be read")
    embeddings = np.stack([one.embedding for one in good if one.embedding is not None])
    chosen, distances = selection.select(embeddings, settings)
    clock.lap("select")
    output = os.path.join(results, time.strftime("%Y-%m-%d", started), time.strftime("%H:%M:%S", started))
    duplicate = [readable[number] for number in sorted(twice)]
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z", started)
    result = report.Result(settings, when, given, good, corrupt, duplicate, chosen, distances, seconds)
    summary = report.write(result, output)
    distance = summary["mean_nearest_neighbour_distance"]
    print(f"chose {len(chosen)} of {len(good)}: nearest neighbours {distance['before']} -> {distance['after']} apart")
    print(f"wrote {output}", flush=True)
    return output


class _Clock:
    """Seconds from lap to lap."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._seconds[name], self._last = now - self._last, now


class _Progress:
    """A line for every tenth of the pictures."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._bytes = total, 0, 0
        self._started = time.monotonic()

    def __call__(self, picture: Picture) -> None:
        self._done += 1
        self._bytes += picture.size_bytes
        step = max(1, self._total // 10)
        if self._done % step == 0 or self._done == self._total:
            rate = self._done / max(1e-3, time.monotonic() - self._started)
            size = f"{self._bytes / 1e6:.1f} MB"
            print(f"read {self._done}/{self._total} pictures, {size}, {rate:.0f}/s", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
