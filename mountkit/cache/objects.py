"""Own files: one sparse file per object under `objects/`, written at natural offsets, sealed when complete.

A sealed file is 0400 and carries a stamp (size, mtime, ctime, inode) in the index: whatever changes the file changes
its ctime, and the stamp no longer fits. Only the mover writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from mountkit.cache.content import BLOCK_BYTES, ContentId
from mountkit.cache.files import OBJECTS, FdCache, make_directory, object_name, open_below, remove, write_all

if TYPE_CHECKING:
    from typing_extensions import Buffer

WRITE_FDS = 64
OPEN_MODE = 0o600
SEALED_MODE = 0o400


class Stamp(NamedTuple):
    """What a sealed file looked like when its CRCs were right, and in which mount's life that was."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    life: bytes


def stamp_of(fd: int, life: bytes) -> Stamp:
    return _stamp(os.fstat(fd), life)


def look(root: int, content: ContentId, life: bytes) -> Stamp | None:
    """The stamp of the object's own file, found by its name; None if there is none."""
    try:
        found = os.stat(object_name(content), dir_fd=root, follow_symlinks=False)
    except OSError:
        return None
    return _stamp(found, life)


def _stamp(found: os.stat_result, life: bytes) -> Stamp:
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, life)


class OwnFile(NamedTuple):
    """One file found under `objects/`; `touched_ns` is the later of its access and modification times."""

    content: ContentId
    held_bytes: int
    touched_ns: int
    modified_ns: int


class Objects:
    """The writer's side of the own files, with at most 64 of them open for writing."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._writing: FdCache[bytes] = FdCache(self._open_for_writing, WRITE_FDS)

    def write(self, content: ContentId, position: int, data: Buffer) -> None:
        """Put `data` at `position` of the object's file, created when needed. Thread-safe. Raises OSError."""
        handle = self._writing.acquire(content)
        try:
            write_all(handle.fd, (data,), position)
        finally:
            self._writing.release(handle)

    def create_sealed(self, content: ContentId, data: Buffer, life: bytes) -> Stamp:
        """A complete new file in one go; one left over from a crash is replaced. Raises OSError."""
        name = object_name(content)
        self._writing.drop(content)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._root)
        fd = self._create(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, SEALED_MODE)
        try:
            write_all(fd, (data,), 0)
            return stamp_of(fd, life)
        except OSError:
            os.unlink(name, dir_fd=self._root)
            raise
        finally:
            os.close(fd)

    def stop_writing(self, content: ContentId) -> None:
        """Close the descriptor this process writes the object with, so that a seal stays a seal."""
        self._writing.drop(content)

    def remove(self, content: ContentId) -> int:
        """Delete the object's file; the bytes of disk freed."""
        self._writing.drop(content)
        return remove(self._root, object_name(content))

    def prove(self) -> None:
        """Writes a block and deletes it. Raises OSError if the disk does not take it."""
        name = f"{OBJECTS}/proof"
        fd = open_below(self._root, name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(fd, (bytes(BLOCK_BYTES),), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
            os.unlink(name, dir_fd=self._root)

    def scan(self) -> Iterator[OwnFile]:
        """All own files, a directory at a time. Stats every file: seconds for a million."""
        for prefix in _fanout():
            with suppress(FileNotFoundError, NotADirectoryError):
                yield from self._scan_directory(f"{OBJECTS}/{prefix}")

    def close(self) -> None:
        self._writing.close()

    def _scan_directory(self, name: str) -> list[OwnFile]:
        directory = open_below(self._root, name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(directory) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries if len(entry.name) == 32]
        finally:
            os.close(directory)
        return [
            OwnFile(
                ContentId(bytes.fromhex(text)), at.st_blocks * 512, max(at.st_atime_ns, at.st_mtime_ns), at.st_mtime_ns
            )
            for text, at in found
            if _is_hex(text)
        ]

    def _open_for_writing(self, key: bytes) -> int:
        name = object_name(ContentId(key))
        try:
            return self._create(name, os.O_RDWR | os.O_CREAT, OPEN_MODE)
        except PermissionError:  # 0400 from a seal that was never recorded; root would not notice
            fd = open_below(self._root, name, os.O_RDONLY)
            try:
                os.fchmod(fd, OPEN_MODE)
            finally:
                os.close(fd)
            return open_below(self._root, name, os.O_RDWR)

    def _create(self, name: str, flags: int, mode: int) -> int:
        try:
            return open_below(self._root, name, flags, mode)
        except FileNotFoundError:
            make_directory(self._root, OBJECTS)
            make_directory(self._root, name.rpartition("/")[0])
            return open_below(self._root, name, flags, mode)


def wipe_objects(root: int) -> None:
    """Delete all own files."""
    objects = Objects(root)
    for file in objects.scan():
        objects.remove(file.content)
    objects.close()


def _fanout() -> Iterator[str]:
    return (f"{number:02x}" for number in range(256))


def _is_hex(text: str) -> bool:
    try:
        return len(bytes.fromhex(text)) == 16
    except ValueError:
        return False
