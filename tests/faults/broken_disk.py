"""A disk that fails when told to: a directory shown through FUSE, whose reads or writes give EIO.

    python -m tests.faults.broken_disk BACKING DIRECTORY CONTROL

While the file CONTROL exists, what its text names (`read`, `write`, or both) fails with EIO. dm-error would do the same
where the kernel has a device mapper; this one needs none. One process, synchronous on purpose: what it shows is a disk.
"""

from __future__ import annotations

import errno
import os
import sys

import pyfuse3
import trio


class BrokenDisk(pyfuse3.Operations):  # type: ignore[misc]
    """Inode numbers are those of the backing files; paths are kept for every inode that was looked up."""

    enable_writeback_cache = False

    def __init__(self, backing: str, control: str) -> None:
        super().__init__()
        self._paths: dict[int, str] = {pyfuse3.ROOT_INODE: backing}
        self._control = control
        self._open: dict[int, int] = {}

    def _check(self, what: str) -> None:
        try:
            with open(self._control) as file:
                broken = what in file.read()
        except OSError:
            return
        if broken:
            raise pyfuse3.FUSEError(errno.EIO)

    def _attributes(self, path: str) -> pyfuse3.EntryAttributes:
        try:
            found = os.lstat(path)
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno) from None
        entry = pyfuse3.EntryAttributes()
        for name in ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks"):
            setattr(entry, name, getattr(found, name))
        for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
            setattr(entry, name, getattr(found, name))
        entry.st_blksize = 4096
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = 0
        self._paths[found.st_ino] = path
        return entry

    def _at(self, parent: int, name: bytes) -> str:
        return os.path.join(self._paths[parent], os.fsdecode(name))

    async def lookup(self, parent: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        return self._attributes(self._at(parent, name))

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        for fd, ident in self._open.items():
            if ident == inode and not os.path.lexists(self._paths[inode]):
                return self._of_fd(fd)
        entry = self._attributes(self._paths[inode])
        entry.st_ino = inode
        return entry

    def _of_fd(self, fd: int) -> pyfuse3.EntryAttributes:
        found = os.fstat(fd)
        entry = pyfuse3.EntryAttributes()
        for name in ("st_ino", "st_mode", "st_nlink", "st_size", "st_mtime_ns", "st_ctime_ns", "st_atime_ns"):
            setattr(entry, name, getattr(found, name))
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None, ctx: object
    ) -> pyfuse3.EntryAttributes:
        self._check("write")
        path = self._paths[inode]
        try:
            if fields.update_size:
                os.truncate(path if fh is None else fh, attr.st_size)
            if fields.update_mode:
                os.chmod(path, attr.st_mode & 0o7777)
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno) from None
        return await self.getattr(inode)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        return self._opened(self._paths[inode], flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))

    def _opened(self, path: str, flags: int, mode: int = 0o600) -> pyfuse3.FileInfo:
        try:
            fd = os.open(path, flags, mode)
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno) from None
        self._open[fd] = os.fstat(fd).st_ino
        return pyfuse3.FileInfo(fh=fd, keep_cache=False)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: object
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self._check("write")
        path = self._at(parent, name)
        info = self._opened(path, flags | os.O_CREAT, mode & 0o7777)
        return info, self._attributes(path)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        self._check("read")
        return os.pread(fh, size, offset)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        self._check("write")
        return os.pwrite(fh, data, offset)

    async def release(self, fh: int) -> None:
        self._open.pop(fh, None)
        os.close(fh)

    async def flush(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        self._check("write")

    async def unlink(self, parent: int, name: bytes, ctx: object) -> None:
        self._check("write")
        try:
            os.unlink(self._at(parent, name))
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno) from None

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: object) -> pyfuse3.EntryAttributes:
        self._check("write")
        path = self._at(parent, name)
        try:
            os.mkdir(path, mode)
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno) from None
        return self._attributes(path)

    async def rename(self, old: int, name: bytes, new: int, new_name: bytes, flags: int, ctx: object) -> None:
        self._check("write")
        try:
            os.rename(self._at(old, name), self._at(new, new_name))
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno) from None
        self._attributes(self._at(new, new_name))

    async def opendir(self, inode: int, ctx: object) -> int:
        return inode

    async def readdir(self, fh: int, start: int, token: object) -> None:
        names = sorted(os.listdir(self._paths[fh]))
        for number, name in enumerate(names[start:], start + 1):
            entry = self._attributes(os.path.join(self._paths[fh], name))
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, number):
                return

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        found, answer = os.statvfs(self._paths[pyfuse3.ROOT_INODE]), pyfuse3.StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(answer, name, getattr(found, name))
        return answer


def main() -> None:
    backing, directory, control = sys.argv[1:]
    pyfuse3.init(BrokenDisk(backing, control), directory, {*pyfuse3.default_options, "fsname=broken-disk"})
    print("ready", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
