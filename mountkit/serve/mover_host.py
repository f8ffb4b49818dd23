"""The keeper's side of the mover: starts it, or uses the one that serves the same state already; starts it anew when
it dies. Several keepers may share one mover; whichever notices first starts the next, a lock decides.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

import trio

from mountkit import errors
from mountkit.config import MountSettings
from mountkit.errors import MountkitError, StoreUnavailable
from mountkit.ipc import Channel, ChannelClosed
from mountkit.serve import processes
from mountkit.serve.mover_link import MoverLink

log = logging.getLogger(__name__)
MOVER_MODULE = "mountkit.mover.process"
_START_S = 15.0
_STATUS_S = 1.0
_GOODBYE_S = 3.0
_LINKED_S = 1.0


class MoverHost:
    """Keeps a mover running. `link` is the keeper's connection to it."""

    def __init__(self, settings: MountSettings, socket_path: str, state_fd: int, secrets_fd: int | None) -> None:
        self.socket_path = socket_path
        self.link = MoverLink(socket_path, hello={"op": "hello", "role": "keeper", "pid": os.getpid()})
        self.pid = 0
        self.restarts = 0
        self._settings, self._state_fd, self._secrets_fd = settings, state_fd, secrets_fd
        self._last_error = ""
        self._leaving = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Reports started once a mover answers for the bucket. Raises MountkitError if it cannot."""
        lost = self.link.lost
        running = await self._running()
        if not running:
            await self._start(check=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.link.run)
            answer = await self.link.call("check" if running else "stats", budget_s=_START_S)
            self.pid = int(answer.body["pid"])
            task_status.started()
            while True:
                await lost.wait()
                lost = self.link.lost
                if self._leaving:
                    continue
                log.warning("the mover is gone; starting another")
                self.restarts += 1
                await self._restart()

    async def _running(self) -> bool:
        try:
            (await Channel.connect(self.socket_path)).close()
        except (OSError, ChannelClosed):
            return False
        return True

    async def _restart(self) -> None:
        """Returns once the link has a mover again.

        That something accepts connections is no proof: a mover that is being killed loses its connections before its
        listening socket.
        """
        delay = 0.0
        while True:
            try:
                if not await self._running():
                    await self._start(check=False)
                with trio.move_on_after(_LINKED_S):
                    await self.link.linked()
                    self._last_error = ""
                    return
            except MountkitError as exc:
                self._last_error = f"the mover does not start: {exc}"
                log.error("%s", self._last_error)
            delay = min(2.0, delay + 0.2)
            await trio.sleep(delay)

    async def _start(self, *, check: bool) -> None:
        process, fd = processes.spawn(MOVER_MODULE)
        channel = Channel.from_fd(fd)
        trio.lowlevel.spawn_system_task(_reap, process.pid)
        fds = [self._state_fd] if self._secrets_fd is None else [self._state_fd, self._secrets_fd]
        try:
            body = {"settings": self._settings.to_json(), "socket": self.socket_path, "check": check}
            with trio.move_on_after(_START_S):
                await channel.send(body, fds=fds)
                answer = (await channel.receive()).body
                if "error" in answer:
                    raise errors.from_json(answer["error"])
                self.pid = int(answer["pid"])
                return
            process.kill()
            raise StoreUnavailable(
                f"{self._settings.source} did not answer within {_START_S:g} s",
                "check the endpoint, the network and any proxy",
            )
        except ChannelClosed:
            raise MountkitError("the mover ended at its start", "its log may say why") from None
        finally:
            channel.close()

    async def statistics(self) -> tuple[dict[str, Any], list[str]]:
        """What the mover says of itself, and reasons why the mount is degraded."""
        try:
            body = (await self.link.call("stats", budget_s=_STATUS_S)).body
        except MountkitError as exc:
            return {}, [self._last_error or f"the mover does not answer: {exc}"]
        self.pid = int(body["pid"])
        return body, [str(reason) for reason in body.get("degraded", [])]

    async def take_secrets(self) -> None:
        """Gets the credentials' memfd from the running mover, to hand it to the next one."""
        with contextlib.suppress(MountkitError):
            answer = await self.link.call("secrets", budget_s=_STATUS_S)
            if answer.fds:
                self._secrets_fd = answer.fds[0]

    async def goodbye(self) -> None:
        """Tells the mover that this mount is over; if it was the last one, waits for the mover's end."""
        self._leaving = True
        if not self.pid:
            return
        with trio.move_on_after(_GOODBYE_S), contextlib.suppress(MountkitError, ProcessLookupError):
            answer = await self.link.call("goodbye", budget_s=_GOODBYE_S)
            if answer.body["last"]:
                await processes.Watched(self.pid).wait()


async def _reap(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        watched = processes.Watched(pid)
        await watched.wait()
        watched.close()
