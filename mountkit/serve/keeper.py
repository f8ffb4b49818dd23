"""The keeper: owns one FUSE session, starts the mover and the servers, watches them, and answers the control socket.

Order of a start: the mover first, so that a wrong bucket, region, credential or permission fails before anything is
mounted; then the mount; the servers; then proof from another process that the mount answers; then `ready`. Whatever
fails on the way is undone. A keeper that follows a dead one (`adopt`) takes the running session and joins its servers.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import trio

from mountkit import errors, ipc, logs, places, processes
from mountkit.config import MountSettings
from mountkit.errors import HostError, MountError, MountkitError, UploadsLeft
from mountkit.ipc import Channel, ChannelClosed, Message
from mountkit.serve import locks, session, writer_lock
from mountkit.serve.control import Control
from mountkit.serve.ending import Ending, take_away
from mountkit.serve.kept_session import KeptSession
from mountkit.serve.mover_host import MoverHost
from mountkit.serve.server_pool import ServerPool
from mountkit.serve.session import Session
from mountkit.serve.shared import SharedMemory
from mountkit.serve.state import StateDirectory
from mountkit.serve.supervision import Supervision

log = logging.getLogger(__name__)
_PROOF_S = 10.0
_LOCK_S = 10.0


class Keeper:
    """One mount. Make it, `run` it; it returns when the mount is gone."""

    def __init__(
        self, settings: MountSettings, *, secrets_fd: int | None, supervision: Supervision | None = None
    ) -> None:
        self.settings = settings
        self._secrets_fd = secrets_fd
        self._supervision = supervision or Supervision(None)
        self._undo = False
        """Whether the mount was made by us and nobody has been told of it: then it goes if we fail."""
        self._ending: Ending | None = None

    @property
    def uploads_left(self) -> bool:
        """Whether the mount ended before everything was in the bucket."""
        return self._ending is not None and self._ending.uploads_left

    async def run(self, report: Channel | None) -> None:
        """Mounts and keeps the mount until it is unmounted. Raises MountkitError if it cannot be mounted."""
        session.check_host(allow_other=self.settings.allow_other)
        places.ensure_runtime_directory()
        with contextlib.ExitStack() as stack:
            state = StateDirectory.open(self.settings)
            stack.callback(state.close)
            if self.settings.outputs is not None:
                writer_lock.check(state.fd, str(self.settings.source))
            if report is not None:
                logs.to_state_directory(state.fd)
            shared_fd = SharedMemory.create()
            stack.callback(os.close, shared_fd)
            self._prepare(state, shared_fd)
            async with trio.open_nursery() as nursery:
                self._servers.prestart()  # they import while the mover asks the bucket
                try:
                    mounted = await self._mount_unless_given_up(nursery, report)
                except BaseException:
                    self._servers.kill()
                    with trio.CancelScope(shield=True):
                        await self._mover.goodbye()
                    raise
                stack.callback(os.close, mounted.fd)
                self._undo = True
                try:
                    await self._serve(nursery, mounted, report)
                finally:
                    if self._undo:
                        take_away(mounted)
                    nursery.cancel_scope.cancel()

    async def adopt(self, start: Message, heir: Channel) -> None:
        """Takes over the session of a dead keeper, whose servers go on meanwhile.

        `heir` leads to the server that started us: it waits for our control socket, to join. Neither the mover nor the
        bucket is waited for: both may be away while the servers answer from the cache.
        """
        fuse_fd, shared_fd, state_fd, catalog_fd, *_secrets = start.fds
        body = start.body["adopt"]
        stand_in = str(body["stand_in"])
        state = StateDirectory(self.settings, state_fd, stand_in_fd=catalog_fd if stand_in else None, trouble=stand_in)
        logs.to_state_directory(catalog_fd)
        self._prepare(state, shared_fd, body["region"])
        mounted = Session(fuse_fd, bytes.fromhex(body["init"]), self.settings.directory, body["device"])
        if not session.is_connected(fuse_fd):
            raise MountError("the session has ended")
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(self._mover.run, check=False))
            try:
                await self._serve(nursery, mounted, heir, adopted=start.body)
            finally:
                nursery.cancel_scope.cancel()

    async def resume(self, kept: KeptSession) -> None:
        """Goes on with a session that systemd kept, whose processes are all gone. Does not wait for the bucket."""
        self._prepare(StateDirectory.open(self.settings), kept.shared_fd, kept.region)
        async with trio.open_nursery() as nursery:
            self._servers.prestart()
            await nursery.start(functools.partial(self._mover.run, check=False))
            try:
                await self._serve(nursery, kept.session, None, adopted={"shape": kept.shape, "servers_gone": True})
            finally:
                nursery.cancel_scope.cancel()

    # ---- start ---------------------------------------------------------------------------------------------
    def _prepare(self, state: StateDirectory, shared_fd: int, region: str = "") -> None:
        self._state, self._shared_fd = state, shared_fd
        self._mover = MoverHost(self.settings, state, self._secrets_fd, region)
        self._shared = SharedMemory(shared_fd)
        self._servers = ServerPool(self.settings.servers, self._inherited)

    def _inherited(self) -> tuple[dict[str, Any], list[int]]:
        """What a server is handed besides the session: its own needs, and what the next keeper will need."""
        secrets = [] if self._secrets_fd is None else [self._secrets_fd]
        fds = [self._shared_fd, self._state.fd, self._state.catalog_fd, *secrets]
        return {"stand_in": self._state.trouble}, fds

    async def _mount_unless_given_up(self, nursery: trio.Nursery, report: Channel | None) -> Session:
        """The session, once the bucket has answered. Raises MountError as soon as nobody waits for it any more."""
        mounted: Session | None = None
        given_up = False

        async def watch(report: Channel) -> None:
            nonlocal given_up
            with contextlib.suppress(ChannelClosed):
                await report.receive()
            given_up = True
            watching.cancel_scope.cancel()

        async with trio.open_nursery() as watching:
            if report is not None:
                watching.start_soon(watch, report)
            await nursery.start(functools.partial(self._mover.run, check=True))
            mounted = await trio.to_thread.run_sync(self._mount)
            watching.cancel_scope.cancel()
        if mounted is not None and not given_up:
            return mounted
        if mounted is not None:
            take_away(mounted)
            os.close(mounted.fd)
        raise _nobody_waits()

    def _mount(self) -> Session:
        s = self.settings
        mounted = session.mount(
            s.directory,
            source=str(s.source),
            allow_other=s.allow_other,
            executable=s.executable,
            writable=s.outputs is not None,
        )
        os.set_inheritable(mounted.fd, False)
        return mounted

    async def _serve(
        self, nursery: trio.Nursery, mounted: Session, report: Channel | None, adopted: dict[str, Any] | None = None
    ) -> None:
        self._mounted = mounted
        control = self._control = Control(
            self._mover.settings, self._state, mounted, self._servers, self._mover, self._shared
        )
        ending = self._ending = Ending(self.settings, mounted, control, self._servers, self._mover, self._supervision)
        socket_path = places.keeper_socket(mounted.device)
        async with contextlib.AsyncExitStack() as stack:
            # Callbacks run last first: the servers' and the mount's end, then the socket's, then the lock's, and at
            # last the waiting for uploads: the kernel may have given the device number to another mount by then.
            stack.push_async_callback(ending.part)
            try:
                # The kernel gives the device number of a mount that has just ended to the next one: its keeper gets
                # the time to end. A keeper that adopts does not wait: whoever has the lock has adopted already.
                await stack.enter_async_context(
                    locks.held_async(socket_path + ".lock", wait_s=0.0 if adopted and report else _LOCK_S)
                )
            except locks.LockHeld:
                raise HostError("another keeper has this session already") from None
            listener = await stack.enter_async_context(ipc.listening(socket_path))
            answering = await stack.enter_async_context(trio.open_nursery())
            stack.callback(answering.cancel_scope.cancel)
            stack.push_async_callback(lambda: ending.take_down(undo=self._undo))
            answering.start_soon(ipc.serve, listener, control.answer)
            if adopted is not None and report is not None:
                with contextlib.suppress(MountError):  # the heir may be gone or have lost patience; the others join
                    await _report(report, {"listening": True})
            await self._start_servers(nursery, socket_path, adopted)
            nursery.start_soon(ending.follow_servers)
            if adopted is None or report is None:
                session.set_read_ahead(mounted.device)
                await self._prove()
                if report is not None:
                    words = {"directory": mounted.directory, "pid": os.getpid(), "remarks": self._mover.remarks}
                    await _report(report, {"ready": True, **words})
            control.state, self._undo = "ok", False
            log.info("%s is mounted at %s", self.settings.source, mounted.directory)
            kept = KeptSession(mounted, self._shared_fd, self._mover.settings, self._mover.region, self._servers.shape)
            nursery.start_soon(self._supervision.attend, kept, control.status)
            await ending.wait()

    async def _start_servers(self, nursery: trio.Nursery, socket_path: str, adopted: dict[str, Any] | None) -> None:
        s = self._mover.settings
        start = {
            "settings": s.to_json(),
            "init": self._mounted.init.hex(),
            "device": self._mounted.device,
            "passthrough": self._control.passthrough,
            "writable": s.outputs is not None,
            "mover_socket": self._mover.socket_path,
            "region": self._mover.region,
            "keeper_socket": socket_path,
        }
        await nursery.start(self._servers.run, start, self._mounted.fd, self._shared, session.can_resend(s), adopted)

    async def _prove(self) -> None:
        """Another process must get an answer from the mount: this one would wait for itself."""
        major, minor = (int(word) for word in self._mounted.device.split(":"))
        command = ["stat", "-c", "%d", "--", self._mounted.directory]
        said = await processes.ask(command, patience_s=_PROOF_S)
        if said is None:
            raise MountError(f"the mount at {self._mounted.directory} did not answer within {_PROOF_S:g} s")
        if said.code != 0 or said.out.strip() != str(os.makedev(major, minor)):
            raise MountError(f"the mount at {self._mounted.directory} does not answer: {said.err.strip()}")


async def _report(report: Channel, body: dict[str, Any]) -> None:
    try:
        await report.send(body)
    except ChannelClosed as exc:
        raise _nobody_waits() from exc


def _nobody_waits() -> MountError:
    return MountError("the command that asked for the mount is gone")


async def _main(fds: Sequence[int]) -> int:
    """One descriptor: a channel on which the start comes, from `mounting` or from a server (`succession`)."""
    channel = Channel.from_fd(fds[0])
    try:
        start = await channel.receive()
    except ChannelClosed:
        return 1
    if "adopt" in start.body:
        return await _adopt(start, channel)
    settings = MountSettings.from_json(start.body["settings"])
    secrets_fd = start.fds[0] if start.fds else None
    if start.body.get("foreground"):
        return await _in_foreground(settings, secrets_fd)
    keeper = Keeper(settings, secrets_fd=secrets_fd)
    try:
        await keeper.run(channel)
    except (MountkitError, BaseExceptionGroup) as exc:
        error = errors.named(exc)
        if error is None:
            raise
        try:
            await channel.send({"error": error.to_json()})
        except ChannelClosed:
            log.error("%s", error)  # nobody is left to tell
        return error.exit_code
    return UploadsLeft.exit_code if keeper.uploads_left else 0


async def _in_foreground(settings: MountSettings, secrets_fd: int | None) -> int:
    """The exit code. A session that systemd kept is gone on with; one that does not fit is ended, and we start anew."""
    supervision = Supervision.from_environment()
    try:
        kept = supervision.take_session(settings)
    except MountError as exc:
        return supervision.starts_anew(exc)
    keeper = Keeper(settings, secrets_fd=secrets_fd, supervision=supervision)
    try:
        await (keeper.resume(kept) if kept else keeper.run(None))
    except (MountkitError, BaseExceptionGroup) as exc:
        error = errors.named(exc)
        if error is None:
            raise
        if kept:
            kept.abandon()
            return supervision.starts_anew(error)
        print(errors.two_lines(error), file=sys.stderr)  # noqa: T201
        return supervision.failed(error)
    return UploadsLeft.exit_code if keeper.uploads_left else 0


async def _adopt(start: Message, channel: Channel) -> int:
    settings = MountSettings.from_json(start.body["adopt"]["settings"])
    keeper = Keeper(settings, secrets_fd=start.fds[4] if len(start.fds) > 4 else None)
    try:
        await keeper.adopt(start, channel)
    except (MountkitError, BaseExceptionGroup) as exc:
        if errors.named(exc) is None:
            raise
        log.warning("this keeper does not take over: %s", errors.named(exc))
    finally:
        channel.close()
    return 0


def main() -> None:
    """Entry of the process: `python -I -m mountkit.serve.keeper CHANNEL_FD`."""
    os.chdir("/")
    processes.hide()
    processes.keep_files_private()
    logs.basic()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal must not end a mount
    sys.exit(trio.run(_main, [int(word) for word in sys.argv[1:]]))


if __name__ == "__main__":
    main()
