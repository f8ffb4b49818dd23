"""The state directory as a keeper holds it: at home on its disk, and made anew where somebody removed it.

While the disk does not take the catalog (full, read-only, failing), a stand-in in memory takes it, and the log. Every
process holds two descriptors: `fd`, where cached bytes lie, and `catalog_fd`; they are one but for the stand-in. A
keeper decides with which ones a mover is started; from then on all others follow the mover (`take`), who hands out its
own to whoever connects. So nobody reads one catalog while the mover writes another.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os

from mountkit import logs, places
from mountkit.config import MountSettings
from mountkit.errors import MountkitError
from mountkit.ipc import Message

log = logging.getLogger(__name__)
_PROOF = "write-proof"
_PROOF_BYTES = 1 << 20
"""What must fit on a disk to be trusted with the catalog again: some pages more than the next listing writes."""
_READ_BYTES = 64 << 20


class StateDirectory:
    """One mount's state directory. Owns its descriptors."""

    def __init__(self, settings: MountSettings, fd: int, *, stand_in_fd: int | None = None, trouble: str = "") -> None:
        """`stand_in_fd` and `trouble`: what a keeper before this one had come to."""
        self._settings = settings
        self.fd = fd
        self._stand_in_fd = stand_in_fd
        self.trouble = trouble
        """Why the stand-in is used; empty at home."""

    @classmethod
    def open(cls, settings: MountSettings) -> StateDirectory:
        """Made where missing. Raises UsageError or HostError when it cannot be used safely."""
        return cls(settings, places.open_state(settings.cache_directory, settings.state_name))

    def __repr__(self) -> str:
        return f"<StateDirectory {self.path} {'in memory: ' + self.trouble if self.trouble else 'at home'}>"

    @property
    def path(self) -> str:
        """Where it lies at home; it names the mover's socket, too."""
        return places.state_path(self._settings.cache_directory, self._settings.state_name)

    @property
    def catalog_fd(self) -> int:
        return self.fd if self._stand_in_fd is None else self._stand_in_fd

    @property
    def log_path(self) -> str:
        where = self.path if self._stand_in_fd is None else places.stand_in_path(self._settings.state_name)
        return os.path.join(where, logs.FILE_NAME)

    def renew(self) -> None:
        """If somebody removed the directory, makes it anew, or takes the stand-in where that cannot be done."""
        with contextlib.suppress(OSError):
            if os.fstat(self.fd).st_nlink == 0:
                self._make_anew()

    def _make_anew(self) -> None:
        try:
            fresh = places.open_state(self._settings.cache_directory, self._settings.state_name)
        except MountkitError as exc:
            self.stand_in(str(exc))
            return
        os.dup2(fresh, self.fd, inheritable=False)
        os.close(fresh)
        if self._stand_in_fd is None:
            logs.to_state_directory(self.fd)
        log.warning("the cache directory %s was removed; it is begun anew", self.path)

    def stand_in(self, why: str) -> None:
        """Has the catalog in memory from now on. Raises HostError where there is no place for it."""
        if self._stand_in_fd is not None:
            self.trouble = why
            return
        self._stand_in_fd = places.open_stand_in(self._settings.state_name)
        self.trouble = why
        logs.to_state_directory(self._stand_in_fd)
        log.warning("the cache directory %s cannot be used: %s; the mount goes on without it", self.path, why)

    def take(self, place: Message) -> None:
        """Goes where the mover is: it may have been started by another keeper."""
        fd, catalog_fd = place.fds
        adopt_directory(fd, self.fd)
        trouble = str(place.body["stand_in"])
        if trouble:
            self.stand_in(trouble)
        else:
            self.go_home()
        os.close(fd)
        os.close(catalog_fd)

    def go_home(self) -> None:
        """The catalog lies on its disk again; what was logged meanwhile goes there, too."""
        if self._stand_in_fd is None:
            return
        old, self._stand_in_fd, self.trouble = self._stand_in_fd, None, ""
        logs.to_state_directory(self.fd)
        with contextlib.suppress(OSError):
            self._append_log(old)
        os.close(old)
        log.warning("the cache directory %s works again", self.path)

    def works_at_home(self) -> bool:
        """Whether its disk lets itself be written and read. Blocks on that disk: for a thread."""
        try:
            if not os.fstat(self.fd).st_nlink:
                os.close(places.open_state(self._settings.cache_directory, self._settings.state_name))
                return True
            _prove_writable(self.fd)
            for name in ("catalog.db", "index.db"):
                _prove_readable(self.fd, name)
        except (OSError, MountkitError):
            return False
        return True

    def close(self) -> None:
        os.close(self.fd)
        if self._stand_in_fd is not None:
            os.close(self._stand_in_fd)

    def _append_log(self, stand_in_fd: int) -> None:
        fd = os.open(logs.FILE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=stand_in_fd)
        try:
            while text := os.read(fd, 1 << 16):
                os.write(2, text)
            os.unlink(logs.FILE_NAME, dir_fd=stand_in_fd)
        finally:
            os.close(fd)


def adopt_directory(fd: int, ours: int) -> bool:
    """Has our descriptor lead to the directory behind `fd`; whether it led elsewhere."""
    there, here = os.fstat(fd), os.fstat(ours)
    if os.path.samestat(there, here):
        return False
    os.dup2(fd, ours, inheritable=False)
    return True


def _prove_writable(directory_fd: int) -> None:
    """Raises OSError if the disk takes no file of some size."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_PROOF, flags, 0o600, dir_fd=directory_fd)
    try:
        if os.write(fd, bytes(_PROOF_BYTES)) < _PROOF_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    finally:
        os.close(fd)
        os.unlink(_PROOF, dir_fd=directory_fd)


def _prove_readable(directory_fd: int, name: str) -> None:
    """Raises OSError if a file, where it is there, cannot be read from the disk itself."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        left = _READ_BYTES
        while left > 0 and (text := os.read(fd, 1 << 20)):
            left -= len(text)
    finally:
        os.close(fd)
