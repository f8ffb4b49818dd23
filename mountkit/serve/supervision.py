"""The keeper as a service of systemd: says when it is ready and how it is, proves that it lives, keeps its session.

Outside of a unit every method does nothing, so the keeper need not ask where it runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio

from mountkit import processes
from mountkit.config import MountSettings
from mountkit.errors import MountError, MountkitError, StoreError
from mountkit.notify import TEMPORARY_FAILURE, Manager, one_line
from mountkit.serve import kept_session
from mountkit.serve.kept_session import KeptSession

log = logging.getLogger(__name__)
_PERIOD_S = 10.0
_JOB_S = 5.0
_EXTENSION_S = 30.0
_LONGEST_END_S = 3600.0
"""An end that takes longer hangs: then systemd may kill us."""


class Supervision:
    """What a keeper tells the manager that started it, if any did."""

    def __init__(self, manager: Manager | None) -> None:
        self._manager = manager
        self._kept: KeptSession | None = None
        self._probing = trio.Semaphore(1)

    @classmethod
    def from_environment(cls) -> Supervision:
        return cls(Manager.from_environment(os.environ))

    def take_session(self, wanted: MountSettings) -> KeptSession | None:
        """The session an earlier keeper left with the manager, if there is one.

        Raises MountError where it cannot be used; then it is ended, and its mount is gone or dead.
        """
        if self._manager is None:
            return None
        self._kept = kept_session.take(os.environ)
        if self._kept and not self._kept.suits(wanted):
            self._kept.abandon()
            raise MountError(f"{self._kept.settings.source} is mounted with other settings than it shall have now")
        return self._kept

    def starts_anew(self, why: MountkitError) -> int:
        """Forgets what the manager keeps; the exit code that has it start us again, without it."""
        log.warning("%s; mounting anew", why)
        if self._manager:
            kept_session.drop(self._manager)
            self._manager.flush()
        return TEMPORARY_FAILURE

    async def attend(self, kept: KeptSession, status: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """Leaves the session with the manager, then as `report`."""
        if self._manager is None:
            return
        if self._kept is None:
            kept_session.keep(self._manager, kept)
        await self.report(kept.session.directory, status)

    async def report(self, directory: str, status: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """Reports ready, and from then on how the mount is, until cancelled.

        The watchdog hears from us only while another process gets answers from the mount.
        """
        if self._manager is None:
            return
        self._manager.tell("READY=1", f"STATUS={summary(await status())}")
        period_s = min(_PERIOD_S, (self._manager.watchdog_s or _PERIOD_S) / 3)
        while True:
            async with self._probing:
                answers = await _answers(directory, period_s)
            if answers:
                self._manager.tell("WATCHDOG=1", f"STATUS={summary(await status())}")
            else:
                log.warning("the mount at %s does not answer", directory)
                self._manager.tell(f"STATUS=the mount at {directory} does not answer")
            await trio.sleep(period_s)

    async def cease(self) -> None:
        """From here on the mount is not probed: a probe that its servers have begun to answer outlives their SIGKILL,
        and systemd would wait for it before it starts the next keeper, which alone could have it answered."""
        with trio.move_on_after(_PERIOD_S):
            await self._probing.acquire()

    async def restart_is_ordered(self) -> bool:
        """Whether the SIGTERM that has just come is a restart's: then the session shall stay.

        If the manager does not say, it is taken for a stop: a session nobody goes on with would hang its readers.
        """
        if self._manager is None or not self._manager.unit:
            return False
        done = None
        with trio.move_on_after(_JOB_S), contextlib.suppress(OSError):
            done = await trio.run_process(
                self._manager.asks_for_job(),
                check=False,
                capture_stdout=True,
                capture_stderr=True,
                env=processes.environment(),
            )
        if done is None or done.returncode:
            log.warning("systemd does not say whether this is a stop or a restart; the mount ends")
            return False
        return self._manager.job_type(done.stdout.decode(errors="replace")) in ("restart", "try-restart")

    @contextlib.asynccontextmanager
    async def stopping(self, what: str) -> AsyncIterator[None]:
        """While this lasts the manager is asked for patience."""
        if self._manager is None:
            yield
            return
        self._manager.tell("STOPPING=1", f"STATUS={what}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_for_patience)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    async def _ask_for_patience(self) -> None:
        with trio.move_on_after(_LONGEST_END_S):
            while self._manager:
                self._manager.tell(f"EXTEND_TIMEOUT_USEC={_EXTENSION_S * 1e6:.0f}")
                await trio.sleep(_EXTENSION_S / 3)

    def failed(self, error: MountkitError) -> int:
        """Leaves the reason in the unit's status; the exit code that tells whether another start may help."""
        if self._manager is None:
            return error.exit_code
        hint = f"; hint: {error.hint}" if error.hint else ""
        self._manager.tell(f"STATUS=error: {one_line(error.sentence + hint)}")
        self._manager.flush()
        return TEMPORARY_FAILURE if isinstance(error, StoreError) and error.transient else error.exit_code


def summary(status: dict[str, Any]) -> str:
    """How a mount is, in one line."""
    reads, cache = status["reads"], status["cache"]
    text = f"{status['source']} at {status['directory']}: {status['state']}"
    if status["reasons"]:
        return one_line(f"{text}: {'; '.join(status['reasons'])}")
    used = f", {cache['bytes_used'] / 1e9:.1f} GB cached" if cache else ""
    opens = f", {reads['opens']} opens" if reads else ""  # s3fs counts nothing
    pending = status.get("outputs", {}).get("pending", 0)
    uploads = f", {pending} to upload" if pending else ""
    return one_line(f"{text}{opens}{used}{uploads}")


async def _answers(directory: str, patience_s: float) -> bool:
    """Whether a process that can be given up gets an answer: statfs is never answered from the kernel's memory."""
    said = await processes.ask(["stat", "-f", "-c", "%i", "--", directory], patience_s=patience_s)
    return said is not None and said.code == 0
