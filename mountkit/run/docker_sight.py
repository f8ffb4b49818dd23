"""Whether the engine sees the mounts of ours that a container is to be shown.

An engine with a mount namespace of its own (rootless Docker, one in a container, a unit with PrivateMounts) sees a
later mount only where the mount below is shared. Where it does not, it binds the empty directory underneath and says
nothing: the container reads nothing, and what it writes never gets to the bucket. So it is asked before the container
starts.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mountkit import mountinfo, names
from mountkit.errors import EngineError
from mountkit.mountinfo import MountPoint
from mountkit.run.plan import Bind, ContainerPlan

if TYPE_CHECKING:
    from docker.api import APIClient

_NOT_FOUND = 404
_PEER = struct.Struct("3i")


class Sight:
    """What the engine at `url` must see of the mounts at `points` for the container of `plan`."""

    def __init__(self, url: str, plan: ContainerPlan, points: Sequence[MountPoint]) -> None:
        self._url = url
        covering = [(bind, mountinfo.covering(bind.source, list(points))) for bind in plan.binds]
        self._shown = [(bind, point) for bind, point in covering if point and point.fstype == mountinfo.FSTYPE]
        self._is_told = False

    def check_engine(self) -> None:
        """Compares with the mounts of the process that answers, if its number tells. Raises EngineError."""
        if not self._shown:
            return
        try:
            seen = {point.device for point in mountinfo.mount_points(_answering_pid(self._url))}
        except OSError:
            return
        self._is_told = True
        for bind, point in self._shown:
            if point.device not in seen:
                raise self._unseen(bind, point)

    def check_container(self, client: APIClient, container: str) -> None:
        """Looks through the engine's eyes into a container not started, where nothing else tells. Raises EngineError.

        Only the root of a mount has a mark; a directory below it would be missing, which the engine says by itself.
        """
        if self._is_told:
            return
        for bind, point in self._shown:
            if bind.source == point.directory and point.driver == "fuse":
                mark = os.path.join(bind.target, os.fsdecode(names.HIDDEN))
                archive = client._url("/containers/{0}/archive", container)  # type: ignore[attr-defined]
                if client.head(archive, params={"path": mark}).status_code == _NOT_FOUND:
                    raise self._unseen(bind, point)

    def _unseen(self, bind: Bind, point: MountPoint) -> EngineError:
        return EngineError(
            f"the container engine at {self._url} does not see the mount of {point.source}, so {bind.target} would be "
            f"an empty directory: it lives in a mount namespace that later mounts do not reach",
            "run `sudo mount --make-rshared /` and start the engine anew, or run mountkit where the engine runs",
        )


def _answering_pid(url: str) -> int:
    """The process that listens at the engine's socket. OSError where it has no number here."""
    scheme, _, path = url.partition("://")
    if not scheme.endswith("unix"):
        raise OSError(f"{url} is no local socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path if path.startswith("/") else f"/{path}")
        pid: int = _PEER.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
    if not pid:
        raise OSError("the engine runs in another process namespace")
    return pid
