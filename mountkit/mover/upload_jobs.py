"""One operation's work on a thread: the bytes under their stamp, the request, and what is to be made of its answer.

Nothing in here touches the journal. A function returns what the store confirmed, or raises: StampChanged if the staged
bytes are no longer those that were to be put, MountkitError for what the store or the disk said.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mountkit.errors import MountkitError, ObjectChanged, ObjectMissing, StoreError, UploadMissing
from mountkit.mover.upload_properties import TOKEN
from mountkit.staging.queue import Operation
from mountkit.store.api import ObjectInfo, Properties, Store

IN_MEMORY_BYTES = 16 << 20
_STEP_BYTES = 1 << 20


OpenFile = Callable[[int], int]
"""A descriptor of the file with this number; raises OSError."""


def in_directory(directory_fd: int) -> OpenFile:
    """Files that have their numbers as names."""
    return lambda file: os.open(str(file), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)


class StampChanged(Exception):
    """The staging file is not what its operation names any more."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be under a key for it to be replaced; nothing of it: whatever there is."""

    if_absent: bool = False
    if_match: str = ""


class StagedFile:
    """The bytes of one PUT: `[0, size)` of a staging file, as long as its stamp holds. A context manager."""

    def __init__(self, open_file: OpenFile, operation: Operation) -> None:
        """Raises MountkitError where the file cannot be opened; StampChanged."""
        self._operation = operation
        self.size = operation.size
        self._fd = -1
        if operation.file is None:
            return
        try:
            self._fd = open_file(operation.file)
        except OSError as exc:
            raise MountkitError(f"the staged bytes cannot be read: {os.strerror(exc.errno or 0)}") from exc
        try:
            self.check()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def check(self) -> None:
        """Raises StampChanged unless the file is what the operation names."""
        if self._fd < 0:
            return
        status, op = os.fstat(self._fd), self._operation
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if op.live and status.st_size >= op.size:
            return
        if stamp != (op.size, op.mtime_ns, op.ctime_ns):
            raise StampChanged

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises StampChanged where there are fewer, MountkitError where the disk fails."""
        pieces = []
        while length:
            try:
                piece = os.pread(self._fd, length, offset)
            except OSError as exc:
                raise MountkitError(f"the staged bytes cannot be read: {os.strerror(exc.errno or 0)}") from exc
            if not piece:
                raise StampChanged
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def slice(self, offset: int, length: int) -> bytes | FileSlice:
        """The same, in memory where that is little; then checksums and sending see the same bytes for sure."""
        return self.read(offset, length) if length <= IN_MEMORY_BYTES else FileSlice(self, offset, length)


class FileSlice:
    """Part of a staged file, read as it is sent; implements `api.Chunks`."""

    def __init__(self, file: StagedFile, offset: int, length: int) -> None:
        self._file, self._offset, self.size = file, offset, length

    def chunks(self) -> Iterator[bytes]:
        for start in range(0, self.size, _STEP_BYTES):
            yield self._file.read(self._offset + start, min(_STEP_BYTES, self.size - start))


def put(
    store: Store, open_file: OpenFile, operation: Operation, properties: Properties, condition: Condition
) -> ObjectInfo:
    """Puts a whole file in one request."""
    with StagedFile(open_file, operation) as file:
        data = file.read(0, operation.size) if operation.size else b""
        file.check()
    try:
        return store.put_object(
            operation.key, data, properties, if_absent=condition.if_absent, if_match=condition.if_match
        )
    except (ObjectChanged, ObjectMissing) as exc:
        return ours_or_refused(store, operation, properties, exc)


def ours_or_refused(store: Store, operation: Operation, properties: Properties, error: StoreError) -> ObjectInfo:
    """What is under the key, if it is what this very operation put: the answer to that was lost. Raises otherwise."""
    try:
        found = store.head(operation.key)
    except ObjectMissing:
        raise error from None
    if found.metadata.get(TOKEN) == properties.metadata[TOKEN]:
        return found
    if isinstance(error, UploadMissing):
        raise error
    raise ObjectChanged(
        f"{operation.key.decode('utf-8', 'replace')} was written by somebody else meanwhile, and --no-clobber is set",
        "move one of the two out of the way; the staged bytes stay (`mountkit outputs`)",
    ) from error


def copy(store: Store, operation: Operation, properties: Properties, source: ObjectInfo) -> ObjectInfo:
    """Has the store copy an object that is small enough for one request."""
    # not read and sent anew: a HEAD does not tell all that describes an object (Content-Encoding, Cache-Control, …)
    return store.copy_object(source, operation.key, properties, keep_metadata=operation.metadata is None)


def source_of(store: Store, operation: Operation) -> ObjectInfo:
    """The object that a COPY is to copy, with its size and metadata."""
    assert operation.source_key is not None
    found = store.head(operation.source_key)
    if operation.source_etag and found.etag != operation.source_etag:
        raise ObjectChanged(f"{operation.source_key.decode('utf-8', 'replace')} is another version by now")
    return found._replace(version_id="")
