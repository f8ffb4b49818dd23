"""A disk that fails on command: a FUSE file system over a directory, run as a process of its own.

    python -m tests.faults.broken_disk BACKING DIRECTORY CONTROL

While the file CONTROL holds the word `read`, reads and opens fail with EIO; `write`: whatever changes something does;
`read-only`: the same with EROFS, and opens for writing, too.
It prints `ready` once it is mounted, and ends with the mount. Knows nothing of mountkit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator

import pyfuse3
import trio

Attributes = pyfuse3.EntryAttributes


@contextlib.contextmanager
def errors() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise pyfuse3.FUSEError(exc.errno or errno.EIO) from None


class BrokenDisk(pyfuse3.Operations):
    """Inode numbers are our own, a path each; enough for one program's cache, not for hard links."""

    enable_writeback_cache = False

    def __init__(self, backing: str, control: str) -> None:
        super().__init__()
        self._control = control
        self._paths = {pyfuse3.ROOT_INODE: backing}
        self._inodes = {backing: int(pyfuse3.ROOT_INODE)}
        self._deleted: set[int] = set()
        self._next = 100

    def _fails(self, what: str) -> None:
        with contextlib.suppress(FileNotFoundError), open(self._control, encoding="utf-8") as words:
            failing = words.read().split()
            if what in failing:
                raise pyfuse3.FUSEError(errno.EIO)
            if what == "write" and "read-only" in failing:
                raise pyfuse3.FUSEError(errno.EROFS)

    def _path(self, parent: int, name: bytes) -> str:
        return os.path.join(self._paths[parent], os.fsdecode(name))

    def _inode(self, path: str) -> int:
        if path not in self._inodes:
            self._next += 1
            self._inodes[path] = self._next
            self._paths[self._next] = path
        return self._inodes[path]

    def _forget_path(self, path: str) -> None:
        inode = self._inodes.pop(path, 0)
        self._deleted.add(inode)

    def _attributes(self, found: os.stat_result, inode: int) -> Attributes:
        entry = Attributes()
        for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
            setattr(entry, name, getattr(found, name))
        entry.st_ino = inode
        entry.st_blksize, entry.st_blocks = 4096, found.st_blocks
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: object) -> Attributes:
        self._fails("read")
        path = self._path(parent, name)
        with errors():
            return self._attributes(os.lstat(path), self._inode(path))

    async def getattr(self, inode: int, ctx: object = None) -> Attributes:
        with errors():
            if inode in self._deleted:
                raise OSError(errno.ESTALE, "deleted")
            return self._attributes(os.lstat(self._paths[inode]), inode)

    async def setattr(self, inode: int, attr: Attributes, fields: object, fh: int | None, ctx: object) -> Attributes:
        self._fails("write")
        target: int | str = fh if fh is not None else self._paths[inode]
        with errors():
            if fields.update_size:
                os.truncate(target, attr.st_size)
            if fields.update_mode:
                os.chmod(target, stat.S_IMODE(attr.st_mode))
            if fields.update_mtime:
                os.utime(target, ns=(attr.st_mtime_ns, attr.st_mtime_ns))
            return self._attributes(os.stat(target), inode)

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: object) -> Attributes:
        self._fails("write")
        path = self._path(parent, name)
        with errors():
            os.mkdir(path, mode & 0o777)
            return self._attributes(os.lstat(path), self._inode(path))

    async def unlink(self, parent: int, name: bytes, ctx: object) -> None:
        self._fails("write")
        with errors():
            os.unlink(self._path(parent, name))
            self._forget_path(self._path(parent, name))

    async def rmdir(self, parent: int, name: bytes, ctx: object) -> None:
        self._fails("write")
        with errors():
            os.rmdir(self._path(parent, name))
            self._forget_path(self._path(parent, name))

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: object) -> None:
        self._fails("write")
        old, new = self._path(parent, name), self._path(new_parent, new_name)
        with errors():
            os.rename(old, new)
        self._forget_path(new)
        if old in self._inodes:
            inode = self._inodes[new] = self._inodes.pop(old)
            self._paths[inode] = new

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        self._fails("write" if flags & os.O_ACCMODE != os.O_RDONLY else "read")
        with errors():
            return pyfuse3.FileInfo(fh=os.open(self._paths[inode], flags & ~(os.O_CREAT | os.O_APPEND)))

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: object
    ) -> tuple[pyfuse3.FileInfo, Attributes]:
        self._fails("write")
        path = self._path(parent, name)
        with errors():
            fd = os.open(path, (flags | os.O_CREAT) & ~os.O_APPEND, mode & 0o777)
            return pyfuse3.FileInfo(fh=fd), self._attributes(os.fstat(fd), self._inode(path))

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        self._fails("read")
        with errors():
            return os.pread(fh, size, offset)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        self._fails("write")
        with errors():
            return os.pwrite(fh, data, offset)

    async def fsync(self, fh: int, data_only: bool) -> None:
        self._fails("write")

    async def release(self, fh: int) -> None:
        os.close(fh)

    async def opendir(self, inode: int, ctx: object) -> int:
        return inode

    async def readdir(self, fh: int, start: int, token: object) -> None:
        self._fails("read")
        with errors():
            names = sorted(os.listdir(self._paths[fh]))
        for number, name in enumerate(names[start:], start + 1):
            path = os.path.join(self._paths[fh], name)
            with contextlib.suppress(FileNotFoundError):
                entry = self._attributes(os.lstat(path), self._inode(path))
                if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, number):
                    return

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        found, answer = os.statvfs(self._paths[pyfuse3.ROOT_INODE]), pyfuse3.StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(answer, name, getattr(found, name))
        answer.f_namemax = 255
        return answer


def main() -> None:
    backing, directory, control = sys.argv[1:]
    options = set(pyfuse3.default_options) | {"fsname=broken-disk", "default_permissions"}
    pyfuse3.init(BrokenDisk(backing, control), directory, options)
    print("ready", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
