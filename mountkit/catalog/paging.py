"""Paging: a stretch of one directory out of the entry table, with object versions or without.

Names come in S3's order, so a directory `a/` may follow the file `a` far behind it, and the file is then shadowed. For
most names that is seen in passing; only for one that the last row of a page begins with the table is asked.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Final

from mountkit import names
from mountkit.catalog import schema
from mountkit.catalog.values import DirectoryEntry, DirectoryPage, Kind, ObjectRow

OBJECT_COLUMNS: Final = "o.id, o.key, o.etag, o.size, o.mtime_ns, o.version_id, o.storage_class, o.superseded_at"
_WHERE: Final = "WHERE e.parent = ? AND e.name > ? AND e.name <= ? AND e.kind <> 0 ORDER BY e.name LIMIT ?"
_WITH_OBJECTS: Final = (
    f"SELECT e.name, e.kind, e.inode, {OBJECT_COLUMNS}"  # noqa: S608
    f" FROM entry e LEFT JOIN object o ON e.kind = 1 AND o.id = e.inode {_WHERE}"
)
_NAMES: Final = f"SELECT e.name, e.kind, e.inode FROM entry e {_WHERE}"  # noqa: S608
_UNLISTED: Final = names.RUNS + names.SEPARATOR
_SHADOWED: Final = "SELECT 1 FROM entry WHERE parent = ? AND name = ? AND kind = 2"

MakeObject = Callable[[tuple[Any, ...]], ObjectRow]
"""The object version of a row of OBJECT_COLUMNS."""


def stretch(
    db: sqlite3.Connection,
    local: int,
    after: bytes,
    through: bytes,
    limit: int,
    *,
    base: int,
    whole: bool,
    make: MakeObject | None,
) -> DirectoryPage:
    """Up to `limit` entries of the directory `local` with stored names in (after, through]; done if that was all of a
    `whole` directory. Without `make` they are names and kinds only, at less than half of the cost."""
    entries: list[DirectoryEntry] = []
    sql = _NAMES if make is None else _WITH_OBJECTS
    while True:
        wanted = limit - len(entries)
        rows = db.execute(sql, (local, after, through, wanted + 1)).fetchall()
        last = rows[-1][0] if rows else b""
        directories = {row[0][:-1] for row in rows if row[1] == 2}
        for row in rows[:wanted]:
            name, kind, inode = row[:3]
            after = name
            if kind == 2 and local == schema.ROOT and name == _UNLISTED:
                continue
            if kind == 2:
                entries.append(DirectoryEntry(base + inode, name[:-1], Kind.DIRECTORY, base + inode, None))
            elif not whole and name + names.SEPARATOR > through:
                return DirectoryPage(entries, False)  # nobody knows yet whether a directory of its name follows
            elif name in directories or (last.startswith(name) and _is_shadowed(db, local, name)):
                continue
            elif make is None:
                entries.append(DirectoryEntry(base + inode, name, Kind.FILE, base + inode, None))
            elif row[3] is not None:
                entries.append(DirectoryEntry(base + inode, name, Kind.FILE, base + inode, make(row[3:])))
        if len(rows) <= wanted:
            return DirectoryPage(entries, whole)
        if len(entries) >= limit:
            return DirectoryPage(entries, False)


def _is_shadowed(db: sqlite3.Connection, local: int, name: bytes) -> bool:
    return db.execute(_SHADOWED, (local, name + names.SEPARATOR)).fetchone() is not None
