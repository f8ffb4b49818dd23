"""Who holds a mount: processes with files or directories open in it, and containers that have it bound in."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from mountkit import mountinfo

_CONTAINER = re.compile(r"(?:docker|libpod|containerd)[-/]([0-9a-f]{12})[0-9a-f]{52}|/([0-9a-f]{12})[0-9a-f]{52}")


def in_other_namespaces(device: str) -> list[str]:
    """Processes (named, with their container) whose mount namespace keeps this mount when ours goes.

    Most services of systemd have a namespace of their own with every mount in it, but receive our unmounts: what the
    kernel takes away there by itself holds nothing.
    """
    mine = _namespace("self")
    seen: set[str | None] = {mine, None}
    told = _told_of_unmounts(device)
    found = []
    for pid in _pids():
        namespace = _namespace(str(pid))
        if namespace in seen:
            continue
        seen.add(namespace)
        with contextlib.suppress(OSError):
            points = mountinfo.mount_points(pid)
            groups = {point.number: point.groups for point in points}
            if any(point.device == device and not groups.get(point.parent, set()) & told for point in points):
                found.append(_name(pid))
    return found


def _told_of_unmounts(device: str) -> set[int]:
    """The peer groups an unmount of ours is told to: an unmount propagates along what the mount is mounted on."""
    points = mountinfo.mount_points()
    shared = {
        point.number: {int(field[7:]) for field in point.propagation if field.startswith("shared:")} for point in points
    }
    return set().union(*(shared.get(point.parent, set()) for point in points if point.device == device))


def of_mount(directory: str, device: str) -> list[str]:
    """Everybody who holds the mount, as `name (pid 123)` or with the container's short id."""
    major, minor = (int(word) for word in device.split(":"))
    found = [_name(pid) for pid in _pids() if pid != os.getpid() and _uses(pid, directory, os.makedev(major, minor))]
    return found + [name for name in in_other_namespaces(device) if name not in found]


def _uses(pid: int, directory: str, device: int) -> bool:
    """Looks at links only where they name the mount: a stat of anything else in /proc/PID may hang elsewhere."""
    for link in _links(pid):
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if target == directory or target.startswith(directory.rstrip("/") + "/"):
                return True
            if target.endswith(" (deleted)") and os.stat(link).st_dev == device:
                return True
    return False


def _links(pid: int) -> Iterator[str]:
    base = f"/proc/{pid}"
    yield from (f"{base}/cwd", f"{base}/root", f"{base}/exe")
    for folder in ("fd", "map_files"):
        with contextlib.suppress(OSError):
            for name in os.listdir(f"{base}/{folder}"):
                yield f"{base}/{folder}/{name}"


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _namespace(pid: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None


def _name(pid: int) -> str:
    command, container = "?", ""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        command = file.read().strip()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        match = _CONTAINER.search(file.read())
        container = next(filter(None, match.groups()), "") if match else ""
    return f"{command} (pid {pid}{', container ' + container if container else ''})"
