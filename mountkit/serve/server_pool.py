"""The servers of one mount: started, watched, and started again; nothing that was in flight is lost when one dies."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import trio

from mountkit import processes
from mountkit.errors import MountError
from mountkit.ipc import Channel, ChannelClosed
from mountkit.processes import Watched
from mountkit.serve import session
from mountkit.serve.shared import SharedMemory

log = logging.getLogger(__name__)
SERVER_MODULE = "mountkit.serve.server"
_READY_S = 10.0
_JOIN_S = 3.0
_LOOK_S = 0.05
_UNFIT_S = 30.0
_IMPORT_S = 0.5
MISMATCH = 3
"""The exit code of a server whose libfuse negotiates otherwise than the first one's did."""


class _Server:
    """One slot's process."""

    def __init__(self, watched: Watched, channel: Channel) -> None:
        self.watched, self.channel = watched, channel
        self.up = trio.Event()

    @property
    def serving(self) -> bool:
        return self.up.is_set()

    async def said_it_ended(self) -> bool:
        """Whether its last word, read after its death, was that the kernel ended the session."""
        try:
            while True:
                if (await self.channel.receive()).body.get("ended"):
                    return True
        except ChannelClosed:
            return False
        finally:
            self.channel.close()


class ServerPool:
    """`count` slots. `session_ended` is set when a server says the kernel ended the session."""

    def __init__(self, count: int, inherited: Callable[[], tuple[dict[str, Any], list[int]]]) -> None:
        """`inherited`: words and descriptors that a server gets besides the session, as they are now."""
        self.session_ended = trio.Event()
        self.restarts = 0
        self._count, self._inherited = count, inherited
        self._servers: dict[int, _Server] = {}
        self._spare: dict[int, _Server] = {}
        """Started to take the place of a server that is ended by order."""
        self._joined: dict[int, _Server] = {}
        self._all_joined = trio.Event()
        self._joining_is_over = False
        self._unfit: dict[int, str] = {}
        self._shape: list[int] | None = None
        self._stopping = False
        self._replacing = trio.Lock()

    def prestart(self) -> None:
        """Starts the processes, which import and wait for the `serve` message."""
        for slot in range(self._count):
            self._servers[slot] = self._spawn()

    @property
    def shape(self) -> list[int]:
        """What the servers of this session have negotiated."""
        return self._shape or []

    def pids(self) -> list[int]:
        return [server.watched.pid for _, server in sorted(self._servers.items())]

    async def replace_all(self) -> None:
        """Puts a new process into every slot, one after the other; readers go on.

        Raises MountError if one does not serve in time; before the first old one is ended, if none would.
        """
        async with self._replacing:
            await self._prove_fit()
            for slot in range(self._count):
                spare = self._spare[slot] = self._spawn()  # it imports while the old one still serves
                await trio.sleep(_IMPORT_S)
                self._servers[slot].watched.kill()
                with trio.move_on_after(_READY_S):
                    await spare.up.wait()
                    continue
                raise MountError(f"server {slot} was not replaced within {_READY_S:g} s", "the mount's log may say why")

    async def _prove_fit(self) -> None:
        """Has a process negotiate as a server would, and end. Raises MountError if it cannot join this session."""
        trial = self._spawn()
        words, fds = self._inherited()
        body = {**self._start, **words, "slot": 0, "first": False, "shape": self._shape, "trial": True}
        code: int | None = None
        try:
            with trio.move_on_after(_READY_S), contextlib.suppress(ChannelClosed):
                await trial.channel.send(body, fds=[self._fuse_fd, *fds])
                code = await trial.watched.wait()
        finally:
            trial.watched.kill()
            trial.watched.close()
            trial.channel.close()
        if code == MISMATCH:
            raise MountError("the libfuse that is installed now does not fit this mount", "unmount it and mount again")
        if code != 0:
            raise MountError("a server of the version that is installed now does not start", "the mount's log says why")

    def kill(self) -> None:
        """Ends all servers at once; they have nothing to lose."""
        self._stopping = True
        for server in (*self._servers.values(), *self._spare.values()):
            server.watched.kill()

    async def run(
        self,
        start: dict[str, Any],
        fuse_fd: int,
        shared: SharedMemory,
        resend: bool,
        adopted: dict[str, Any] | None,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Reports started once every slot serves; then keeps it so. Raises MountError if none gets ready."""
        self._start, self._fuse_fd, self._shared, self._resend = start, fuse_fd, shared, resend
        if adopted is not None:
            self._shape = list(adopted["shape"])
        async with trio.open_nursery() as nursery:
            if adopted is not None:
                await self._await_joins(0.0 if adopted.get("servers_gone") else _JOIN_S)
            else:
                await self._begin(0, first=True)
            for slot in range(self._count):
                if adopted is not None and slot not in self._joined:
                    await self._end_absent(slot)
                    self._hand_out_again(slot)
            async with trio.open_nursery() as starting:
                for slot in range(self._count):
                    if slot not in self._servers:
                        self._servers[slot] = self._spawn()
                    if not self._servers[slot].serving:
                        starting.start_soon(self._begin, slot)
            for slot in range(self._count):
                nursery.start_soon(self._watch, slot)
            task_status.started()

    async def join(self, body: dict[str, Any], channel: Channel) -> None:
        """A server whose keeper died comes to this one; one that comes late, or is not ours, is turned away."""
        slot, pid = body.get("slot"), channel.peer_pid
        if self._shape is None or not isinstance(slot, int) or not 0 <= slot < self._count:
            log.warning("process %d asks to join as server %r: refused", pid, slot)
            channel.close()
            return
        with contextlib.suppress(ProcessLookupError):
            server = _Server(Watched(pid), channel)
            if self._joining_is_over or slot in self._joined:
                log.warning("server %d (pid %d) joins too late: its place is taken", slot, pid)
                await self._turn_away(slot, server)
                return
            server.up.set()
            self._joined[slot] = server
            if len(self._joined) == self._count:
                self._all_joined.set()
            log.info("server %d (pid %d) joined", slot, pid)

    async def _turn_away(self, slot: int, server: _Server) -> None:
        """Ends a server that nobody would watch, and has what it held handed out again."""
        server.watched.kill()
        await server.watched.wait()
        server.watched.close()
        server.channel.close()
        if self._shared.server(slot)[0] == server.watched.pid:  # else its successor writes there
            self._hand_out_again(slot)

    async def _await_joins(self, patience_s: float = _JOIN_S) -> None:
        """Returns once all servers that still live have joined, or had the time to."""
        with trio.move_on_after(patience_s):
            while not self._all_joined.is_set() and self._somebody_may_come():
                with trio.move_on_after(_LOOK_S):
                    await self._all_joined.wait()
        self._joining_is_over = True
        self._servers |= self._joined

    def _somebody_may_come(self) -> bool:
        absent = (self._shared.server(slot) for slot in range(self._count) if slot not in self._joined)
        return any(pid and processes.started(pid) == began for pid, began in absent)

    async def _end_absent(self, slot: int) -> None:
        """Ends a server that lives and has not joined: no two may write down their requests in one slot."""
        pid, started = self._shared.server(slot)
        if not pid:
            return
        with contextlib.suppress(ProcessLookupError):
            watched = Watched(pid)
            try:
                if processes.started(pid) == started:
                    log.warning("server %d (pid %d) did not join in time: it is ended", slot, pid)
                    watched.kill()
                    with trio.move_on_after(_JOIN_S):  # a disk that hangs may keep it
                        await watched.wait()
            finally:
                watched.close()

    def troubles(self) -> list[str]:
        """What `status` has to say about servers that cannot serve."""
        return [f"server {slot}: {text}" for slot, text in sorted(self._unfit.items())]

    def _spawn(self) -> _Server:
        process, fd = processes.spawn(SERVER_MODULE)
        return _Server(Watched(process.pid), Channel.from_fd(fd))

    async def _begin(self, slot: int, *, first: bool = False) -> None:
        """Sends the `serve` message and waits until the server has negotiated."""
        server = self._servers[slot]
        words, fds = self._inherited()
        body = {**self._start, **words, "slot": slot, "first": first, "shape": self._shape}
        with trio.move_on_after(_READY_S):
            try:
                await server.channel.send(body, fds=[self._fuse_fd, *fds])
                answer = await server.channel.receive()
            except ChannelClosed:
                if self._shape is None:
                    raise MountError(
                        "a server ended at its start", "the log in the state directory may say why"
                    ) from None
                return  # `_watch` starts it again
            if "shape" not in answer.body:  # the session had ended already: `_watch` reads it
                server.channel.push_back(answer)
                return
            self._shape = answer.body["shape"]
            server.up.set()
            self._unfit.pop(slot, None)
            return
        server.watched.kill()
        if self._shape is None:
            raise MountError(f"a server was not ready within {_READY_S:g} s")

    async def _watch(self, slot: int) -> None:
        delay = 0.0
        while True:
            server = self._servers[slot]
            code = await server.watched.wait()
            server.watched.close()
            if self._stopping or await server.said_it_ended():
                self.session_ended.set()
                return
            by_order = slot in self._spare
            if not by_order:
                log.warning("server %d (pid %d) ended with %s; starting another", slot, server.watched.pid, code)
            if code == MISMATCH:
                self._unfit[slot] = "its libfuse does not fit this mount; was it updated? unmount and mount again"
                self._give_up(slot)
            self.restarts += not by_order
            self._hand_out_again(slot)
            await trio.sleep(_UNFIT_S if code == MISMATCH else delay)
            delay = 0.0 if server.serving else min(2.0, delay + 0.2)
            self._servers[slot] = self._spare.pop(slot) if by_order else self._spawn()
            await self._begin(slot)

    def _hand_out_again(self, dead: int) -> None:
        """Has the kernel repeat what the dead server of a slot had in its hands.

        Below Linux 6.9 the slot's next server does it again (`Responder.do_again`). Always before that one begins: it
        writes down its own requests where those of the dead one stand. So wherever a server serves, nothing of its
        predecessors is left to be done, whichever keeper asks.
        """
        try:
            if self._resend and not session.resend(self._fuse_fd):
                self._give_up(dead)
        except OSError as exc:
            log.info("the session is gone: %s", exc)

    def _give_up(self, dead: int) -> None:
        """Where nobody will do again what a dead server had in its hands: has the kernel ask once more."""
        try:
            session.fail_in_flight(self._fuse_fd, self._shared.in_flight(dead))
            self._shared.clear_in_flight(dead)
        except OSError as exc:
            log.info("the session is gone: %s", exc)
