"""What we ourselves have changed in the bucket, told to the catalog at once: no listing has to find out.

Many changes are one transaction. They are dated as single lookups are: a listing that is under way and began before
does not lose them.
"""

from __future__ import annotations

from collections.abc import Iterable

from mountkit import names
from mountkit.catalog import schema
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import Kind
from mountkit.catalog.writer import Writer
from mountkit.store.api import ObjectInfo


def record_writes(catalog: Catalog, writes: Iterable[tuple[bytes, ObjectInfo | None]]) -> None:
    """Each full key holds this version now; None: nothing any more. Keys that are no paths are passed over.

    Raises CatalogUnavailable, CatalogLost.
    """
    writer = catalog._writer
    with writer.transaction():
        recorder = _Recorder(writer)
        for key, info in writes:
            recorder.record(key, info)


class _Recorder:
    """One transaction's worth of changes."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._known: dict[bytes, int] = {writer.prefix: schema.ROOT}
        self._affirmed: set[int] = set()

    def record(self, key: bytes, info: ObjectInfo | None) -> None:
        kind = names.classify(key[len(self._writer.prefix) :])
        if kind is names.KeyKind.ODD or key == self._writer.prefix:
            return
        if kind is names.KeyKind.MARKER:
            self._marker(key, there=info is not None)
        elif info is not None:
            self._file(key, info)
        else:
            self._no_file(key)

    def _file(self, key: bytes, info: ObjectInfo) -> None:
        writer = self._writer
        directory, name = _split(key)
        local = self._made(directory)
        inode = writer.version(writer.row(local, name), info)
        writer.put(local, name, Kind.FILE, inode, seen=writer.passes, checked_at=writer.now)

    def _no_file(self, key: bytes) -> None:
        directory, name = _split(key)
        local = self._found(directory)
        row = self._writer.row(local, name) if local is not None else None
        if local is not None and row is not None and row.kind == Kind.FILE:
            self._writer.remove(local, row, seen=self._writer.passes, checked_at=self._writer.now)

    def _marker(self, key: bytes, *, there: bool) -> None:
        if there:
            self._made(key)
            return
        parent, name = _split(key)
        local, inside = self._found(parent), self._found(key)
        row = self._writer.row(local, name) if local is not None else None
        if local is None or inside is None or row is None or row.kind != Kind.DIRECTORY:
            return
        sql = "SELECT 1 FROM entry WHERE parent = ? AND kind <> 0 LIMIT 1"
        if self._writer.db.execute(sql, (inside,)).fetchone() is None:
            self._writer.remove(local, row, seen=self._writer.passes, checked_at=self._writer.now)
            self._known.pop(key, None)
            self._affirmed.discard(inside)

    def _found(self, prefix: bytes) -> int | None:
        if prefix not in self._known:
            row = self._writer.db.execute("SELECT id FROM directory WHERE prefix = ?", (prefix,)).fetchone()
            if row is None:
                return None
            self._known[prefix] = row[0]
        return self._known[prefix]

    def _made(self, prefix: bytes) -> int:
        """The directory with this prefix, which exists from now on, as does all above it."""
        local = self._found(prefix)
        if local is None:
            parent, name = _split(prefix)
            above = self._made(parent)
            local = self._known[prefix] = self._writer.new_directory(above, name.removesuffix(names.SEPARATOR), prefix)
            self._writer.put(above, name, Kind.DIRECTORY, local, seen=self._writer.passes, checked_at=self._writer.now)
        if local not in self._affirmed:
            self._affirmed.add(local)
            self._writer.affirm(local)
        return local


def _split(key: bytes) -> tuple[bytes, bytes]:
    """The directory's prefix and the stored name: of a directory with its slash."""
    cut = key.rstrip(names.SEPARATOR).rfind(names.SEPARATOR) + 1
    return key[:cut], key[cut:]
