"""What a keeper answers at its control socket: servers that join, `status`, `unmount`, `refresh`, `upgrade`."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

import trio

from mountkit import __version__, ipc, logs, notify, processes
from mountkit.config import MountSettings
from mountkit.errors import MountError
from mountkit.ipc import Channel, ChannelClosed, Message, Progress
from mountkit.serve import messages, session
from mountkit.serve.mover_host import MoverHost
from mountkit.serve.server_pool import ServerPool
from mountkit.serve.session import Session
from mountkit.serve.shared import SharedMemory
from mountkit.serve.state import StateDirectory

log = logging.getLogger(__name__)


class Control:
    """One mount as its keeper shows and steers it. The keeper waits for the events that orders set."""

    def __init__(
        self,
        settings: MountSettings,
        state: StateDirectory,
        mounted: Session,
        servers: ServerPool,
        mover: MoverHost,
        shared: SharedMemory,
    ) -> None:
        self.settings, self.mounted = settings, mounted
        self._directory, self._servers, self._mover, self._shared = state, servers, mover, shared
        self._since = time.time()
        self.state = "starting"
        self.stop = trio.Event()
        """The mount shall end."""
        self.session_gone = trio.Event()
        """The kernel has ended the session."""
        self.drains = settings.outputs is not None
        """Whether the end waits for uploads."""
        self.rest = trio.Event()
        """This process shall end; the session stays with systemd, for the next one it starts."""
        self.retire = trio.Event()
        """This keeper shall end, and another take its place."""

    @property
    def passthrough(self) -> bool:
        """Whether sealed files are opened natively."""
        return not self._why_no_passthrough()

    def _why_no_passthrough(self) -> str:
        if not self.settings.passthrough:
            return "switched off"
        if os.getuid() != 0:
            return "only root may open files in passthrough"
        if not messages.kernel_offers_passthrough(self.mounted.init):
            return "the kernel does not offer it (Linux 6.9 does)"
        return ""

    async def answer(self, channel: Channel) -> None:
        """Serves one connection to the control socket."""
        try:
            first = await channel.receive()
        except ChannelClosed:
            channel.close()
            return
        if first.body.get("op") == "join":
            await self._servers.join(first.body, channel)
        else:
            channel.push_back(first)
            await ipc.answer_requests(channel, self._handle)

    async def _handle(self, request: Message, _progress: Progress) -> dict[str, Any]:
        operation = request.body.get("op")
        if operation == "status":
            return await self.status()
        if operation == "unmount":
            return await self._unmount(force=bool(request.body.get("force")))
        if operation == "refresh":
            return await self._refresh(str(request.body.get("path", "")))
        if operation == "upgrade":
            return await self._upgrade()
        raise MountError(
            f"this mount does not know how to `{operation}`", "is it served by another version of mountkit?"
        )

    async def _upgrade(self) -> dict[str, Any]:
        """Replaces servers and mover by processes that run the code installed now; then this keeper leaves, too."""
        log.info("replacing every process of %s by order", self.mounted.directory)
        await self._servers.replace_all()
        await self._mover.replace()
        self.retire.set()
        return {"keeper_pid": os.getpid()}

    async def _unmount(self, *, force: bool) -> dict[str, Any]:
        directory = self.mounted.directory
        if force:
            self.drains = False
            session.abort(self.mounted.device)
            await trio.to_thread.run_sync(lambda: session.unmount(directory, lazy=True))
            self.session_gone.set()
        else:
            await trio.to_thread.run_sync(session.unmount, directory)
        self.stop.set()
        return {"unmounted": True, "keeper_pid": os.getpid(), "mover_pid": self._mover.pid}

    async def _refresh(self, path: str) -> dict[str, Any]:
        answer = await self._mover.link.call("refresh", budget_s=600.0, path=path)
        changes = answer.body["changes"]
        if changes:
            command = processes.command("mountkit.serve.notifier", str(self.mounted.fd))
            with trio.move_on_after(30.0):
                await trio.run_process(
                    command,
                    stdin=json.dumps(changes).encode(),
                    pass_fds=[self.mounted.fd],
                    cwd="/",
                    env=processes.environment(),
                    check=False,
                )
        return {"changed": len(changes)}

    async def status(self) -> dict[str, Any]:
        """Everything about this mount, as `mountkit status --json` shows it."""
        mover, reasons = await self._mover.statistics()
        reasons += self._servers.troubles()
        if self._directory.trouble:
            reasons.insert(0, f"the cache directory cannot be used: {self._directory.trouble}")
        counters = self._shared.total()
        state = "degraded" if self.state == "ok" and reasons else self.state
        reads = {name: getattr(counters, name) for name in counters.__slots__}
        return {
            "source": str(self.settings.source),
            "directory": self.mounted.directory,
            "driver": "fuse",
            "state": state,
            "reasons": reasons,
            "keeper_pid": os.getpid(),
            "server_pids": self._servers.pids(),
            "mover_pid": self._mover.pid,
            "memory_bytes": processes.pss_bytes() + int(mover.get("pss_bytes", 0)) + reads.pop("pss_bytes"),
            "cache_directory": self.settings.cache_directory,
            "state_directory": self._directory.path,
            "log": logs.place(self._directory.log_path),
            **notify.unit_words(os.environ),
            "device": self.mounted.device,
            "since": self._since,
            "endpoint": self.settings.source.endpoint,
            "ttl_s": self.settings.ttl_s if self.settings.ttl_s != float("inf") else None,
            "passthrough": self.passthrough,
            "passthrough_reason": self._why_no_passthrough(),
            "reads": reads,
            "cache": mover.get("cache", {}),
            "writable": self.settings.outputs is not None,
            "drain_timeout_s": self.settings.outputs.drain_timeout_s if self.settings.outputs else 0.0,
            "outputs": mover.get("outputs", {}),
            "requests": mover.get("requests", {}),
            "mover": mover.get("mover", {}),
            "restarts": {"server": self._servers.restarts, "mover": self._mover.restarts},
            "version": __version__,
        }
