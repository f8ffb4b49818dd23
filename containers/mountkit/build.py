"""Makes `mountkit/mountkit:latest` without a registry: mountkit as it lies here, this machine's Python and libfuse.

Where there is a base image, `docker build -f containers/mountkit/Dockerfile .` makes the better one. Either is run as

    docker run --rm --device /dev/fuse --cap-add SYS_ADMIN mountkit/mountkit mount SOURCE DIRECTORY --foreground
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rootfs import SITE, Recipe, main  # noqa: E402

RECIPE = Recipe(
    "mountkit/mountkit:latest",
    trees={f"{SITE}/mountkit": HERE.parents[1] / "mountkit"},
    distributions=["mountkit"],
    programs=("fusermount3", "mount", "umount", "stat", "mkdir", "sha256sum", "find", "xargs", "sort"),
    changes=['ENTRYPOINT ["/usr/bin/python3", "-m", "mountkit"]'],
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
