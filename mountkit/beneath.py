"""Files below a directory, reached name by name and never through a symlink: what is written below it stays below it.

openat2 with RESOLVE_BENEATH would do the same in one call, on kernels and in sandboxes that have it.
"""

from __future__ import annotations

import contextlib
import os
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
        fd = os.dup(self._fd)
        try:
            for each in directories:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(each, dir_fd=fd)
                inner = os.open(each, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd, name
        except OSError as exc:
            raise HostError(
                f"cannot write {_shown(path)} below {self.path}: {os.strerror(exc.errno or 0)}",
                "a file or a symlink may stand where a directory has to be",
            ) from exc
        finally:
            os.close(fd)

    def directory(self, path: bytes) -> None:
        """Makes a directory, its parents too."""
        with self.parent(path) as (fd, name), contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=fd)

    @contextlib.contextmanager
    def replaced(self, path: bytes) -> Iterator[int]:
        """A descriptor to write the new file `path` by: it appears under its name, whole, when the block ends well."""
        with self.parent(path) as (fd, name):
            temporary = b".%s.mountkit-%d" % (name[:200], os.getpid())
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            new = os.open(temporary, flags, 0o666, dir_fd=fd)
            try:
                yield new
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
        fd = os.dup(self._fd)
        try:
            for each in directories:
                inner = os.open(each, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = inner
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.close(fd)


def _names(path: bytes) -> list[bytes]:
    names = path.rstrip(b"/").split(b"/")
    if any(name in (b"", b".", b"..") or b"\0" in name for name in names):
        raise UsageError(f"`{_shown(path)}` is no path below a directory")
    return names


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
