"""The end of a mount: what calls for it, how it is taken away, and what its writer waits for then.

A mount ends on an order (unmount, SIGTERM) or with its session; a keeper may also leave while the mount stays, because
another one follows. Who still uses a mount that ends has a few seconds. What was written is uploaded after that, for as
long as was agreed; what is left goes on with the next mount of the cache.
"""

from __future__ import annotations

import contextlib
import logging
import signal

import trio

from mountkit import mountinfo
from mountkit.config import MountSettings
from mountkit.errors import MountBusy, MountError, MountkitError
from mountkit.serve import session
from mountkit.serve.control import Control
from mountkit.serve.mover_host import MoverHost
from mountkit.serve.server_pool import ServerPool
from mountkit.serve.session import Session
from mountkit.serve.supervision import Supervision

log = logging.getLogger(__name__)
_STOP_S = 5.0
_ANSWER_S = 0.1
"""Time for the answer to the order that ends us."""


class Ending:
    """One mount's. `wait`, then `take_down`, and `part` once nothing of the keeper's own is left."""

    def __init__(
        self,
        settings: MountSettings,
        mounted: Session,
        control: Control,
        servers: ServerPool,
        mover: MoverHost,
        supervision: Supervision,
    ) -> None:
        self._settings, self._mounted, self._control = settings, mounted, control
        self._servers, self._mover, self._supervision = servers, mover, supervision
        self._gone = False
        """Whether the mount has ended and its servers with it."""
        self.uploads_left = False
        """Whether the mount ended before everything was in the bucket."""

    async def wait(self) -> None:
        """Returns once the mount is to end, or this keeper to leave it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_on_signal)
            nursery.start_soon(self._leave_when_retired, nursery.cancel_scope)
            nursery.start_soon(self._leave_when_resting, nursery.cancel_scope)
            await self._control.stop.wait()
            nursery.cancel_scope.cancel()

    async def follow_servers(self) -> None:
        """Calls for the end once the kernel has ended the session."""
        await self._servers.session_ended.wait()
        self._control.session_gone.set()
        self._control.stop.set()

    async def take_down(self, *, undo: bool) -> None:
        """Ends the mount, on an order or to `undo` it; who still uses it has a few seconds. Else leaves it alone."""
        control = self._control
        if control.rest.is_set():
            log.info("restarting: the session of %s waits for the next keeper", self._mounted.directory)
            with trio.CancelScope(shield=True):
                await self._supervision.cease()
                self._servers.kill()
                await self._mover.goodbye()
            return
        if not (undo or control.stop.is_set()):
            why = "by order" if control.retire.is_set() else "without an order"
            log.warning("this keeper ends %s; the mount stays, its servers start another keeper", why)
            return
        control.state = "stopping"
        with trio.CancelScope(shield=True):
            async with self._supervision.stopping(f"unmounting {self._mounted.directory}"):
                if not control.session_gone.is_set():
                    await trio.to_thread.run_sync(take_away, self._mounted)
                    with trio.move_on_after(_STOP_S):
                        await self._servers.session_ended.wait()
                self._servers.kill()
                await trio.to_thread.run_sync(take_away, self._mounted)
                self._gone = True
        log.info("%s is unmounted", self._mounted.directory)

    async def part(self) -> None:
        """The mount is gone: lets the mover finish its uploads, then leaves it."""
        if not self._gone:
            return
        with trio.CancelScope(shield=True):
            if self._control.drains:
                async with self._supervision.stopping("uploading what is left"):
                    await self._drain()
            await self._mover.goodbye()

    async def _leave_when_retired(self, scope: trio.CancelScope) -> None:
        await self._control.retire.wait()
        await trio.sleep(_ANSWER_S)
        scope.cancel()

    async def _leave_when_resting(self, scope: trio.CancelScope) -> None:
        await self._control.rest.wait()
        scope.cancel()

    async def _stop_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                if await self._supervision.restart_is_ordered():
                    self._control.rest.set()
                    return
                log.info("signal %d: unmounting %s", number, self._mounted.directory)
                try:
                    await trio.to_thread.run_sync(session.unmount, self._mounted.directory)
                except MountBusy:
                    log.warning("%s is in use; who uses it is cut off in %g s", self._mounted.directory, _STOP_S)
                except MountError as exc:
                    log.warning("%s", exc)
                self._control.stop.set()

    async def _drain(self) -> None:
        """Waits until what was written is in the bucket, for as long as was agreed; what is left says the log."""
        assert self._settings.outputs is not None
        budget_s = self._settings.outputs.drain_timeout_s
        try:
            answer = (await self._mover.link.call("drain", budget_s=budget_s)).body
        except MountkitError as exc:
            log.error("not everything is in the bucket: %s; the next mount of this cache goes on", exc)
            self.uploads_left = True
            return
        if answer["left"] or answer["failed"]:
            why = next((error["sentence"] for error in answer["errors"].values() if error), "")
            count = answer["left"] + answer["failed"]
            log.error("%d operations did not reach the bucket: %s; the next mount of this cache goes on", count, why)
            self.uploads_left = True


def take_away(mounted: Session) -> None:
    """Takes the mount from sight if it is still there; who uses it goes on until he lets go.

    A session that lives keeps its device number, so what is found by that number is ours and no successor's.
    """
    if session.is_connected(mounted.fd) and any(
        m.directory == mounted.directory and m.device == mounted.device for m in mountinfo.ours()
    ):
        with contextlib.suppress(MountkitError):
            session.unmount(mounted.directory, lazy=True)
