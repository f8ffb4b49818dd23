"""What was written into a mount and where it is: listed, waited for, copied out. For the command line and the runner.

The journal is read as a file, so that it tells also of a mount that is gone; only its mover uploads.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mountkit import ipc, mountinfo, mounts, notes, places, remembered, unmounting
from mountkit.beneath import Beneath
from mountkit.errors import HostError, MountError, MountkitError, UploadsLeft, UsageError
from mountkit.mounts import MountInfo
from mountkit.sources import parse_source
from mountkit.staging import schema
from mountkit.staging.schema import OperationKind, OperationState
from mountkit.staging.tree import Abandoned

_WORDS = {
    OperationState.PENDING: "staged",
    OperationState.RUNNING: "uploading",
    OperationState.DONE: "done",
    OperationState.FAILED: "failed",
}
ABANDONED = "abandoned"
_ABANDONED = {
    Abandoned.UNCLOSED: "its writer was killed before it closed the file",
    Abandoned.TORN: "the power was cut before the disk had all of its bytes",
    Abandoned.BEHIND: "it was to come after a file that lost bytes when the power was cut",
}
_COPY_BYTES = 1 << 20
_SILENCE_S = 60.0
"""How long a mover may say nothing: it tells of a drain's progress five times a second."""
_SUCCESSOR_S, _AGAIN_S = 20.0, 0.1
"""How long a dead mover's successor may take until it answers."""


@dataclass(frozen=True, slots=True)
class Output:
    """The newest of what was written under one path."""

    path: bytes
    """Below the mount."""
    key: bytes
    state: str
    """staged, uploading, done, failed, or abandoned: kept, but not to be published; `reason` says why."""
    kind: str
    """put, copy or delete."""
    size: int
    sent_bytes: int
    reason: str
    etag: str
    checksum: str
    finished_at: float | None
    upload_s: float | None
    """From the first byte sent to the bucket's answer; None where it is not over."""
    file: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """A state directory with a journal, and the mount it belongs to if that is there."""

    state_directory: str
    directory: str
    source: str
    info: MountInfo | None


# ---- finding -------------------------------------------------------------------------------------------------
def find(path: str, cache_directory: str) -> Place:
    """Where the outputs of the mount at `path` are, also of a dead one; of one that is gone, below `cache_directory`.

    Raises UsageError where nobody knows of a writable mount there.
    """
    info = mounts.find(path)
    if info is not None and info.details:
        if not info.details.get("writable"):
            raise UsageError(f"{info.directory} is a read-only mount", "say --writable when you mount it")
        return Place(info.details["state_directory"], info.directory, info.source, info)
    wanted = mountinfo.resolve(path)
    known = remembered.recall(wanted)
    caches = [cache_directory, *([known.cache_directory] if known else [])]
    for state_directory in itertools.chain.from_iterable(map(_state_directories, caches)):
        with contextlib.suppress(MountkitError), _reading(state_directory) as db:
            settings = _settings(db)
            if settings.get("directory") == wanted:
                return Place(state_directory, wanted, str(settings.get("source", "")), None)
    raise UsageError(
        f"nothing is known of a writable mount at {path}",
        "name its directory, and with --cache where its cache is if that is not the default",
    )


def _state_directories(cache_directory: str) -> list[str]:
    base = os.path.join(cache_directory, f"mountkit-{os.getuid()}")
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return []
    return [os.path.join(base, name) for name in names if os.path.exists(os.path.join(base, name, schema.FILE))]


@contextlib.contextmanager
def _reading(state_directory: str) -> Iterator[sqlite3.Connection]:
    path = os.path.join(state_directory, schema.FILE)
    try:
        db = sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None, timeout=10.0)
        try:
            yield db
        finally:
            db.close()
    except sqlite3.Error as exc:
        raise HostError(f"the journal {path} cannot be read: {exc}") from exc


def _settings(db: sqlite3.Connection) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in db.execute("SELECT name, value FROM setting")}


