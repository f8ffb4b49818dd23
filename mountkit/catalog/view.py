"""CatalogView: reads the catalog, from any process; what the servers answer the kernel with.

No call leaves a read transaction behind. Facts are dated: `as_of` is the newest evidence for an answer, and the caller
decides whether that is fresh enough. The file may be deleted and begun anew by the mover at any moment: each call looks
which file is there and reconnects; ids of another generation are unknown.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, Self

from mountkit import names
from mountkit.catalog import schema
from mountkit.catalog.paging import OBJECT_COLUMNS, stretch
from mountkit.catalog.values import (
    GENERATION_SIZE,
    CatalogUnavailable,
    Directory,
    DirectoryEntry,
    DirectoryId,
    DirectoryPage,
    Kind,
    Known,
    ObjectId,
    ObjectRow,
    StaleCookie,
)
from mountkit.catalog.walindex import WalIndexHead

_OBJECT: Final = f"SELECT {OBJECT_COLUMNS} FROM object o WHERE o.id = ?"  # noqa: S608
_VERSIONS: Final = f"SELECT {OBJECT_COLUMNS} FROM object o WHERE o.id > ? ORDER BY o.id LIMIT 1000"  # noqa: S608
_DIRECTORY: Final = (
    "SELECT id, parent, name, prefix, mtime_ns, hidden, listed_at, listing_started, listing_through"
    " FROM directory WHERE id = ?"
)
# One row for any parent that is known. 5 µs, and 4 more for taking and leaving the read lock; two statements: 13.
_LOOKUP: Final = f"""
SELECT p.hidden, p.listed_at, p.listing_started, p.listing_through, d.kind, d.inode, d.checked_at, f.kind, f.checked_at,
    {OBJECT_COLUMNS}
