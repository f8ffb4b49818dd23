"""The host: does this machine have what a mount and a container need? Looks only; changes nothing."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import subprocess
from collections.abc import Iterator

from mountkit import drivers, mountinfo, mounts, places, updatedb
from mountkit.config import MountSettings
from mountkit.doctor import disk
from mountkit.doctor.line import Line, Section
from mountkit.errors import EngineError, HostError
from mountkit.report import size
from mountkit.serve import session

_HOST = Section("host")
_PASSTHROUGH = (6, 9)
_FEW_FILES = 4096
_SMALL_SHM_BYTES = 1 << 30
_TIME_ERROR = 5


def check(settings: MountSettings | None, driver: str = drivers.AUTO) -> Iterator[Line]:
    """Every line about this machine; those about the disk of cache and staging need settings."""
    yield kernel(os.uname().release)
    yield device()
    yield _driver(driver)
    yield allow_other(os.getuid())
    yield engine()
    yield from propagation()
    yield shared_memory()
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield clock()
    yield from pruned()
    yield from old_mounts()
    if settings is not None:
        yield from disk.check(settings)


def kernel(release: str) -> Line:
    words = re.match(r"(\d+)\.(\d+)", release)
    version = (int(words[1]), int(words[2])) if words else (0, 0)
    if version >= _PASSTHROUGH:
        native = "cached files are read natively" if os.getuid() == 0 else "native reads are root's alone"
        return _HOST.fine("kernel", f"Linux {release}: {native}, requests of a killed server are sent again")
    return _HOST.note(
        "kernel",
        f"Linux {release}: reads of cached files go through mountkit (native ones need 6.9)",
        "nothing needs to be done; a newer kernel is faster",
    )


def device() -> Line:
    try:
        session.check_device(allow_other=False)
    except HostError as exc:
        return _HOST.fault("/dev/fuse", exc)
    return _HOST.fine("/dev/fuse", "is there, and you may use it")


def _driver(wanted: str) -> Line:
    try:
        chosen = drivers.choose(wanted)
    except HostError as exc:
        return _HOST.fault("driver", exc)
    if chosen.why:
        return _HOST.note("driver", f"s3fs serves, because {chosen.why}", "docs/s3fs.md says what it cannot do")
    if chosen.driver == drivers.S3FS:
        return _HOST.fine("driver", "s3fs is installed")
    return _HOST.fine("driver", f"pyfuse3 and {_fusermount_version()} are installed")


def _fusermount_version() -> str:
    done = subprocess.run(["fusermount3", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().replace(" version:", "") or "fusermount3"


def allow_other(uid: int) -> Line:
    if uid == 0:
        return _HOST.fine("allow_other", "root may let others (and containers) into a mount")
    try:
        session.check_device(allow_other=True)
    except HostError as exc:
        return _HOST.note("allow_other", "containers and other users cannot read your mounts", exc.hint)
    return _HOST.fine("allow_other", "/etc/fuse.conf permits it to ordinary users")


def engine() -> Line:
    from mountkit.run import command

    try:
        found = command.docker()
        found.check()
    except EngineError as exc:
        return _HOST.note("containers", f"{exc.sentence}; only `mountkit run` needs one", exc.hint)
    return _HOST.fine("containers", "the container engine answers")


def propagation() -> Iterator[Line]:
    runtime = os.path.dirname(places.runtime_directory())
    point = mountinfo.covering(runtime, mountinfo.mount_points())
    if point is None:
        return
    if any(word.startswith("shared:") for word in point.propagation):
        yield _HOST.fine("propagation", f"{point.directory} is shared: running containers can see a mount come back")
    else:
        yield _HOST.note(
            "propagation",
            f"{point.directory} is private: a container that runs never sees a later mount",
            f"mount before starting containers (`mountkit run` does), or `mount --make-rshared {point.directory}`",
        )


def shared_memory(path: str = "/dev/shm") -> Line:
    try:
        disk = os.statvfs(path)
    except OSError:
        return _HOST.note("shared memory", f"there is no {path}", "DataLoader workers need it: mount a tmpfs there")
    total = disk.f_blocks * disk.f_frsize
    if total < _SMALL_SHM_BYTES:
        return _HOST.note(
            "shared memory",
            f"{path} has only {size(total)}: DataLoader workers die of it",
            "`mount -o remount,size=8G /dev/shm`; in a container `--shm-size 8g`",
        )
    return _HOST.fine("shared memory", f"{path} has {size(total)}")


def open_files(soft: int, hard: int) -> Line:
    most = "any number" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        return _HOST.note(
            "open files", f"at most {most} a process", "raise `nofile` in /etc/security/limits.conf, or LimitNOFILE="
        )
    return _HOST.fine("open files", f"{soft:,} a process, may be raised to {most}")


def clock() -> Line:
    """Whether the kernel thinks the clock is disciplined; the servers' opinion is asked with the source."""
    buffer = ctypes.create_string_buffer(512)  # struct timex, all zero: ask, change nothing
    state = ctypes.CDLL(None).adjtimex(buffer)
    if state == _TIME_ERROR:
        return _HOST.note(
            "clock",
            "the kernel does not know it to be right",
            "run chrony or systemd-timesyncd; servers refuse requests that are 15 minutes off",
        )
    return _HOST.fine("clock", "is kept right")


def pruned(path: str = updatedb.CONFIGURATION) -> Iterator[Line]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return
    if updatedb.passes_over(text):
        yield _HOST.fine("updatedb", f"passes {mountinfo.FSTYPE} over")
    else:
        yield _HOST.note(
            "updatedb",
            "walks through mounted buckets every day",
            f"add {mountinfo.FSTYPE} to PRUNEFS in {path} (`mountkit systemd install-helpers` does)",
        )


def old_mounts() -> Iterator[Line]:
    for info in mounts.list_all():
        if info.state in ("dead", "unwatched"):
            yield _HOST.note("mounts", f"{info.directory} is {info.state}", "`mountkit status --repair`")
