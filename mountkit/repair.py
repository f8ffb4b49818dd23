"""Repair: mounts whose processes died are taken away and mounted again; sockets that lead to nobody are removed.

How they were mounted is remembered (see `remembered`); the credentials are those of whoever repairs.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from mountkit import mountinfo, mounting, mounts, places, remembered, unmounting
from mountkit.config import MountSettings
from mountkit.errors import MountkitError
from mountkit.mounts import MountInfo

BROKEN = ("dead", "unwatched")


def repair(directory: str = "") -> Iterator[tuple[bool, str]]:
    """Mends this user's mounts, or the one at `directory`: for each thing done, or not done (False), a sentence."""
    wanted = mountinfo.resolve(directory) if directory else ""
    for info in mounts.list_all():
        ours = info.owner_uid == os.getuid() and info.state in BROKEN
        if ours and wanted in ("", info.directory):
            yield _mended(info)
    mounted = {point.directory for point in mountinfo.ours()}
    for settings, owed in remembered.everything():
        if settings.directory not in mounted and wanted in ("", settings.directory):
            if owed:
                yield _mounted(settings, "had been taken away")
            else:
                remembered.forget(settings.directory)  # somebody unmounted it without us
    if not wanted:
        for path in _dead_sockets():
            yield True, f"{path} led to nobody: removed"


def _mended(info: MountInfo) -> tuple[bool, str]:
    settings = remembered.recall(info.directory)
    try:
        unmounting.unmount(info.directory)
    except MountkitError as exc:
        return False, f"{info.directory} is {info.state} and cannot be taken away: {exc}"
    if settings is None:
        return (
            True,
            f"{info.directory} was {info.state}: taken away; mount it again (nobody knows how it was)",
        )
    return _mounted(settings, f"was {info.state}")


def _mounted(settings: MountSettings, how: str) -> tuple[bool, str]:
    credentials = None
    kind, _, path = settings.identity.partition(":")
    try:
        if kind == "passwd":
            from mountkit.store.passwd import read_passwd_file

            credentials = read_passwd_file(path, settings.source.bucket)
        mounting.mount(settings, passwd_credentials=credentials)
    except MountkitError as exc:
        remembered.remember(settings, owed=True)
        return False, f"{settings.directory} {how}; it is not mounted again yet: {exc}" + (
            f" ({exc.hint})" if exc.hint else ""
        )
    return True, f"{settings.directory} {how}: mounted again"


def _dead_sockets() -> list[str]:
    """Removes the sockets that nobody listens at; their paths."""
    directory = places.runtime_directory()
    removed = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            if name.endswith(".sock") and _leads_nowhere(path):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                    removed.append(path)
    return removed


def _leads_nowhere(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
