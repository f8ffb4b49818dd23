"""Random operations on a directory, told as plain values: the same list on two directories must tell the same story.

`World.apply` never raises: its outcome is what a program would see, a result or an errno. A few files stay open over
many operations, so that handles meet renames, unlinks and truncation.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Operation = tuple[Any, ...]
SLOTS = 4
_names = st.sampled_from(["a", "b", "c", "d.json", "latest"])
_paths = st.lists(_names, min_size=1, max_size=3).map("/".join)
_offsets = st.sampled_from([0, 1, 100, 4095, 4096, 5000, 70_000])
_sizes = st.sampled_from([0, 1, 10, 4096, 10_000])
_seeds = st.integers(0, 250)
_modes = st.sampled_from([0o644, 0o600, 0o755])
_times = st.sampled_from([1_600_000_000_123_456_789, 1_700_000_000_000_000_000])
_flags = st.sampled_from(
    [
        os.O_RDONLY,
        os.O_RDWR,
        os.O_RDWR | os.O_CREAT,
        os.O_RDWR | os.O_CREAT | os.O_EXCL,
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
        os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    ]
)
_slots = st.integers(0, SLOTS - 1)
_xattrs = st.sampled_from(["user.colour", "user.shape"])

operations: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just("write_file"), _paths, _seeds, _sizes),
    st.tuples(st.just("append_file"), _paths, _seeds, _sizes),
    st.tuples(st.just("read_file"), _paths),
    st.tuples(st.just("truncate"), _paths, _offsets),
    st.tuples(st.just("rename"), _paths, _paths),
    st.tuples(st.just("rename"), _paths, _paths),
    st.tuples(st.just("unlink"), _paths),
    st.tuples(st.just("mkdir"), _paths, _modes),
    st.tuples(st.just("mkdir"), _paths, _modes),
    st.tuples(st.just("rmdir"), _paths),
    st.tuples(st.just("listdir"), _paths),
    st.tuples(st.just("stat"), _paths),
    st.tuples(st.just("chmod"), _paths, _modes),
    st.tuples(st.just("utime"), _paths, _times),
    st.tuples(st.just("symlink"), _paths, _paths),
    st.tuples(st.just("readlink"), _paths),
    st.tuples(st.just("setxattr"), _paths, _xattrs, _seeds),
    st.tuples(st.just("removexattr"), _paths, _xattrs),
    st.tuples(st.just("listxattr"), _paths),
    st.tuples(st.just("open"), _slots, _paths, _flags),
    st.tuples(st.just("close"), _slots),
    st.tuples(st.just("pwrite"), _slots, _offsets, _seeds, _sizes),
    st.tuples(st.just("pread"), _slots, _offsets, _sizes),
    st.tuples(st.just("ftruncate"), _slots, _offsets),
    st.tuples(st.just("fstat"), _slots),
    st.tuples(st.just("mmap"), _slots, _seeds),
    st.tuples(st.just("tree")),
)


class World:
    """One directory the operations are applied to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self._open: list[int | None] = [None] * SLOTS

    def apply(self, operation: Operation) -> Any:
        """What a program would see: a result, or the name of an errno."""
        name, *arguments = operation
        method: Callable[..., Any] = getattr(self, "_open_slot" if name == "open" else "_" + name)
        try:
            return method(*arguments)
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]

    def close(self) -> None:
        for slot in range(SLOTS):
            with contextlib.suppress(OSError):
                self._close(slot)

    def tree(self) -> dict[str, Any]:
        """Every name, with what stat and read say of it."""
        found: dict[str, Any] = {}
        for directory, names, files in os.walk(self.root):
            for name in sorted(names + files):
                path = os.path.join(directory, name)
                status = os.lstat(path)
                said: list[Any] = [stat.filemode(status.st_mode)]
                if stat.S_ISREG(status.st_mode):
                    said += [status.st_size, Path(path).read_bytes()]
                elif stat.S_ISLNK(status.st_mode):
                    said.append(os.readlink(path))
                found[os.path.relpath(path, self.root)] = said
        return found

    # ---- by path -------------------------------------------------------------------------------------------
    def _path(self, path: str) -> Path:
        return self.root / path

    def _write_file(self, path: str, seed: int, size: int) -> None:
        self._path(path).write_bytes(pattern(seed, size))

    def _append_file(self, path: str, seed: int, size: int) -> None:
        with self._path(path).open("ab") as file:
            file.write(pattern(seed, size))

    def _read_file(self, path: str) -> bytes:
        return self._path(path).read_bytes()

    def _truncate(self, path: str, size: int) -> None:
        os.truncate(self._path(path), size)

    def _rename(self, path: str, to: str) -> None:
        os.rename(self._path(path), self._path(to))

    def _unlink(self, path: str) -> None:
        os.unlink(self._path(path))

    def _mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._path(path), mode)

    def _rmdir(self, path: str) -> None:
        os.rmdir(self._path(path))

    def _listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(self._path(path)))

    def _stat(self, path: str) -> tuple[Any, ...]:
        return _shown(os.lstat(self._path(path)))

    def _chmod(self, path: str, mode: int) -> None:
        os.chmod(self._path(path), mode)

    def _utime(self, path: str, mtime_ns: int) -> int:
        os.utime(self._path(path), ns=(mtime_ns, mtime_ns))
        return os.stat(self._path(path)).st_mtime_ns

    def _symlink(self, path: str, target: str) -> None:
        os.symlink(target, self._path(path))

    def _readlink(self, path: str) -> str:
        return os.readlink(self._path(path))

    def _setxattr(self, path: str, name: str, seed: int) -> None:
        os.setxattr(self._path(path), name, pattern(seed, 5))

    def _removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._path(path), name)

    def _listxattr(self, path: str) -> list[tuple[str, bytes]]:
        there = sorted(name for name in os.listxattr(self._path(path)) if not name.startswith(("user.s3", "user.mo")))
        return [(name, os.getxattr(self._path(path), name)) for name in there]

    def _tree(self) -> dict[str, Any]:
        return self.tree()

    # ---- by handle -----------------------------------------------------------------------------------------
    def _fd(self, slot: int) -> int:
        fd = self._open[slot]
        if fd is None:
            raise OSError(errno.EBADF, "closed")
        return fd

    def _open_slot(self, slot: int, path: str, flags: int) -> None:
        fd = os.open(self._path(path), flags, 0o644)
        if self._open[slot] is not None:
            self._close(slot)
        self._open[slot] = fd

    def _close(self, slot: int) -> None:
        fd = self._fd(slot)
        self._open[slot] = None
        os.close(fd)

    def _pwrite(self, slot: int, offset: int, seed: int, size: int) -> int:
        return os.pwrite(self._fd(slot), pattern(seed, size), offset)

    def _pread(self, slot: int, offset: int, size: int) -> bytes:
        return os.pread(self._fd(slot), size, offset)

    def _ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._fd(slot), size)

    def _fstat(self, slot: int) -> tuple[Any, ...]:
        return _shown(os.fstat(self._fd(slot)))

    def _mmap(self, slot: int, seed: int) -> bytes:
        fd = self._fd(slot)
        if os.fstat(fd).st_size == 0:
            return b""
        with mmap.mmap(fd, 0) as mapped:
            piece = pattern(seed, min(20, len(mapped)))
            mapped[: len(piece)] = piece
        return os.pread(fd, 100, 0)


def pattern(seed: int, size: int) -> bytes:
    """Bytes that betray their offset."""
    return bytes((seed + i) % 251 for i in range(size))


def _shown(status: os.stat_result) -> tuple[Any, ...]:
    if stat.S_ISDIR(status.st_mode):
        return (stat.filemode(status.st_mode),)
    return stat.filemode(status.st_mode), status.st_size, status.st_nlink, status.st_uid, status.st_gid
