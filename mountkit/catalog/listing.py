"""Listings on their way into the catalog: one directory page by page, or a whole subtree in bulk.

A page states a whole stretch of names, so what the catalog holds there and the page does not is gone at once; readers
see each page when `add` returns. A listing is dated by its start. One that is dropped leaves true facts behind and
changes nothing of what the last finished one promised. Not safe for use after its catalog is closed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from mountkit import names
from mountkit.catalog import schema
from mountkit.catalog.values import Change, DirectoryId, Kind
from mountkit.catalog.view import AFTER_ALL
from mountkit.catalog.writer import Writer, prefix_range
from mountkit.store.api import ObjectInfo, Page

_LOG = logging.getLogger(__name__)
_BATCH: Final = 10_000
_REMEMBERED: Final = 4096


class OddKeys:
    """Where a listing leaves the keys that are no paths."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def record(self, info: ObjectInfo, checked_at: float, seen: int) -> None:
        """Makes the key findable below `.mountkit/keys/`."""
        writer = self._writer
        *continued, last = names.escape(info.key[len(writer.prefix) :])
        directory = schema.KEYS
        for name in continued:
            directory = continuation(writer, directory, name)
        row = writer.row(directory, last)
        if row is not None and row.seen > seen:
            return
        writer.put(directory, last, Kind.FILE, writer.version(row, info), seen=seen, checked_at=checked_at)


def continuation(writer: Writer, parent: int, name: bytes) -> int:
    """The directory below `.mountkit/keys/` in which a long name goes on."""
    stored = name + names.SEPARATOR
    row = writer.row(parent, stored)
    if row is not None:
        return row.inode
    inode = writer.new_directory(parent, name, None)
    writer.put(parent, stored, Kind.DIRECTORY, inode, seen=0, checked_at=None)
    return inode


class Listing:
    """One directory's listing with delimiter, in S3's order; made by `Catalog.begin_listing`."""

    def __init__(self, writer: Writer, base: int, local: int, number: int, *, listed_before: bool) -> None:
        self.directory = DirectoryId(base + local)
        self.started = writer.now
        self.odd = 0
        """Keys and common prefixes met so far that are no paths."""
        self._writer, self._local, self._number = writer, local, number
        self._listed_before = listed_before
        self._through = b""
        sql = "SELECT prefix FROM directory WHERE id = ?"
        self._prefix: bytes = writer.db.execute(sql, (local,)).fetchone()[0]

    def __repr__(self) -> str:
        state = "alive" if self.alive else "void"
        return f"<Listing {self._prefix!r} through={self._through!r} {state}>"

    @property
    def alive(self) -> bool:
        """False once finished, abandoned, expired, or overtaken by a newer listing of the directory."""
        return self._writer.running.get(self._local) == self._number

    def add(self, page: Page) -> list[Change]:
        """Takes in the next page, or one that was taken in before; a void listing takes in nothing."""
        if not self.alive:
            return []
        writer = self._writer
        with writer.transaction():
            items, last = self._sort_out(page)
            through = max(self._through, last)
            if not last:
                return []
            low = min(min(items, default=last), self._through + b"\0")
            changed = writer.merge(
                self._local,
                self._prefix,
                items,
                low=low,
                high=last,
                number=self._number,
                gone_after=self._through,
                mark=False,
            )
            writer.db.execute("UPDATE directory SET listing_through = ? WHERE id = ?", (through, self._local))
        self._through = through
        return _changes(self.directory, [*changed, *items] if self._listed_before else changed)

    def finish(self) -> list[Change]:
        """The last page was added: all names are known as of the start, those not seen are gone.

        Does nothing if the listing is void.
        """
        if not self.alive:
            return []
        writer = self._writer
        with writer.transaction():
            changed = writer.merge(
                self._local,
                self._prefix,
                {},
                low=self._through,
                high=AFTER_ALL,
                number=self._number,
                gone_after=self._through,
                mark=False,
            )
            writer.db.execute(
                "UPDATE directory SET listed_at = ?, listing_started = NULL, listing_through = NULL WHERE id = ?",
                (self.started, self._local),
            )
        del writer.running[self._local]
        if self.odd:
            _LOG.info("%d names below %r are no paths; their keys are under .mountkit/keys", self.odd, self._prefix)
        return _changes(self.directory, changed)

    def abandon(self) -> None:
        """Ends the listing unfinished. Twice is fine, and after `finish` too."""
        if self.alive:
            with self._writer.transaction():
                sql = "UPDATE directory SET listing_started = NULL, listing_through = NULL WHERE id = ?"
                self._writer.db.execute(sql, (self._local,))
            del self._writer.running[self._local]

    def _sort_out(self, page: Page) -> tuple[dict[bytes, ObjectInfo | None], bytes]:
        """The page's names as the catalog stores them, in order, and the last one the page reached."""
        cut = len(self._prefix)
        items: dict[bytes, ObjectInfo | None] = {}
        last = max((info.key for info in page.objects), default=b"")[cut:]
        reserved = names.HIDDEN if self._local == schema.ROOT else b""
        for info in page.objects:
            name = info.key[cut:]
            if names.valid_name(name) and name != reserved:
                items[name] = info
            elif not name:
                _mark(self._writer, self._local, info)
            else:
                self.odd += 1
                OddKeys(self._writer).record(info, self.started, self._number - 1)
        for prefix in page.prefixes:
            name = prefix[cut:]
            last = max(last, name)
            if names.valid_name(name[:-1]) and name[:-1] != reserved:
                items[name] = None
            else:
                self.odd += 1
        return (dict(sorted(items.items())) if page.prefixes and page.objects else items), last


