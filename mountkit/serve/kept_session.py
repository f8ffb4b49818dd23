"""A session that systemd keeps while no process of ours lives: what is stored, and what comes back.

Two descriptors, the kernel's and the servers' shared memory, and a memfd with the words a keeper needs to go on. They
are in the manager's store from the moment the mount answers until the unit has stopped for good, so a restart, an
upgrade or the death of every process leaves readers waiting instead of failing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from mountkit import mountinfo, notify
from mountkit.config import MountSettings
from mountkit.errors import MountError, MountkitError
from mountkit.notify import Manager
from mountkit.serve import session
from mountkit.serve.session import Session

_FORMAT = 2
_FUSE, _SHARED, _WORDS = "mountkit-fuse", "mountkit-shared", "mountkit-session"
_NAMES = (_FUSE, _SHARED, _WORDS)


@dataclass(frozen=True, slots=True)
class KeptSession:
    """What a keeper of an earlier life left; the descriptors belong to the receiver."""

    session: Session
    shared_fd: int
    settings: MountSettings
    region: str
    shape: list[int]

    def suits(self, wanted: MountSettings) -> bool:
        """Whether `wanted` can be served on this session: what the kernel was promised cannot be taken back."""
        promised = ("source", "directory", "state_name", "cache_directory", "allow_other", "executable")
        fixed = (*promised, "passthrough", "servers")
        return all(getattr(self.settings, name) == getattr(wanted, name) for name in fixed)

    def abandon(self) -> None:
        """Ends the session and takes its mount away: its readers get an error now instead of waiting for ever."""
        session.abort(self.session.device)
        for fd in (self.session.fd, self.shared_fd):
            os.close(fd)  # the last descriptor's end is the session's, where this user may not abort it
        if any(m.device == self.session.device and m.directory == self.session.directory for m in mountinfo.ours()):
            with contextlib.suppress(MountkitError):
                session.unmount(self.session.directory, lazy=True)


def keep(manager: Manager, kept: KeptSession) -> None:
    """Has the manager keep the session from now on."""
    words = {
        "format": _FORMAT,
        "init": kept.session.init.hex(),
        "directory": kept.session.directory,
        "device": kept.session.device,
        "settings": kept.settings.to_json(),
        "region": kept.region,
        "shape": kept.shape,
    }
    fd = os.memfd_create(_WORDS, os.MFD_CLOEXEC)
    try:
        os.write(fd, json.dumps(words).encode())
        drop(manager)
        for name, each in zip(_NAMES, (kept.session.fd, kept.shared_fd, fd), strict=True):
            manager.keep(name, each)
    finally:
        os.close(fd)


def drop(manager: Manager) -> None:
    """Nothing is kept any more."""
    for name in _NAMES:
        manager.drop(name)


def take(environment: MutableMapping[str, str]) -> KeptSession | None:
    """The session that was kept for this process; None if there is none.

    Raises MountError if there is one that has ended or that this version cannot read; its descriptors are closed here.
    """
    fds = notify.take(environment)
    if not fds:
        return None
    used: tuple[int, ...] = ()
    try:
        found = _read(fds)
        used = (found.session.fd, found.shared_fd)
        return found
    finally:
        for fd in fds.values():
            if fd not in used:
                os.close(fd)


def _read(fds: dict[str, int]) -> KeptSession:
    if not all(name in fds for name in _NAMES) or not session.is_connected(fds[_FUSE]):
        raise MountError("the session that was kept for this mount has ended")
    with open(f"/proc/self/fd/{fds[_WORDS]}", encoding="utf-8") as file:
        words: dict[str, Any] = json.load(file)
    if words.get("format") != _FORMAT:
        raise MountError("the session that was kept for this mount is another version's")
    mounted = Session(fds[_FUSE], bytes.fromhex(words["init"]), words["directory"], words["device"])
    settings = MountSettings.from_json(words["settings"])
    return KeptSession(mounted, fds[_SHARED], settings, words["region"], words["shape"])
