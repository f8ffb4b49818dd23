"""The disk of a mount's state: may its directory be used, and is there room for cache and staging? Changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from mountkit import mountinfo, places, states
from mountkit.config import MountSettings
from mountkit.doctor.line import Line, Section
from mountkit.errors import MountkitError
from mountkit.report import size
from mountkit.staging import schema

_HOST = Section("host")
_IN_MEMORY = {"tmpfs", "ramfs"}
_SLOW = {"nfs", "nfs4", "cifs", "9p", "fuse.sshfs"}


@dataclass(frozen=True, slots=True)
class _Disk:
    """The disk below a cache directory, and what the mount's own state takes of it already."""

    total_bytes: int
    free_bytes: int
    cached_bytes: int
    staged_bytes: int

    def room_for_cache_bytes(self, free_share: float) -> int:
        return max(0, self.cached_bytes + self.free_bytes - int(self.total_bytes * free_share))


def check(settings: MountSettings) -> Iterator[Line]:
    """The lines about the directory and the disk of `settings`; those about staging for a writable mount only."""
    directory = settings.cache_directory
    try:
        places.check_cache(directory)
    except MountkitError as exc:
        yield _HOST.fault("cache", exc)
        return
    existing = directory
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    disk = _look(settings, existing)
    yield _cache(settings, disk)
    if settings.outputs is not None:
        yield _staging(settings, disk, settings.outputs.staging_size_bytes)
    point = mountinfo.covering(mountinfo.resolve(existing), mountinfo.mount_points())
    if point is not None:
        yield from _kind(point, writable=settings.outputs is not None)


def _look(settings: MountSettings, existing: str) -> _Disk:
    found = shutil.disk_usage(existing)
    state = places.state_path(settings.cache_directory, settings.state_name)
    staged = states.disk_usage(os.path.join(state, schema.STAGING))
    return _Disk(found.total, found.free, states.disk_usage(state) - staged, staged)


def _cache(settings: MountSettings, disk: _Disk) -> Line:
    wanted, room = settings.cache_size_bytes, disk.room_for_cache_bytes(settings.cache_free_share)
    words = f"{settings.cache_directory}: {size(disk.free_bytes)} of {size(disk.total_bytes)} are free"
    if room < wanted:
        return _HOST.note(
            "cache",
            f"{words}, so it holds {size(room)} and not {size(wanted)}",
            "nothing fails; what does not fit is fetched each time: name another disk with --cache",
        )
    return _HOST.fine("cache", f"{words}, {size(wanted)} may be used")


def _staging(settings: MountSettings, disk: _Disk, wanted: int) -> Line:
    """What the cache may still take is not counted on: it keeps what it has, and staging lies on the same disk."""
    cache = min(settings.cache_size_bytes, disk.room_for_cache_bytes(settings.cache_free_share))
    room = disk.free_bytes + disk.staged_bytes - max(0, cache - disk.cached_bytes)
    now = f", {size(disk.staged_bytes)} are staged" if disk.staged_bytes else ""
    if room < wanted:
        return _HOST.note(
            "staging",
            f"once the cache is full, {size(max(0, room))} are left for what waits for its upload, "
            f"and not {size(wanted)}{now}",
            "when they are used up, writers get ENOSPC until uploads make room: "
            "name another disk with --cache, or a smaller --cache-size",
        )
    return _HOST.fine("staging", f"{size(wanted)} may wait for their upload{now}")


def _kind(point: mountinfo.MountPoint, *, writable: bool) -> Iterator[Line]:
    words = f"{point.directory} is {point.fstype}"
    if point.fstype in _IN_MEMORY:
        lost = ", and what is not yet uploaded is lost when this machine goes down" if writable else ""
        yield _HOST.note("cache disk", f"{words}: it takes memory{lost}", "name a local disk with --cache")
    elif point.fstype in _SLOW:
        yield _HOST.note("cache disk", f"{words}: it is a network disk", "name a local disk with --cache")
