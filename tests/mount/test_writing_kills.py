"""Servers that die between doing something and saying so: it is done once, and the program never knows.

strace stops the server at the entry of its nth answer (writev) and kills it there: the transaction is committed, the
kernel has heard nothing. Every answer of an operation is killed in turn: LOOKUP, the mutation itself, FLUSH, RELEASE.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine
from tests.mount.killing import killed_at_answer
from tests.mount.writing import drain_and_unmount, objects


def _create(d: Path) -> None:
    os.close(os.open(d / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))


def _write(d: Path) -> None:
    with (d / "new").open("xb", buffering=0) as file:
        file.write(b"one")
        file.write(b"two")


def _append(d: Path) -> None:
    with (d / "file").open("ab", buffering=0) as file:
        file.write(b"+one")
        file.write(b"+two")


def _fsync(d: Path) -> None:
    with (d / "new").open("xb", buffering=0) as file:
        file.write(b"synced")
        os.fsync(file.fileno())


def _truncate_open(d: Path) -> None:
    fd = os.open(d / "file", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"x")
    os.close(fd)


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "create": _create,
    "write": _write,
    "append": _append,
    "fsync": _fsync,
    "open with O_TRUNC": _truncate_open,
    "mkdir": lambda d: os.mkdir(d / "new"),
    "rmdir": lambda d: os.rmdir(d / "empty"),
    "unlink": lambda d: os.unlink(d / "file"),
    "rename": lambda d: os.rename(d / "file", d / "new"),
    "rename over a file": lambda d: os.rename(d / "file", d / "other"),
    "rename a directory": lambda d: os.rename(d / "full", d / "new"),
    "rename over a directory": lambda d: os.rename(d / "full", d / "empty"),
    "symlink": lambda d: os.symlink("file", d / "new"),
    "mknod": lambda d: os.mknod(d / "new"),
    "truncate": lambda d: os.truncate(d / "file", 3),
    "chmod": lambda d: os.chmod(d / "file", 0o600),
    "utime": lambda d: os.utime(d / "file", ns=(10**18, 10**18)),
    "setxattr": lambda d: os.setxattr(d / "file", "user.new", b"x", os.XATTR_CREATE),
    "removexattr": lambda d: os.removexattr(d / "file", "user.old"),
}


def _furnish(d: Path) -> None:
    d.mkdir()
    (d / "file").write_bytes(b"file's")
    os.setxattr(d / "file", "user.old", b"old")
    (d / "other").write_bytes(b"other's")
    (d / "empty").mkdir()
    (d / "full").mkdir()
    (d / "full" / "inside").write_bytes(b"inside's")


def _shown(d: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(d.rglob("*")):
        status = path.lstat()
        attributes = sorted({"user.new", "user.old"} & set(os.listxattr(path, follow_symlinks=False)))
        body = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(d))] = oct(status.st_mode), body, attributes
    return found


@pytest.mark.parametrize(
    ("flags", "answers"),
    [
        ("--passthrough", [1, 2]),
        pytest.param("--no-passthrough", [1, 2], marks=pytest.mark.soak),
        pytest.param("--no-passthrough --no-resend", [1, 2], marks=pytest.mark.soak),
        pytest.param("--no-passthrough --no-resend", [3, 4, 5, 6, 7], marks=pytest.mark.soak),
        pytest.param("--passthrough", [3, 4, 5, 6, 7], marks=pytest.mark.soak),
        pytest.param("--no-passthrough", [3, 4, 5, 6, 7], marks=pytest.mark.soak),
    ],
)
def test_what_was_done_before_a_server_died_is_not_done_twice(
    bucket: Bucket, mountkit: CommandLine, tmp_path: Path, flags: str, answers: list[int]
) -> None:
    """[writing-5]"""
    before = os.umask(0o022)
    mounted = mountkit.mount(bucket.source, "--writable", *[word for word in flags.split() if word != "--passthrough"])
    try:
        expected: dict[str, bytes] = {}
        for number, (name, operation) in enumerate(OPERATIONS.items()):
            for answer in answers:
                ours, theirs = mounted / f"{number}-{answer}", tmp_path / f"{number}-{answer}"
                for d in (ours, theirs):
                    _furnish(d)
                operation(theirs)
                with killed_at_answer(mountkit.status(mounted)["server_pids"][0], answer):
                    operation(ours)
                assert _shown(ours) == _shown(theirs), f"{name}, killed at answer {answer}"
                for path in theirs.rglob("*"):
                    if path.is_file() and not path.is_symlink():
                        expected[str(path.relative_to(tmp_path))] = path.read_bytes()
        assert mountkit.status(mounted)["restarts"]["server"] >= len(answers)
        drain_and_unmount(mountkit, mounted)
        found = {key: body for key, body in objects(bucket).items() if not key.endswith("/") and body != b"file"}
        assert found == expected
    finally:
        os.umask(before)
