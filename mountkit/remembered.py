"""Remembered mounts: the settings, never a secret, of each mount made on this boot, for `status --repair`.

A file for each mount point beside the sockets, in memory: after a restart of the machine there are none. A mount is
owed once a repair took a dead one away and could not mount it again. Mount namespaces may share these files (a
container that has the host's /run): each belongs to the namespace in which the mount was made.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from mountkit import places
from mountkit.config import MountSettings

_SUFFIX = ".mount"


def remember(settings: MountSettings, *, owed: bool = False) -> None:
    """Writes down how this directory is mounted, in the place of what was known before."""
    path = places.mount_record(settings.directory)
    temporary = f"{path}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump({"settings": settings.to_json(), "owed": owed, "namespace": _namespace()}, file)
    os.rename(temporary, path)


def forget(directory: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(places.mount_record(directory))


def recall(directory: str) -> MountSettings | None:
    """How this directory was mounted; None if that is not known."""
    found = _read(places.mount_record(directory))
    return found.settings if found else None


def everything() -> Iterator[tuple[MountSettings, bool]]:
    """Every mount of this mount namespace that is remembered, and whether it is owed."""
    directory = places.runtime_directory()
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            found = _read(os.path.join(directory, name)) if name.endswith(_SUFFIX) else None
            if found and found.namespace == _namespace():
                yield found.settings, found.owed


@dataclass(frozen=True, slots=True)
class _Record:
    settings: MountSettings
    owed: bool
    namespace: str


def _read(path: str) -> _Record | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        return _Record(MountSettings.from_json(found["settings"]), bool(found["owed"]), str(found["namespace"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _namespace() -> str:
    """The mount namespace of this process, as the kernel names it: `mnt:[4026531841]`."""
    return os.readlink("/proc/self/ns/mnt")
