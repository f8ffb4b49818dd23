"""Trouble that may pass (no answer, 5xx): why uploads wait, and when one of them finds out whether it is over."""

from __future__ import annotations

import logging

from mountkit.errors import StoreError

log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class UploadPatience:
    """Pauses that double from try to try, from the first trouble until something works. No clock: `now` is given."""

    def __init__(self) -> None:
        self.trouble = ""
        """Empty while all is well."""
        self.paused_until = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def allowed(self, now: float, limit: int, under_way: int) -> int:
        """How many of `limit` operations may begin now: in trouble one, when the pause is over."""
        if not self.trouble:
            return limit
        return min(1, limit) if now >= self.paused_until and not under_way else 0

    def met(self, error: StoreError, now: float) -> None:
        """An operation met trouble. Many that were under way at once are one try."""
        if not self.trouble:
            log.warning("uploads wait: %s", error)
            self._pause_s = _FIRST_PAUSE_S
        self.trouble = f"uploads wait: {error}"
        if now >= self.paused_until:
            self.paused_until = now + self._pause_s
            self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)

    def over(self) -> None:
        """Something worked."""
        if self.trouble:
            log.warning("uploads go on")
        self.trouble, self.paused_until, self._pause_s = "", 0.0, _FIRST_PAUSE_S
