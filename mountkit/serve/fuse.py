"""pyfuse3, and nothing else knows it: the session's set-up and every operation that is not hot.

An exception other than FUSEError from a handler would end the mount, so each goes through `_adapted`, which holds the
one catch-all; its first act hands libfuse's descriptor back to the kernel (see `wire`).
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pyfuse3

from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.values import FileSystemError
from mountkit.serve.wire import Wire

log = logging.getLogger(__name__)
_MAX_TASKS = 512  # 99 slow requests must not block all others
_TOTAL_BLOCKS = 1 << 38  # df shows 1 PiB: a bucket does not tell its size
_Method = Callable[..., Coroutine[Any, Any, Any]]


def _adapted(method: _Method) -> _Method:
    @functools.wraps(method)
    async def handler(self: Operations, *arguments: Any) -> Any:
        self.wire.to_kernel()
        self.files.counters.requests += 1
        try:
            return await self.files.names.doubts.patiently(lambda: method(self, *arguments))
        except FileSystemError as exc:
            raise pyfuse3.FUSEError(exc.errno) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("%s failed in a way nobody foresaw", method.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return handler


class Operations(pyfuse3.Operations):
    """What pyfuse3 calls for a read-only mount."""

    def __init__(self, wire: Wire, files: InputFileSystem) -> None:
        super().__init__()
        self.wire, self.files = wire, files

    @_adapted
    async def statfs(self, _ctx: Any) -> Any:
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = answer.f_bfree = answer.f_bavail = _TOTAL_BLOCKS
        answer.f_files = answer.f_ffree = answer.f_favail = 1 << 40
        answer.f_namemax = 255
        return answer

    @_adapted
    async def getxattr(self, inode: int, name: bytes, _ctx: Any) -> bytes:
        found = self.files.names.extended_attributes(inode).get(name) if name.startswith(b"user.s3.") else None
        if found is None:
            raise FileSystemError(errno.ENODATA)
        return found

    @_adapted
    async def listxattr(self, inode: int, _ctx: Any) -> list[bytes]:
        return list(self.files.names.extended_attributes(inode))

    @_adapted
    async def flush(self, _handle: int) -> None:
        raise FileSystemError(errno.ENOSYS)  # said once, and the kernel stops asking

    @_adapted
    async def readlink(self, _inode: int, _ctx: Any) -> bytes:
        raise FileSystemError(errno.EINVAL)

    async def forget(self, _inodes: Any) -> None:
        """Never called: FORGET is answered on the wire. It must not raise."""


async def serve(wire: Wire, files: InputFileSystem, fd: int) -> None:
    """Serves the session at descriptor `fd` through `wire` until it is unmounted or aborted."""
    vars(pyfuse3)["trio"] = wire.trio_facade()
    pyfuse3.init(Operations(wire, files), f"/dev/fd/{fd}", set(pyfuse3.default_options))
    try:
        await pyfuse3.main(max_tasks=_MAX_TASKS)
    finally:
        wire.to_kernel()
        pyfuse3.close(unmount=False)
