"""Open files of a writable mount: opened, written, closed, released; and what becomes of their bytes after that.

A change is made as `overlay` says; writes alone go to the staging file at once. A close queues what was changed, unless
a new file's writer is being killed: nobody knows whether it is whole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from mountkit.serve.output_names import Place
from mountkit.serve.overlay import Overlay
from mountkit.serve.staged_objects import StagedObjects
from mountkit.serve.values import Done, FileSystemError
from mountkit.staging.tree import Node, NodeKind

_ACCESS = os.O_ACCMODE


class OpenFiles:
    """All methods belong to one trio thread, and into a transaction, but for `release`, `descriptor` and `write`."""

    def __init__(self, overlay: Overlay, objects: StagedObjects) -> None:
        self._overlay, self._objects = overlay, objects
        self._journal, self._tree, self._staging = overlay.journal, overlay.tree, overlay.staging
        self._publisher, self._names = overlay.publisher, overlay.names

    def open(self, inode: int, flags: int) -> tuple[Node, int]:
        """Opens a staged file. An object that is to be changed becomes one first: ESTALE (see `Done`)."""
        node = self._names.node(inode)
        if node is None:
            place = self._objects.place_of(inode)
            truncate = bool(flags & os.O_TRUNC)
            self._overlay.check_room()
            self._objects.stage(place, truncate=truncate)
            self._objects.replace(place, truncate=truncate)
            raise Done(errno.ESTALE)
        if node.kind == NodeKind.OBJECT:  # its bytes made room: the kernel still knows the staged file's inode
            raise FileSystemError(errno.ESTALE)
        if node.kind != NodeKind.FILE:
            raise FileSystemError(errno.EISDIR if node.kind == NodeKind.DIRECTORY else errno.ELOOP)
        return self._open_node(node, flags)

    def _open_node(self, node: Node, flags: int) -> tuple[Node, int]:
        assert node.file is not None
        if flags & _ACCESS:
            self._overlay.check_room()
        if flags & os.O_TRUNC:
            os.ftruncate(self._staging.descriptor(node.file), 0)
        return node, self._tree.open_handle(node.id, flags)

    def open_at(self, place: Place, flags: int) -> tuple[Node, int]:
        """Opens what a CREATE found there already."""
        if place.is_directory:
            raise FileSystemError(errno.EISDIR)
        if place.node is not None and place.node.kind == NodeKind.FILE:
            return self._open_node(place.node, flags)
        if place.row is None:
            raise FileSystemError(errno.ELOOP)
        truncate = bool(flags & os.O_TRUNC)
        self._objects.stage(place, truncate=truncate)
        return self._open_node(self._objects.replace(place, truncate=truncate), flags & ~os.O_TRUNC)

    def flush(self, handle: int, *, dying: Callable[[], bool]) -> int | None:
        """A descriptor of an open file was closed: what is to be uploaded now, if anything."""
        node = self._node_of_handle(handle)
        if node is None or not node.names:
            return None
        if node.put_size is None and dying():
            if not node.abandoned:
                self._tree.change(node.id, abandoned=1)
            return None
        return self._publisher.publish(node) if self._publisher.changed(node) else node.seq

    def release(self, handle: int) -> bool:
        """The last descriptor of an open file is gone; False if that was known already."""
        found = self._tree.handle(handle)
        if found is None:
            return False
        ident, flags = found
        self._tree.close_handle(handle)
        node = self._tree.node(ident)
        left = self._tree.handles(ident)
        last_writer = flags & _ACCESS and not self._tree.has_writers(ident)
        if node is not None and last_writer and node.names and not node.abandoned and self._publisher.changed(node):
            with self._names.transaction():
                self._publisher.publish(node)  # written through a mapping after close
        if node is not None and node.file is not None and not left:
            self._staging.release(node.file)
            if not node.names and not self._journal.file_in_use(node.file):
                with self._names.transaction():
                    self._discard(node)
        return True

    def _node_of_handle(self, handle: int) -> Node | None:
        found = self._tree.handle(handle)
        return self._tree.node(found[0]) if found and found[1] & _ACCESS else None

    def descriptor(self, inode: int) -> int:
        """The staging file of an open file."""
        node = self._names.node(inode)
        if node is None or node.file is None:
            raise FileSystemError(errno.EBADF)
        return self._staging.descriptor(node.file)

    def write(self, inode: int, offset: int, data: memoryview) -> int:
        self._overlay.check_room()
        written = os.pwrite(self.descriptor(inode), data, offset)
        self._overlay.used_bytes += written
        return written

    def discard(self, ident: int) -> None:
        """Clears away a node without name and handle, unless its bytes are still being sent."""
        node = self._tree.node(ident)
        if node is not None and (node.file is None or not self._journal.file_in_use(node.file)):
            self._discard(node)

    def _discard(self, node: Node) -> None:
        self._tree.remove(node.id)
        if node.file is not None:
            self._journal.forget_file(node.file)
            self._staging.doom(node.file)
