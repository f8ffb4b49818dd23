"""The keeper's side of the mover: starts it, or uses the one that serves the same state already; starts it anew when
it dies. Several keepers may share one mover; whichever notices first starts the next, a lock decides. Where the catalog
lies (on its disk, or in memory while that does not work) is the running mover's word, and so are budgets and cache
limits (`terms`): its keepers follow.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

import trio

from mountkit import errors, ipc, places, processes, terms
from mountkit.config import MountSettings
from mountkit.errors import HostError, MountkitError, StoreUnavailable
from mountkit.ipc import Channel, ChannelClosed, Message
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.state import StateDirectory

log = logging.getLogger(__name__)
MOVER_MODULE = "mountkit.mover.process"
_START_S = 15.0
_STATUS_S = 1.0
_GOODBYE_S = 3.0
_LINKED_S = 1.0
_LOOK_S = 0.1
_MEND_S, _MEND_MOST_S = 3.0, 300.0
"""How often a cache disk that failed is tried again; twice as long after each time that it failed again at once."""


class MoverHost:
    """Keeps a mover running. `link` is the keeper's connection to it."""

    def __init__(
        self, settings: MountSettings, state: StateDirectory, secrets_fd: int | None, region: str = ""
    ) -> None:
        """`region`: the bucket's, where it was found before; then a mover starts also while the bucket is away."""
        self.socket_path = places.mover_socket(state.path)
        hello = {"op": "hello", "role": "keeper", "pid": os.getpid()}
        self.link = MoverLink(self.socket_path, hello, on_place=self._follow)
        self.pid = 0
        self.region = region
        self.restarts = 0
        self._asked = self.settings = settings
        """As they hold beside the mover's other mounts."""
        self.remarks: list[str] = []
        """What in them is not as it was said."""
        self._state, self._secrets_fd = state, secrets_fd
        self._last_error = ""
        self._leaving = self._replacing = False

    async def run(self, *, check: bool, task_status: trio.TaskStatus[None]) -> None:
        """Keeps a mover there. With `check`, reports started once one has proved that the bucket answers.

        Raises MountkitError if it cannot, with `check`; without, goes on trying, and `statistics` says what is wrong.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self.link.run)
            if check:
                await self._begin_checked()
            nursery.start_soon(self._mend)
            task_status.started()
            lost = self.link.lost if check else None
            while True:
                if lost is not None:
                    await lost.wait()
                    if self._leaving:
                        await trio.sleep_forever()
                    if not self._replacing:
                        log.warning("the mover is gone; starting another")
                        self.restarts += 1
                lost = await self._supply()

    async def _begin_checked(self) -> None:
        """Returns once a mover is linked, ours or another mount's, and was answered by the bucket just now."""
        with trio.move_on_after(_START_S):
            while True:
                ours = False
                if not await ipc.answers(self.socket_path):
                    self.settings = self._asked
                    ours = await self._start(check=True)
                if await self._linked() and (ours or await self._agreed()):
                    return
        raise StoreUnavailable(
            f"{self.settings.source} did not answer within {_START_S:g} s",
            "check the endpoint, the network and any proxy",
        )

    def _no_answer(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self.settings.source} did not answer within {_START_S:g} s",
            "check the endpoint, the network and any proxy",
        )

    async def _agreed(self) -> bool:
        """Whether the running mover has asked the bucket and serves us as well; False if it ends.

        Raises MountError if it serves another mount that wants it otherwise.
        """
        lost = self.link.lost
        answer = await self._checked()
        if answer is None:
            return False
        different = terms.differences(self._asked, self.settings)
        if different and not answer["shared"]:  # nobody's any more: the next one is started with our settings
            await self.link.tell("retire")
            await lost.wait()
            return False
        terms.refuse_contradiction(self._asked, self.settings)
        self.remarks = different
        self._note(answer)
        return True

    async def _checked(self) -> dict[str, Any] | None:
        """The running mover's word that the bucket answers; None if it ended meanwhile: it may have been about to."""
        failure: list[MountkitError] = []
        answer: dict[str, Any] | None = None

        async def give_up_when_lost() -> None:
            await lost.wait()
            scope.cancel()

        lost = self.link.lost
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            nursery.start_soon(give_up_when_lost)
            try:
                answer = (await self.link.call("check", budget_s=_START_S)).body
            except MountkitError as exc:
                failure.append(exc)
            scope.cancel()
        if failure:
            raise failure[0]
        return answer

    async def _supply(self) -> trio.Event:
        """Sees to it that the link has a mover; returns the event of its loss.

        That something accepts connections is no proof: a mover that is being killed loses its connections before its
        listening socket.
        """
        delay = 0.0
        while True:
            try:
                if not await ipc.answers(self.socket_path):
                    await self._start(check=False)
                if await self._linked():
                    self._last_error = ""
                    return self.link.lost
            except MountkitError as exc:
                problem = f"the mover does not start: {exc}"
                if problem != self._last_error:
                    log.error("%s", problem)
                self._last_error = problem
            await trio.sleep(delay)
            delay = min(2.0, delay + 0.2)

    async def _linked(self) -> bool:
        """Whether the link gets its mover; False as soon as that one has gone after all."""
        with trio.move_on_after(_LINKED_S):
            while await ipc.answers(self.socket_path):
                with trio.move_on_after(_LOOK_S):
                    await self.link.linked()
                    return True
        return False

    async def _start(self, *, check: bool) -> bool:
        """Starts a mover; False if another one had the state directory already. Raises what keeps it from starting.

        Where the disk does not take the catalog the mover has it in memory.
        """
        self._state.renew()
        answer = await self._spawned(check=check)
        if "unusable" in answer and not self._state.trouble:
            self._state.stand_in(str(answer["unusable"]))
            answer = await self._spawned(check=check)
        if "unusable" in answer:
            raise HostError(f"there is no place for the catalog: {answer['unusable']}", "free some memory or disk")
        if "error" in answer:
            raise errors.from_json(answer["error"])
        if answer.get("taken"):
            return False
        self._note(answer)
        return True

    async def _spawned(self, *, check: bool) -> dict[str, Any]:
        """What a mover that was just started says of itself. Raises MountkitError if it says nothing."""
        process, fd = processes.spawn(MOVER_MODULE)
        channel = Channel.from_fd(fd)
        processes.reap_later(process.pid)
        fds = [self._state.fd, self._state.catalog_fd, *([] if self._secrets_fd is None else [self._secrets_fd])]
        try:
            body = {
                "settings": self.settings.to_json(),
                "socket": self.socket_path,
                "check": check,
                "region": self.region,
                "stand_in": self._state.trouble,
            }
            with trio.fail_after(_START_S):
                await channel.send(body, fds=fds)
                return (await channel.receive()).body
        except ChannelClosed:
            raise MountkitError("the mover ended at its start", "its log may say why") from None
        except trio.TooSlowError:
            process.kill()
            raise self._no_answer() from None
        except BaseException:
            process.kill()  # nobody waits for it any more, and it may be waiting for a black hole
            raise
        finally:
            channel.close()

    def _follow(self, place: Message) -> None:
        self.pid = int(place.body["pid"])
        running = MountSettings.from_json(place.body["settings"])
        if words := terms.differences(self.settings, running):
            log.info("the mover is another mount's, with %s", ", ".join(words))
        self.settings = terms.followed(self.settings, running)
        self._state.take(place)

    async def _mend(self) -> None:
        """Brings the catalog back to its disk once that works again. For ever."""
        pause, home_since = _MEND_S, -_MEND_MOST_S
        while True:
            await trio.sleep(pause)
            if not self._state.trouble:
                if trio.current_time() - home_since > _MEND_MOST_S:
                    pause = _MEND_S
                continue
            if not await trio.to_thread.run_sync(self._state.works_at_home, abandon_on_cancel=True):
                continue
            pause = _MEND_S if trio.current_time() - home_since > _MEND_MOST_S else min(_MEND_MOST_S, 2 * pause)
            home_since = trio.current_time()
            self._state.renew()
            self._state.go_home()
            with contextlib.suppress(MountkitError):
                await self.replace()  # what follows us is the next mover

    def _note(self, answer: dict[str, Any]) -> None:
        self.pid, self.region = int(answer["pid"]), str(answer["region"])

    async def replace(self) -> None:
        """Has the mover end in order and another one start. Raises MountkitError if none comes."""
        lost, self._replacing = self.link.lost, True
        try:
            await self.link.tell("retire")
            with trio.fail_after(_START_S):
                await lost.wait()
                await self.link.linked()
        except trio.TooSlowError:
            raise MountkitError("the mover was not replaced", "the mount's log may say why") from None
        finally:
            self._replacing = False

    async def statistics(self) -> tuple[dict[str, Any], list[str]]:
        """What the mover says of itself, and reasons why the mount is degraded."""
        try:
            body = (await self.link.call("stats", budget_s=_STATUS_S)).body
        except MountkitError as exc:
            return {}, [self._last_error or f"the mover does not answer: {exc}"]
        self.pid = int(body["pid"])
        return body, [str(reason) for reason in body.get("degraded", [])]

    async def goodbye(self) -> None:
        """Tells the mover that this mount is over; if it was the last one, waits for the mover's end."""
        self._leaving = True
        if not self.pid:
            return
        with trio.move_on_after(_GOODBYE_S), contextlib.suppress(MountkitError, ProcessLookupError):
            answer = await self.link.call("goodbye", budget_s=_GOODBYE_S)
            if answer.body["last"]:
                await processes.Watched(self.pid).wait()
