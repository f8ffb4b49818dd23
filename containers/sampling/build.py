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

from rootfs import LABEL, Recipe  # noqa: E402

from mountkit.errors import MountkitError  # noqa: E402
from mountkit.run.docker_engine import DockerEngine  # noqa: E402

IMAGES = ("lightly/sampling:latest", "lightly/worker:latest")


def main() -> int:
    engine = DockerEngine()
    try:
        engine.check()
        for image in IMAGES:
            build(engine, image)
    except MountkitError as exc:
        print(f"error: {exc.sentence}", f"hint: {exc.hint}" if exc.hint else "", sep="\n", file=sys.stderr)
        return exc.exit_code
    return 0


def build(engine: DockerEngine, image: str) -> None:
    """The engine has `image`: the real one if it is there, else our stand-in. Raises EngineError or HostError."""
    labels = engine.image_labels(image)
    if labels is not None and LABEL not in labels:
        print(f"{image} is there, and it is the real one")
        return
    changes = ['ENTRYPOINT ["/usr/bin/python3", "-m", "sampling"]']
    made = Recipe(image, [HERE / "sampling"], ["numpy", "PIL"], changes).build(engine)
    print(f"made {image}, a stand-in" if made else f"{image} is there already")


if __name__ == "__main__":
    sys.exit(main())
