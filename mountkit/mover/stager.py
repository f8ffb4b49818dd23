"""Bringing existing objects into staging files, and whole trees into the catalog, for the output server.

A staged copy comes from the cache where it is there, else over it, always of exactly the version asked for. Its parts'
digests are kept, so that what a program does not change is later copied inside the bucket and not sent again.
"""

from __future__ import annotations

import functools
import hashlib
import os

import trio

from mountkit.catalog.lister import Lister
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import Kind, StaleCookie
from mountkit.errors import MountkitError, ObjectChanged
from mountkit.mover.fetch import Wanted, parts_of
from mountkit.mover.fetcher import Fetcher
from mountkit.mover.multipart import part_bytes_for
from mountkit.mover.queue import Priority
from mountkit.staging.queue import Base, UploadJournal

_PARTS_AT_ONCE = 4
_STEP_BYTES = 1 << 20
_DIGEST_BYTES = 16
_ATTEMPTS = 5
_DIRECTORIES_AT_ONCE = 16
_PAGE = 1000


async def stage(
    fetcher: Fetcher, journal: UploadJournal, staging_fd: int, wanted: Wanted, file: int, size: int
) -> None:
    """Makes staging file `file`, which is there, the first `size` bytes of this version.

    Raises what fetching raises (ObjectChanged, …), MountkitError where the disk does not take the bytes.
    """
    part_bytes = part_bytes_for(wanted.row.size)
    digests: dict[int, bytes] = {}
    limiter = trio.CapacityLimiter(_PARTS_AT_ONCE)
    fd = _opened(staging_fd, file)

    async def one(number: int) -> None:
        offset = number * part_bytes
        async with limiter:
            digests[number] = await _copy(fetcher, wanted, fd, offset, min(part_bytes, size - offset))

    try:
        _disk(functools.partial(os.ftruncate, fd, size))
        try:
            async with trio.open_nursery() as nursery:
                for number in range(-(-size // part_bytes)):
                    nursery.start_soon(one, number)
        except* MountkitError as group:
            raise _first(group) from group
    finally:
        os.close(fd)
    row = wanted.row
    joined = b"".join(digests[number] for number in range(len(digests)))
    journal.set_base(file, Base(row.key, row.etag, row.size, part_bytes, joined))


async def _copy(fetcher: Fetcher, wanted: Wanted, fd: int, offset: int, length: int) -> bytes:
    """Copies these bytes; the digest of them."""
    sha256 = hashlib.sha256()
    for start in range(offset, offset + length, _STEP_BYTES):
        data = await _fetched(fetcher, wanted, start, min(_STEP_BYTES, offset + length - start))
        await trio.to_thread.run_sync(_write, fd, data, start, sha256.update)
    return sha256.digest()[:_DIGEST_BYTES]


async def _fetched(fetcher: Fetcher, wanted: Wanted, offset: int, length: int) -> bytes:
    for _ in range(_ATTEMPTS):
        await fetcher.need(wanted, parts_of(offset, length), Priority.DEMAND)
        data = fetcher.gather(wanted, offset, length)
        if data is not None:
            return data
    raise MountkitError(f"the cache does not keep {wanted.row.key!r} long enough to be staged")


def _opened(staging_fd: int, file: int) -> int:
    try:
        return os.open(str(file), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging_fd)
    except OSError as exc:
        raise MountkitError(f"there is no staging file {file}: {os.strerror(exc.errno or 0)}") from exc


def _write(fd: int, data: bytes, offset: int, hash_update: object) -> None:
    hash_update(data)  # type: ignore[operator]
    view = memoryview(data)
    while view:
        written = _disk(functools.partial(os.pwrite, fd, view, offset))
        view, offset = view[written:], offset + written


def _disk(act: functools.partial[int] | functools.partial[None]) -> int:
    try:
        return act() or 0
    except OSError as exc:
        raise StagingFailed.of(exc) from exc


class StagingFailed(MountkitError):
    """The staging disk did not take the bytes."""

    @classmethod
    def of(cls, exc: OSError) -> StagingFailed:
        return cls(f"the staging disk does not take the bytes: {os.strerror(exc.errno or 0)}", "make room on it")


def _first(group: BaseExceptionGroup[MountkitError]) -> MountkitError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


class TreeLister:
    """One request to have everything below a directory listed."""

    def __init__(self, catalog: Catalog, lister: Lister, fresh_after: float) -> None:
        self._catalog, self._lister, self._fresh_after = catalog, lister, fresh_after
        self._limiter = trio.CapacityLimiter(_DIRECTORIES_AT_ONCE)
        self.objects = 0

    async def run(self, directory: int) -> int:
        """Returns once all of it is in the catalog: the number of objects. Raises the first StoreError."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._list, directory, nursery)
        except* MountkitError as group:
            raise _first(group) from group
        return self.objects

    async def _list(self, directory: int, nursery: trio.Nursery) -> None:
        async with self._limiter:
            await self._lister.list_whole(directory, self._fresh_after)
        cookie = 0
        while True:
            try:
                page = self._catalog.page(directory, cookie, _PAGE, 0.0)
            except (KeyError, StaleCookie):
                raise ObjectChanged("the directory changed while it was listed", "try again") from None
            for entry in page.entries:
                cookie = entry.cookie
                if entry.kind is Kind.DIRECTORY:
                    nursery.start_soon(self._list, entry.inode, nursery)
                else:
                    self.objects += 1
            if not page.entries:
                return
            await trio.lowlevel.checkpoint()
