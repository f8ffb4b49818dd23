"""Writer: the changes the catalog is made of, each inside the caller's transaction; ids here are the file's small ones.

One rule orders facts: passes (listings) are numbered as they begin, and a pass changes a row only if the row's `seen`
is smaller than its number. What single lookups record carries the number of the newest pass begun, so it outlives all
passes in progress (their pages may have been fetched earlier) and yields to those begun later.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from mountkit import names
from mountkit.catalog import schema
from mountkit.catalog.values import GENERATION_SIZE, CatalogLost, CatalogUnavailable, Kind
from mountkit.store.api import ObjectInfo

_ROW: Final = """
SELECT e.name, e.kind, e.inode, e.seen, o.etag, o.size, o.mtime_ns, o.version_id, o.storage_class, o.superseded_at
FROM entry e LEFT JOIN object o ON o.id = e.inode WHERE e.parent = ?"""
_ROWS: Final = f"{_ROW} AND e.name >= ? AND e.name <= ? ORDER BY e.name LIMIT ?"
_PUT: Final = "REPLACE INTO entry (parent, name, kind, inode, seen, checked_at) VALUES (?, ?, ?, ?, ?, ?)"
_NEW_OBJECT: Final = (
    "INSERT INTO object (id, key, etag, size, mtime_ns, version_id, storage_class) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_NEW_DIRECTORY: Final = "INSERT INTO directory (id, parent, name, prefix, mtime_ns, hidden) VALUES (?, ?, ?, ?, ?, ?)"
_BELOW: Final = "SELECT id FROM directory WHERE prefix >= ?1 AND prefix < ?2"
_CHUNK: Final = 4096
_ROWS_AT_ONCE: Final = 50
"""Rows of one INSERT: SQLite takes half the time a row, and gives the interpreter away once instead of fifty times."""


class Row(NamedTuple):
    """An entry and, if it has one, the object version it names."""

    name: bytes
    kind: int
    inode: int
    seen: int
    etag: bytes | str | None
    size: int | None
    mtime_ns: int | None
    version_id: str | None
    storage_class: str | None
    superseded_at: float | None


_UNNAMED: Final = object()


class Writer:
    """The writing connection and what it must remember."""

    def __init__(
        self, directory_fd: int, db: sqlite3.Connection, meta: schema.Meta, clock: Callable[[], float]
    ) -> None:
        self.db = db
        self.passes = meta.passes
        self.prefix = meta.prefix
        self.running: dict[int, int] = {}
        """Directories with a listing in progress, and its number."""
        self._fd = directory_fd
        self._identity = schema.identity(directory_fd)
        self._clock = clock
        self._next_id = meta.next_id
        self._saved = (meta.next_id, meta.passes)
        self.now = clock()
        """The time of the transaction in progress."""

    def is_there(self) -> bool:
        """Whether the catalog's file is still the one we write."""
        return schema.identity(self._fd) == self._identity

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is done inside. Raises CatalogUnavailable (full disk), CatalogLost."""
        if not self.is_there():
            raise CatalogLost("the catalog's file was deleted or replaced")
        self.now = self._clock()
        try:
            self.db.execute("BEGIN IMMEDIATE")
            yield
            numbers = (self._next_id, self.passes)
            if numbers != self._saved:
                sql = "UPDATE meta SET value = ? WHERE name = ?"
                self.db.executemany(sql, zip(numbers, ("next_id", "passes"), strict=True))
            self.db.execute("COMMIT")
            self._saved = numbers
        except sqlite3.Error as exc:
            self._rollback()
            if schema.is_damage(exc):
                # the next `Catalog.open` must not meet it again
                schema.delete(self._fd)
                raise CatalogLost(f"the catalog is damaged: {exc}") from exc
            raise CatalogUnavailable(f"the catalog cannot be written: {exc}") from exc
        except BaseException:
            self._rollback()
            raise

    def begin_pass(self) -> int:
        """The number of a listing that begins now."""
        self.passes += 1
        return self.passes

    def stop_listings(self, prefix: bytes) -> None:
        """Makes the listings in progress at and below `prefix` void."""
        below = f"{_BELOW} AND listing_started NOT NULL"
        for (directory,) in self.db.execute(below, prefix_range(prefix)).fetchall():
            self.running.pop(directory, None)
        forget = f"UPDATE directory SET listing_started = NULL, listing_through = NULL WHERE id IN ({below})"  # noqa: S608
        self.db.execute(forget, prefix_range(prefix))

    # -- rows -----------------------------------------------------------------------------------------------------

    def row(self, directory: int, name: bytes) -> Row | None:
        """The entry stored under exactly `name`."""
        found = self.db.execute(f"{_ROW} AND e.name = ?", (directory, name)).fetchone()
        return Row._make(found) if found else None

    def rows(self, directory: int, low: bytes, high: bytes) -> Iterator[Row]:
        """The entries from `low` to `high`, in order; what is read may be changed while iterating."""
        while True:
            found = self.db.execute(_ROWS, (directory, low, high, _CHUNK)).fetchall()
            yield from map(Row._make, found)
            if len(found) < _CHUNK:
                return
            low = found[-1][0] + b"\0"

    def put(self, directory: int, name: bytes, kind: int, inode: int, *, seen: int, checked_at: float | None) -> None:
        """Writes the entry, whether it exists or not."""
        self.db.execute(_PUT, (directory, name, kind, inode, seen, checked_at))

    def merge(
        self,
        directory: int,
        prefix: bytes,
        items: dict[bytes, ObjectInfo | None],
        *,
        low: bytes,
        high: bytes,
        number: int,
        gone_after: bytes,
        mark: bool,
    ) -> list[bytes]:
        """Applies what pass `number` saw from `low` to `high`, consuming `items` (stored name → version; None: a
        directory), and returns the stored names that changed; what is left in `items` was new.

        Names beyond `gone_after` that the pass did not see are gone. With `mark`, names seen carry the pass's number.
        """
        changed: list[bytes] = []
        marked: list[tuple[int, int, bytes]] = []
        seen = number if mark else 0
        for row in self.rows(directory, low, high):
            info = items.pop(row.name, _UNNAMED)
            if row.seen >= number:
                continue
            if info is _UNNAMED:
                if row.kind and row.name > gone_after:
                    self.remove(directory, row, seen=number - 1, checked_at=None)
                    changed.append(row.name)
            elif self._apply(directory, row, info, seen):  # type: ignore[arg-type]
                changed.append(row.name)
            elif mark:
                marked.append((number, directory, row.name))
        if marked:
            self.db.executemany("UPDATE entry SET seen = ? WHERE parent = ? AND name = ?", marked)
        if items:
            self._insert(directory, prefix, items, seen)
        return changed

    def _apply(self, directory: int, row: Row, info: ObjectInfo | None, seen: int) -> bool:
        """Brings one row up to what a listing saw; whether anything changed."""
        if info is None:
            if row.kind == Kind.DIRECTORY:
                return False
            self.put(directory, row.name, Kind.DIRECTORY, row.inode, seen=seen, checked_at=None)
            return True
        if (
            row.size == info.size
            and row.mtime_ns == info.mtime_ns
            and row.kind == Kind.FILE
            and row.superseded_at is None
            and (row.storage_class or "STANDARD") == info.storage_class
            and row.etag == pack_etag(info.etag)
        ):
            return False
        inode = self.version(row, info)
        self.put(directory, row.name, Kind.FILE, inode, seen=seen, checked_at=None)
        return True

    def _insert(self, directory: int, prefix: bytes, items: dict[bytes, ObjectInfo | None], seen: int) -> None:
        objects: list[tuple[Any, ...]] = []
        entries: list[tuple[Any, ...]] = []
        for name, info in items.items():
            if info is None:
                inode = self.new_directory(directory, name[:-1], prefix + name)
                entries.append((directory, name, 2, inode, seen))
            else:
                inode = self._allocate()
                key, size, etag, mtime_ns, storage, version_id = info[:6]
                storage_class = None if storage == "STANDARD" else storage
                objects.append((inode, key, pack_etag(etag), size, mtime_ns, version_id or None, storage_class))
                entries.append((directory, name, 1, inode, seen))
        self._insert_rows(
            "INSERT INTO object (id, key, etag, size, mtime_ns, version_id, storage_class) VALUES", objects
        )
        self._insert_rows("INSERT INTO entry (parent, name, kind, inode, seen) VALUES", entries)

    def _insert_rows(self, head: str, rows: list[tuple[Any, ...]]) -> None:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            places = f"({'?,' * (len(some[0]) - 1)}?)"
            values = list(itertools.chain.from_iterable(some))
            self.db.execute(f"{head} {','.join([places] * len(some))}", values)

    # -- versions and directories ---------------------------------------------------------------------------------

    def version(self, row: Row | None, info: ObjectInfo) -> int:
        """The object that is `info`: the row's own, brought up to date, if key, ETag and size are the same; else a new
        one, and the row's is superseded."""
        storage_class = None if info.storage_class == "STANDARD" else info.storage_class
        if row is not None and row.size == info.size and row.etag == pack_etag(info.etag):
            self.db.execute(
                "UPDATE object SET mtime_ns = ?, storage_class = ?, version_id = ?, superseded_at = NULL WHERE id = ?",
                (info.mtime_ns, storage_class, info.version_id or row.version_id, row.inode),
            )
            return row.inode
        if row is not None:
            self.supersede(row.inode)
        inode = self._allocate()
        etag = pack_etag(info.etag)
        values = (inode, info.key, etag, info.size, info.mtime_ns, info.version_id or None, storage_class)
        self.db.execute(_NEW_OBJECT, values)
        return inode

    def supersede(self, inode: int) -> None:
        """The key of this object holds another version now, or none."""
        sql = "UPDATE object SET superseded_at = ? WHERE id = ? AND superseded_at IS NULL"
        self.db.execute(sql, (self.now, inode))

    def new_directory(self, parent: int, name: bytes, prefix: bytes | None) -> int:
        """A directory's row; without prefix a hidden one. Its entry is the caller's."""
        inode = self._allocate()
        hidden = schema.HIDDEN_KEYS if prefix is None else schema.PLAIN
        self.db.execute(_NEW_DIRECTORY, (inode, parent, name, prefix, int(self.now * 1e9), hidden))
        return inode

    def remove(self, directory: int, row: Row, *, seen: int, checked_at: float | None) -> None:
        """Makes the entry a tombstone, and empties what lies below a directory."""
        if row.kind == Kind.DIRECTORY:
            self._bury(row.inode)
        elif row.kind == Kind.FILE:
            self.supersede(row.inode)
        self.put(directory, row.name, Kind.ABSENT, row.inode, seen=seen, checked_at=checked_at)

    def _bury(self, directory: int) -> None:
        """Everything below a directory that is gone is gone; should it come back, nothing is known of it."""
        (prefix,) = self.db.execute("SELECT prefix FROM directory WHERE id = ?", (directory,)).fetchone()
        self.stop_listings(prefix)
        self.db.execute(
            "UPDATE object SET superseded_at = ?3 WHERE superseded_at IS NULL AND id IN"  # noqa: S608
            f" (SELECT inode FROM entry WHERE kind = 1 AND parent IN ({_BELOW}))",
            (*prefix_range(prefix), self.now),
        )
        gone = f"UPDATE entry SET kind = 0, checked_at = NULL WHERE kind <> 0 AND parent IN ({_BELOW})"  # noqa: S608
        self.db.execute(gone, prefix_range(prefix))
        self.db.execute(
            "UPDATE directory SET listed_at = NULL WHERE prefix >= ?1 AND prefix < ?2", prefix_range(prefix)
        )

    def affirm(self, directory: int) -> None:
        """Something was just found in `directory`: it and all above it exist, whatever a listing says that is older."""
        while True:
            sql = "SELECT parent, name, hidden FROM directory WHERE id = ?"
            parent, name, hidden = self.db.execute(sql, (directory,)).fetchone()
            if hidden or directory == schema.ROOT:
                return
            self.db.execute(
                "UPDATE entry SET checked_at = CASE WHEN kind = 2 THEN checked_at ELSE ?1 END, kind = 2, seen = ?2"
                " WHERE parent = ?3 AND name = ?4 AND (kind <> 2 OR seen < ?2)",
                (self.now, self.passes, parent, name + names.SEPARATOR),
            )
            directory = parent

    def _allocate(self) -> int:
        inode = self._next_id
        if inode >= GENERATION_SIZE:
            schema.delete(self._fd)
            raise CatalogLost("the catalog's ids are used up")
        self._next_id = inode + 1
        return inode

    def _rollback(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")


def pack_etag(etag: str) -> bytes | str:
    """An MD5 ETag as 16 bytes, any other as it is."""
    if len(etag) == 34:
        try:
            packed = bytes.fromhex(etag[1:33])
        except ValueError:
            return etag
        if f'"{packed.hex()}"' == etag:
            return packed
    return etag


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """Bounds of all prefixes that start with `prefix`, which ends in `/` or is empty."""
    return prefix, prefix[:-1] + b"0" if prefix else b"\xff\xff"
