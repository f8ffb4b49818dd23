"""The FUSE session itself: mounting through fusermount3, the INIT bytes, read-ahead, resend, unmounting, aborting.

Works for root and for ordinary users; knows nothing of servers or buckets.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass

from mountkit import mountinfo
from mountkit.config import MountSettings
from mountkit.errors import HostError, MountBusy, MountError
from mountkit.serve import messages

READ_AHEAD_KB = 1024  # measured: 0.9 GB/s at 128, 2.6 GB/s at 1024 through FUSE; no more at 4096
_BACKING_OPEN = (1 << 30) | (16 << 16) | (229 << 8) | 1  # _IOW(229, 1, struct fuse_backing_map)
_BACKING_CLOSE = (1 << 30) | (4 << 16) | (229 << 8) | 2  # _IOW(229, 2, uint32_t)
_BACKING_MAP = struct.Struct("iIQ")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Session:
    """A mounted FUSE connection: `fd` is the kernel's, non-blocking; `init` is its FUSE_INIT request."""

    fd: int
    init: bytes
    directory: str
    device: str


def check_host(*, allow_other: bool) -> None:
    """Raises HostError if this machine cannot mount our FUSE file systems, saying what it lacks."""
    check_device(allow_other=allow_other)
    if not shutil.which("fusermount3"):
        raise HostError("fusermount3 is not installed", "install it: `apt-get install fuse3` (or your system's fuse3)")


def check_device(*, allow_other: bool) -> None:
    """Raises HostError if this user may mount no FUSE file system at all."""
    if not os.path.exists("/dev/fuse"):
        raise HostError(
            "there is no /dev/fuse on this machine",
            "load it with `modprobe fuse`; in a container add `--device /dev/fuse`",
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise HostError("you may not use /dev/fuse on this machine", "ask the administrator for `chmod 666 /dev/fuse`")
    if allow_other and os.getuid() != 0 and not _user_allow_other():
        raise HostError(
            "--allow-other is not permitted to ordinary users here",
            "ask the administrator to put `user_allow_other` into /etc/fuse.conf",
        )


def _user_allow_other() -> bool:
    try:
        with open("/etc/fuse.conf", encoding="utf-8") as lines:
            return any(line.split("#")[0].strip() == "user_allow_other" for line in lines)
    except OSError:
        return False


def mount(
    directory: str, *, source: str, allow_other: bool, executable: bool = True, writable: bool = False
) -> Session:
    """Mounts at `directory` and takes the kernel's INIT request. Raises MountError."""
    options = [
        "rw" if writable else "ro",
        "nosuid",
        "nodev",
        "default_permissions",
        f"fsname={escape(source)}",
        "subtype=mountkit",
    ]
    if allow_other:
        options.append("allow_other")
    if not executable:
        options.append("noexec")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            ["fusermount3", "-o", ",".join(options), "--", directory],
            env={"PATH": os.environ.get("PATH", os.defpath), "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (
                done.stderr.strip().removeprefix("fusermount3: ").rstrip(".")
                or f"fusermount3 ended with {done.returncode}"
            )
            raise MountError(f"cannot mount at {directory}: {reason}", "`dmesg` may say more")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    fd = array.array("i", ancillary[0][2])[0]
    os.set_inheritable(fd, False)
    try:
        init = os.read(fd, 1 << 16)
        os.set_blocking(fd, False)
        return Session(fd, init, directory, device_of(directory))
    except (OSError, MountError):
        os.close(fd)
        with contextlib.suppress(MountError):
            unmount(directory, lazy=True)
        raise


def is_connected(fd: int) -> bool:
    """Whether the kernel still has the session: with its last mount and user gone, or aborted, the descriptor errs."""
    poll = select.poll()
    poll.register(fd, 0)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def device_of(directory: str) -> str:
    """`major:minor` of our mount at `directory`. Raises MountError if there is none."""
    found = [m.device for m in mountinfo.ours() if m.directory == directory]
    if not found:
        raise MountError(f"{directory} is not a mount of mountkit")
    return found[-1]


def escape(source: str) -> str:
    return source.replace("\\", "\\\\").replace(",", "\\,")


def set_read_ahead(device: str) -> bool:
    """Raises the kernel's read-ahead of the mount; False where this user may not (then it stays at 128 KiB)."""
    try:
        with open(f"/sys/class/bdi/{device}/read_ahead_kb", "w", encoding="ascii") as setting:
            setting.write(str(READ_AHEAD_KB))
    except OSError:
        return False
    return True


def resend(fd: int) -> bool:
    """Asks the kernel to hand out again what is in flight; False below Linux 6.9."""
    try:
        os.write(fd, messages.resend())
    except OSError as exc:
        if exc.errno in (errno.EINVAL, errno.ENOSYS):
            return False
        raise
    return True


def can_resend(settings: MountSettings) -> bool:
    """Whether this kernel hands requests out again (Linux 6.9), and may."""
    major, minor = (int(word) for word in re.findall(r"\d+", os.uname().release)[:2])
    return settings.resend and (major, minor) >= (6, 9)


def fail_in_flight(fd: int, uniques: set[int]) -> None:
    """Below Linux 6.9: answers what a dead server had in its hands with ESTALE, on which the kernel repeats it."""
    for unique in uniques:
        with contextlib.suppress(FileNotFoundError):  # it was answered
            os.write(fd, messages.failed(unique, errno.ESTALE))


def open_backing(fuse_fd: int, file_fd: int) -> int:
    """A backing id for `file_fd` on this connection (Linux 6.9, CAP_SYS_ADMIN). Raises OSError."""
    number: int = fcntl.ioctl(fuse_fd, _BACKING_OPEN, bytearray(_BACKING_MAP.pack(file_fd, 0, 0)), True)
    return number


def close_backing(fuse_fd: int, backing_id: int) -> None:
    """Ends a backing id; handles opened with it go on."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(fuse_fd, _BACKING_CLOSE, backing_id.to_bytes(4, sys.byteorder))


def unmount(directory: str, *, lazy: bool = False) -> None:
    """Takes the mount away; with `lazy` at once from sight, whoever still uses it. Raises MountBusy, MountError."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", directory]
    if os.getuid() == 0:
        command = ["umount", "-i", *(["-l"] if lazy else []), "--", directory]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    reason = done.stderr.strip()
    if not any(m.directory == directory for m in mountinfo.ours()):
        return
    if not lazy and _is_busy(directory):
        raise MountBusy(f"{directory} is in use", "end what works in it, or say --force")
    raise MountError(f"cannot unmount {directory}: {reason}")


def _is_busy(directory: str) -> bool:
    """Asks the kernel for the reason itself, whatever language umount speaks: MNT_EXPIRE never unmounts at first."""
    if _libc.umount2(os.fsencode(directory), 4) == 0:  # MNT_EXPIRE succeeded: it was idle after all, and is gone now
        return False
    return ctypes.get_errno() in (errno.EBUSY, errno.EAGAIN, errno.EPERM)


def abort(device: str) -> bool:
    """Cuts the connection: every request in flight fails with ENOTCONN. False where this user may not."""
    minor = device.split(":")[1]
    try:
        with open(f"/sys/fs/fuse/connections/{minor}/abort", "w", encoding="ascii") as control:
            control.write("1")
    except OSError:
        return False
    return True
