"""One large object sent in parts: begun or resumed, parts in parallel, put together, or given up without a trace.

What the store confirms goes into the journal, so that the next mover goes on where this one died: it keeps each part
that the store lists if the staged bytes are still those. Parts that equal those of the version the file
was made from are copied inside the bucket. A part's fate is decided on a thread, everything else on the trio thread.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from mountkit.errors import ObjectChanged, ObjectMissing, StoreError, StoreUnavailable, UploadMissing
from mountkit.mover.upload_jobs import Condition, OpenFile, StagedFile, ours_or_refused
from mountkit.staging.queue import Base, Operation, UploadJournal
from mountkit.store.api import MAX_PARTS, MIN_PART_BYTES, Hashed, ObjectInfo, Part, Properties, Store
from mountkit.store.payload import crc32c

log = logging.getLogger(__name__)
SINGLE_BYTES = 16 << 20
"""A file up to this size goes in one request."""
PART_BYTES = 8 << 20
_COPY_PART_BYTES = 1 << 30
_MIB = 1 << 20
_DIGEST_BYTES = 16
_CRC32C = "crc32c:"


def part_bytes_for(size: int, base: Base | None = None) -> int:
    """How large the parts are: those of the version to compare with where that serves, else growing with the file."""
    fits = base is not None and base.digests and base.part_bytes * MAX_PARTS >= size
    if base is not None and fits and base.part_bytes >= MIN_PART_BYTES:
        return base.part_bytes
    return max(PART_BYTES, -(-size // (MAX_PARTS * _MIB)) * _MIB)


class Host(Protocol):
    """Who runs the threads and keeps the journal."""

    journal: UploadJournal
    open_file: OpenFile

    @property
    def store(self) -> Store: ...

    def submit(
        self, work: Callable[[], object], on_end: Callable[[object, Exception | None], None], held_bytes: int
    ) -> None:
        """Runs `work` on a thread, then `on_end` with its result or error on the trio thread."""

    def note_part(self, operation: Operation, part: Part, sent_bytes: int) -> None: ...

    def ended(self, operation: Operation, info: ObjectInfo | None, error: Exception | None) -> None: ...


@dataclass(frozen=True, slots=True)
class _Sent:
    part: Part
    digest: bytes


class Multipart:
    """One operation's upload. `start` it; it ends in `host.ended`."""

    def __init__(
        self,
        host: Host,
        operation: Operation,
        properties: Properties,
        condition: Condition,
        *,
        base: Base | None = None,
        source: ObjectInfo | None = None,
    ) -> None:
        """`source`: a COPY of what is too large for one request; else the bytes of the staging file are put."""
        self._host, self._operation, self._properties, self._condition = host, operation, properties, condition
        self._base, self._source = base, source
        self._size = source.size if source else operation.size
        self._part_bytes = operation.upload_part_bytes if operation.upload_id else 0
        if not self._part_bytes:
            self._part_bytes = _COPY_PART_BYTES if source else part_bytes_for(self._size, base)
        self._total = -(-self._size // self._part_bytes)
        self._upload_id = operation.upload_id or ""
        self._done: dict[int, _Sent] = {}
        self._in_flight = 0
        self._error: Exception | None = None

    def __repr__(self) -> str:
        return f"<Multipart {self._operation.key!r} {len(self._done)} of {self._total} parts>"

    @property
    def sent_bytes(self) -> int:
        return sum(sent.part.size for sent in self._done.values())

    def start(self) -> None:
        if self._operation.upload_id is None:
            self._begin()
        elif self._upload_id:
            self._submit(self._resumed, self._on_resumed, held_bytes=_MIB)
        else:
            self._submit(self._clear_unknown, lambda _: self._begin())

    # ---- beginning

    def _begin(self) -> None:
        # first the word that there may be an upload, then the upload: one that is left behind is found by its key
        self._host.journal.note_upload(self._operation.seq, "", self._part_bytes)
        store, key = self._host.store, self._operation.key
        self._submit(lambda: store.create_upload(key, self._properties), self._on_begun)

    def _on_begun(self, upload_id: object) -> None:
        self._upload_id = str(upload_id)
        self._host.journal.note_upload(self._operation.seq, self._upload_id, self._part_bytes)
        self._submit_parts()

    def _clear_unknown(self) -> None:
        """Aborts what a mover had begun to this key when it died before it could write down the id."""
        key = self._operation.key
        try:
            for upload in self._host.store.list_uploads(key):
                if upload.key == key:
                    self._host.store.abort_upload(key, upload.upload_id)
        except StoreError as exc:
            if exc.transient:
                raise
            log.warning("uploads to %r that were left behind cannot be looked for: %s", key, exc)

    def _resumed(self) -> dict[int, _Sent] | ObjectInfo:
        """The parts to keep; or the object, if an earlier mover had put it together."""
        store, key = self._host.store, self._operation.key
        known = {part.number: part for part in self._known_parts}
        try:
            listed = {part.number: part for part in store.list_parts(key, self._upload_id)}
        except UploadMissing as exc:
            return ours_or_refused(store, self._operation, self._properties, exc)
        kept: dict[int, _Sent] = {}
        with StagedFile(self._host.open_file, self._operation) as file:
            for number, there in listed.items():
                if not 1 <= number <= self._total or there.size != self._span(number)[1]:
                    continue
                if self._source is not None:
                    kept[number] = _Sent(known.get(number, there), b"")
                elif (part := _verified(there, known.get(number), file.read(*self._span(number)))) is not None:
                    kept[number] = part
        return kept

    @functools.cached_property
    def _known_parts(self) -> list[Part]:
        return self._host.journal.parts(self._operation.seq)

    def _on_resumed(self, found: object) -> None:
        if isinstance(found, ObjectInfo):
            self._host.ended(self._operation, found, None)
            return
        assert isinstance(found, dict)
        self._done = found
        log.info("%r is resumed with %d of %d parts", self._operation.key, len(self._done), self._total)
        self._submit_parts()

    # ---- parts

    def _submit_parts(self) -> None:
        for number in range(1, self._total + 1):
            if number not in self._done:
                held = min(self._span(number)[1], 2 * PART_BYTES)
                self._submit(functools.partial(self._send, number), self._on_sent, held_bytes=held)
        self._complete_if_whole()

    def _send(self, number: int) -> _Sent | None:
        if self._error is not None:
            return None
        store, operation = self._host.store, self._operation
        offset, length = self._span(number)
        if self._source is not None:
            return _Sent(
                store.upload_part_copy(operation.key, self._upload_id, number, self._source, offset, length), b""
            )
        with StagedFile(self._host.open_file, operation) as file:
            data = file.slice(offset, length)
            sha256 = hashlib.sha256()
            for piece in [data] if isinstance(data, bytes) else data.chunks():
                sha256.update(piece)
            digest = sha256.digest()[:_DIGEST_BYTES]
            part = self._copied(number, digest)
            if part is None:
                try:
                    part = store.upload_part(operation.key, self._upload_id, number, Hashed(data, sha256.hexdigest()))
                except StoreError:
                    file.check()  # bytes that changed while they were sent are no fault of the server's
                    raise
        return _Sent(part, digest)

    def _copied(self, number: int, digest: bytes) -> Part | None:
        """The part as a copy of the same bytes in the bucket; None where they must be sent."""
        base = self._base
        if base is None or base.part_bytes != self._part_bytes:
            return None
        offset, length = self._span(number)
        place = (number - 1) * _DIGEST_BYTES
        same_length = min(base.part_bytes, base.size - offset) == length
        if not same_length or base.digests[place : place + _DIGEST_BYTES] != digest:
            return None
        source = ObjectInfo(base.key, base.size, base.etag, 0)
        try:
            return self._host.store.upload_part_copy(
                self._operation.key, self._upload_id, number, source, offset, length
            )
        except (ObjectChanged, ObjectMissing):
            self._base = None
        except StoreError as exc:
            if exc.transient or isinstance(exc, UploadMissing):
                raise
            log.info("%s cannot be copied from in parts: %s", base.key, exc)
            self._base = None
        return None

    def _on_sent(self, sent: object) -> None:
        if not isinstance(sent, _Sent):
            return
        self._done[sent.part.number] = sent
        self._host.note_part(self._operation, sent.part, self.sent_bytes)
        self._complete_if_whole()

    def _span(self, number: int) -> tuple[int, int]:
        offset = (number - 1) * self._part_bytes
        return offset, min(self._part_bytes, self._size - offset)

    # ---- the end

    def _complete_if_whole(self) -> None:
        if len(self._done) == self._total and self._error is None:
            self._submit(self._complete, self._on_complete)

    def _complete(self) -> ObjectInfo:
        with StagedFile(self._host.open_file, self._operation):
            pass  # its stamp holds
        parts = [self._done[number].part for number in range(1, self._total + 1)]
        store, operation, condition = self._host.store, self._operation, self._condition
        try:
            return store.complete_upload(
                operation.key,
                self._upload_id,
                parts,
                if_absent=condition.if_absent,
                if_match=condition.if_match,
            )
        except (UploadMissing, ObjectChanged, ObjectMissing) as exc:
            return ours_or_refused(store, operation, self._properties, exc)

    def _on_complete(self, info: object) -> None:
        assert isinstance(info, ObjectInfo)
        file = self._operation.file
        if file is not None and self._source is None:
            digests = b"".join(self._done[number].digest for number in range(1, self._total + 1))
            self._host.journal.set_base(
                file, Base(self._operation.key, info.etag, self._size, self._part_bytes, digests)
            )
        self._host.ended(self._operation, info, None)

    def _submit(self, work: Callable[[], object], on_success: Callable[[object], None], held_bytes: int = 0) -> None:
        self._in_flight += 1

        def on_end(result: object, error: Exception | None) -> None:
            self._in_flight -= 1
            if error is None:
                on_success(result)  # also after another part failed: this one need not be sent again
            if error is not None or self._error is not None:
                self._stop(error)

        self._host.submit(work, on_end, held_bytes)

    def _stop(self, error: Exception | None) -> None:
        """Ends the operation once nothing is under way any more: a part that arrives late would outlive an abort."""
        self._error = self._error or error
        if self._in_flight:
            return
        error = self._error
        assert error is not None
        if isinstance(error, UploadMissing):
            self._host.journal.note_upload(self._operation.seq, None, 0)
            again = StoreUnavailable(f"the store lost the parts of {os.fsdecode(self._operation.key)}: {error}")
            self._host.ended(self._operation, None, again)
        elif (isinstance(error, StoreError) and error.transient) or not self._upload_id:
            self._host.ended(self._operation, None, error)
        else:
            key, upload_id = self._operation.key, self._upload_id
            self._host.submit(lambda: self._host.store.abort_upload(key, upload_id), self._on_aborted, 0)

    def _on_aborted(self, _result: object, error: Exception | None) -> None:
        if error is not None:
            # Not forgotten: with the id still in the journal the next try resumes or aborts it.
            log.warning("the upload of %r cannot be given up: %s", self._operation.key, error)
        else:
            self._host.journal.note_upload(self._operation.seq, None, 0)
        self._host.ended(self._operation, None, self._error)


def _verified(there: Part, known: Part | None, data: bytes) -> _Sent | None:
    """The part that the store lists, if it is these bytes: by a checksum, or by an ETag that is the MD5.

    The store may have taken a part of which the mover that died had not heard.
    """
    checksum = _CRC32C + base64.b64encode(crc32c(data).to_bytes(4, "big")).decode()
    confirmed = known.checksum if known is not None and known.etag == there.etag else there.checksum
    if confirmed != checksum and there.etag != f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"':
        return None
    digest = hashlib.sha256(data).digest()[:_DIGEST_BYTES]
    return _Sent(replace(there, checksum=checksum if confirmed or known is None else ""), digest)
