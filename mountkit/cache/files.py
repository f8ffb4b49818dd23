"""Files below the cache directory's descriptor: opened without following links, kept open in bounded number.

Knows names and descriptors, not what the files mean.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from mountkit.cache.content import ContentId

if TYPE_CHECKING:
    from typing_extensions import Buffer

SEGMENTS = "segments"
OBJECTS = "objects"
_SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC

Key = TypeVar("Key", bound=int | bytes)


def segment_name(number: int) -> str:
    return f"{SEGMENTS}/{number:04d}.seg"


def object_name(content: ContentId) -> str:
    text = content.hex()
    return f"{OBJECTS}/{text[:2]}/{text}"


def open_below(root: int, name: str, flags: int, mode: int = 0o600) -> int:
    """A descriptor of `name` below `root`; a symbolic link at its end is an error."""
    return os.open(name, flags | _SAFELY, mode, dir_fd=root)


def open_placed(root: int, key: int | bytes) -> int:
    """A read-only descriptor of a segment (int) or of an object's own file (its ContentId)."""
    name = segment_name(key) if isinstance(key, int) else object_name(ContentId(key))
    return open_below(root, name, os.O_RDONLY)


def make_directory(root: int, name: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=root)


def remove(root: int, name: str) -> int:
    """Unlink `name`; how many bytes of disk it held, 0 if it was not there."""
    try:
        held = os.stat(name, dir_fd=root, follow_symlinks=False).st_blocks * 512
        os.unlink(name, dir_fd=root)
    except FileNotFoundError:
        return 0
    return held


def write_all(fd: int, pieces: Sequence[Buffer], position: int) -> None:
    """All of `pieces` at `position`, or an OSError; a full disk shows as a short write first."""
    rest = [memoryview(piece).cast("B") for piece in pieces]
    while rest:
        done = os.pwritev(fd, rest, position)
        position += done
        while rest and done >= len(rest[0]):
            done -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][done:]


class Handle:
    """A descriptor in use by `users` threads; closed by the last of them once it is `doomed`."""

    __slots__ = ("doomed", "fd", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.doomed = False


class FdCache(Generic[Key]):
    """The `limit` most recently used descriptors; one in use is never closed, so the number may pass it briefly."""

    def __init__(self, opener: Callable[[Key], int], limit: int) -> None:
        self._opener = opener
        self._limit = limit
        self._handles: OrderedDict[Key, Handle] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._handles)

    def acquire(self, key: Key) -> Handle:
        """The open file of `key`; give it back with `release`. Raises the opener's OSError."""
        with self._lock:
            handle = self._handles.get(key)
            if handle is not None:
                self._handles.move_to_end(key)
                handle.users += 1
                return handle
        opened = self._opener(key)
        with self._lock:
            handle = self._handles.get(key)
            if handle is None:
                handle = self._handles[key] = Handle(opened)
            else:
                os.close(opened)
            handle.users += 1
            self._shrink()
            return handle

    def release(self, handle: Handle) -> None:
        with self._lock:
            handle.users -= 1
            if handle.doomed and not handle.users:
                os.close(handle.fd)

    def drop(self, key: Key) -> None:
        """Forget the file of `key`; the next `acquire` opens it by name."""
        with self._lock:
            self._doom(key)

    def drop_deleted(self) -> None:
        """Forget the files that have no name any more."""
        with self._lock:
            for key in [key for key, handle in self._handles.items() if _is_deleted(handle.fd)]:
                self._doom(key)

    def close(self) -> None:
        with self._lock:
            for key in list(self._handles):
                self._doom(key)

    def _shrink(self) -> None:
        surplus = len(self._handles) - self._limit
        if surplus > 0:
            idle = (key for key, handle in self._handles.items() if not handle.users)
            for key in [key for key, _ in zip(idle, range(surplus), strict=False)]:
                self._doom(key)

    def _doom(self, key: Key) -> None:
        handle = self._handles.pop(key, None)
        if handle is not None:
            handle.doomed = True
            if not handle.users:
                os.close(handle.fd)


def _is_deleted(fd: int) -> bool:
    try:
        return not os.fstat(fd).st_nlink
    except OSError:  # of a disk that fails, or a network file system: opened by name again, if it is there
        return True
