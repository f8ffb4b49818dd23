"""mountkit itself in a container, and its data files in the wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from pathlib import Path

from tests.servers import SeaweedServer

REPOSITORY = Path(__file__).parents[2]
_STORY = """
mkdir /mnt &&
python3 -m mountkit mount "$0" /mnt --cache /tmp &&
sha256sum /mnt/a/b && python3 -m mountkit status && python3 -m mountkit unmount /mnt
"""


def test_mountkit_mounts_inside_a_container_that_has_fuse_and_one_capability(seaweed: SeaweedServer) -> None:
    build = [sys.executable, str(REPOSITORY / "containers" / "mountkit" / "build.py")]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    prefix = uuid.uuid4().hex
    seaweed.client().put_object(Bucket="data", Key=f"{prefix}/a/b", Body=b"content")
    flags = ["--rm", "--init", "--network", "host", "--device", "/dev/fuse", "--cap-add", "SYS_ADMIN"]
    for name, value in seaweed.environment().items():
        flags += ["--env", f"{name}={value}"]
    source = f"s3://data/{prefix}"
    command = ["docker", "run", *flags, "--entrypoint", "sh", "mountkit/mountkit", "-c", _STORY, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73" in done.stdout
    assert ": ok" in done.stdout


def test_the_dockerfile_copies_only_what_exists_and_installs_what_the_quickstart_names() -> None:
    text = (REPOSITORY / "containers" / "mountkit" / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        assert all((REPOSITORY / word).exists() for word in line.split())
    assert {"libfuse3-dev", "pkg-config", "gcc", "fuse3"} <= set(text.split())


def test_the_presets_are_package_data() -> None:
    from mountkit.run import presets

    there = {path.stem for path in Path(presets.__file__).parent.glob("*.yaml")}
    assert there == set(presets.every()) == {"generic", "lightly"}
