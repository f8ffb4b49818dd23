"""What came of uploads, settled in batches: into the catalog first, then into the journal.

So whoever sees an operation DONE finds the object in the catalog. Nobody knows what is noted here before `settle`.
"""

from __future__ import annotations

import logging

from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import CatalogLost, CatalogUnavailable
from mountkit.catalog.written import record_writes
from mountkit.staging.queue import Ending, Operation, UploadJournal
from mountkit.staging.schema import OperationState
from mountkit.store.api import ObjectInfo, Part

log = logging.getLogger(__name__)


class UploadSettling:
    """Ends, and the parts on the way there; also how far all of it has come. On the trio thread."""

    def __init__(self, journal: UploadJournal, catalog: Catalog | None) -> None:
        self.done_bytes = 0
        """Of everything that was done since the start."""
        self._journal, self._catalog = journal, catalog
        self._sent_bytes: dict[int, int] = {}
        self._endings: list[Ending] = []
        self._writes: list[tuple[bytes, ObjectInfo | None]] = []
        self._parts: list[tuple[int, Part]] = []

    @property
    def sent_bytes(self) -> int:
        """Of what is under way in parts."""
        return sum(self._sent_bytes.values())

    def part(self, operation: Operation, part: Part, sent_bytes: int) -> None:
        """A part was confirmed; with it, `sent_bytes` of its operation are there."""
        self._sent_bytes[operation.seq] = sent_bytes
        self._parts.append((operation.seq, part))

    def halted(self, operation: Operation) -> None:
        """Nothing of it is under way any more."""
        self._sent_bytes.pop(operation.seq, None)

    def done(self, operation: Operation, info: ObjectInfo | None) -> None:
        """Its key holds this object now; None: nothing any more."""
        self.done_bytes += operation.size
        self._writes.append((operation.key, info))
        self.end(
            Ending(
                operation.seq,
                OperationState.DONE,
                etag=info.etag if info else "",
                version_id=info.version_id if info else "",
                checksum=info.checksum if info else "",
                sent_bytes=operation.size,
            )
        )

    def end(self, ending: Ending) -> None:
        """An operation is over without an object, or has failed."""
        self._endings.append(ending)

    def settle(self) -> None:
        """Writes down all that was noted. Raises CatalogLost, sqlite3.Error."""
        if self._parts:
            sent = {seq: self._sent_bytes.get(seq, 0) for seq, _ in self._parts}
            self._journal.note_parts(self._parts, sent)
            self._parts.clear()
        if self._writes and self._catalog is not None:
            try:
                record_writes(self._catalog, self._writes)
            except CatalogLost:
                raise
            except CatalogUnavailable as exc:
                log.warning("what was uploaded is not in the catalog yet: %s", exc)
        self._writes.clear()
        if self._endings:
            self._journal.end(self._endings)
            self._endings.clear()
