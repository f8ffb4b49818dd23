"""The order of uploads, kept as the journal has it: what the server queued, replaced, cancelled, and how it uploads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from mountkit.config import OutputSettings
from mountkit.mover.upload_order import UploadOrder
from mountkit.staging.queue import Ending, Operation, UploadJournal
from mountkit.staging.schema import OperationState

_WHOLE_S = 0.5
_FEW, _FEW_TIMES = 500, 10


class UploadMirror:
    """Reads the journal into `order`, on the trio thread.

    What is new is taken over by each look; all is compared seldom: what was cancelled or updated in place meanwhile is
    found at its claim at the latest.
    """

    def __init__(
        self, journal: UploadJournal, order: UploadOrder, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = OutputSettings()
        """As of the last look."""
        self._journal, self._order, self._clock = journal, order, clock
        self._last_seq = 0
        self._whole_at: float | None = None
        self._owed = True
        """Something has changed since all was compared."""

    def distrust(self) -> None:
        """We have changed the journal ourselves: the next look is at all of it."""
        self._whole_at, self._owed = None, True

    def look(self) -> bool:
        """Takes over what the server has done since; whether all that is open was compared."""
        changed, now = self._journal.changed(), self._clock()
        self._owed |= changed
        whole = self._owed and now >= self._due_at
        if not (changed or whole):
            return False
        self._load_settings()
        if whole:
            self._whole_at, self._owed = now, False
            self._compare()
        for operation in self._journal.open_operations(after=self._last_seq):
            self._last_seq = operation.seq
            self._take_over(operation)
        return whole

    def cancelled(self, seq: int) -> list[int]:
        """The server has cancelled an operation; the numbers of those that are over with it, in the journal, too."""
        needless = self._order.cancelled(seq)
        self._journal.end([Ending(each, OperationState.CANCELLED) for each in needless])
        return needless

    @property
    def _due_at(self) -> float:
        """From when on all may be compared again."""
        if self._whole_at is None:
            return 0.0
        return self._whole_at + (_WHOLE_S if len(self._order) <= _FEW else _FEW_TIMES * _WHOLE_S)

    def _compare(self) -> None:
        rows = {operation.seq: operation for operation in self._journal.open_operations()}
        for seq in [*self._order.operations, *self._order.failures]:
            if seq not in rows:
                for over in self.cancelled(seq):
                    rows.pop(over, None)
        for seq, row in rows.items():
            known = self._order.get(seq)
            if row.state is OperationState.RUNNING:
                continue  # ours
            if row.state is OperationState.FAILED:
                if seq not in self._order.failures:
                    self._take_over(row)
            elif known is None or not _same(known, row):
                self._take_over(row)
            self._last_seq = max(self._last_seq, seq)

    def _take_over(self, operation: Operation) -> None:
        # The journal has the wall clock's time, which may have been set meanwhile: never later than now.
        self._order.add(operation, since=self._clock() - max(0.0, time.time() - operation.queued_at))

    def _load_settings(self) -> None:
        known = self._journal.settings()
        names = OutputSettings.__dataclass_fields__
        self.settings = OutputSettings(**{name: known[name] for name in names if name in known})


def _same(known: Operation, row: Operation) -> bool:
    """Whether a waiting operation is still what we know; what we changed ourselves does not count."""
    return replace(known, upload_id=None, upload_part_bytes=0) == replace(row, upload_id=None, upload_part_bytes=0)
