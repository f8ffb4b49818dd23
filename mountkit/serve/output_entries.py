"""Names made and taken away: what CREATE, MKNOD, MKDIR, SYMLINK, UNLINK and RMDIR do to the overlay and the bucket.

A change is made as `overlay` says. Every operation on a name begins with its place: one that must be there, or one that
may be free and then must be a name the bucket can have.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from mountkit import names
from mountkit.serve.output_files import OpenFiles
from mountkit.serve.output_names import KEY_MAX, Place
from mountkit.serve.overlay import Overlay
from mountkit.serve.values import FileSystemError
from mountkit.staging.tree import Node, NodeKind

_PERMISSIONS = 0o7777


class Entries:
    """All methods belong to one trio thread, and into a transaction."""

    def __init__(self, overlay: Overlay, files: OpenFiles) -> None:
        self._overlay, self._files = overlay, files
        self._journal, self._tree, self._staging = overlay.journal, overlay.tree, overlay.staging
        self._publisher, self._names, self._listing = overlay.publisher, overlay.names, overlay.listing

    def create(self, parent: int, name: bytes, mode: int, flags: int, owner: tuple[int, int]) -> tuple[Node, int]:
        """A new file, or the one that is there, open: its node and handle."""
        directory, place = self.new_place(parent, name)
        if place.exists:
            if flags & os.O_EXCL:
                raise FileSystemError(errno.EEXIST)
            return self._files.open_at(place, flags)
        node = self._new_file(directory, name, stat.S_IFREG | mode & _PERMISSIONS, owner)
        return node, self._tree.open_handle(node.id, flags)

    def make_node(self, parent: int, name: bytes, mode: int, owner: tuple[int, int]) -> Node:
        """MKNOD: an empty file; devices, sockets and pipes cannot be."""
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise FileSystemError(errno.EPERM)
        directory, place = self.new_place(parent, name)
        if place.exists:
            raise FileSystemError(errno.EEXIST)
        node = self._new_file(directory, name, stat.S_IFREG | mode & _PERMISSIONS, owner)
        self._publisher.publish(node)
        return node

    def make_directory(self, parent: int, name: bytes, mode: int, owner: tuple[int, int]) -> Node:
        directory, place = self.new_place(parent, name)
        if place.exists:
            raise FileSystemError(errno.EEXIST)
        now = time.time()
        ident = self._tree.add(
            NodeKind.DIRECTORY,
            mode=stat.S_IFDIR | mode & _PERMISSIONS,
            uid=owner[0],
            gid=owner[1],
            mtime_ns=int(now * 1e9),
            made_at=now,
        )
        self._tree.put(directory.id, name, ident)
        self._overlay.touch(directory)
        self._publisher.mark_directory(self._overlay.fresh(ident))
        return self._overlay.fresh(ident)

    def make_symlink(self, parent: int, name: bytes, target: bytes, owner: tuple[int, int]) -> Node:
        """A link, kept in the bucket as an object that holds its target."""
        directory, place = self.new_place(parent, name)
        if place.exists:
            raise FileSystemError(errno.EEXIST)
        self._overlay.check_room()
        number = self._journal.new_file()
        os.pwrite(self._staging.create(number), target, 0)
        ident = self._tree.add(
            NodeKind.SYMLINK,
            file=number,
            mode=stat.S_IFLNK | 0o777,
            uid=owner[0],
            gid=owner[1],
            mtime_ns=time.time_ns(),
            target=target,
            size=len(target),
        )
        self._tree.put(directory.id, name, ident)
        self._overlay.touch(directory)
        self._publisher.publish(self._overlay.fresh(ident))
        return self._overlay.fresh(ident)

    def unlink(self, parent: int, name: bytes) -> None:
        directory, place = self.old_place(parent, name)
        if place.is_directory:
            raise FileSystemError(errno.EISDIR)
        self._remove(directory, place)
        self._overlay.touch(directory, thinned=True)

    def remove_directory(self, parent: int, name: bytes) -> None:
        directory, place = self.old_place(parent, name)
        if not place.is_directory or place.node is None:
            raise FileSystemError(errno.ENOTDIR)
        self.take_away(directory, place, place.node)
        self._overlay.touch(directory, thinned=True)

    # ---- for renames, too ----------------------------------------------------------------------------------
    def old_place(self, parent: int, name: bytes) -> tuple[Node, Place]:
        """A name that must be there, and its directory."""
        directory = self._directory(parent, name)
        place = self._names.find(directory, name)
        if not place.exists:
            raise FileSystemError(errno.ENOENT)
        return directory, place

    def new_place(self, parent: int, name: bytes) -> tuple[Node, Place]:
        """A name that may be free, and then must be one the bucket can have; and its directory."""
        directory = self._directory(parent, name)
        place = self._names.find(directory, name)
        if not place.exists:
            if not names.valid_name(name):
                raise FileSystemError(errno.EILSEQ)
            if len(self._publisher.key(directory.id, name)) > KEY_MAX:
                raise FileSystemError(errno.ENAMETOOLONG)
        return directory, place

    def take_away(self, directory: Node, place: Place, node: Node) -> None:
        """Removes a directory, which must be empty."""
        if not self._listing.is_empty(node):
            raise FileSystemError(errno.ENOTEMPTY)
        key = self._publisher.key(directory.id, place.name)
        seq = self._publisher.remove_directory(node, key)
        below = self._journal.open_below(key + b"/")
        last = max([*below, *([seq] if seq else [])], default=None)
        self._tree.put(directory.id, place.name, None, seq=last)
        if last is None:
            self._overlay.mark_gone(directory, place.name)
        self._tree.change(node.id, names=0, seq=None)

    # ---- inside --------------------------------------------------------------------------------------------
    def _new_file(self, directory: Node, name: bytes, mode: int, owner: tuple[int, int]) -> Node:
        self._overlay.check_room()
        number = self._journal.new_file()
        self._staging.create(number)
        ident = self._tree.add(
            NodeKind.FILE, file=number, mode=mode, uid=owner[0], gid=owner[1], mtime_ns=time.time_ns()
        )
        self._tree.put(directory.id, name, ident)
        self._overlay.touch(directory)
        return self._overlay.fresh(ident)

    def _remove(self, directory: Node, place: Place) -> None:
        """The name is gone, and its object shall be."""
        key = self._publisher.key(directory.id, place.name)
        in_bucket = self._overlay.vacate(place)
        if in_bucket:
            self._tree.put(directory.id, place.name, None, seq=self._publisher.delete(key))
            return
        self._overlay.leave(directory, place.name, key)

    def _directory(self, parent: int, name: bytes) -> Node:
        if len(name) > names.NAME_MAX:
            raise FileSystemError(errno.ENAMETOOLONG)
        if self._names.is_hidden(parent, name):
            raise FileSystemError(errno.EPERM)
        return self._names.directory(parent)
