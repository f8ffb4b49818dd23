"""Traces of mounts, for the command line and the runner: begun, read, ended. The file's form is `tracefile`'s.

They are read as files, as the journal is, so that a mount which is gone by then tells, too.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mountkit import drivers, mountinfo, mounts, names, places, tracefile
from mountkit.catalog.values import CatalogUnavailable, ObjectRow
from mountkit.catalog.view import CatalogView
from mountkit.errors import HostError, UsageError

_ORDER = "order"
"""The one trace of `mountkit trace`."""
INCOMPLETE = "# mountkit: this trace is incomplete"
"""The first line of a list of paths that lacks some."""
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class TracePlace:
    """Where a trace is, and of which part of the mount it is wanted."""

    state_directory: str
    owner_uid: int
    name: str
    below: str
    """A directory of the mount, as a path without slashes around it; empty for all of it."""


@dataclass(slots=True)
class Opened:
    """What a trace tells, of the versions that were opened below its place."""

    objects: Iterator[ObjectRow]
    """Sorted by key, each version once."""
    is_complete: bool = True
    unknown: int = 0
    """Opens of versions that the catalog does not know any more. Counted before `objects` begins."""
    oldest_listing: float | None = None
    newest_listing: float | None = None
    """Of the directories the objects lie in, as far as they were listed; known when `objects` is at its end."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the trace of `mountkit trace` tells."""

    mount: str
    paths: list[str]
    """Below the mount, in the order of their first opens."""
    is_complete: bool
    forgotten: int
    """Versions that were opened and that the catalog does not know any more."""


def place(path: str, name: str) -> TracePlace:
    """Where a trace of what is opened at or below `path` would be. Raises UsageError or MountError if nowhere."""
    info = mounts.required(path)
    if info.details["driver"] == drivers.S3FS:
        raise UsageError(
            f"{info.directory} is served by s3fs, which does not tell what is opened", "mount it with `--driver fuse`"
        )
    below = os.path.relpath(mountinfo.resolve(path), info.directory)
    return TracePlace(info.details["state_directory"], info.owner_uid, name, "" if below == "." else below)


def begin(where: TracePlace) -> None:
    """Begins it, anew where it is running; every later open is in it. Raises HostError."""
    with _state(where) as state_fd:
        try:
            tracefile.begin(state_fd, where.name)
        except OSError as exc:
            raise HostError(f"the cache directory takes no trace: {os.strerror(exc.errno or 0)}") from exc


def end(where: TracePlace) -> None:
    """Takes it away, if it is there. Raises HostError."""
    with contextlib.suppress(_Gone), _state(where) as state_fd:
        try:
            tracefile.end(state_fd, where.name)
        except OSError as exc:
            raise HostError(
                f"a trace in {where.state_directory} cannot be removed: {os.strerror(exc.errno or 0)}"
            ) from exc


@contextlib.contextmanager
def reading(where: TracePlace) -> Iterator[Opened]:
    """What was opened until now. Raises HostError where the trace is lost."""
    with contextlib.ExitStack() as stack:
        try:
            state_fd = stack.enter_context(_state(where))
            trace = stack.enter_context(tracefile.reading(state_fd, where.name))
            known = _Known(state_fd, where.state_directory)
            stack.callback(known.close)
            sorter = stack.enter_context(contextlib.closing(sqlite3.connect("")))  # on disk where it is large
            opened = Opened(iter(()), trace.is_complete)
            opened.unknown = _sort_in(sorter, trace, known, where.below)
            opened.objects = _sorted(sorter, known, opened)
            yield opened
        except (_Gone, tracefile.NoTrace):
            raise HostError("what was opened is not known: the trace of it is gone") from None
        except (OSError, sqlite3.Error, CatalogUnavailable) as exc:
            raise HostError(f"what was opened is not known: {exc}") from exc


def begin_order(path: str) -> None:
    """Begins the trace of `mountkit trace`, anew where one is running. Raises MountkitError."""
    begin(place(path, _ORDER))


