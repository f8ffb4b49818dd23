"""Real programs write into a mount, and what they wrote is right: there, and from the bucket by another mount."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.conftest import Bucket, CommandLine
from tests.servers import SeaweedServer

Writer = Callable[[Path, Path], programs.Check]


@pytest.fixture
def source(bucket: Bucket, seaweed: SeaweedServer) -> str:
    """The bucket without the proxy, which is a thread of this process: h5py opens files with the interpreter locked."""
    return bucket.source.split("?")[0] + f"?endpoint={seaweed.endpoint}"


def _written_and_read(
    source: str, mountkit: CommandLine, tmp_path: Path, writers: dict[str, Writer], *flags: str
) -> None:
    mounted = mountkit.mount(source, "--writable", "--umask", "022", *flags)
    checks = {}
    for name, write in writers.items():
        (mounted / name).mkdir()
        scratch = tmp_path / "scratch" / name
        scratch.mkdir(parents=True)
        checks[name] = write(mounted / name, scratch)
        checks[name](mounted / name)
    mountkit.unmount(mounted)
    elsewhere = CommandLine(tmp_path / "elsewhere", mountkit.environment)
    elsewhere.base.mkdir()
    try:
        again = elsewhere.mount(source, "--writable", "--umask", "022")
        for name, check in checks.items():
            if name not in ("tar", "unzip", "cp", "rsync", "git"):  # modes and symlinks are read by who wrote them
                check(again / name)
        elsewhere.unmount(again)
    finally:
        elsewhere.close()
    mounted = mountkit.mount(source, "--writable", "--umask", "022", *flags)
    for name, check in checks.items():
        check(mounted / name)


@pytest.mark.timeout(480)
@pytest.mark.parametrize("flag", ["--passthrough", pytest.param("--no-passthrough", marks=pytest.mark.soak)])
def test_what_programs_write_is_read_back_from_the_bucket(
    source: str, mountkit: CommandLine, tmp_path: Path, flag: str
) -> None:
    _written_and_read(source, mountkit, tmp_path, programs.QUICK, *([flag] if flag.startswith("--no") else []))


@pytest.mark.soak
@pytest.mark.timeout(480)
@pytest.mark.parametrize("flag", ["--passthrough", "--no-passthrough"])
def test_what_large_programs_write_is_read_back_from_the_bucket(
    source: str, mountkit: CommandLine, tmp_path: Path, flag: str
) -> None:
    _written_and_read(source, mountkit, tmp_path, programs.LARGE, *([flag] if flag.startswith("--no") else []))
