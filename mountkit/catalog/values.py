"""The words of the catalog: ids, what is known of a name, rows as readers see them, what can go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, NewType

ObjectId = NewType("ObjectId", int)
DirectoryId = NewType("DirectoryId", int)
Inode = ObjectId | DirectoryId
"""Objects and directories share one space of ids, so that an id is an inode number."""

SEALED_BIT: Final = 1 << 62
"""A sealed object's second inode number is its id with this bit; the catalog itself never sees it."""
GENERATION_SIZE: Final = 1 << 32
"""Ids of one generation of the file: [base, base + GENERATION_SIZE), base a multiple of it in [2**32, 2**62)."""


class Kind(IntEnum):
    """What a name stands for."""

    ABSENT = 0
    FILE = 1
    DIRECTORY = 2


class ObjectRow(NamedTuple):
    """One version of one object; only `mtime_ns`, `version_id`, `storage_class`, `superseded_at` ever change."""

    id: ObjectId
    key: bytes
    """Full, with the mount's prefix."""
    etag: str
    size: int
    mtime_ns: int
    version_id: str
    """Empty while no one has told."""
    storage_class: str
    superseded_at: float | None
    """When the key was first known to hold another version or none; None while this is the version."""


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory and how far it has been listed."""

    id: DirectoryId
    parent: DirectoryId
    """The root is its own parent."""
    name: bytes
    prefix: bytes
    """Full key prefix, empty or ending in `/`; empty for the hidden directories (`.mountkit` and all below)."""
    mtime_ns: int
    hidden: bool
    listed_at: float | None
    """Start of the newest listing that was finished; 0 once expired; None: never finished one."""
    listing_started: float | None
    """Start of the listing in progress, if there is one."""
    listing_through: bytes
    """Every name (directories: with `/`) up to this one is known as of `listing_started`."""

    @property
    def complete(self) -> bool:
        """Whether all names are known, as of `listed_at`."""
        return self.listed_at is not None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one name in one directory, true at some moment not before `as_of`."""

    kind: Kind
    inode: Inode | None
    """None if absent."""
    object: ObjectRow | None
    """Files only."""
    as_of: float
    """0: very old, or expired."""


class DirectoryEntry(NamedTuple):
    """One line of a directory; `cookie` is the place right after it."""

    cookie: int
    name: bytes
    kind: Kind
    inode: int
    object: ObjectRow | None


@dataclass(frozen=True, slots=True)
class DirectoryPage:
    """A stretch of a directory in S3's order. Neither done nor full: the listing has to advance before it goes on."""

    entries: list[DirectoryEntry]
    done: bool
    as_of: float = 0.0
    """All of it is true at some moment not before this."""


@dataclass(frozen=True, slots=True)
class Change:
    """A name whose meaning changed; the kernel may hold a dentry of it that has to go."""

    parent: DirectoryId
    name: bytes
    """Without trailing slash."""


@dataclass(frozen=True, slots=True)
class PurgedVersion:
    """A version no key holds any more; whatever is cached of it can go."""

    key: bytes
    etag: str
    size: int


class CatalogUnavailable(Exception):
    """The catalog cannot answer now (no file yet, being replaced, disk trouble); ask the mover."""


class CatalogLost(CatalogUnavailable):
    """The writer's file is deleted or damaged: `Catalog.open` again, which starts a new generation."""


class StaleCookie(Exception):
    """The cookie names no entry of this directory (another generation, or purged): read the directory anew."""
