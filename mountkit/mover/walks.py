"""Walks: directories entered one after the other as a tree has them, and how far ahead of them to list.

Plain rules, no I/O. Directories are named by their prefixes, whose order is that of a walk from the top. A directory
continues a walk if it is the next one after the last, in the tree or behind what lies below the last (`ls */` does not
go down). From the first such step on the directories that follow are worth listing, in a window that doubles from 8 to
256; it reaches over the smallest tree that holds all the walk has entered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_WALKS = 16
_FIRST_WINDOW, MAX_WINDOW = 8, 256

Following = Callable[[bytes, bytes], bytes | None]
"""(prefix, top): the first known directory below `top` whose prefix is greater than or equal to `prefix`."""


@dataclass(eq=False, slots=True)
class Walk:
    """`last`: the directory entered last; `top`: the tree that is walked."""

    last: bytes
    top: bytes
    steps: int = 0
    planned: int = 0
    """So many more may be entered before it is worth looking ahead anew."""

    @property
    def window(self) -> int:
        """How many directories after `last` are worth listing."""
        return min(MAX_WINDOW, _FIRST_WINDOW << min(self.steps - 1, 8)) if self.steps else 0


class Walks:
    """The walks under way; the last few are remembered."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._walks: deque[Walk] = deque(maxlen=_WALKS)

    def entered(self, prefix: bytes) -> Walk | None:
        """Notes that somebody reads this directory: the walk whose next directories are to be listed now."""
        for walk in self._walks:
            if prefix == walk.last:
                return None
            if self._continues(walk, prefix):
                self._walks.remove(walk)
                self._walks.appendleft(walk)
                return self._step(walk, prefix)
        self._walks.appendleft(Walk(prefix, prefix))
        return None

    def _continues(self, walk: Walk, prefix: bytes) -> bool:
        if prefix <= walk.last:
            return False
        within = _common(walk.top, prefix)
        return prefix in (self._following(walk.last + b"\0", within), self._following(_behind(walk.last), within))

    def _step(self, walk: Walk, prefix: bytes) -> Walk | None:
        walk.last, walk.top = prefix, _common(walk.top, prefix)
        walk.steps += 1
        walk.planned -= 1
        if walk.planned > 0:
            return None
        walk.planned = walk.window // 2
        return walk


def _common(one: bytes, other: bytes) -> bytes:
    """The deepest directory that holds both."""
    while not other.startswith(one):
        one = one[: one.rfind(b"/", 0, -1) + 1]
    return one


def _behind(prefix: bytes) -> bytes:
    """What sorts after everything below this directory."""
    return prefix[:-1] + b"0" if prefix else b"\xff"
