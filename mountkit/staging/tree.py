"""The overlay: names that this mount's programs made, changed or removed, and what stands behind each.

Below a directory an entry wins over what the catalog says of that name: a node, or the word that nothing is there.
Nodes outlive servers and mounts; their ids are inode numbers (with NODE_BIT) and never used again. Every directory the
kernel has heard of is a node, so a renamed directory keeps its inode; a `derived` one only names what the catalog has.

All in the journal's file, in the transactions of `journal.Journal`. Knows no FUSE, no bucket, no bytes.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple

NODE_BIT: Final = 1 << 63
ROOT_NODE: Final = 1
_PATHS: Final = 16384
_KEPT_NODES: Final = 4096


class NodeKind(IntEnum):
    FILE = 1
    """Its bytes are staging file `file`."""
    DIRECTORY = 2
    SYMLINK = 3
    OBJECT = 4
    """Its bytes are in the bucket: an object under another name than there, or with other attributes."""


class Abandoned(IntEnum):
    """Why the bytes of a file are kept and not published."""

    UNCLOSED = 1
    """Its writer was killed before it closed the file."""
    TORN = 2
    """A power cut: the disk has not all of them."""
    BEHIND = 3
    """They are whole, and were to come to the bucket after something that is torn."""


# node.in_bucket: whether the bucket holds (or soon may hold) an object under this node's key.
# node.seq: the newest operation that brings it there, until it was seen DONE; then `etag` and `done_at` are the result.
# node.put_*: the stamp of the newest PUT that was queued, or of the bytes as they came from the bucket.
# node.made_at: of a directory, when it was made here (what the bucket has below it was known then: nothing).
# node.thinned: something was taken out of a directory: is it empty now, so that it needs a marker?
# node.if_match: the ETag the bucket had under this name when the file took it, "" where it was free.
# node.abandoned: Abandoned, or 0.
# node.names: 0 once unlinked. node.lost_path: of abandoned files, where they lay.
# entry.node NULL: nothing is there; seq is the operation that makes it so in the bucket, since: when it was DONE.
# handle: what the kernel has open; a server that takes over finds here what the dead one had.
TABLES: Final = """
CREATE TABLE node (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, file INTEGER, mode INTEGER NOT NULL,
    uid INTEGER NOT NULL, gid INTEGER NOT NULL, size INTEGER NOT NULL DEFAULT 0, mtime_ns INTEGER NOT NULL,
    target BLOB, xattrs TEXT, names INTEGER NOT NULL DEFAULT 1, in_bucket INTEGER NOT NULL DEFAULT 0, seq INTEGER,
    etag TEXT, done_at REAL, put_size INTEGER, put_mtime_ns INTEGER, put_ctime_ns INTEGER, object INTEGER,
    source_key BLOB, source_etag TEXT, ordered INTEGER NOT NULL DEFAULT 0, abandoned INTEGER NOT NULL DEFAULT 0,
    derived INTEGER NOT NULL DEFAULT 0, thinned INTEGER NOT NULL DEFAULT 0, made_at REAL, lost_path BLOB,
    if_match TEXT);
CREATE INDEX node_seq ON node (seq) WHERE seq IS NOT NULL;
CREATE INDEX node_thinned ON node (id) WHERE thinned = 1;
CREATE INDEX node_object ON node (object) WHERE object IS NOT NULL;
CREATE TABLE entry (
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL, node INTEGER, seq INTEGER,
    since REAL, UNIQUE (parent, name));
CREATE INDEX entry_node ON entry (node) WHERE node IS NOT NULL;
CREATE INDEX entry_absent ON entry (id) WHERE node IS NULL;
CREATE TABLE handle (id INTEGER PRIMARY KEY, node INTEGER NOT NULL, flags INTEGER NOT NULL);
"""


class Node(NamedTuple):
    """One row of `node`."""

    id: int
    kind: int
    file: int | None
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes | None
    xattrs: str | None
    names: int
    in_bucket: int
    seq: int | None
    etag: str | None
    done_at: float | None
    put_size: int | None
    put_mtime_ns: int | None
    put_ctime_ns: int | None
    object: int | None
    source_key: bytes | None
    source_etag: str | None
    ordered: int
    abandoned: int
    derived: int
    thinned: int
    made_at: float | None
    lost_path: bytes | None
    if_match: str | None

    @property
    def inode(self) -> int:
        """The number the kernel knows it by. An object keeps the catalog's."""
        if self.kind == NodeKind.OBJECT and self.object is not None:
            return self.object
        return 1 if self.id == ROOT_NODE else self.id | NODE_BIT

    @property
    def extended(self) -> dict[str, bytes]:
        """Its extended attributes."""
        return {name: bytes.fromhex(value) for name, value in json.loads(self.xattrs or "{}").items()}


class Entry(NamedTuple):
    """One name: `node` is None where nothing is there."""

    id: int
    parent: int
    name: bytes
    node: int | None
    seq: int | None
    since: float | None


