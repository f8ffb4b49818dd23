"""State directories: which there are below a cache directory, whose, how large, in use; checked, emptied, shrunk.

A state belongs to whoever holds the lock on it: a mover, or this module while it changes one. What a live mount uses is
changed through its mover only. Output files that are not yet in the bucket are never deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mountkit import about, mounts, places
from mountkit.cache import index
from mountkit.cache.checked import Missing
from mountkit.cache.content import BLOCK_BYTES, PART_BYTES, content_id, full_mask
from mountkit.cache.policy import Limits
from mountkit.cache.reader import CacheReader
from mountkit.cache.writer import CacheWriter
from mountkit.catalog.values import CatalogUnavailable, ObjectRow
from mountkit.catalog.view import CatalogView
from mountkit.errors import MountBusy, MountError, UsageError

LOCK = "mover.lock"
_NAME = re.compile(r"[0-9a-f]{20}")
_JOURNAL = "journal.db"
_OPEN_OPERATIONS = "SELECT count(*) FROM operation WHERE state NOT IN (2, 4)"


@dataclass(frozen=True, slots=True)
class State:
    """One state directory."""

    path: str
    source: str
    """Empty where it does not say, as those of early versions."""
    identity: str
    driver: str
    size_bytes: int
    """On disk, everything together."""
    objects: int
    last_used: float
    """0 where it is not known."""
    used_by: tuple[str, ...]
    """Mount points."""
    busy: bool
    """Whether somebody holds its lock."""

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def title(self) -> str:
        """What people may call it."""
        return self.source or f"unknown source ({self.name[:8]})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Verified:
    """What a check of one state found."""

    objects: int = 0
    checked_bytes: int = 0
    bad: list[str] | None = None
    """Keys with bytes that are not what was written."""
    unknown: int = 0
    """Objects of the index that the catalog does not know any more: their length is not known, so nobody reads them."""


def find(cache_directories: Iterable[str], *, live_elsewhere: bool) -> list[State]:
    """The states of this user below these directories, by source; `live_elsewhere`: also those of other live mounts."""
    users: dict[str, list[str]] = {}
    for info in mounts.list_all():
        if info.owner_uid == os.getuid() and (path := info.details.get("state_directory")):
            users.setdefault(path, []).append(info.directory)
    paths = set(users) if live_elsewhere else set()
    for directory in cache_directories:
        own = os.path.dirname(places.state_path(os.path.abspath(directory), "x"))
        with contextlib.suppress(OSError):
            paths |= {os.path.join(own, name) for name in os.listdir(own) if _NAME.fullmatch(name)}
    found = [_look(path, users.get(path, [])) for path in sorted(paths) if os.path.isdir(path)]
    return sorted(found, key=lambda state: (state.source, state.path))


def chosen(states: list[State], words: Iterable[str]) -> list[State]:
    """The states that `words` (sources, names, mount points) mean. Raises UsageError for one that means none."""
    result: list[State] = []
    for word in words:
        means = [state for state in states if _means(word, state)]
        if not means:
            raise UsageError(f"there is no cached state of `{word}`", "`mountkit cache list` shows them all")
        result += [state for state in means if state not in result]
    return result


def _means(word: str, state: State) -> bool:
    bare = word.partition("?")[0].rstrip("/")
    return (
        state.source in (bare, f"s3://{bare}")
        or (len(word) >= 4 and state.name.startswith(word))
        or os.path.abspath(word) in (*state.used_by, state.path)
    )


def _look(path: str, used_by: list[str]) -> State:
    with _opened(path) as root:
        said, last_used = about.read(root)
        driver = str(said.get("driver", "fuse"))
        return State(
            path,
            str(said.get("source", "")),
            str(said.get("identity", "")),
            driver,
            disk_usage(path),
            0 if driver == "s3fs" else _objects(root),
            last_used,
            tuple(sorted(used_by)),
            _is_locked(root),
        )


def disk_usage(path: str) -> int:
    """What everything below `path` takes on the disk; 0 for what is not there."""
    total = 0
    for where, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
    return total


def _objects(root: int) -> int:
    if index.identity(root) is None:
        return 0
    try:
        with contextlib.closing(index.connect(root, read_only=True, timeout_s=1.0)) as db:
            (count,) = db.execute("SELECT count(*) FROM block WHERE idx = 0").fetchone()
            return int(count)
    except sqlite3.Error:
        return 0


# ---- verify --------------------------------------------------------------------------------------------------
def verify(state: State, progress: Callable[[int], None]) -> Verified:
    """Reads everything that is cached and compares it with its checksums; bad bytes are forgotten or fetched again.

    `progress` is told the bytes of each step. Raises MountError where the state cannot be read.
    """
    found = Verified(bad=[])
    spoilt: list[ObjectRow] = []
    with _opened(state.path) as root:
        view, cache = CatalogView.open(root), CacheReader.open(root)
        try:
            for row in view.versions():
                checked, good = _verified(cache, row, progress)
                found.objects += bool(checked)
                found.checked_bytes += checked
                if not good:
                    spoilt.append(row)
        except CatalogUnavailable as exc:
            if _objects(root):
                raise MountError(f"the catalog in {state.path} cannot be read: {exc}", "mount it once") from exc
        finally:
            view.close()
            cache.close()
        assert found.bad is not None
        found.bad += [row.key.decode("utf-8", "backslashreplace") for row in spoilt]
        found.unknown = max(0, _objects(root) - found.objects)
    if spoilt:
        _mend(state, spoilt)
    return found


def _verified(cache: CacheReader, row: ObjectRow, progress: Callable[[int], None]) -> tuple[int, bool]:
    """How many cached bytes of the object were read, and whether all were right."""
    content, total, good = content_id(row.key, row.etag, row.size), 0, True
    for block, parts in cache.parts(content, row.size).items():
        whole = parts == full_mask(row.size, block)
        spans = [(block * 8, 8)] if whole else [(block * 8 + n, 1) for n in range(8) if parts >> n & 1]
        for first, count in spans:
            length = min(row.size, (first + count) * PART_BYTES) - first * PART_BYTES
            data = cache.read(content, row.size, first * PART_BYTES, length, wait=True)
            good = good and not isinstance(data, Missing)
            total += length
            progress(length)
    return total, good


def _mend(state: State, spoilt: list[ObjectRow]) -> None:
    if state.used_by:
        mover, _ = mounts.mover_client(state.used_by[0])
        with mover:
            for row in spoilt:
                for start in range(0, row.size, 64 * BLOCK_BYTES):
                    length = min(row.size - start, 64 * BLOCK_BYTES)
                    mover.call("fetch", object=row.id, offset=start, length=length, bad=True)
        return
    with _taken(state) as root, _writer(root, Limits(1 << 62, 0.0)) as cache:
        for row in spoilt:
            content = content_id(row.key, row.etag, row.size)
            cache.recheck(content, row.size, 0, (row.size - 1) // PART_BYTES)


# ---- clear, limit --------------------------------------------------------------------------------------------
def clear(state: State, *, in_use: bool) -> int:
    """Deletes a state; of one in use, with `in_use`, the cached bytes. Returns the bytes it held.

    Raises MountBusy, MountError.
    """
    with _opened(state.path) as root:
        waiting = _not_uploaded(root)
    if waiting:
        raise MountError(
            f"{state.path} holds {waiting} output operations that are not yet in the bucket",
            f"mount {state.source} once more with --writable and unmount it: that uploads them",
        )
    if state.used_by:
        _clear_live(state, in_use=in_use)
        return state.size_bytes
    with _taken(state):
        own = os.open(os.path.dirname(state.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            shutil.rmtree(state.name, dir_fd=own)
        finally:
            os.close(own)
    return state.size_bytes


def _clear_live(state: State, *, in_use: bool) -> None:
    if not in_use:
        raise MountBusy(
            f"{state.source} is mounted at {', '.join(state.used_by)}",
            "unmount it, or say --in-use: then the mount goes on and fetches everything anew",
        )
    if state.driver == "s3fs":
        raise MountBusy(f"{state.source} is served by s3fs, whose cache cannot be emptied in use", "unmount it first")
    with _opened(state.path) as root:
        for suffix in ("", "-wal", "-shm"):  # the mover sees it and begins anew; see `cache.recovery`
            with contextlib.suppress(FileNotFoundError):
                os.unlink(index.INDEX + suffix, dir_fd=root)


def limit(state: State, size_bytes: int) -> int:
    """Shrinks a state's cached objects to `size_bytes`, longest unused first; the bytes freed.

    A live mount keeps the new limit until it is unmounted. Raises MountBusy, MountError.
    """
    if state.driver == "s3fs":
        raise UsageError(
            f"{state.path} is s3fs's own cache, which only it can shrink", "`mountkit cache clear` empties it"
        )
    if state.used_by:
        mover, _ = mounts.mover_client(state.used_by[0])
        with mover:
            return int(mover.call("limit", bytes=size_bytes)["freed"])
    with _taken(state) as root, _writer(root, Limits(1 << 62, 0.0)) as cache:
        return cache.shrink(size_bytes)


def _not_uploaded(root: int) -> int:
    try:
        os.stat(_JOURNAL, dir_fd=root)
        uri = f"file:/proc/self/fd/{root}/{_JOURNAL}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as db:
            (count,) = db.execute(_OPEN_OPERATIONS).fetchone()
            return int(count)
    except FileNotFoundError:
        return 0
    except sqlite3.Error as exc:
        raise MountError(
            f"the journal of output files cannot be read: {exc}", "look at it before it is deleted"
        ) from exc


# ---- tools ---------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise MountError(f"the state directory {path} cannot be used: {os.strerror(exc.errno or 0)}") from exc
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _taken(state: State) -> Iterator[int]:
    """The state's descriptor while we are its one owner. Raises MountBusy."""
    with _opened(state.path) as root:
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield root
        except BlockingIOError:
            raise MountBusy(f"{state.path} is in use by a mount that has just begun or ended", "try again") from None
        finally:
            os.close(fd)


def _is_locked(root: int) -> bool:
    try:
        fd = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def _writer(root: int, limits: Limits) -> Iterator[CacheWriter]:
    cache = CacheWriter.open(root, limits, secrets.token_bytes(16))
    try:
        yield cache
    finally:
        cache.close()
