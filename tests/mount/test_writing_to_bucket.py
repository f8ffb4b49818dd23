"""What the bucket holds after programs wrote into a mount: what they closed, synced, renamed and removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine, content, wait_until
from tests.mount.writing import objects


@pytest.fixture(params=["passthrough", "no-passthrough"])
def flags(request: pytest.FixtureRequest) -> list[str]:
    return ["--writable"] + (["--no-passthrough"] if request.param == "no-passthrough" else [])


def test_a_closed_file_comes_to_the_bucket(bucket: Bucket, mountkit: CommandLine, flags: list[str]) -> None:
    mounted = mountkit.mount(bucket.source, *flags)
    (mounted / "a.txt").write_bytes(content(1, 100_000))
    wait_until(lambda: objects(bucket) == {"a.txt": content(1, 100_000)})


def test_fsync_returns_when_the_bucket_has_the_file(bucket: Bucket, mountkit: CommandLine, flags: list[str]) -> None:
    mounted = mountkit.mount(bucket.source, *flags)
    fd = os.open(mounted / "a.txt", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"first")
    os.fsync(fd)
    assert objects(bucket) == {"a.txt": b"first"}
    os.write(fd, b" second")
    os.fsync(fd)
    assert objects(bucket) == {"a.txt": b"first second"}
    os.close(fd)


def test_a_directory_of_all_kinds_becomes_the_same_in_the_bucket(
    bucket: Bucket, mountkit: CommandLine, flags: list[str]
) -> None:
    """[writing-11]"""
    bucket.put("old/x", b"old x")
    bucket.put("old/y", b"old y")
    bucket.put("appended", b"one ")
    mounted = mountkit.mount(bucket.source, *flags)
    (mounted / "tmp").write_bytes(b"checkpoint")
    os.rename(mounted / "tmp", mounted / "ckpt.pt")
    (mounted / "empty").mkdir()
    (mounted / "sub").mkdir()
    (mounted / "sub" / "f").write_bytes(b"f")
    os.rename(mounted / "old" / "x", mounted / "x")
    os.unlink(mounted / "old" / "y")
    with (mounted / "appended").open("ab") as file:
        file.write(b"two")
    os.symlink("ckpt.pt", mounted / "link")
    mountkit.unmount(mounted)
    assert objects(bucket) == {
        "ckpt.pt": b"checkpoint",
        "empty/": b"",
        "sub/f": b"f",
        "x": b"old x",
        "old/": b"",
        "appended": b"one two",
        "link": b"ckpt.pt",
    }


def test_a_directory_of_the_bucket_can_be_renamed(bucket: Bucket, mountkit: CommandLine, flags: list[str]) -> None:
    for name in ("a", "b", "deep/c", "deep/er/d"):
        bucket.put(f"old/{name}", name.encode())
    mounted = mountkit.mount(bucket.source, *flags)
    (mounted / "old" / "staged").write_bytes(b"staged")
    os.rename(mounted / "old", mounted / "new")
    expected = {f"new/{name}": name.encode() for name in ("a", "b", "deep/c", "deep/er/d", "staged")}
    found = {str(p.relative_to(mounted)): p.read_bytes() for p in mounted.rglob("*") if p.is_file()}
    assert found == expected
    assert os.listdir(mounted) == ["new"]
    mountkit.unmount(mounted)
    assert objects(bucket) == expected


def test_what_is_in_the_bucket_is_found_again_with_its_dates(
    bucket: Bucket, mountkit: CommandLine, flags: list[str]
) -> None:
    """[writing-7]"""
    mounted = mountkit.mount(bucket.source, *flags)
    (mounted / "d").mkdir()
    path: Path = mounted / "d" / "f"
    path.write_bytes(b"bytes")
    os.utime(path, ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
    path.chmod(0o600)
    os.setxattr(path, "user.colour", b"blue")
    before = path.stat()
    mountkit.unmount(mounted)
    mounted = mountkit.mount(bucket.source, *flags)
    path = mounted / "d" / "f"
    assert path.read_bytes() == b"bytes"
    after = path.stat()
    assert (after.st_mtime_ns, after.st_mode, after.st_size) == (before.st_mtime_ns, before.st_mode, 5)
    assert os.getxattr(path, "user.colour") == b"blue"
    assert float(bucket.head("d/f")["Metadata"]["mtime"]) == pytest.approx(1_600_000_000.123456789)
