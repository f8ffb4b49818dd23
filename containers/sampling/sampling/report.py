"""What a run leaves behind: the tree of files Lightly's own container writes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import plots
from .pictures import Picture
from .selection import plane, spread
from .settings import Settings


@dataclass(frozen=True, slots=True)
class Result:
    """What was found and chosen; positions are of `good`."""

    settings: Settings
    started: str
    directory: str
    good: list[Picture]
    corrupt: list[Picture]
    duplicate: list[Picture]
    chosen: list[int]
    distances: NDArray[np.float32]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        rows = [one.embedding for one in self.good if one.embedding is not None]
        return np.stack(rows) if rows else np.zeros((0, 1), dtype=np.float32)

    @property
    def sampled(self) -> list[str]:
        return [self.good[number].name for number in self.chosen]

    @property
    def removed(self) -> list[str]:
        kept = set(self.sampled)
        return [one.name for one in self.good if one.name not in kept]


def write(result: Result, output: str) -> dict[str, Any]:
    """Writes everything below `output`; the contents of report.json. The report comes last: then all else is there."""
    for name in ("config", "data", "filenames", "plots"):
        os.makedirs(os.path.join(output, name), exist_ok=True)
    _config(result, os.path.join(output, "config"))
    _embeddings(result, os.path.join(output, "data", "embeddings.csv"))
    lists = {
        "corrupt": [one.name for one in result.corrupt],
        "duplicate": [one.name for one in result.duplicate],
        "removed": result.removed,
        "sampled": result.sampled,
    }
    for name, names in lists.items():
        _lines(os.path.join(output, "filenames", f"{name}_filenames.txt"), names)
    drawn = {
        "embeddings": plots.scatter(plane(result.embeddings), result.chosen),
        "distances": plots.histogram(result.distances),
        "sampled": plots.gallery(result.directory, result.sampled),
    }
    for name, image in drawn.items():
        image.save(os.path.join(output, "plots", f"{name}.png"))
    summary = _summary(result)
    _pdf(os.path.join(output, "report.pdf"), summary, list(drawn.values()))
    with open(os.path.join(output, "report.json"), "w", encoding="utf-8") as file:
        json.dump(summary, file, indent=2)
        file.write("\n")
    return summary


def _summary(result: Result) -> dict[str, Any]:
    embeddings = result.embeddings
    everything = [*result.good, *result.corrupt, *result.duplicate]
    return {
        "program": "stand-in for lightly/sampling, made by mountkit",
        "started": result.started,
        "settings": asdict(result.settings),
        "pictures": {
            "found": len(everything),
            "bytes": sum(one.size_bytes for one in everything),
            "corrupt": len(result.corrupt),
            "duplicate": len(result.duplicate),
            "sampled": len(result.chosen),
            "removed": len(result.good) - len(result.chosen),
        },
        "corrupt": {one.name: one.problem for one in result.corrupt},
        "mean_nearest_neighbour_distance": {
            "before": round(spread(embeddings), 4),
            "after": round(spread(embeddings[result.chosen]), 4),
        },
        "largest_distance_to_a_sample": round(float(result.distances.max(initial=0)), 4),
        "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
    }


def _config(result: Result, directory: str) -> None:
    """The settings as they hold and as overrides; JSON's words are YAML's too. The token is in neither."""
    values = {name: json.dumps(value) for name, value in asdict(result.settings).items()}
    _lines(os.path.join(directory, "config.yaml"), [f"{name}: {value}" for name, value in values.items()])
    changed = [n for n, value in asdict(result.settings).items() if value != getattr(Settings(), n)]
    _lines(os.path.join(directory, "overrides.yaml"), [f"- {name}={values[name]}" for name in changed] or ["[]"])


def _embeddings(result: Result, path: str) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        embeddings = result.embeddings
        writer.writerow(["filenames", *(f"embedding_{n}" for n in range(embeddings.shape[1])), "labels"])
        folders = {name: number for number, name in enumerate(sorted({_folder(one.name) for one in result.good}))}
        for picture, row in zip(result.good, embeddings, strict=True):
            writer.writerow([picture.name, *(f"{value:.5f}" for value in row), folders[_folder(picture.name)]])


def _pdf(path: str, summary: dict[str, Any], drawn: Sequence[Image.Image]) -> None:
    lines = [f"{name}: {value}" for name, value in summary["pictures"].items()]
    distance = summary["mean_nearest_neighbour_distance"]
    lines += ["", f"mean distance to the nearest neighbour: {distance['before']} before, {distance['after']} after"]
    pages = [plots.page(f"Selection of {summary['started']}", lines), *drawn]
    pages[0].save(path, save_all=True, append_images=pages[1:])


def _lines(path: str, lines: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{line}\n" for line in lines)


def _folder(name: str) -> str:
    return os.path.dirname(name)
