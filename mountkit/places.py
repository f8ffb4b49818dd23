"""Where things lie on this host: state below the cache directory, sockets below the runtime directory.

Directories are made 0700 and refused when they belong to somebody else, are symlinks, or may be written by others:
`--cache /tmp` must be safe for root.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat

from mountkit import mountinfo
from mountkit.errors import HostError, UsageError


def runtime_directory(uid: int | None = None) -> str:
    """Where the sockets of a user's mounts lie; not created here."""
    me = os.getuid()
    owner = me if uid is None else uid
    if owner == 0:
        return "/run/mountkit"
    if owner == me and os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(os.environ["XDG_RUNTIME_DIR"], "mountkit")
    if os.path.isdir(f"/run/user/{owner}"):
        return f"/run/user/{owner}/mountkit"
    return f"/tmp/mountkit-run-{owner}"


def ensure_runtime_directory() -> str:
    """This user's runtime directory, made if need be. Raises HostError if it is not safely ours."""
    path = runtime_directory()
    os.close(_own_directory(os.path.dirname(path), os.path.basename(path), what="runtime directory"))
    return path


def ensure_memory_directory() -> str:
    """A directory of this user's in memory, never on a disk, where the host has one; else the runtime directory.

    Raises HostError if it is not safely ours.
    """
    runtime = ensure_runtime_directory()
    points = mountinfo.mount_points()
    for parent, path in ((runtime, runtime), ("/dev/shm", f"/dev/shm/mountkit-{os.getuid()}")):
        point = mountinfo.covering(parent, points)
        if point is not None and point.fstype == "tmpfs":
            os.close(_own_directory(os.path.dirname(path), os.path.basename(path), what="directory"))
            return path
    return runtime


def state_home() -> str:
    """Where what should outlive a restart of this host lies: receipts and logs of runs. Not created here."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "mountkit")


def ensure_directory(path: str, what: str) -> None:
    """Makes `path` 0700, its parents too. Raises HostError if it is not safely ours."""
    os.close(_own_directory(os.path.dirname(path), os.path.basename(path), what=what))


def keeper_socket(device: str, uid: int | None = None) -> str:
    """The control socket of the mount with this `major:minor`."""
    return os.path.join(runtime_directory(uid), f"keeper-{device.replace(':', '-')}.sock")


def mount_lock(directory: str) -> str:
    """The lock of whoever is about to mount at this directory."""
    digest = hashlib.blake2b(os.fsencode(directory), digest_size=10).hexdigest()
    return os.path.join(runtime_directory(), f"mounting-{digest}.lock")


def mount_record(directory: str) -> str:
    """The file that says how this directory was mounted."""
    digest = hashlib.blake2b(os.fsencode(directory), digest_size=10).hexdigest()
    return os.path.join(runtime_directory(), f"{digest}.mount")


def mover_socket(state_path: str, uid: int | None = None) -> str:
    """The socket of the one mover that owns the state directory at `state_path`."""
    digest = hashlib.blake2b(os.fsencode(state_path), digest_size=10).hexdigest()
    return os.path.join(runtime_directory(uid), f"mover-{digest}.sock")


def state_path(cache_directory: str, name: str) -> str:
    """The path of the state directory `name` below a cache directory."""
    return os.path.join(cache_directory, f"mountkit-{os.getuid()}", name)


def open_state(cache_directory: str, name: str) -> int:
    """A descriptor of that state directory, made 0700 where missing.

    Raises UsageError or HostError when the cache directory cannot be used safely.
    """
    _outside_of_mounts(cache_directory)
    try:
        os.makedirs(cache_directory, mode=0o700, exist_ok=True)
    except OSError as exc:
        raise _unusable(cache_directory, exc) from exc
    own = _own_directory(cache_directory, f"mountkit-{os.getuid()}", what="cache directory")
    try:
        return _own_directory(f"/proc/self/fd/{own}", name, what="cache directory", shown=cache_directory)
    finally:
        os.close(own)


def open_below(state_fd: int, name: str) -> int:
    """A descriptor of a directory of its own inside a state directory, made where missing. Raises HostError."""
    return _own_directory(f"/proc/self/fd/{state_fd}", name, what="cache directory")


def check_cache(cache_directory: str) -> None:
    """Whether `open_state` could use that cache directory; makes nothing. Raises UsageError, HostError."""
    _outside_of_mounts(cache_directory)
    own = os.path.join(cache_directory, f"mountkit-{os.getuid()}")
    existing = own
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if existing == own:
        os.close(_own_directory(cache_directory, os.path.basename(own), what="cache directory"))
        return
    try:
        os.close(os.open(existing, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as exc:
        raise _unusable(cache_directory, exc) from exc
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _unusable(cache_directory, PermissionError(errno.EACCES, ""))


def _outside_of_mounts(cache_directory: str) -> None:
    point = mountinfo.covering(mountinfo.resolve(cache_directory), mountinfo.mount_points())
    if point is not None and point.fstype == mountinfo.FSTYPE:
        raise UsageError(
            f"the cache directory {cache_directory} lies inside the mount {point.directory}",
            "choose a directory on a local disk with --cache",
        )


def stand_in_path(name: str) -> str:
    """Where the catalog of the state directory `name` lies while its disk does not take it."""
    return os.path.join(ensure_memory_directory(), f"state-{name}")


def open_stand_in(name: str) -> int:
    """A descriptor of that directory, made 0700 where missing. Raises HostError."""
    path = stand_in_path(name)
    return _own_directory(os.path.dirname(path), os.path.basename(path), what="directory")


def _own_directory(parent: str, name: str, *, what: str, shown: str = "") -> int:
    shown = shown or os.path.join(parent, name)
    try:
        if not os.path.isdir(parent):
            os.makedirs(parent, mode=0o700, exist_ok=True)
        parent_fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise _unusable(shown, exc, what) from exc
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent_fd)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
        except OSError as exc:
            problem = _problem(os.stat(name, dir_fd=parent_fd, follow_symlinks=False))
            raise _unsafe(what, shown, problem) if problem else _unusable(shown, exc, what) from exc
    except OSError as exc:
        raise _unusable(shown, exc, what) from exc
    finally:
        os.close(parent_fd)
    problem = _problem(os.fstat(fd))
    if problem:
        os.close(fd)
        raise _unsafe(what, shown, problem)
    return fd


def _problem(status: os.stat_result) -> str:
    """Why what is there is not safely ours, or ""."""
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return "is a symlink"
    if status.st_uid != os.getuid():
        return f"belongs to user {status.st_uid}, not to you"
    return f"may be written by others (mode {mode:04o})" if mode & 0o022 else ""


def _unsafe(what: str, shown: str, problem: str) -> HostError:
    return HostError(f"the {what} {shown} {problem}", "remove it, or choose another place with --cache")


def _unusable(path: str, exc: OSError, what: str = "cache directory") -> HostError:
    return HostError(
        f"the {what} {path} cannot be used: {os.strerror(exc.errno or 0)}",
        "choose a writable directory with --cache" if what == "cache directory" else "check its owner and mode",
    )