FROM directory p
LEFT JOIN entry d ON d.parent = p.id AND d.name = ?3
LEFT JOIN entry f ON f.parent = p.id AND f.name = ?2
LEFT JOIN object o ON f.kind = 1 AND o.id = f.inode
WHERE p.id = ?1"""  # noqa: S608
AFTER_ALL: Final = b"\xff"
"""Greater than any valid name (0xFF is in no UTF-8)."""


class CatalogView:
    """The catalog in the directory behind `directory_fd` (duplicated), read-only; needs no file to be there yet."""

    def __init__(self, directory_fd: int, *, clock: Callable[[], float] = time.time) -> None:
        self._fd = os.dup(directory_fd)
        self._clock = clock
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._head: WalIndexHead | None = None
        self._connections = 0
        self._base = 0
        self._prefix = b""
        self._reading = _Reading(self)

    @classmethod
    def open(cls, directory_fd: int, *, clock: Callable[[], float] = time.time) -> Self:
        """A view; that there is no catalog yet only shows in the first question."""
        return cls(directory_fd, clock=clock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} generation={self._base >> 32} prefix={self._prefix!r}>"

    def move(self, directory_fd: int) -> None:
        """Reads the catalog in another directory from now on."""
        os.dup2(directory_fd, self._fd, inheritable=False)
        self._disconnect()

    def close(self) -> None:
        """Lets go of the file. Twice is fine."""
        self._disconnect()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def root(self) -> DirectoryId:
        """The directory that FUSE calls inode 1."""
        with self._reading:
            return DirectoryId(self._base + schema.ROOT)

    @property
    def keys_directory(self) -> DirectoryId:
        """`.mountkit/keys`, in which any key can be looked up by its escaped name."""
        with self._reading:
            return DirectoryId(self._base + schema.KEYS)

    @property
    def generation(self) -> int:
        """The first id of this generation; another number means that all ids and cookies have changed."""
        with self._reading:
            return self._base

    @property
    def prefix(self) -> bytes:
        """The mount's key prefix."""
        with self._reading:
            return self._prefix

    @property
    def state(self) -> tuple[int, bytes]:
        """While this stays equal, all questions have the same answers (but for the time they are asked at); costs a
        tenth of a question. Taken before a question, it is never newer than the answer."""
        with self._reading:
            head = self._head or self._map_head()
            return self._connections, head.read()

    def object(self, object_id: int) -> ObjectRow | None:
        """The version with this id, also a superseded one for as long as it is kept."""
        with self._reading as db:
            row = self._one(db, _OBJECT, object_id)
            return self._object_row(row) if row else None

    def versions(self) -> Iterator[ObjectRow]:
        """Every version that is kept, also superseded ones, page by page: no transaction lasts longer than one."""
        last = 0
        while True:
            with self._reading as db:
                rows = db.execute(_VERSIONS, (last,)).fetchall()
                found = [self._object_row(row) for row in rows]
            yield from found
            if not rows:
                return
            last = rows[-1][0]

    def directory(self, directory_id: int) -> Directory | None:
        """The directory with this id, also one that is gone (its names are then unknown)."""
        with self._reading as db:
            row = self._one(db, _DIRECTORY, directory_id)
            if row is None:
                return None
            local, parent, name, prefix, mtime_ns, hidden, listed_at, started, through = row
            now = self._clock()
            return Directory(
                DirectoryId(self._base + local),
                DirectoryId(self._base + parent),
                name,
                prefix or b"",
                mtime_ns,
                bool(hidden),
                _not_future(listed_at, now),
                _not_future(started, now),
                through or b"",
            )

    def lookup(self, parent: int, name: bytes) -> Known | None:
        """What is known of `name` in the directory `parent`; None if nothing is, also if there is no such directory.

        The directory `name/` is found before the file `name`. Absence is known from a single lookup, a finished
        listing, or one in progress that has passed both spellings.
        """
        with self._reading as db:
            local = parent - self._base
            if not 0 < local < GENERATION_SIZE:
                return None
            slashed = name + names.SEPARATOR
            row = db.execute(_LOOKUP, (local, name, slashed)).fetchone()
        if row is None:
            return None
        now = self._clock()
        hidden, listed_at, started, through, dir_kind, dir_inode, dir_checked, file_kind, file_checked = row[:9]
        if (fixed := self._lookup_fixed(local, hidden, name, now)) is not None:
            return fixed
        is_directory = dir_kind == Kind.DIRECTORY
        passed = started if started is not None and slashed <= through else None
        dates = (
            dir_checked if is_directory else file_checked,
            listed_at,
            passed,
            now if hidden and is_directory else None,
        )
        as_of = _newest(dates, now)
        if as_of is None:
            return None
        if is_directory:
            return Known(Kind.DIRECTORY, DirectoryId(self._base + dir_inode), None, as_of)
        if file_kind != Kind.FILE:
            return Known(Kind.ABSENT, None, None, as_of)
        if row[9] is None or row[16] is not None:  # the version's row is lost or superseded: nobody knows what is there
            return None
        found = self._object_row(row[9:])
        return Known(Kind.FILE, found.id, found, as_of)

    def _lookup_fixed(self, local: int, hidden: int, name: bytes, now: float) -> Known | None:
        """Answers that need no evidence: the hidden directories, and names that no key can have."""
        if hidden == schema.HIDDEN_TOP and name == names.KEYS:
            return Known(Kind.DIRECTORY, DirectoryId(self._base + schema.KEYS), None, now)
        if local == schema.ROOT and name == names.HIDDEN:
            return Known(Kind.DIRECTORY, DirectoryId(self._base + schema.HIDDEN), None, now)
        if hidden == schema.HIDDEN_TOP or not names.valid_name(name):
            return Known(Kind.ABSENT, None, None, now)
        return None

    def page(
        self, parent: int, after_cookie: int, limit: int, fresh_after: float, *, objects: bool = True
    ) -> DirectoryPage:
        """Up to `limit` entries of the directory after the cookie (0: from the start), in S3's order of names; without
        `objects`, names and kinds only.

        Only what is known as of `fresh_after` or later is given out, and a file only when no directory of its name can
        follow; `fresh_after` 0 takes any finished listing. Raises StaleCookie; KeyError on an unknown directory.
        """
        with self._reading as db, _snapshot(db):
            row = self._one(db, _DIRECTORY, parent)
            if row is None:
                raise KeyError(parent)
            local, _, _, prefix, _, hidden, listed_at, started, through = row
            after = self._name_at(db, local, prefix, after_cookie) if after_cookie else b""
            if hidden == schema.HIDDEN_TOP:
                keys = self._base + schema.KEYS
                entry = DirectoryEntry(keys, names.KEYS, Kind.DIRECTORY, keys, None)
                return DirectoryPage([] if after else [entry], True, self._clock())
            now = self._clock()
            whole = hidden or _is_fresh(listed_at, fresh_after, now)
            if not whole and not _is_fresh(started, fresh_after, now):
                return DirectoryPage([], False)
            make = self._object_row if objects else None
            bound = AFTER_ALL if whole else through
            page = stretch(db, local, after, bound, limit, base=self._base, whole=bool(whole), make=make)
            as_of = now if hidden else _newest((listed_at if whole else started,), now)
            return replace(page, as_of=as_of or 0.0)

    def path_of(self, inode: int) -> bytes | None:
        """The path below the mount of an object or directory; None if the id is unknown.

        An object whose key is no path has its path below `.mountkit/keys/`.
        """
        with self._reading as db:
            row = self._one(db, _OBJECT, inode)
            if row is not None:
                relative: bytes = row[1][len(self._prefix) :]
                if names.classify(relative) is names.KeyKind.PATH:
                    return relative
                return b"/".join((names.HIDDEN, names.KEYS, *names.escape(relative)))
            row = self._one(db, _DIRECTORY, inode)
            if row is None:
                return None
            local, _, _, prefix, _, hidden, *_ = row
            if not hidden:
                return bytes(prefix[len(self._prefix) : -1])
            below = [] if local == schema.HIDDEN else [names.KEYS, *self._continuations(db, local)]
            return b"/".join([names.HIDDEN, *below])

    def listed_at(self, prefix: bytes) -> float | None:
        """When the directory with this full key prefix was listed, if it was and nothing has made that void since."""
        with self._reading as db:
            row = db.execute("SELECT listed_at FROM directory WHERE prefix = ? AND NOT hidden", (prefix,)).fetchone()
            return (row[0] or None) if row else None

    def parent_of(self, directory: int) -> DirectoryId | None:
        """The directory that holds `directory`; the root's is the root."""
        with self._reading as db:
            row = self._one(db, _DIRECTORY, directory)
            return None if row is None else DirectoryId(self._base + row[1])

    def key_at(self, parent: int, name: bytes) -> bytes | None:
        """The full key that a file `name` in the directory `parent` has or would have.

        None where no key can: no such directory, no valid name, or below `.mountkit/` not the name of a key (there,
        a name that `names.is_continuation` is a directory: `record_directory` it, unasked).
        """
        with self._reading as db:
            row = self._one(db, _DIRECTORY, parent)
            if row is None:
                return None
            local, _, _, prefix, _, hidden, *_ = row
            if not hidden:
                odd = not names.valid_name(name) or (local == schema.ROOT and name == names.HIDDEN)
                return None if odd else bytes(prefix + name)
            if hidden == schema.HIDDEN_TOP:
                return None
            with contextlib.suppress(ValueError):
                return self._prefix + names.unescape((*self._continuations(db, local), name))
            return None

    # -- inside one call ------------------------------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        """A connection to the file that is the catalog now."""
        found = schema.identity(self._fd)
        if self._db is None or found != self._identity:
            self._disconnect()
            if found is None:
                raise CatalogUnavailable("there is no catalog")
            self._db = self._connect()
            self._identity = found
            # the file opened must be the file seen: the WAL found by name could be the next one's
            if schema.identity(self._fd) != found:
                self._disconnect()
                raise CatalogUnavailable("the catalog is being replaced")
        return self._db

    def _connect(self) -> sqlite3.Connection:
        db = schema.connect_reader(self._fd)
        try:
            meta = schema.read_meta(db)
        except BaseException:
            db.close()
            raise
        self._connections += 1
        self._base, self._prefix = meta.generation, meta.prefix
        return db

    def _map_head(self) -> WalIndexHead:
        try:
            self._head = head = WalIndexHead(self._fd, schema.FILE)
        except (OSError, ValueError) as exc:
            raise self._unavailable(exc) from exc
        if schema.identity(self._fd) != self._identity:  # what was found by its name could be the next one's
            self._disconnect()
            raise CatalogUnavailable("the catalog is being replaced")
        return head

    def _unavailable(self, exc: Exception) -> CatalogUnavailable:
        self._disconnect()
        return CatalogUnavailable(f"the catalog cannot be read: {exc}")

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._head is not None:
            self._head.close()
            self._head = None

    def _one(self, db: sqlite3.Connection, sql: str, inode: int) -> Any:
        local = inode - self._base
        return db.execute(sql, (local,)).fetchone() if 0 < local < GENERATION_SIZE else None

    def _object_row(self, row: tuple[Any, ...]) -> ObjectRow:
        local, key, etag, size, mtime_ns, version_id, storage_class, superseded_at = row
        return ObjectRow(
            ObjectId(self._base + local),
            key,
            etag if type(etag) is str else f'"{etag.hex()}"',
            size,
            mtime_ns,
            version_id or "",
            storage_class or "STANDARD",
            superseded_at,
        )

    def _name_at(self, db: sqlite3.Connection, local: int, prefix: bytes | None, cookie: int) -> bytes:
        """The stored name of the entry a cookie stands for."""
        if row := self._one(db, _DIRECTORY, cookie):
            if row[1] == local and row[0] != schema.ROOT:
                return bytes(row[2] + names.SEPARATOR)
        elif row := self._one(db, _OBJECT, cookie):
            key: bytes = row[1]
            if prefix is None:
                *continued, name = names.escape(key[len(self._prefix) :])
                if continued == self._continuations(db, local):
                    return name
            elif key.startswith(prefix) and names.SEPARATOR not in key[len(prefix) :]:
                return key[len(prefix) :]
        raise StaleCookie(cookie)

    def _continuations(self, db: sqlite3.Connection, local: int) -> list[bytes]:
        """The names that lead from `.mountkit/keys` to this directory below it."""
        found: list[bytes] = []
        while local not in (schema.KEYS, schema.HIDDEN, schema.ROOT):
            local, name = db.execute("SELECT parent, name FROM directory WHERE id = ?", (local,)).fetchone()
            found.append(name)
        return found[::-1]


class _Reading:
    """Around one call: the right file is open before, SQLite's errors have become CatalogUnavailable after."""

    __slots__ = ("_view",)

    def __init__(self, view: CatalogView) -> None:
        self._view = view

    def __enter__(self) -> sqlite3.Connection:
        try:
            return self._view._connection()
        except (sqlite3.Error, ValueError) as exc:
            raise self._view._unavailable(exc) from exc

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, sqlite3.Error):
            raise self._view._unavailable(exc) from exc


@contextlib.contextmanager
def _snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """The statements inside see one state of the catalog."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("COMMIT")


def _newest(dates: tuple[float | None, ...], now: float) -> float | None:
    """The newest evidence; None if there is none. A date in the future (the clock was set back) is very old."""
    known = [date if date <= now else 0.0 for date in dates if date is not None]
    return max(known) if known else None


def _not_future(date: float | None, now: float) -> float | None:
    return date if date is None or date <= now else 0.0


def _is_fresh(date: float | None, fresh_after: float, now: float) -> bool:
    return date is not None and (date if date <= now else 0.0) >= fresh_after