_BLANK: Final = Node(
    *(0, 0, None, 0, 0, 0, 0, 0, None, None, 1, 0, None, None, None, None),
    *(None, None, None, None, None, 0, 0, 0, 0, None, None, None),
)
"""A new row as the table's defaults make it."""
_NODE: Final = ", ".join(f"n.{name}" for name in Node._fields)
_ENTRY: Final = "e.id, e.parent, e.name, e.node, e.seq, e.since"
_COUNT: Final = len(Entry._fields)


class Tree:
    """Reads and changes nodes and entries on the journal's connection.

    Its process is the only one that changes these tables, so what is asked all the time is kept in memory, too: open
    handles, nodes lately seen, paths. `undone` must be called after a transaction that was rolled back.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._paths: dict[int, bytes] = {}
        self._nodes: dict[int, Node] = {}
        self._next_handle = time.time_ns()  # of a later server: a number is never given out twice
        self._handles: dict[int, tuple[int, int]] = {}
        self._open: dict[int, dict[int, int]] = {}
        self._closed: list[tuple[int]] = []
        self._settled: list[tuple[int]] = []
        self._load_handles()

    # ---- nodes ---------------------------------------------------------------------------------------------
    def node(self, ident: int) -> Node | None:
        found = self._nodes.get(ident)
        if found is None:
            row = self._db.execute(f"SELECT {_NODE} FROM node n WHERE n.id = ?", (ident,)).fetchone()  # noqa: S608
            if row is None:
                return None
            found = self._keep(Node._make(row))
        return found

    def _keep(self, node: Node) -> Node:
        if len(self._nodes) >= _KEPT_NODES:
            self._nodes.clear()
        self._nodes[node.id] = node
        return node

    def of_object(self, object_id: int) -> Node | None:
        """The node that shows this object version under a name of its own."""
        row = self._db.execute(
            f"SELECT {_NODE} FROM node n WHERE n.object = ? AND n.names > 0",  # noqa: S608
            (object_id,),
        ).fetchone()
        return Node._make(row) if row else None

    def add(self, kind: NodeKind, **columns: Any) -> int:
        """A new node; returns its id."""
        names = ("kind", *columns)
        sql = f"INSERT INTO node ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608
        ident = self._db.execute(sql, (int(kind), *columns.values())).lastrowid
        assert ident is not None
        self._keep(_BLANK._replace(id=ident, kind=int(kind), **columns))
        return ident

    def change(self, ident: int, **columns: Any) -> None:
        known = self._nodes.get(ident)
        if known is not None:
            self._nodes[ident] = known._replace(**columns)
        sql = f"UPDATE node SET {', '.join(f'{name} = ?' for name in columns)} WHERE id = ?"  # noqa: S608
        self._db.execute(sql, (*columns.values(), ident))

    def remove(self, ident: int) -> None:
        self._nodes.pop(ident, None)
        self._db.execute("DELETE FROM node WHERE id = ?", (ident,))

    # ---- names ---------------------------------------------------------------------------------------------
    def find(self, parent: int, name: bytes) -> tuple[Entry, Node | None] | None:
        """The entry of a name and the node behind it; None where the overlay knows nothing of that name."""
        row = self._db.execute(
            f"SELECT {_ENTRY}, {_NODE} FROM entry e LEFT JOIN node n ON n.id = e.node"  # noqa: S608
            " WHERE e.parent = ? AND e.name = ?",
            (parent, name),
        ).fetchone()
        return _pair(row) if row else None

    def entry_of(self, node: int) -> Entry | None:
        row = self._db.execute(f"SELECT {_ENTRY} FROM entry e WHERE e.node = ?", (node,)).fetchone()  # noqa: S608
        return Entry._make(row) if row else None

    def absent_because(self, seq: int) -> list[Entry]:
        """The names where nothing is once this operation is done."""
        rows = self._db.execute(f"SELECT {_ENTRY} FROM entry e WHERE e.node IS NULL AND e.seq = ?", (seq,))  # noqa: S608
        return [Entry._make(row) for row in rows.fetchall()]

    def put(self, parent: int, name: bytes, node: int | None, *, seq: int | None = None) -> None:
        """The name leads to `node` from now on, or is known to be absent."""
        self._db.execute(
            "INSERT OR REPLACE INTO entry (parent, name, node, seq) VALUES (?, ?, ?, ?)", (parent, name, node, seq)
        )

    def forget(self, parent: int, name: bytes) -> None:
        """The overlay knows nothing of that name from now on."""
        self._db.execute("DELETE FROM entry WHERE parent = ? AND name = ?", (parent, name))

    def children(self, parent: int, after: int = 0, limit: int = -1) -> list[tuple[Entry, Node | None]]:
        """Entries of a directory in the order they were made, those with an id above `after`."""
        rows = self._db.execute(
            f"SELECT {_ENTRY}, {_NODE} FROM entry e LEFT JOIN node n ON n.id = e.node"  # noqa: S608
            " WHERE e.parent = ? AND e.id > ? ORDER BY e.id LIMIT ?",
            (parent, after, limit),
        ).fetchall()
        return [_pair(row) for row in rows]

    def newest_entry(self) -> int:
        """The id of the newest entry there is."""
        (ident,) = self._db.execute("SELECT coalesce(max(id), 0) FROM entry").fetchone()
        return int(ident)

    def below(self, directory: int) -> Iterator[tuple[Entry, Node | None]]:
        """Every entry below a directory, at any depth, parents before their children."""
        stack = [directory]
        while stack:
            for entry, node in self.children(stack.pop()):
                yield entry, node
                if node is not None and node.kind == NodeKind.DIRECTORY:
                    stack.append(node.id)

    def is_below(self, node: int, directory: int) -> bool:
        """Whether `node` is `directory` or lies below it."""
        current: int | None = node
        while current not in (None, ROOT_NODE):
            if current == directory:
                return True
            assert current is not None
            entry = self.entry_of(current)
            current = entry.parent if entry else None
        return directory == ROOT_NODE

    def path(self, directory: int) -> bytes | None:
        """The path of a directory below the mount, empty or with a trailing slash; None once it has no name."""
        if directory == ROOT_NODE:
            return b""
        known = self._paths.get(directory)
        if known is not None:
            return known
        entry = self.entry_of(directory)
        above = self.path(entry.parent) if entry else None
        if entry is None or above is None:
            return None
        if len(self._paths) >= _PATHS:
            self._paths.clear()
        path = self._paths[directory] = above + entry.name + b"/"
        return path

    # ---- handles -------------------------------------------------------------------------------------------
    def open_handle(self, node: int, flags: int) -> int:
        ident = self._next_handle
        self._next_handle += 1
        self._db.execute("INSERT INTO handle (id, node, flags) VALUES (?, ?, ?)", (ident, node, flags))
        self._handles[ident] = node, flags
        self._open.setdefault(node, {})[ident] = flags
        return ident

    def handle(self, ident: int) -> tuple[int, int] | None:
        """(node, flags) of an open handle."""
        return self._handles.get(ident)

    def close_handle(self, ident: int) -> None:
        """Closes it at once; its row goes with the next transaction.

        A server killed before that leaves a row too many: its file counts as open until the unmount, nothing worse.
        """
        self._closed.append((ident,))
        node, _ = self._handles.pop(ident, (0, 0))
        left = self._open.get(node, {})
        left.pop(ident, None)
        if not left:
            self._open.pop(node, None)

    def settle_handles(self) -> None:
        """Takes the rows of closed handles away."""
        if self._closed:
            self._db.executemany("DELETE FROM handle WHERE id = ?", self._closed)
            self._settled, self._closed = self._closed, []

    def committed(self) -> None:
        """The transaction is in the file."""
        self._settled = []

    def handles(self, node: int) -> list[int]:
        """The flags of everything that has this node open."""
        return list(self._open.get(node, {}).values())

    def has_writers(self, node: int) -> bool:
        """Whether somebody has it open for writing."""
        return any(flags & os.O_ACCMODE for flags in self._open.get(node, {}).values())

    def open_nodes(self) -> dict[int, list[int]]:
        """The flags of each node's open handles."""
        return {node: list(handles.values()) for node, handles in self._open.items()}

    def close_all_handles(self) -> None:
        self._db.execute("DELETE FROM handle")
        self._closed = []
        self._load_handles()

    def _load_handles(self) -> None:
        self._handles.clear()
        self._open.clear()
        closed = {ident for (ident,) in self._closed}
        for ident, node, flags in self._db.execute("SELECT id, node, flags FROM handle").fetchall():
            if ident in closed:
                continue
            self._handles[ident] = node, flags
            self._open.setdefault(node, {})[ident] = flags

    def forget_paths(self) -> None:
        """After a directory got another path."""
        self._paths.clear()

    def undone(self) -> None:
        """A transaction was rolled back: what is in memory may be wrong."""
        self._paths.clear()
        self._nodes.clear()
        self._closed, self._settled = self._settled + self._closed, []
        self._load_handles()


def seed(db: sqlite3.Connection, uid: int, gid: int, now_ns: int, mode: int) -> None:
    """Makes the root of a new overlay."""
    db.execute(
        "INSERT OR IGNORE INTO node (id, kind, mode, uid, gid, mtime_ns, derived) VALUES (?, ?, ?, ?, ?, ?, 1)",
        (ROOT_NODE, int(NodeKind.DIRECTORY), stat.S_IFDIR | mode, uid, gid, now_ns),
    )


def _pair(row: tuple[Any, ...]) -> tuple[Entry, Node | None]:
    entry = Entry._make(row[:_COUNT])
    return entry, Node._make(row[_COUNT:]) if row[_COUNT] is not None else None
