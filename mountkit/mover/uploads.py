"""Uploads: the journal's operations done in the bucket, each under the order's rules, on threads of their own.

One trio thread owns the journal, the order and all decisions; threads send bytes and hand back what the store said.
What may pass (no answer, 5xx) is tried for ever with growing pauses; what the store refuses is FAILED until somebody
drains or mounts again.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import trio

from mountkit.catalog.tree import Catalog
from mountkit.errors import MountkitError, StoreError
from mountkit.mover import upload_jobs
from mountkit.mover.clobber import condition_of
from mountkit.mover.multipart import SINGLE_BYTES, Multipart
from mountkit.mover.upload_jobs import Condition, OpenFile, StampChanged
from mountkit.mover.upload_mirror import UploadMirror
from mountkit.mover.upload_order import UploadOrder
from mountkit.mover.upload_patience import UploadPatience
from mountkit.mover.upload_properties import of_copy, properties_of
from mountkit.mover.upload_settling import UploadSettling
from mountkit.mover.upload_threads import UploadThreads
from mountkit.staging.queue import Ending, Operation, UploadJournal
from mountkit.staging.schema import OperationKind, OperationState
from mountkit.store.api import MAX_COPY_BYTES, ObjectInfo, Part, Properties
from mountkit.store.retry import RetryingStore

log = logging.getLogger(__name__)
_RUNNING = 192
"""Operations claimed at once: enough that no thread waits for the journal."""
_TURN_S = 0.04
"""Turns of the loop while nobody waits: each is a few transactions, and the server waits for a lock on the journal."""
_LOOK_S = 1.0
_CHANGING_S = 1.0
_NAMED_FAILURES = 20


@dataclass(frozen=True, slots=True)
class UploadStatistics:
    """What is left to do."""

    pending: int
    pending_bytes: int
    failed: int
    trouble: str
    """Why uploads fail or wait now; empty while all is well."""


class Uploads:
    """The uploader of one state directory. `run` must run in the mover's trio thread."""

    def __init__(
        self,
        journal: UploadJournal,
        open_file: OpenFile,
        store: RetryingStore,
        catalog: Catalog | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journal, self.open_file, self.store = journal, open_file, store
        self._clock = clock
        self._threads: UploadThreads
        self._order = UploadOrder()
        self._mirror = UploadMirror(journal, self._order, clock=clock)
        self._settling = UploadSettling(journal, catalog)
        self._patience = UploadPatience()
        self._draining = self._waiters = 0
        self._cleaning: set[int] = set()
        self._news = trio.Event()
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<Uploads {self._order!r}>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works on the journal until it is cancelled; what was under way then is claimed by the next mover."""
        self._threads = UploadThreads(self.staged)
        again = self.journal.recover() + self.journal.retry_failed()
        if again:
            log.info("%d uploads that an earlier mover left are resumed", again)
        task_status.started()
        try:
            while True:
                self._pump()
                if not self._waiters:
                    await trio.sleep(_TURN_S)
                with trio.move_on_after(self._until_next()):
                    await self._news.wait()
                self._news = trio.Event()
        finally:
            self._threads.close()

    # ---- asked for -----------------------------------------------------------------------------------------
    def staged(self) -> None:
        """Operations were queued, or have come to an end."""
        self._news.set()

    async def commit(self, seqs: list[int]) -> dict[str, Any]:
        """Returns once these are over, failed, or stuck behind something that failed."""
        self._waiters += 1
        try:
            return await self._commit(seqs)
        finally:
            self._waiters -= 1

    async def _commit(self, seqs: list[int]) -> dict[str, Any]:
        while True:
            self._sync()
            self._order.hurry(seqs)
            self._news.set()
            changed = self._changed
            states = self.journal.states(seqs)
            errors: dict[str, Any] = {}
            waits = False
            for seq, (state, error) in states.items():
                if state is OperationState.FAILED and error:
                    errors[str(seq)] = error
                elif state in (OperationState.PENDING, OperationState.RUNNING):
                    blocker = self._order.blocker(seq)
                    if blocker is None:
                        waits = True
                    else:
                        errors[str(seq)] = blocker.error or MountkitError("an earlier upload failed").to_json()
            if not waits:
                return {"states": {str(seq): int(state) for seq, (state, _) in states.items()}, "errors": errors}
            await changed.wait()

    async def drain(self, report: Callable[[dict[str, Any]], Any], *, retry: bool = True) -> dict[str, Any]:
        """Returns once nothing can be done any more: all is in the bucket, or what is left has failed."""
        if retry:
            self.journal.retry_failed()
            self._mirror.distrust()
        done_before = self._settling.done_bytes
        self._draining += 1
        try:
            while True:
                self._sync()
                self._order.hurry_all()
                self._news.set()
                left = sum(1 for seq in self._order.operations if self._order.blocker(seq) is None)
                await report(self._progress(self._settling.done_bytes - done_before))
                if not left and not self._order.taken:
                    return {"left": len(self._order), "failed": self._failures(), "errors": self._errors()}
                with trio.move_on_after(0.2):
                    await self._changed.wait()
        finally:
            self._draining -= 1

    def _progress(self, done_bytes: int) -> dict[str, Any]:
        return {
            "pending": len(self._order),
            "bytes": done_bytes + sum(op.size for op in self._order.operations.values()),
            "bytes_done": done_bytes + self._settling.sent_bytes,
            "failed": self._failures(),
            "trouble": self._patience.trouble,
        }

    def statistics(self) -> UploadStatistics:
        pending = self._order.operations.values()
        trouble = self._patience.trouble
        if failures := self._order.failures:
            first = next(iter(failures.values()))
            sentence = (first.error or {}).get("sentence", "")
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            trouble = f"the upload of {_shown(first.key)} failed: {sentence}{more}"
        return UploadStatistics(len(pending), sum(op.size for op in pending), len(failures), trouble)

    def _failures(self) -> int:
        return len(self._order.failures)

    def _errors(self) -> dict[str, Any]:
        shown = list(self._order.failures.values())[:_NAMED_FAILURES]
        return {_shown(op.key): op.error for op in shown}

    # ---- what waits ----------------------------------------------------------------------------------------
    def _pump(self) -> None:
        self._settle()
        self._sync()
        if self._draining:
            self._order.hurry_all()
        now = self._clock()
        limit = self._patience.allowed(now, _RUNNING - self._order.taken, self._order.taken)
        if limit <= 0:
            return
        groups = self._order.next_ready(now, limit)
        if not groups:
            return
        claimed = {op.seq: op for op in self.journal.claim([op.seq for group in groups for op in group])}
        for group in groups:
            self._start([found for op in group if (found := self._still(op, claimed)) is not None])

    def _still(self, known: Operation, claimed: dict[int, Operation]) -> Operation | None:
        """The operation as it is now, if it can be done as planned."""
        found = claimed.get(known.seq)
        if found is None:  # cancelled meanwhile
            self._mirror.cancelled(known.seq)
            return None
        if (found.keys, found.kind, found.ordered) != (known.keys, known.kind, known.ordered):
            self.journal.put_back([found.seq])
            self._order.put_back(found)
            return None
        return found

    def _sync(self) -> None:
        """Takes over what the server has queued, replaced and cancelled."""
        if self._mirror.look():
            self._clean_up()

    def _clean_up(self) -> None:
        """Aborts uploads whose operation was cancelled."""
        for seq, key, upload_id in self.journal.left_uploads():
            if seq in self._cleaning or seq in self._order:
                continue
            self._cleaning.add(seq)
            abort = functools.partial(self.store.abort_upload, key, upload_id)
            self.submit(abort, functools.partial(self._on_cleaned, seq), 0)

    def _on_cleaned(self, seq: int, _result: object, error: Exception | None) -> None:
        self._cleaning.discard(seq)
        if error is None:
            self.journal.note_upload(seq, None, 0)
        else:
            log.warning("an upload that was given up cannot be aborted: %s", error)

    def _until_next(self) -> float:
        due = self._order.next_due()
        now = self._clock()
        if self._patience.trouble:
            due = max(due or 0.0, self._patience.paused_until)
        if self._order.taken >= _RUNNING or due is None:
            return _LOOK_S
        return min(_LOOK_S, max(0.01, due - now))

    # ---- doing ---------------------------------------------------------------------------------------------
    def submit(
        self, work: Callable[[], object], on_end: Callable[[object, Exception | None], None], held_bytes: int
    ) -> None:
        """Runs `work` on a thread, then `on_end` with its result or its error on the trio thread."""
        self._threads.submit(work, on_end, held_bytes)

    def _start(self, group: list[Operation]) -> None:
        if not group:
            return
        first = group[0]
        if first.kind is OperationKind.DELETE:
            self._delete(group)
        elif first.kind is OperationKind.COPY:
            source = functools.partial(upload_jobs.source_of, self.store, first)
            self.submit(source, functools.partial(self._copy, first), 0)
        elif first.size > SINGLE_BYTES:
            base = self.journal.base(first.file) if first.file is not None else None
            properties = self._properties(first)
            Multipart(self, first, properties, self._condition(first), base=base).start()
        else:
            work = functools.partial(
                upload_jobs.put, self.store, self.open_file, first, self._properties(first), self._condition(first)
            )
            self.submit(work, functools.partial(self._on_object, first), first.size)

    def _copy(self, operation: Operation, source: object, error: Exception | None) -> None:
        if error is not None:
            self.ended(operation, None, error)
            return
        assert isinstance(source, ObjectInfo)
        properties = of_copy(operation, self._properties(operation), source)
        if source.size > MAX_COPY_BYTES:
            Multipart(self, operation, properties, Condition(), source=source).start()
            return
        work = functools.partial(upload_jobs.copy, self.store, operation, properties, source)
        self.submit(work, functools.partial(self._on_object, operation), 0)

    def _delete(self, group: list[Operation]) -> None:
        keys = [operation.key for operation in group]
        if len(group) == 1:
            self.submit(lambda: self.store.delete_object(keys[0]), functools.partial(self._on_deleted, group), 0)
        else:
            self.submit(lambda: self.store.delete_objects(keys), functools.partial(self._on_deleted, group), 0)

    def _properties(self, operation: Operation) -> Properties:
        return properties_of(operation, self._mirror.settings, self.journal.name)

    def _condition(self, operation: Operation) -> Condition:
        return Condition() if self._mirror.settings.clobber else condition_of(self.journal, operation)

    # ---- what came of it -----------------------------------------------------------------------------------
    def _settle(self) -> None:
        if not self._threads.settle():
            return
        self._settling.settle()
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def note_part(self, operation: Operation, part: Part, sent_bytes: int) -> None:
        """A part of a multipart upload was confirmed."""
        self._settling.part(operation, part, sent_bytes)
        self._patience.over()

    def _on_object(self, operation: Operation, info: object, error: Exception | None) -> None:
        assert info is None or isinstance(info, ObjectInfo)
        self.ended(operation, info, error)

    def _on_deleted(self, group: list[Operation], failed: object, error: Exception | None) -> None:
        refused = failed if isinstance(failed, dict) else {}
        for operation in group:
            why = error or refused.get(operation.key)
            self.ended(operation, None, why, deleted=why is None)

    def ended(
        self, operation: Operation, info: ObjectInfo | None, error: Exception | None, *, deleted: bool = False
    ) -> None:
        """One operation has come to an end, or to a halt."""
        self._settling.halted(operation)
        if info is not None or deleted:
            self._done(operation, info)
        elif isinstance(error, StampChanged):
            self._on_stamp_changed(operation)
        elif isinstance(error, StoreError) and error.transient:
            self._try_again(operation, error)
        else:
            assert isinstance(error, MountkitError)
            self._failed(operation, error)

    def _done(self, operation: Operation, info: ObjectInfo | None) -> None:
        self._patience.over()
        self._settling.done(operation, info)
        for needless in self._order.remove(operation.seq):
            self._settling.end(Ending(needless, OperationState.CANCELLED))

    def _on_stamp_changed(self, operation: Operation) -> None:
        """The bytes were changed since: a later PUT stands in, or is still to come with the next close."""
        over = self._order.stale(operation)
        for seq in over or ():
            self._settling.end(Ending(seq, OperationState.CANCELLED))
        if over:
            return
        self.journal.put_back([operation.seq])
        if over is None:
            again = replace(operation, state=OperationState.PENDING)
            self._order.put_back(again, not_before=self._clock() + _CHANGING_S)

    def _try_again(self, operation: Operation, error: StoreError) -> None:
        self._patience.met(error, self._clock())
        self.journal.put_back([operation.seq])
        # Not the first to be tried again: should the trouble be its own, the others must not wait for it.
        again = replace(operation, state=OperationState.PENDING)
        self._order.put_back(again, not_before=self._patience.paused_until + _CHANGING_S)

    def _failed(self, operation: Operation, error: MountkitError) -> None:
        log.error("the upload of %s failed for good: %s", _shown(operation.key), error)
        failed = replace(operation, state=OperationState.FAILED, error=error.to_json())
        for each in (failed, *self._order.failed(failed)):
            self._settling.end(Ending(each.seq, OperationState.FAILED, error=error.to_json()))


def _shown(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
