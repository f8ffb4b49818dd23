"""Whether a trace of the opens is running: the mover leaves a mark in the state directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from mountkit import places

_LOOK_S = 0.1


class Tracing:
    """Looks at most ten times a second: opens of sealed files are too many to look at each."""

    def __init__(self, state_fd: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`state_fd` stays the caller's and open."""
        self._state_fd, self._clock = state_fd, clock
        self._looked_at, self._found = -_LOOK_S, False

    def __call__(self) -> bool:
        now = self._clock()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self._found = _exists(self._state_fd)
        return self._found


def _exists(state_fd: int) -> bool:
    try:
        os.stat(places.TRACE_MARK, dir_fd=state_fd, follow_symlinks=False)
    except OSError:
        return False
    return True