class TreeListing:
    """A subtree's listing without delimiter, in batches of any order; made by `Catalog.begin_tree`.

    Directories that have a listing of their own in progress, or begun one since, are left to it.
    """

    def __init__(self, writer: Writer, base: int, local: int, prefix: bytes, number: int) -> None:
        self.started = writer.now
        self.odd = 0
        """Keys met so far that are no paths."""
        self._writer, self._base, self._top, self._prefix, self._number = writer, base, local, prefix, number
        self._directories: dict[bytes, tuple[int, bool] | None] = {}
        self._done = False

    def add(self, infos: Iterable[ObjectInfo]) -> list[Change]:
        """Takes in keys of the subtree; fastest in the order of the keys. Commits every 10,000 of them."""
        changes: list[Change] = []
        source = iter(infos)
        while batch := list(islice(source, _BATCH)):
            self._directories.clear()  # another listing may have come in between
            with self._writer.transaction():
                for prefix, items in self._groups(batch):
                    changes += self._merge(prefix, items)
        return changes

    def finish(self) -> list[Change]:
        """All keys were added: every directory of the subtree is complete as of the start, names not seen are gone."""
        if self._done:
            return []
        writer, number, bounds = self._writer, self._number, prefix_range(self._prefix)
        changes: list[Change] = []
        with writer.transaction():
            self._touch(self._top)
            gone = writer.db.execute(
                "SELECT e.parent, e.name FROM directory d JOIN entry e ON e.parent = d.id"
                " WHERE d.prefix >= ? AND d.prefix < ? AND d.pass = ? AND e.kind <> 0 AND e.seen < ?",
                (*bounds, number, number),
            ).fetchall()
            for parent, name in gone:
                row = writer.row(parent, name)
                if row is not None and row.kind:
                    writer.remove(parent, row, seen=number - 1, checked_at=None)
                    changes.append(Change(DirectoryId(self._base + parent), name.removesuffix(names.SEPARATOR)))
            writer.db.execute(
                "UPDATE directory SET listed_at = ? WHERE prefix >= ? AND prefix < ? AND pass = ?",
                (self.started, *bounds, number),
            )
        self._done = True
        if self.odd:
            _LOG.info("%d keys below %r are no paths; they are under .mountkit/keys", self.odd, self._prefix)
        return changes

    def _groups(self, batch: list[ObjectInfo]) -> Iterator[tuple[bytes, dict[bytes, ObjectInfo | None]]]:
        """Runs of keys in one directory; odd keys are recorded, markers mark, on the way."""
        current: bytes | None = None
        usable = False
        items: dict[bytes, ObjectInfo | None] = {}
        mount = len(self._writer.prefix)
        for info in batch:
            cut = info.key.rfind(b"/") + 1
            prefix, name = info.key[:cut], info.key[cut:]
            if prefix != current:
                if items and current is not None:
                    yield current, items
                current, items = prefix, {}
                usable = prefix.startswith(self._prefix) and names.classify(prefix[mount:]) is names.KeyKind.MARKER
            if usable and not name:
                self._mark(prefix, info)
            elif usable and names.valid_name(name) and not (name == names.HIDDEN and len(prefix) == mount):
                items[name] = info
            elif info.key.startswith(self._prefix):
                self.odd += 1
                self._directory(self._valid_part(prefix))
                OddKeys(self._writer).record(info, self.started, self._number - 1)
        if items and current is not None:
            yield current, items

    def _merge(self, prefix: bytes, items: dict[bytes, ObjectInfo | None]) -> list[Change]:
        found = self._directory(prefix)
        if found is None:
            return []
        local, listed_before = found
        first, last = min(items), max(items)
        changed = self._writer.merge(
            local, prefix, items, low=first, high=last, number=self._number, gone_after=AFTER_ALL, mark=True
        )
        return _changes(DirectoryId(self._base + local), [*changed, *items] if listed_before else changed)

    def _valid_part(self, prefix: bytes) -> bytes:
        """The directory that a listing with delimiter would show the odd key in: the deepest that is a path."""
        mount = len(self._writer.prefix)
        while len(prefix) > len(self._prefix) and names.classify(prefix[mount:]) is not names.KeyKind.MARKER:
            prefix = prefix[: prefix.rfind(b"/", 0, -1) + 1]
        return max(prefix, self._prefix)

    def _mark(self, prefix: bytes, info: ObjectInfo) -> None:
        found = self._directory(prefix)
        if found is not None:
            _mark(self._writer, found[0], info)

    def _directory(self, prefix: bytes) -> tuple[int, bool] | None:
        """The directory with this prefix, made if need be, and whether it was listed before this pass; None if another
        listing has charge of it."""
        if prefix in self._directories:
            return self._directories[prefix]
        if len(self._directories) > _REMEMBERED:
            self._directories.clear()
        if prefix == self._prefix:
            found = self._touch(self._top)
        else:
            cut = prefix.rfind(b"/", 0, -1) + 1
            found = self._child(prefix[:cut], prefix[cut:])
        self._directories[prefix] = found
        return found

    def _child(self, parent_prefix: bytes, stored: bytes) -> tuple[int, bool] | None:
        parent = self._directory(parent_prefix)
        if parent is None:
            # not ours to change, but the directory may be known there
            sql = "SELECT e.inode FROM entry e JOIN directory d ON d.id = e.parent WHERE d.prefix = ? AND e.name = ?"
            row = self._writer.db.execute(f"{sql} AND e.kind = 2", (parent_prefix, stored)).fetchone()
            return None if row is None else self._touch(row[0])
        items: dict[bytes, ObjectInfo | None] = {stored: None}
        self._writer.merge(
            parent[0],
            parent_prefix,
            items,
            low=stored,
            high=stored,
            number=self._number,
            gone_after=AFTER_ALL,
            mark=True,
        )
        row = self._writer.row(parent[0], stored)
        return self._touch(row.inode) if row is not None and row.kind == Kind.DIRECTORY else None

    def _touch(self, local: int) -> tuple[int, bool] | None:
        """Takes charge of a directory, unless a listing of its own has it; remembers whether it was listed before."""
        db = self._writer.db
        sql = "SELECT pass, listing_started, listed_at FROM directory WHERE id = ?"
        number, started, listed_at = db.execute(sql, (local,)).fetchone()
        if number > self._number or started is not None:
            return None
        if number != self._number:
            db.execute("UPDATE directory SET pass = ? WHERE id = ?", (self._number, local))
        return local, listed_at is not None


def _mark(writer: Writer, local: int, info: ObjectInfo) -> None:
    """A marker object tells its directory's time."""
    writer.db.execute("UPDATE directory SET mtime_ns = ?1 WHERE id = ?2 AND mtime_ns <> ?1", (info.mtime_ns, local))


def _changes(directory: DirectoryId, stored: Iterable[bytes]) -> list[Change]:
    plain = dict.fromkeys(name.removesuffix(names.SEPARATOR) for name in stored)
    return [Change(directory, name) for name in plain]
