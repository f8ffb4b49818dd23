"""Remembered mounts: the settings, never a secret, of each mount made on this boot, for `status --repair`.

A file for each mount point beside the sockets, in memory: after a restart of the machine there are none. A mount is
owed once a repair took a dead one away and could not mount it again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

from mountkit import places
from mountkit.config import MountSettings

_SUFFIX = ".mount"


def remember(settings: MountSettings, *, owed: bool = False) -> None:
    """Writes down how this directory is mounted, in the place of what was known before."""
    path = places.mount_record(settings.directory)
    temporary = f"{path}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump({"settings": settings.to_json(), "owed": owed}, file)
    os.rename(temporary, path)


def forget(directory: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(places.mount_record(directory))


def recall(directory: str) -> MountSettings | None:
    """How this directory was mounted; None if that is not known."""
    found = _read(places.mount_record(directory))
    return found[0] if found else None


def everything() -> Iterator[tuple[MountSettings, bool]]:
    """Every mount that is remembered, and whether it is owed."""
    directory = places.runtime_directory()
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            found = _read(os.path.join(directory, name)) if name.endswith(_SUFFIX) else None
            if found:
                yield found


def _read(path: str) -> tuple[MountSettings, bool] | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        return MountSettings.from_json(found["settings"]), bool(found["owed"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
