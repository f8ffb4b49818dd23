"""Plots, drawn with Pillow: where the chosen lie among all, how far the rest is from them, and what they look like."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZE = (800, 600)
INK, PALE, STRONG, PAPER = "#1b2733", "#b8c4ce", "#d9480f", "#ffffff"
_MARGIN = 50


def scatter(points: NDArray[np.float32], chosen: Sequence[int]) -> Image.Image:
    """All pictures on their two principal axes, the chosen ones strong."""
    image, draw = _sheet(f"{len(points)} pictures, {len(chosen)} of them chosen")
    if len(points):
        low, high = points.min(axis=0), points.max(axis=0)
        scaled = (points - low) / np.maximum(high - low, 1e-9)
        places = scaled * (SIZE[0] - 2 * _MARGIN, SIZE[1] - 2 * _MARGIN) + _MARGIN
        for x, y in places:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=PALE)
        for x, y in places[list(chosen)]:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=STRONG)
    return image


def histogram(distances: NDArray[np.float32]) -> Image.Image:
    """How far every picture is from the nearest chosen one."""
    image, draw = _sheet("distance to the nearest chosen picture")
    left, bottom = _MARGIN, SIZE[1] - _MARGIN
    if len(distances):
        counts, edges = np.histogram(distances, bins=40)
        width = (SIZE[0] - 2 * _MARGIN) / len(counts)
        for number, count in enumerate(counts):
            height = (SIZE[1] - 2 * _MARGIN) * count / counts.max()
            x = left + number * width
            draw.rectangle((x, bottom - height, x + width - 1, bottom), fill=STRONG)
        draw.text((left, bottom + 8), f"{edges[0]:.2f}", fill=INK, font=_font(14))
        draw.text((SIZE[0] - _MARGIN - 30, bottom + 8), f"{edges[-1]:.2f}", fill=INK, font=_font(14))
    draw.line((left, bottom, SIZE[0] - _MARGIN, bottom), fill=INK)
    return image


def gallery(directory: str, names: Sequence[str]) -> Image.Image:
    """The first of the chosen, small."""
    image, _ = _sheet(f"the first {min(len(names), 24)} chosen")
    edge = (SIZE[0] - 2 * _MARGIN) // 6
    for number, name in enumerate(names[:24]):
        with Image.open(os.path.join(directory, name)) as found:
            small = found.convert("RGB")
            small.thumbnail((edge - 6, edge - 6))
        row, column = divmod(number, 6)
        image.paste(small, (_MARGIN + column * edge, _MARGIN + row * edge))
    return image


def page(title: str, lines: Sequence[str]) -> Image.Image:
    """A sheet of text."""
    image, draw = _sheet(title)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + 20 + 26 * number), line, fill=INK, font=_font(16))
    return image


def _sheet(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, 14), title, fill=INK, font=_font(18))
    return image, draw


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):  # Pillow before 10.1, or built without FreeType: one size
        return ImageFont.load_default()
