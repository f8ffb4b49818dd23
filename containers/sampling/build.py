"""Makes `lightly/sampling:latest` and `lightly/worker:latest`, stand-ins for Lightly's images, from no registry.

They take what the real ones take and do real work on the real pictures, with this machine's Python, Pillow and numpy.
An image of that name that we did not make is the real one, and left alone.

    python containers/sampling/build.py
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rootfs import Recipe, main  # noqa: E402

IMAGES = ("lightly/sampling:latest", "lightly/worker:latest")


def recipe(image: str) -> Recipe:
    """The stand-in for `image`."""
    return Recipe(
        image,
        trees={"/app/sampling": HERE / "sampling"},
        distributions=["numpy", "pillow"],
        changes=['ENTRYPOINT ["/usr/bin/python3", "-m", "sampling"]'],
    )


if __name__ == "__main__":
    sys.exit(main(*map(recipe, IMAGES), real="the real one"))
