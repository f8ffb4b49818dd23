"""Files below a directory, reached name by name and never through a symlink: what is written below it stays below it.

openat2 with RESOLVE_BENEATH would do the same in one call, on kernels and in sandboxes that have it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator

from mountkit.errors import HostError, UsageError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Beneath:
    """A directory to write below. A context manager."""

    def __init__(self, path: str) -> None:
        """Makes the directory where it is missing. Raises HostError."""
        self.path = path
        try:
            os.makedirs(path, exist_ok=True)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise HostError(
                f"cannot write to {path}: {os.strerror(exc.errno or 0)}", "choose a directory you may write to"
            ) from exc

    def __enter__(self) -> Beneath:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    @contextlib.contextmanager
    def parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """A descriptor of the directory `path` lies in, made where missing, and the last name.

        Raises UsageError for a path that would lead out, HostError where something stands in the way.
        """
        *directories, name = _names(path)
        with self._naming(path):
            fd = self._descended(directories, make=True)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def directory(self, path: bytes) -> None:
        """Makes a directory, its parents too."""
        with self.parent(path) as (fd, name), self._naming(path), contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=fd)

    @contextlib.contextmanager
    def replaced(self, path: bytes) -> Iterator[int]:
        """A descriptor to write the new file `path` by: it appears under its name, whole, when the block ends well."""
        with self.parent(path) as (fd, name):
            temporary = b".%s.mountkit-%s" % (name[:200], secrets.token_hex(8).encode())  # others may begin as it does
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with self._naming(path):
                new = os.open(temporary, flags, 0o666, dir_fd=fd)
            try:
                yield new
                with self._naming(path):
                    os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=fd)
                raise
            finally:
                os.close(new)

    def stat(self, path: bytes) -> os.stat_result | None:
        """Of the file itself; None if there is none."""
        *directories, name = _names(path)
        try:
            fd = self._descended(directories, make=False)
        except OSError:
            return None
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.close(fd)

    def _descended(self, directories: list[bytes], *, make: bool) -> int:
        """A descriptor of the directory at the end of these. Raises OSError."""
        fd = os.dup(self._fd)
        try:
            for each in directories:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(each, dir_fd=fd)
                inner = os.open(each, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = inner
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextlib.contextmanager
    def _naming(self, path: bytes) -> Iterator[None]:
        """What the disk says to making `path`, as a HostError; its bytes are for whoever writes them to name."""
        try:
            yield
        except OSError as exc:
            hints = {
                errno.ENOSPC: "make room on that disk",
                errno.EDQUOT: "make room on that disk",
                errno.EACCES: "choose a directory you may write to",
                errno.EROFS: "choose a directory you may write to",
                errno.ENAMETOOLONG: "the key has a part that is too long for a name of that disk",
            }
            raise HostError(
                f"cannot write {_shown(path)} below {self.path}: {os.strerror(exc.errno or 0)}",
                hints.get(exc.errno or 0, "a file, a directory or a symlink may stand where another is to be"),
            ) from exc


def _names(path: bytes) -> list[bytes]:
    names = path.rstrip(b"/").split(b"/")
    if any(name in (b"", b".", b"..") or b"\0" in name for name in names):
        raise UsageError(f"`{_shown(path)}` is no path below a directory")
    return names


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
