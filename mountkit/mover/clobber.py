"""--no-clobber: what must be under a key for a PUT to replace it."""

from __future__ import annotations

from mountkit.mover.upload_jobs import Condition
from mountkit.staging.queue import Operation, UploadJournal
from mountkit.staging.schema import OperationKind


def condition_of(journal: UploadJournal, operation: Operation) -> Condition:
    """The version that the mount showed when the file was opened, or what we have put ourselves since."""
    shown = (operation.metadata or {}).get("if_match")
    last = journal.last_done(operation.key, operation.seq)
    if last is not None:
        kind, etag, ended_at = last
        if ended_at > operation.queued_at or shown is None:
            return Condition(if_absent=True) if kind is OperationKind.DELETE else Condition(if_match=etag)
    if shown is None and operation.file is not None:
        base = journal.base(operation.file)
        shown = base.etag if base is not None and base.key == operation.key else ""
    return Condition(if_match=shown) if shown else Condition(if_absent=True)
