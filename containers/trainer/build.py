"""Makes `mountkit/trainer:latest`, a small training program, of this machine's Python, Pillow and numpy.

python containers/trainer/build.py
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rootfs import Recipe, main  # noqa: E402

RECIPE = Recipe(
    "mountkit/trainer:latest",
    trees={"/app/trainer": HERE},
    distributions=["numpy", "pillow"],
    changes=['ENTRYPOINT ["/usr/bin/python3", "/app/trainer/trainer.py"]'],
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