# ---- listing -------------------------------------------------------------------------------------------------
def listing(place: Place, since: float = 0.0) -> list[Output]:
    """The newest operation of every key that is not over, or was over after `since`. Raises HostError."""
    with _reading(place.state_directory) as db:
        prefix = _prefix(_settings(db))
        rows = db.execute(
            "SELECT kind, key, state, size, sent_bytes, error, etag, checksum, started_at, finished_at, file"
            " FROM operation AS o WHERE state <> 4 AND (state IN (0, 1, 3) OR finished_at >= ?)"
            " AND seq = (SELECT max(seq) FROM operation WHERE key = o.key AND state <> 4) ORDER BY seq",
            (since,),
        ).fetchall()
        found = [_output(row, prefix, uploading=place.info is not None) for row in rows]
        return found + list(_abandoned(db))


def _output(row: tuple[Any, ...], prefix: bytes, *, uploading: bool) -> Output:
    kind, key, state, size, sent, error, etag, checksum, started_at, finished_at, file = row
    if state == OperationState.RUNNING and not uploading:
        state = OperationState.PENDING  # its mover is gone
    return Output(
        path=key.removeprefix(prefix),
        key=key,
        state=_WORDS[OperationState(state)],
        kind=OperationKind(kind).name.lower(),
        size=size,
        sent_bytes=sent,
        reason=json.loads(error)["sentence"] if error else "",
        etag=etag or "",
        checksum=checksum or "",
        finished_at=finished_at,
        upload_s=finished_at - started_at if finished_at and started_at else None,
        file=file,
    )


def _abandoned(db: sqlite3.Connection) -> Iterator[Output]:
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'node'").fetchone():
        return
    rows = db.execute("SELECT lost_path, file, abandoned FROM node WHERE abandoned > 0 AND lost_path IS NOT NULL")
    for path, file, reason in rows:
        yield Output(path, b"", ABANDONED, "put", 0, 0, _ABANDONED[Abandoned(reason)], "", "", None, None, file)


def _prefix(settings: dict[str, Any]) -> bytes:
    return parse_source(str(settings["source"])).prefix if settings.get("source") else b""


def uploaded(place: Place, since: float) -> list[dict[str, Any]]:
    """What a receipt says of everything that was put after `since`."""
    return [
        {
            "key": output.key.decode("utf-8", "backslashreplace"),
            "size": output.size,
            "etag": output.etag,
            "checksum": output.checksum,
            "upload_seconds": None if output.upload_s is None else round(output.upload_s, 3),
        }
        for output in listing(place, since)
        if output.state == "done" and output.kind != "delete" and not output.key.endswith(b"/")
    ]


# ---- waiting -------------------------------------------------------------------------------------------------
Show = Callable[[Iterator[dict[str, Any]]], dict[str, Any]]
"""Takes the progress of a drain as it comes and returns the last of it."""


def drain(place: Place, *, timeout_s: float, show: Show, retry: bool = True) -> None:
    """Returns once everything is in the bucket. Raises UploadsLeft at the timeout, and where something failed."""
    if place.info is None:
        left = [output for output in listing(place) if output.state != "done"]
        if left:
            raise _left(place, len(left), 0, {}, "nothing is mounted there, so nobody uploads it")
        return
    socket_path = places.mover_socket(place.state_directory, place.info.owner_uid)
    last: dict[str, Any] = {}
    try:
        silence_s = min(_SILENCE_S, max(1.0, timeout_s))
        last = show(_until(_updates(socket_path, silence_s, retry=retry), timeout_s))
    except KeyboardInterrupt:
        notes.say(f"{place.directory} stays mounted and goes on uploading")
        raise
    except (OSError, ipc.ChannelClosed) as exc:
        raise MountError(f"the uploads of {place.directory} cannot be watched: {exc}", "try again") from exc
    if "left" not in last:
        reason = last.get("trouble") or f"that took longer than {_time(timeout_s)}"
        raise _left(place, last.get("pending", 0), last.get("failed", 0), {}, reason)
    if last["left"] or last["failed"]:
        raise _left(place, last["left"], last["failed"], last["errors"], "")


