"""Catalog: what the bucket holds, as a tree; the one writer, in the mover, from one thread.

Each call is one transaction: readers see all of it or nothing, and a kill at any moment leaves the state before or
after it. Two kinds of facts come in: listings (`begin_listing`, `begin_tree`), dated by their start, and single lookups
(`record_*`), dated now. The newer fact stays. Errors: CatalogUnavailable (full disk; nothing changed), CatalogLost.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Final, Self

from mountkit import names
from mountkit.catalog import schema
from mountkit.catalog.listing import Listing, TreeListing, continuation
from mountkit.catalog.values import (
    GENERATION_SIZE,
    CatalogLost,
    CatalogUnavailable,
    Change,
    DirectoryId,
    Kind,
    Known,
    PurgedVersion,
)
from mountkit.catalog.view import CatalogView
from mountkit.catalog.writer import Row, Writer, pack_etag, prefix_range
from mountkit.store.api import ObjectInfo

_KNOWN_DIRECTORIES: Final = (
    "FROM directory d JOIN entry e ON e.parent = d.parent AND e.name = CAST(d.name || '/' AS BLOB)"
    " WHERE e.kind = 2 AND NOT d.hidden"
)
_OLD: Final = "UPDATE entry SET checked_at = 0 WHERE checked_at > 0 AND parent IN ({})"


class Catalog(CatalogView):
    """The catalog, for reading and writing."""

    warnings: list[str]
    """What `open` met and did about it, a sentence each."""
    _writer: Writer

    @classmethod
    def open(  # type: ignore[override]
        cls,
        directory_fd: int,
        prefix: bytes,
        *,
        clock: Callable[[], float] = time.time,
        boot_id: str | None = None,
    ) -> Self:
        """The catalog in this directory for the keys below `prefix` (empty or ending in `/`), made if need be.

        A file that is damaged, of another format or prefix is replaced, with new ids. Raises CatalogUnavailable if the
        disk does not allow it. `boot_id` is for tests.
        """
        if prefix and not prefix.endswith(names.SEPARATOR):
            raise ValueError("a prefix ends in `/`")
        catalog = cls(directory_fd, clock=clock)
        try:
            boot = boot_id or schema.boot_id()
            catalog._db, meta, catalog.warnings = schema.open_writer(catalog._fd, prefix, boot)
        except (sqlite3.Error, OSError) as exc:
            catalog.close()
            raise CatalogUnavailable(f"the catalog cannot be opened: {exc}") from exc
        catalog._base, catalog._prefix = meta.generation, meta.prefix
        catalog._writer = Writer(catalog._fd, catalog._db, meta, clock)
        return catalog

    def close(self) -> None:
        """Closes the file and notes in it that it is whole. Twice is fine; a catalog never closed is whole as well."""
        if self._db is not None:
            schema.close_writer(self._db)
            self._db = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def is_there(self) -> bool:
        """Whether readers find the file we write: nobody has deleted or replaced it."""
        return self._writer.is_there()

    def examine(self) -> None:
        """Reads the file as a reader would, whole; for a reader who could not. May take a second; any thread.

        Raises CatalogLost if it is gone or damaged, and takes away a damaged one, which the next `open` must not meet.
        """
        if not self.is_there():
            raise CatalogLost("the catalog's file was deleted or replaced")
        if damage := schema.damage(self._fd):
            schema.delete(self._fd)
            raise CatalogLost(f"the catalog is damaged: {damage}")

    # -- listings -------------------------------------------------------------------------------------------------

    def begin_listing(self, directory: int) -> Listing:
        """A full listing of one directory begins now; one in progress there is void. Raises KeyError if unknown."""
        local, writer = self._local(directory), self._writer
        with writer.transaction():
            row = writer.db.execute("SELECT pass, hidden FROM directory WHERE id = ?", (local,)).fetchone()
            if row is None or row[1]:
                raise KeyError(directory)
            number = writer.begin_pass()
            listing = Listing(writer, self._base, local, number, listed_before=row[0] != 0)
            writer.db.execute(
                "UPDATE directory SET pass = ?, listing_started = ?, listing_through = x'' WHERE id = ?",
                (number, listing.started, local),
            )
        writer.running[local] = number
        return listing

    def begin_tree(self, directory: int) -> TreeListing:
        """A listing of everything below `directory`, without delimiter, begins now. Raises KeyError if unknown."""
        local, writer = self._local(directory), self._writer
        with writer.transaction():
            row = writer.db.execute("SELECT prefix FROM directory WHERE id = ?", (local,)).fetchone()
            if row is None or row[0] is None:
                raise KeyError(directory)
            return TreeListing(writer, self._base, local, row[0], writer.begin_pass())

    # -- single lookups -------------------------------------------------------------------------------------------

    def record_object(self, parent: int, name: bytes, info: ObjectInfo) -> Known:
        """The bucket was asked: `name` is this object, and no directory. Raises KeyError on an unknown parent."""
        writer = self._writer
        with self._recording(parent) as local:
            self._remove_directory(local, name)
            row = writer.row(local, name)
            inode = self._twin(local, row, info) or writer.version(row, info)
            writer.put(local, name, Kind.FILE, inode, seen=writer.passes, checked_at=writer.now)
        found = self.object(self._base + inode)
        assert found is not None
        return Known(Kind.FILE, found.id, found, writer.now)

    def record_directory(self, parent: int, name: bytes) -> Known:
        """The bucket was asked: there are keys below `name/`.

        Below `.mountkit/keys`: `name` is a continuation. Raises KeyError on an unknown parent.
        """
        writer, stored = self._writer, name + names.SEPARATOR
        with self._recording(parent) as local:
            row = writer.row(local, stored)
            if row is not None:
                inode = row.inode
            else:
                prefix = self._prefix_of(local)
                inode = writer.new_directory(local, name, None if prefix is None else prefix + stored)
            writer.put(local, stored, Kind.DIRECTORY, inode, seen=writer.passes, checked_at=writer.now)
        return Known(Kind.DIRECTORY, DirectoryId(self._base + inode), None, writer.now)

    def record_absent(self, parent: int, name: bytes) -> Known:
        """The bucket was asked: there is neither `name` nor anything below `name/`. Raises KeyError."""
        writer = self._writer
        with self._recording(parent, affirm=False) as local:
            self._remove_directory(local, name)
            row = writer.row(local, name)
            if row is not None:
                writer.remove(local, row, seen=writer.passes, checked_at=writer.now)
            else:
                writer.put(local, name, Kind.ABSENT, 0, seen=writer.passes, checked_at=writer.now)
        return Known(Kind.ABSENT, None, None, writer.now)

    def record_key(self, key: bytes, info: ObjectInfo | None) -> Known:
        """The bucket was asked for a full key: what `.mountkit/keys` shows for it. None: it is not there."""
        *continued, last = names.escape(key[len(self._prefix) :])
        directory = schema.KEYS
        with self._writer.transaction():
            for name in continued:
                directory = continuation(self._writer, directory, name)
        parent = self._base + directory
        return self.record_absent(parent, last) if info is None else self.record_object(parent, last, info)

    # -- doubts ---------------------------------------------------------------------------------------------------

    def set_version(self, object_id: int, version_id: str) -> None:
        """An answer told the version id of this object. Nothing happens if it is unknown."""
        with self._writer.transaction():
            sql = "UPDATE object SET version_id = ? WHERE id = ?"
            self._writer.db.execute(sql, (version_id or None, self._local(object_id)))

    def supersede(self, object_id: int) -> list[Change]:
        """The bucket said 412 or 404 for this version: nobody knows what its names hold now, and the listing of its
        directory is expired (a listing in progress goes on)."""
        changes: list[Change] = []
        found = self.object(object_id)
        if found is None:
            return changes
        writer = self._writer
        with writer.transaction():
            for parent, row in self._places(found.key):
                if row.kind == Kind.FILE and row.inode == self._local(object_id):
                    changes.append(Change(DirectoryId(self._base + parent), row.name))
                    # a page fetched before the 412 must not bring the version back
                    writer.put(parent, row.name, Kind.FILE, row.inode, seen=writer.passes, checked_at=None)
                    writer.db.execute("UPDATE directory SET listed_at = 0 WHERE id = ? AND listed_at > 0", (parent,))
            writer.supersede(self._local(object_id))
        return changes

    def expire(self, directory: int | None = None) -> None:
        """All that is known of the directory and everything below (None: of all) is very old from now on.

        Listings in progress there are void. The next listings report what has changed.
        """
        writer = self._writer
        with writer.transaction():
            prefix = self._prefix if directory is None else self._prefix_of(self._local(directory))
            if prefix is not None:
                bounds = prefix_range(prefix)
                writer.stop_listings(prefix)
                sql = "UPDATE directory SET listed_at = 0 WHERE listed_at > 0 AND prefix >= ? AND prefix < ?"
                writer.db.execute(sql, bounds)
                below = "SELECT id FROM directory WHERE prefix >= ? AND prefix < ?"
                writer.db.execute(_OLD.format(below), bounds)
            if prefix is None or directory is None:
                writer.db.execute(_OLD.format("SELECT id FROM directory WHERE hidden"))

    def known_below(self, directory: int | None = None) -> tuple[list[DirectoryId], list[Change]]:
        """What a refresh must ask for anew below `directory` (None: everywhere): the directories that were ever
        listed, and the names in others that are known from single lookups."""
        db = self._writer.db
        prefix = self._prefix if directory is None else self._prefix_of(self._local(directory))
        bounds = prefix_range(prefix) if prefix is not None else (b"", b"")
        listed = db.execute(
            "SELECT id FROM directory WHERE listed_at IS NOT NULL AND NOT hidden AND prefix >= ? AND prefix < ?", bounds
        )
        directories = [DirectoryId(self._base + row[0]) for row in listed]
        single = db.execute(
            "SELECT e.parent, e.name FROM entry e JOIN directory d ON d.id = e.parent"
            " WHERE d.listed_at IS NULL AND (d.hidden OR (d.prefix >= ? AND d.prefix < ?))",
            bounds,
        )
        changes = [Change(DirectoryId(self._base + row[0]), row[1].removesuffix(names.SEPARATOR)) for row in single]
        return directories, changes

    def next_directory(self, prefix: bytes, top: bytes) -> bytes | None:
        """The first directory known below `top` whose prefix is `prefix` or sorts after it."""
        low, high = prefix_range(top)
        sql = f"SELECT d.prefix {_KNOWN_DIRECTORIES} AND d.prefix >= ? AND d.prefix < ? ORDER BY d.prefix LIMIT 1"
        row = self._writer.db.execute(sql, (max(prefix, low), high)).fetchone()
        return None if row is None else bytes(row[0])

    def directories_after(self, prefix: bytes, top: bytes, limit: int) -> list[tuple[DirectoryId, float | None]]:
        """The first directories known below `top` that come after `prefix` in a walk, and when each was listed."""
        sql = (
            f"SELECT d.id, d.listed_at {_KNOWN_DIRECTORIES} AND d.prefix > ? AND d.prefix < ? ORDER BY d.prefix LIMIT ?"
        )
        rows = self._writer.db.execute(sql, (prefix, prefix_range(top)[1], limit)).fetchall()
        return [(DirectoryId(self._base + local), listed_at) for local, listed_at in rows]

    def purge(self, older_than_s: float = 86400.0, *, limit: int = 10_000) -> list[PurgedVersion]:
        """Forgets up to `limit` versions superseded longer ago than that, and old negative answers.

        Call again while it returns something. A version still shown as the last one known is kept.
        """
        writer, purged = self._writer, []
        with writer.transaction():
            before = writer.now - older_than_s
            sql = "SELECT id, key, etag, size FROM object WHERE superseded_at < ? ORDER BY superseded_at LIMIT ?"
            for local, key, etag, size in writer.db.execute(sql, (before, limit)).fetchall():
                places = list(self._places(key))
                if any(row.kind == Kind.FILE and row.inode == local for _, row in places):
                    writer.db.execute("UPDATE object SET superseded_at = ? WHERE id = ?", (writer.now, local))
                    continue
                for parent, row in places:
                    if row.inode == local:
                        forget = "DELETE FROM entry WHERE parent = ? AND name = ?"
                        writer.db.execute(forget, (parent, row.name))
                writer.db.execute("DELETE FROM object WHERE id = ?", (local,))
                if not any(row.superseded_at is None and (row.etag, row.size) == (etag, size) for _, row in places):
                    text = etag if isinstance(etag, str) else f'"{etag.hex()}"'
                    purged.append(PurgedVersion(key, text, size))
            writer.db.execute("DELETE FROM entry WHERE kind = 0 AND inode = 0 AND checked_at < ?", (before,))
        return purged

    def checkpoint(self) -> bool:
        """Empties the write-ahead log into the file, for idle moments; False if a reader was in the way."""
        try:
            (busy, _, _) = self._writer.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as exc:
            raise CatalogUnavailable(f"the catalog cannot be written: {exc}") from exc
        return not busy

    # -- inside one call ------------------------------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise CatalogUnavailable("the catalog is closed")
        return self._db

    def _unavailable(self, exc: Exception) -> CatalogUnavailable:
        return CatalogUnavailable(f"the catalog cannot be read: {exc}")

    def _local(self, inode: int) -> int:
        local = inode - self._base
        return local if 0 < local < GENERATION_SIZE else 0

    def _prefix_of(self, local: int) -> bytes | None:
        row = self._writer.db.execute("SELECT prefix FROM directory WHERE id = ?", (local,)).fetchone()
        if row is None:
            raise KeyError(self._base + local)
        prefix: bytes | None = row[0]
        return prefix

    @contextlib.contextmanager
    def _recording(self, parent: int, *, affirm: bool = True) -> Iterator[int]:
        """A transaction about names in the directory `parent`, of which something was found unless `affirm` is off."""
        local = self._local(parent)
        with self._writer.transaction():
            self._prefix_of(local)
            if affirm:
                self._writer.affirm(local)
            yield local

    def _remove_directory(self, local: int, name: bytes) -> None:
        """There is no directory of this name; continuations below `.mountkit/keys` never go."""
        row = self._writer.row(local, name + names.SEPARATOR)
        if row is not None and row.kind == Kind.DIRECTORY and self._prefix_of(local) is not None:
            self._writer.remove(local, row, seen=self._writer.passes, checked_at=None)

    def _twin(self, local: int, row: Row | None, info: ObjectInfo) -> int | None:
        """Below `.mountkit/keys`: the object that the key's own path shows already, if it is this version."""
        if self._prefix_of(local) is not None:
            return None
        for _, other in self._places(info.key):
            same = other.kind == Kind.FILE and (other.etag, other.size) == (pack_etag(info.etag), info.size)
            if same and other.superseded_at is None and (row is None or row.inode != other.inode):
                if row is not None:
                    self._writer.supersede(row.inode)
                return other.inode
        return None

    def _places(self, key: bytes) -> Iterator[tuple[int, Row]]:
        """The entries that can show this key: at its path, and below `.mountkit/keys`."""
        writer, relative = self._writer, key[len(self._prefix) :]
        if names.classify(relative) is names.KeyKind.PATH:
            cut = key.rfind(names.SEPARATOR) + 1
            found = writer.db.execute("SELECT id FROM directory WHERE prefix = ?", (key[:cut],)).fetchone()
            row = writer.row(found[0], key[cut:]) if found else None
            if row is not None:
                yield found[0], row
        *continued, last = names.escape(relative)
        directory = schema.KEYS
        for name in continued:
            step = writer.row(directory, name + names.SEPARATOR)
            if step is None:
                return
            directory = step.inode
        row = writer.row(directory, last)
        if row is not None:
            yield directory, row
