"""The mounts of runs: one per source and options, shared by the runs that go on, unmounted by the last.

    mounts/KEY/lock         held while somebody mounts, unmounts, or counts
    mounts/KEY/users/ID     one per run that uses the mount, locked by its process; holds the path of the run's record
    mounts/KEY/mnt          where it is mounted

A run that was killed leaves its user file, unlocked. It counts until somebody has collected that run, because its
container may still be reading; once its record is gone or has a receipt, the file counts no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Protocol

from mountkit import places
from mountkit.errors import HostError, MountBusy, MountkitError, StoreError
from mountkit.run import records
from mountkit.run.answering import must_answer
from mountkit.run.read import Tracer

Options = Mapping[str, str | bool]


class Mounter(Protocol):
    """What a run asks of mountkit's mounts."""

    @property
    def traces(self) -> Tracer:
        """Where it is written down what is opened in them."""
        ...

    def key(self, source: str, options: Options) -> str:
        """A name for the mount of `source` with `options`, the same for the same mount. Raises UsageError."""
        ...

    def mount(self, source: str, directory: str, options: Options) -> None:
        """Mounts and returns once the mount answers. Raises MountkitError; then nothing is left behind."""
        ...

    def unmount(self, directory: str, *, force: bool = False) -> None:
        """Unmounts. Raises MountBusy, MountkitError."""
        ...

    def uploaded(self, directory: str, since: float, timeout_s: float) -> tuple[list[dict[str, Any]], str]:
        """Waits until everything written there is in the bucket: what was put since then, and why not all of it."""
        ...

    def put(self, directory: str, path: str, content: BinaryIO) -> None:
        """Makes a file at `path` in a writable mount. Raises MountError."""
        ...

    def state(self, path: str) -> str:
        """The state of the mount of ours that `path` lies in; "" if it lies in none."""
        ...

    def details(self, path: str) -> dict[str, Any]:
        """What its keeper says about it; empty where there is none."""
        ...


class SharedMounts:
    """The mounts below `base` (default: the runtime directory)."""

    def __init__(self, mounter: Mounter, base: str = "") -> None:
        self._mounter = mounter
        self._base = base or os.path.join(places.runtime_directory(), "mounts")
        self._locks: dict[tuple[str, str], int] = {}

    def directory(self, source: str, options: Options) -> str:
        """Where that mount is or would be."""
        return os.path.join(self._base, self._mounter.key(source, options), "mnt")

    def take(self, source: str, options: Options, run: records.Run, what: str = "input") -> str:
        """The directory the source is mounted at, answering, until `release`. Raises MountkitError.

        Whatever interrupts it, nothing of this run is left.
        """
        directory = self.directory(source, options)
        home = os.path.dirname(directory)
        try:
            with self._locked(home, make=True):
                self._enter(home, run)
                try:
                    os.makedirs(directory, mode=0o700, exist_ok=True)
                    if self._mounter.state(directory) in ("", "dead"):
                        self._mount(source, directory, options, what)
                    must_answer(directory, f"the {what} `{source}`")
                except BaseException:
                    self._leave(home, run, say=lambda _: None)
                    raise
        except OSError as exc:
            raise HostError(f"cannot use the directory {home}: {os.strerror(exc.errno or 0)}") from exc
        return directory

    def release(self, directory: str, run: records.Run, *, force: bool = False) -> list[str]:
        """This run uses it no more; the last one unmounts it, busy or not. What went wrong, as sentences.

        `force`: without waiting for uploads.
        """
        said: list[str] = []
        home = os.path.dirname(directory)
        try:
            with self._locked(home, make=False):
                self._leave(home, run, say=said.append, force=force)
        except FileNotFoundError:
            pass
        except OSError as exc:
            said.append(f"warning: cannot clear {home}: {os.strerror(exc.errno or 0)}")
        return said

    def users(self, directory: str) -> list[str]:
        """The ids of the runs that use it."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(os.path.join(os.path.dirname(directory), "users")))
        return []

    def _mount(self, source: str, directory: str, options: Options, what: str) -> None:
        try:
            self._mounter.mount(source, directory, options)
        except MountkitError as exc:
            exc.sentence = f"cannot mount the {what} `{source}`: {exc.sentence}"
            if isinstance(exc, StoreError) and os.path.isdir(source):
                exc.hint = f"if you mean the directory {source} of this host, write ./{source}"
            raise

    def _enter(self, home: str, run: records.Run) -> None:
        os.makedirs(os.path.join(home, "users"), mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(home, "users", run.id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, os.fsencode(run.path))
        self._locks[home, run.id] = fd

    def _leave(self, home: str, run: records.Run, *, say: Any, force: bool = False) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(home, "users", run.id))
        if (fd := self._locks.pop((home, run.id), None)) is not None:
            os.close(fd)
        if any(_counts(os.path.join(home, "users", name)) for name in self.users(os.path.join(home, "mnt"))):
            return
        self._unmount(os.path.join(home, "mnt"), say, force)
        for name in ("users", "mnt"):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(os.path.join(home, name))
        os.unlink(os.path.join(home, "lock"))
        os.rmdir(home)

    def _unmount(self, directory: str, say: Any, force: bool) -> None:
        """Undoes one mount, busy or not; what cannot be undone is said, and changes no exit code."""
        try:
            if self._mounter.state(directory):
                try:
                    self._mounter.unmount(directory, force=force)
                except MountBusy as exc:
                    say(f"{exc.sentence}; cutting it off, as the run has ended")
                    self._mounter.unmount(directory, force=True)
        except MountkitError as exc:
            say(f"warning: {directory} is still mounted: {exc.sentence}")

    @contextlib.contextmanager
    def _locked(self, home: str, *, make: bool) -> Iterator[None]:
        """Holds the lock of one mount. FileNotFoundError if there is none and none shall be made."""
        path = os.path.join(home, "lock")
        while True:
            if make:
                places.ensure_runtime_directory()
                os.makedirs(self._base, mode=0o700, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(home, 0o700)
            try:
                fd = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0) | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                if make:
                    continue  # its last user took the directory away just now
                raise
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if _is_still(fd, path):
                    yield
                    return
            finally:
                os.close(fd)
            if not make:
                raise FileNotFoundError(path)


def _is_still(fd: int, path: str) -> bool:
    """Whether the file we locked is the one of that name: who took it away held its lock while we waited."""
    try:
        return os.fstat(fd).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        return False


def _counts(user_file: str) -> bool:
    """Whether the run of this file still uses the mount; one that does not loses its file."""
    try:
        fd = os.open(user_file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        run = records.at(os.fsdecode(os.pread(fd, 8192, 0)))
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    if run.record and not run.ended:
        return True
    os.unlink(user_file)
    return False
