"""`push` and `pull` as the command line asks for them: starts the process that does it and shows how far it is."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from mountkit import errors, ipc, places, processes
from mountkit.config import MountSettings
from mountkit.errors import MountkitError, UsageError
from mountkit.outputs import Show

_MODULE = "mountkit.mover.transfer"


def push(directory: str, settings: MountSettings, *, credentials: tuple[str, str] | None, show: Show) -> dict[str, Any]:
    """Uploads what is below `directory`; the result says what is left. Raises MountkitError."""
    try:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise UsageError(f"{directory} cannot be pushed: {os.strerror(exc.errno or 0)}", "name a directory") from exc
    digest = hashlib.blake2b(os.fsencode(os.path.realpath(directory)), digest_size=10).hexdigest()
    state_fd = places.open_state(settings.cache_directory, settings.state_name)
    try:
        journal_fd = places.open_below(state_fd, f"push-{digest}")
    finally:
        os.close(state_fd)
    return _transfer({"op": "push"}, settings, credentials, [directory_fd, journal_fd], show)


def pull(target: str, settings: MountSettings, *, credentials: tuple[str, str] | None, show: Show) -> dict[str, Any]:
    """Fetches everything of the source to `target`; the result says what failed. Raises MountkitError."""
    nothing = os.open("/", os.O_PATH | os.O_CLOEXEC)
    return _transfer({"op": "pull", "target": os.path.abspath(target)}, settings, credentials, [nothing], show)


def _transfer(
    body: dict[str, Any], settings: MountSettings, credentials: tuple[str, str] | None, fds: list[int], show: Show
) -> dict[str, Any]:
    secrets_fd = processes.sealed_environment(credentials)
    process, fd = processes.spawn(_MODULE)
    with socket.socket(fileno=fd) as channel:
        handed = [secrets_fd, *fds]
        message = {**body, "settings": settings.to_json(), "fds": len(handed)}
        socket.send_fds(channel, [b"".join(ipc.encode(message))], handed)
        for each in handed:
            os.close(each)
        try:
            return show(_updates(channel))
        finally:
            channel.shutdown(socket.SHUT_RDWR)  # it ends with us
            process.wait()


def _updates(channel: socket.socket) -> Iterator[dict[str, Any]]:
    receiver = ipc.Receiver(channel)
    while True:
        try:
            body = receiver.receive().body
        except (ipc.ChannelClosed, OSError) as exc:
            raise MountkitError(f"the transfer ended in the middle: {exc}", "run it again: it goes on") from exc
        if "error" in body:
            raise errors.from_json(body["error"])
        if "progress" not in body:
            yield body
            return
        yield body["progress"]
