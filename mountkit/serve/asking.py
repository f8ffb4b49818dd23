"""Asking: a question that this machine alone cannot answer is broken off, the bucket asked, the question put again.

Whoever answers a question says by `need` what must be known for it. Nothing may have been changed before that, or a
transaction must undo it: the whole question is put once more, from its beginning.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from mountkit.serve.values import FileSystemError

_ATTEMPTS = 64
T = TypeVar("T")


class MustAsk(Exception):
    """The answer is not on this machine: await `ask()`, grant `about`, and put the question again.

    Call `leave()` when the question is over, however it ended: what `ask` has brought and nobody took is not needed.
    """

    def __init__(
        self, about: Hashable, ask: Callable[[], Awaitable[object]], leave: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(about)
        self.about, self.ask, self.leave = about, ask, leave


class Asking:
    """What has been asked for the question that is being answered now."""

    def __init__(self) -> None:
        self.granted: set[Hashable] = set()

    def need(self, about: Hashable, ask: Callable[[], Awaitable[object]]) -> None:
        """Raises MustAsk unless that was asked."""
        if about not in self.granted:
            raise MustAsk(about, ask)

    async def settle(self, need: MustAsk, question: Callable[[], T]) -> T:
        """The answer to a question that raised `need`. Raises FileSystemError."""
        granted: set[Hashable] = set()
        with contextlib.ExitStack() as asked:
            for _ in range(_ATTEMPTS):
                await need.ask()
                asked.callback(need.leave)
                granted.add(need.about)
                self.granted = granted
                try:
                    return question()
                except MustAsk as more:
                    need = more
                finally:
                    self.granted = set()
            raise FileSystemError(errno.EIO)
