"""What a state directory says of itself: whose data it holds. For people and `mountkit cache`; nothing depends on it.

The file's modification time is when the state was last used.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from mountkit import __version__
from mountkit.config import MountSettings

FILE = "about.json"
FORMAT = 1
"""Of this file. Catalog, index and journal have versions of their own."""


def write(state_fd: int, settings: MountSettings) -> None:
    """Says what is kept here. A disk that takes no more is no reason to fail."""
    kind, _, name = settings.identity.partition(":")
    described = {
        "format": FORMAT,
        "source": str(settings.source),
        "endpoint": settings.source.endpoint,
        "identity": f"{kind} {name[:4]}…{name[-4:]}" if kind == "key" and len(name) > 11 else f"{kind} {name}".strip(),
        "driver": settings.driver,
        "version": __version__,
    }
    temporary = f"{FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=state_fd)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(described, file)
        os.rename(temporary, FILE, src_dir_fd=state_fd, dst_dir_fd=state_fd)


def used_now(state_fd: int) -> None:
    """Notes that the state was in use until now."""
    with contextlib.suppress(OSError):
        os.utime(FILE, dir_fd=state_fd)


def read(state_fd: int) -> tuple[dict[str, Any], float]:
    """What it says, and when it was last used; empty and 0 for a state that says nothing."""
    try:
        fd = os.open(FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state_fd)
        with open(fd, encoding="utf-8") as file:
            found = json.load(file)
            return (found if isinstance(found, dict) else {}), os.fstat(file.fileno()).st_mtime
    except (OSError, ValueError):
        return {}, 0.0
