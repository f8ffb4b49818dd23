"""A disk that loses power: ext4 on a loop device, shut down without a word to its journal, as xfstests do it.

What had been synced, or what the file system had written by itself, is there after `restore`; nothing else is.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN, or EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)."""
_WITHOUT_LOG = 2


class PoweredDisk:
    """An ext4 file system mounted at `directory`. It commits every 5 minutes only: what is there was synced."""

    def __init__(self, image: Path, directory: Path) -> None:
        self.directory, self._image = directory, image

    def restore(self) -> None:
        """Mounts it; ext4 replays its journal."""
        subprocess.run(["mount", "-o", "loop,commit=300", self._image, self.directory], check=True)

    def holds(self, data: bytes) -> bool:
        """Whether these bytes have reached it, wherever they lie."""
        with self._image.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as found:
            return found.find(data) >= 0

    def cut(self) -> None:
        """From now on nothing reaches the disk, and whoever uses it gets EIO."""
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
        finally:
            os.close(fd)

    def take_away(self) -> None:
        """Unmounts it, once nobody has anything open on it."""
        subprocess.run(["umount", self.directory], check=True)


@contextmanager
def powered_disk(base: Path, directory: Path, size_bytes: int = 256 << 20) -> Iterator[PoweredDisk]:
    image = base / "disk.img"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", image], check=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    disk = PoweredDisk(image, directory)
    disk.restore()
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", directory], check=True)
        image.unlink()
