"""Doubts: what a server does while the catalog cannot be read, because it is damaged, being begun anew, or moved.

The mover is told, as it alone can mend it; the operation that met it is begun again within the metadata budget.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from mountkit.serve.mover_link import MoverLink
from mountkit.serve.values import NotNow

AGAIN_S = 0.1
"""How long until the catalog is worth another look."""
_TOLD_S = 0.5
T = TypeVar("T")


class Doubts:
    """One server's. All methods belong to one trio thread."""

    def __init__(self, mover: MoverLink, budget_s: float) -> None:
        self._mover, self._budget_s = mover, budget_s
        self._noted = trio.Event()

    def note(self) -> None:
        """The catalog could not be read: the mover shall look at it."""
        self._noted.set()

    def not_now(self) -> NotNow:
        """As `note`; what to raise."""
        self._noted.set()
        return NotNow()

    async def voice(self) -> None:
        """Tells the mover of them, at most twice a second. For ever."""
        while True:
            await self._noted.wait()
            await self._mover.tell("doubt")
            await trio.sleep(_TOLD_S)
            self._noted = trio.Event()

    async def patiently(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Repeats what fails only because the catalog cannot be read at this moment, within the metadata budget."""
        deadline = trio.current_time() + self._budget_s
        while True:
            try:
                return await wait()
            except NotNow:
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(AGAIN_S)
