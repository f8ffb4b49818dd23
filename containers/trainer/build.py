"""Makes `mountkit/trainer:latest`, a small training program, of this machine's Python, Pillow and numpy.

python containers/trainer/build.py
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rootfs import Recipe  # noqa: E402

from mountkit.errors import MountkitError  # noqa: E402
from mountkit.run.docker_engine import DockerEngine  # noqa: E402

IMAGE = "mountkit/trainer:latest"


def main() -> int:
    engine = DockerEngine()
    changes = ['ENTRYPOINT ["/usr/bin/python3", "/app/trainer/trainer.py"]']
    try:
        engine.check()
        made = Recipe(IMAGE, [HERE / "trainer.py"], ["numpy", "PIL"], changes).build(engine)
    except MountkitError as exc:
        print(f"error: {exc.sentence}", f"hint: {exc.hint}" if exc.hint else "", sep="\n", file=sys.stderr)
        return exc.exit_code
    print(f"made {IMAGE}" if made else f"{IMAGE} is there already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