def drain_for_unmount(directory: str, *, show: Show, timeout_s: float | None = None) -> None:
    """Before a mount is taken away: what was written goes to the bucket, unless somebody still works in it.

    Does nothing for a read-only or a dead mount. Raises MountBusy, UploadsLeft.
    """
    info = mounts.find(directory)
    if info is None or not info.details.get("writable") or info.directory != mountinfo.resolve(directory):
        return
    unmounting.refuse_if_used(info)
    limit_s = float(info.details["drain_timeout_s"]) if timeout_s is None else timeout_s
    try:
        drain(Place(info.details["state_directory"], info.directory, info.source, info), timeout_s=limit_s, show=show)
    except UploadsLeft as exc:
        exc.hint += f"; `mountkit unmount {info.directory} --force` does not wait, the next mount goes on"
        raise


def _updates(socket_path: str, silence_s: float, *, retry: bool) -> Iterator[dict[str, Any]]:
    """A drain's progress, then its result; also over the death of movers. Raises OSError, ChannelClosed.

    TimeoutError where a mover is there and says nothing for so long.
    """
    answered_at = time.monotonic()
    while True:
        try:
            with ipc.Client(socket_path) as mover:
                for update in mover.stream("drain", retry=retry, timeout_s=silence_s):
                    answered_at = time.monotonic()
                    yield update
                return
        except (ipc.ChannelClosed, ConnectionError, FileNotFoundError):
            if time.monotonic() - answered_at > _SUCCESSOR_S:
                raise
        time.sleep(_AGAIN_S)


def _until(updates: Iterator[dict[str, Any]], timeout_s: float) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + timeout_s
    for update in updates:
        yield update
        if "left" not in update and time.monotonic() > deadline:
            return


def _left(place: Place, left: int, failed: int, errors: dict[str, Any], reason: str) -> UploadsLeft:
    count = left + failed
    if errors:
        key, error = next(iter(errors.items()))
        reason = f"{key}: {error['sentence']}" if error else key
    what = f"{count} operation{'s' if count != 1 else ''} of {place.directory} did not reach the bucket"
    export = f"`mountkit outputs {place.directory} --export TARGET` copies the files out"
    go_on = f"`mountkit drain {place.directory}` tries again"
    if place.info is None:
        go_on = f"mount it again (`mountkit mount {place.source} {place.directory} --writable`) and it goes on"
    return UploadsLeft(f"{what}{': ' if reason else ''}{reason}", f"nothing is lost: {go_on}; {export}")


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f}m" if seconds >= 120 else f"{seconds:.0f}s"


# ---- copying out ---------------------------------------------------------------------------------------------
def export(place: Place, target: str) -> tuple[int, int]:
    """Copies the staged bytes of everything that is not in the bucket below `target`: files and bytes.

    Nothing is written outside of it. Raises UsageError, HostError.
    """
    if mountinfo.covering(mountinfo.resolve(target), mountinfo.ours()) is not None:
        raise UsageError(f"{target} lies in a mount of mountkit", "choose a directory on a local disk")
    files = count = 0
    with Beneath(target) as root:
        for output in listing(place):
            if output.state == "done" or output.kind != "put":
                continue
            if output.file is None:
                root.directory(output.path)
                continue
            count += _export_one(place, output, root)
            files += 1
    return files, count


def _export_one(place: Place, output: Output, root: Beneath) -> int:
    path = os.path.join(place.state_directory, schema.STAGING, str(output.file))
    count = 0
    try:
        with open(path, "rb") as staged, root.replaced(output.path) as fd:
            while piece := staged.read(_COPY_BYTES):
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
                count += len(piece)
            status = os.fstat(staged.fileno())
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    except OSError as exc:
        raise HostError(
            f"cannot copy {os.fsdecode(output.path)} out: {os.strerror(exc.errno or 0)}",
            f"make room below the target; the staged bytes stay at {path}",
        ) from exc
    return count
