"""Pictures: every image file below a directory, read once, with what the selection needs to know of it."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
GRID = 8
COLOURS = 4
DIRECTIONS = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """One file. `embedding` is None where it cannot be read as an image, and `problem` says why."""

    name: str
    size_bytes: int
    digest: str
    width: int = 0
    height: int = 0
    embedding: NDArray[np.float32] | None = None
    problem: str = ""


def names(directory: str) -> list[str]:
    """Every image file below `directory`, by extension, in order."""
    return sorted(_walk(directory))


def read_all(
    directory: str, found: list[str], *, workers: int, whole: bool, advance: Callable[[Picture], None]
) -> list[Picture]:
    """The pictures of `found`, in their order. `whole` decodes every pixel, to find what is torn."""
    pictures = []
    with ThreadPoolExecutor(workers if workers > 0 else max(4, os.cpu_count() or 1)) as pool:
        for picture in pool.map(lambda name: read(directory, name, whole=whole), found):
            advance(picture)
            pictures.append(picture)
    return pictures


def read(directory: str, name: str, *, whole: bool) -> Picture:
    """One picture. A file that cannot be read at all is an OSError: that is the mount's failure, not the picture's."""
    with open(os.path.join(directory, name), "rb") as file:
        content = file.read()
    digest = hashlib.sha256(content).hexdigest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if not whole:
                image.draft("RGB", (8 * GRID, 8 * GRID))
            pixels = image.convert("RGB")
    except Exception as exc:
        # Pillow raises whatever its decoders meet in a torn file: OSError, SyntaxError, ValueError, struct.error, …
        return Picture(name, len(content), digest, problem=str(exc) or type(exc).__name__)
    return Picture(name, len(content), digest, width, height, embed(pixels))


def embed(image: Image.Image) -> NDArray[np.float32]:
    """What a picture looks like, as a vector of length 1: colours by place, colours at all, directions of edges."""
    small = np.asarray(image.resize((4 * GRID, 4 * GRID), Image.Resampling.BOX), dtype=np.float32) / 255
    places = small.reshape(GRID, 4, GRID, 4, 3).mean(axis=(1, 3)).ravel()
    bins = np.minimum((small * COLOURS).astype(int), COLOURS - 1).reshape(-1, 3)
    colours = np.bincount(bins @ np.array([COLOURS**2, COLOURS, 1]), minlength=COLOURS**3) / len(bins)
    down, across = np.gradient(small.mean(axis=2))
    angles = ((np.arctan2(down, across) / np.pi + 1) / 2 * DIRECTIONS).astype(int) % DIRECTIONS
    edges = np.bincount(angles.ravel(), np.hypot(down, across).ravel(), minlength=DIRECTIONS)
    parts = [_unit(places - places.mean()), _unit(np.sqrt(colours)), _unit(edges.astype(np.float32))]
    return _unit(np.concatenate(parts)).astype(np.float32)


def _unit(vector: NDArray[np.floating]) -> NDArray[np.floating]:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 1e-9 else np.zeros_like(vector)


def _walk(directory: str) -> Iterator[str]:
    def stop(exc: OSError) -> None:
        raise exc

    for place, _, files in os.walk(directory, onerror=stop):
        for file in files:
            if file.lower().endswith(EXTENSIONS):
                yield os.path.relpath(os.path.join(place, file), directory)
