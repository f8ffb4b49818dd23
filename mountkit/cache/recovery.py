"""Opening the cache after whatever happened: use the index as it is, or begin again with an empty cache.

The index is checked at each open while that is cheap, and always after a boot that did not follow a clean close. What
the index says of bytes needs no check here: every part is checked against its CRC when it is read. A rebuild may be
killed at any moment; the next open takes it up again (`wiping` in meta).
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mountkit.cache.faults import CacheBroken, translated
from mountkit.cache.files import OBJECTS, SEGMENTS, make_directory, open_below
from mountkit.cache.index import FORMAT, INDEX, SCHEMA, connect, identity
from mountkit.cache.index_writer import REBUILD_MARK, IndexWriter, is_damage, translated_sqlite
from mountkit.cache.objects import wipe_objects
from mountkit.cache.segments import segment_numbers, wipe_segments

CHEAP_CHECK_BYTES = 64 << 20
"""Checking an index of this size takes about a fifth of a second."""

_SETTINGS = (
    "synchronous = OFF",
    "cache_size = -65536",  # KiB
    "wal_autocheckpoint = 8192",  # pages
    "journal_size_limit = 67108864",
)
"""A content id is random, so 1,000 rows touch as many pages: the defaults checkpoint at each commit, which then takes
21 ms in an index of 500,000 rows; with these it takes 15."""

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Found:
    """The opened index and what it says about the files; `warnings` are for the user."""

    index: IndexWriter
    live_records: dict[int, int]
    own_bytes: int
    next_segment: int
    warnings: list[str]


def open_index(root: int, life: bytes) -> Found:
    """The index below `root`, empty if the old one cannot be used.

    Raises CacheFull or CacheBroken if the directory does not let us.
    """
    try:
        return _open(root, life)
    except CacheBroken:
        if not _is_marked(root):
            raise
        return _open(root, life)  # it was damaged where the checks do not look


def _open(root: int, life: bytes) -> Found:
    try:
        for name in (SEGMENTS, OBJECTS):
            make_directory(root, name)
        db, why = _usable(root)
        warnings = []
        if db is None:
            if why:
                warnings.append(f"the cache was emptied: {why}")
            _remove_index(root)
            db = _create(root)
        try:
            return _started(root, db, life, warnings)
        except BaseException:
            db.close()
            raise
    except OSError as exc:
        raise translated(exc, "opening its directory") from exc
    except sqlite3.Error as exc:
        raise translated_sqlite(exc) from exc


def _started(root: int, db: sqlite3.Connection, life: bytes, warnings: list[str]) -> Found:
    """Begin this mover's run: finish a rebuild, say who we are, read what there is."""
    for setting in _SETTINGS:
        db.execute(f"PRAGMA {setting}")
    index = IndexWriter(root, db)
    if index.get_meta("wiping"):
        wipe_objects(root)
        index.put_meta(next_segment=wipe_segments(root) + 1, wiping=0)
    index.put_meta(life=life, boot_id=_boot_id(), clean=0)
    number = index.get_meta("next_segment")
    return Found(index, index.live_records(), index.own_bytes(), number if isinstance(number, int) else 1, warnings)


def _usable(root: int) -> tuple[sqlite3.Connection | None, str]:
    """A connection to the index that is there, or None and why not ("" if there is nothing yet)."""
    if _is_marked(root):
        return None, "an earlier run found its index damaged"
    if identity(root) is None:
        return None, "its index was missing" if segment_numbers(root) else ""
    db = connect(root, read_only=False, timeout_s=_TIMEOUT_S)
    try:
        why = _objection(root, db)
    except sqlite3.Error as exc:
        db.close()
        if not is_damage(exc):
            raise
        return None, f"its index is damaged ({exc})"
    if why:
        db.close()
        return None, why
    return db, ""


def _objection(root: int, db: sqlite3.Connection) -> str:
    meta = dict(db.execute("SELECT name, value FROM meta").fetchall())
    if meta.get("format") != FORMAT:
        return f"its format is {meta.get('format')}, this version of mountkit knows {FORMAT}"
    unclean_boot = not meta.get("clean") and meta.get("boot_id") != _boot_id()
    if unclean_boot or os.stat(INDEX, dir_fd=root).st_size <= CHEAP_CHECK_BYTES:
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            return f"its index is damaged ({found})"
    return ""


def _create(root: int) -> sqlite3.Connection:
    os.close(open_below(root, INDEX, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    db = connect(root, read_only=False, timeout_s=_TIMEOUT_S)
    try:
        db.executescript(SCHEMA)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _remove_index(root: int) -> None:
    """Delete the index, the file itself first: from then on readers see none, whatever else is still there."""
    for name in (INDEX, f"{INDEX}-wal", f"{INDEX}-shm", f"{INDEX}-journal", REBUILD_MARK):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=root)


def _is_marked(root: int) -> bool:
    return os.access(REBUILD_MARK, os.F_OK, dir_fd=root, follow_symlinks=False)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