def end_order(path: str) -> Order:
    """Ends it and tells what was opened. Raises MountkitError."""
    where = place(path, _ORDER)
    with _state(where) as state_fd, contextlib.closing(_Known(state_fd, where.state_directory)) as known:
        try:
            with tracefile.reading(state_fd, _ORDER) as trace:
                idents = dict.fromkeys(ident for some in trace.ids() for ident in some)
                is_complete = trace.is_complete
        except tracefile.NoTrace:
            raise UsageError("no trace is running", "begin one with `mountkit trace start DIR`") from None
        paths = [found for ident in idents if (found := known.path_of(ident)) is not None]
    end(where)
    listed = [os.fsdecode(found) for found in paths]
    return Order(mounts.required(path).directory, listed, is_complete, len(idents) - len(paths))


class _Known:
    """The catalog at home, and the one in memory that stands in for it while the disk does not work."""

    def __init__(self, state_fd: int, state_directory: str) -> None:
        self.views = [CatalogView.open(state_fd)]
        with contextlib.suppress(OSError):
            stand_in = places.stand_in_path(os.path.basename(state_directory))
            fd = os.open(stand_in, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self.views.insert(0, CatalogView.open(fd))
            os.close(fd)

    def object(self, ident: int) -> ObjectRow | None:
        return next((row for view in self.views if (row := view.object(ident)) is not None), None)

    def path_of(self, ident: int) -> bytes | None:
        return next((path for view in self.views if (path := view.path_of(ident)) is not None), None)

    def below(self, path: str) -> bytes:
        """The prefix of the keys that can be opened below a path of the mount."""
        prefix = self.views[-1].prefix
        inside = os.fsencode(path)
        if not inside or inside.split(b"/")[0] == names.HIDDEN:
            return prefix
        return prefix + inside + b"/"

    def listed_at(self, prefix: bytes) -> float | None:
        return next((when for view in self.views if (when := view.listed_at(prefix)) is not None), None)

    def close(self) -> None:
        for view in self.views:
            view.close()


def _sort_in(sorter: sqlite3.Connection, trace: tracefile.TraceFile, known: _Known, path: str) -> int:
    """Fills the sorter; how many versions are unknown."""
    sorter.execute(
        "CREATE TABLE opened (key BLOB, id INTEGER, etag TEXT, size INTEGER, mtime_ns INTEGER, version_id TEXT,"
        " storage_class TEXT, superseded_at REAL, PRIMARY KEY (key, id)) WITHOUT ROWID"
    )
    below = known.below(path)
    unknown: set[int] = set()
    for ids in trace.ids():
        rows: list[Any] = []
        for ident in set(ids):
            row = known.object(ident)
            if row is None:
                unknown.add(ident)
            elif row.key.startswith(below):
                rows.append((row.key, row.id, *row[2:]))
        sorter.executemany("INSERT OR IGNORE INTO opened VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    return len(unknown)


def _sorted(sorter: sqlite3.Connection, known: _Known, opened: Opened) -> Iterator[ObjectRow]:
    cursor = sorter.execute("SELECT * FROM opened ORDER BY key, id")
    last: bytes | None = None
    while rows := cursor.fetchmany(_BATCH):
        for key, ident, *rest in rows:
            prefix = key[: key.rfind(b"/") + 1]
            if prefix != last:
                last = prefix
                _note_listing(opened, known.listed_at(prefix))
            yield ObjectRow(ident, key, *rest)


def _note_listing(opened: Opened, when: float | None) -> None:
    if when is not None:
        opened.oldest_listing = min(when, opened.oldest_listing or when)
        opened.newest_listing = max(when, opened.newest_listing or when)


class _Gone(HostError):
    """The state directory is not there any more."""


@contextlib.contextmanager
def _state(where: TracePlace) -> Iterator[int]:
    """The state directory, which must be the mount owner's: root was told of it by a process of that user.

    Raises HostError.
    """
    path = where.state_directory
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        kind = _Gone if isinstance(exc, FileNotFoundError) else HostError
        raise kind(f"the state directory {path} cannot be used: {os.strerror(exc.errno or 0)}") from exc
    try:
        if os.fstat(fd).st_uid != where.owner_uid:
            raise HostError(f"the state directory {path} is not that of the mount's owner")
        yield fd
    finally:
        os.close(fd)
