"""What is mounted where, as the kernel says it in mountinfo."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

FSTYPE = "fuse.mountkit"
S3FS_MARK = "s3fs#"
"""What stands before the source of a mount that s3fs serves for us; its type is ours, so that every tool finds it."""
_MOST_SYMLINKS = 40  # as the kernel follows
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line of mountinfo."""

    device: str
    """`major:minor`, unique on the host while it is mounted."""
    root: str
    directory: str
    options: frozenset[str]
    propagation: tuple[str, ...]
    """Optional fields, like `shared:12`."""
    fstype: str
    source: str
    super_options: frozenset[str]
    number: int = 0
    parent: int = 0
    """The mount it is mounted on, by `number`; it may lie outside of what the process sees."""

    @property
    def groups(self) -> set[int]:
        """The peer groups whose mounts and unmounts show up on this mount, too: its own, and its masters'."""
        return {int(number) for kind, _, number in (field.partition(":") for field in self.propagation) if number}

    @property
    def owner_uid(self) -> int:
        """The user who mounted a FUSE file system; 0 for others."""
        for option in self.super_options:
            if option.startswith("user_id="):
                return int(option[8:])
        return 0

    @property
    def driver(self) -> str:
        """Who serves a mount of ours: fuse or s3fs."""
        return "s3fs" if self.source.startswith(S3FS_MARK) else "fuse"


def mount_points(pid: int | str = "self") -> list[MountPoint]:
    """Every mount of the mount namespace of `pid`, in mount order. OSError if that process is gone."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return [_parse(line) for line in lines]


def ours(pid: int | str = "self") -> list[MountPoint]:
    """The mounts that are mountkit's, one a directory."""
    return [m for m in mount_points(pid) if m.fstype == FSTYPE]


def covering(path: str, points: list[MountPoint]) -> MountPoint | None:
    """The mount that `path` (absolute, need not exist) lies in: the last one mounted on the longest prefix."""
    best: MountPoint | None = None
    for point in points:
        prefix = point.directory.rstrip("/")
        inside = path == point.directory or path.startswith(prefix + "/")
        if inside and (best is None or len(prefix) >= len(best.directory.rstrip("/"))):
            best = point
    return best


def resolve(path: str) -> str:
    """`path` absolute and without symlinks in its parents; never touches what may be a dead mount itself."""
    absolute = os.path.abspath(path)
    parent, name = os.path.split(absolute)
    return os.path.join(os.path.realpath(parent), name) if name else absolute


def resolve_all(path: str) -> str:
    """As `resolve`, with a symlink that is the last part followed, too: the name a mount there has in mountinfo.

    Not realpath: that asks the mount point itself what it is, and nobody may be there to answer.
    """
    points = {point.directory for point in mount_points()}
    for _ in range(_MOST_SYMLINKS):
        path = resolve(path)
        if path in points:
            return path
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            return path  # no symlink, or not there
    return path


def _parse(line: str) -> MountPoint:
    before, _, after = line.rstrip("\n").partition(" - ")
    head, tail = before.split(" "), after.split(" ")
    return MountPoint(
        device=head[2],
        root=_unescape(head[3]),
        directory=_unescape(head[4]),
        options=frozenset(head[5].split(",")),
        propagation=tuple(head[6:]),
        fstype=tail[0],
        source=_unescape(tail[1]),
        super_options=frozenset(tail[2].split(",")) if len(tail) > 2 else frozenset(),
        number=int(head[0]),
        parent=int(head[1]),
    )


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda m: chr(int(m[1], 8)), text) if "\\" in text else text
