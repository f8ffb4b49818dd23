"""A writable mount as programs see it: what they read of what others write, and what is refused."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.conftest import Bucket, CommandLine, content
from tests.mount.writing import objects

_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2


@pytest.fixture(params=["passthrough", "no-passthrough"])
def mounted(request: pytest.FixtureRequest, bucket: Bucket, mountkit: CommandLine) -> Path:
    bucket.put("old/a.bin", content(3, 10_000))
    flags = ["--no-passthrough"] if request.param == "no-passthrough" else []
    return mountkit.mount(bucket.source, "--writable", *flags)


def test_every_reader_sees_what_is_written_at_once(mounted: Path) -> None:
    """[writing-2]"""
    with (mounted / "new").open("wb", buffering=0) as writer, (mounted / "new").open("rb", buffering=0) as reader:
        for turn in range(5):
            writer.write(bytes([turn]) * 10)
            assert reader.read() == bytes([turn]) * 10
            assert (mounted / "new").stat().st_size == 10 * (turn + 1)
    assert os.listdir(mounted / "old") == ["a.bin"]
    with (mounted / "old" / "a.bin").open("rb", buffering=0) as before:
        with (mounted / "old" / "a.bin").open("r+b", buffering=0) as changing:
            changing.write(b"changed")
            assert (mounted / "old" / "a.bin").read_bytes() == b"changed" + content(3, 10_000)[7:]
        assert before.read() == content(3, 10_000)


def test_objects_of_the_bucket_are_changed_in_every_way(mounted: Path, bucket: Bucket, mountkit: CommandLine) -> None:
    """[writing-1]"""
    for name in ("truncated", "emptied", "touched", "appended", "replaced", "moded"):
        bucket.put(name, content(9, 5000))
    os.truncate(mounted / "truncated", 100)
    (mounted / "emptied").open("wb").close()
    os.utime(mounted / "touched", ns=(10**18, 10**18))
    with (mounted / "appended").open("ab") as file:
        file.write(b"more")
    (mounted / "tmp").write_bytes(b"new")
    os.replace(mounted / "tmp", mounted / "replaced")
    os.chmod(mounted / "moded", 0o600)
    assert (mounted / "touched").stat().st_mtime_ns == 10**18
    assert stat.S_IMODE((mounted / "moded").stat().st_mode) == 0o600
    expected = {
        "truncated": content(9, 5000)[:100],
        "emptied": b"",
        "touched": content(9, 5000),
        "appended": content(9, 5000) + b"more",
        "replaced": b"new",
        "moded": content(9, 5000),
    }
    assert {name: (mounted / name).read_bytes() for name in expected} == expected
    mountkit.unmount(mounted)
    assert objects(bucket) == expected | {"old/a.bin": content(3, 10_000)}
    assert int(bucket.head("moded")["Metadata"]["mode"]) == stat.S_IFREG | 0o600


def _rename(old: Path, new: Path, flags: int) -> None:
    """renameat2(2), which Python has not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def test_a_rename_can_be_told_to_replace_nothing(mounted: Path, bucket: Bucket, mountkit: CommandLine) -> None:
    """[writing-1] [writing-10] Staged files, objects and directories; two names cannot be exchanged."""
    (mounted / "one").write_bytes(b"one")
    (mounted / "two").write_bytes(b"two")
    (mounted / "d").mkdir()
    for taken in ("two", "old/a.bin", "d", "old"):
        with pytest.raises(FileExistsError):
            _rename(mounted / "one", mounted / taken, _RENAME_NOREPLACE)
        with pytest.raises(FileExistsError):
            _rename(mounted / "old" / "a.bin", mounted / taken, _RENAME_NOREPLACE)
        with pytest.raises(OSError) as caught:
            _rename(mounted / "one", mounted / taken, _RENAME_EXCHANGE)
        assert caught.value.errno == errno.EINVAL
    _rename(mounted / "one", mounted / "three", _RENAME_NOREPLACE)
    _rename(mounted / "old" / "a.bin", mounted / "d" / "b.bin", _RENAME_NOREPLACE)
    _rename(mounted / "d", mounted / "e", _RENAME_NOREPLACE)
    mountkit.unmount(mounted)
    found = {key: body for key, body in objects(bucket).items() if not key.endswith("/")}
    assert found == {"three": b"one", "two": b"two", "e/b.bin": content(3, 10_000)}


def test_what_a_bucket_cannot_keep_is_refused(mounted: Path) -> None:
    """[writing-10]"""
    (mounted / "f").write_bytes(b"f")
    (mounted / "d").mkdir()

    def refused(operation: object, number: int) -> None:
        with pytest.raises(OSError) as caught:
            operation()  # type: ignore[operator]
        assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]

    refused(lambda: os.link(mounted / "f", mounted / "g"), errno.EPERM)
    refused(lambda: os.mkfifo(mounted / "p"), errno.EPERM)
    refused(lambda: os.open(os.fsencode(mounted) + b"/bad\xff", os.O_CREAT | os.O_WRONLY), errno.EILSEQ)
    refused(lambda: (mounted / ("n" * 256)).write_bytes(b""), errno.ENAMETOOLONG)
    refused(lambda: (mounted / ".mountkit" / "x").write_bytes(b""), errno.EPERM)
    refused(lambda: os.open(mounted, os.O_TMPFILE | os.O_WRONLY), errno.EOPNOTSUPP)
    deep = mounted
    for _ in range(3):
        deep = deep / ("d" * 250)
        deep.mkdir()
    deep = deep / ("d" * 200)
    deep.mkdir()
    refused(lambda: (deep / ("n" * 250)).write_bytes(b""), errno.ENAMETOOLONG)
    fd = os.open(mounted / "f", os.O_RDWR)
    os.posix_fallocate(fd, 0, 1000)  # the C library writes where the file system cannot allocate
    assert os.fstat(fd).st_size == 1000
    os.close(fd)
    refused(lambda: os.setxattr(mounted / "f", "user.large", b"x" * 3000), errno.ENOSPC)
    refused(lambda: os.setxattr(mounted / "f", "trusted.x", b"x"), errno.EOPNOTSUPP)


def test_a_second_rsync_sends_nothing_also_after_a_remount(
    bucket: Bucket, mountkit: CommandLine, tmp_path: Path
) -> None:
    """[writing-7] [attributes-2] Nor does a copy within the mount fail over attributes that nobody can set."""
    source = programs.small_tree(tmp_path)
    mounted = mountkit.mount(bucket.source, "--writable", "--umask", "022")
    programs.run("rsync", "-a", f"{source}/", mounted / "tree")
    assert programs.rsynced(source, mounted / "tree") == []
    programs.run("rsync", "-aX", f"{mounted / 'tree'}/", mounted / "copy")
    mountkit.unmount(mounted)
    mounted = mountkit.mount(bucket.source, "--writable", "--umask", "022")
    assert programs.rsynced(source, mounted / "tree") == []
