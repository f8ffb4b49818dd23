"""Attributes of a writable mount: SETATTR and extended attributes, and what of them goes to the bucket, and when.

A change is made as `overlay` says. An object of the bucket whose attributes are changed becomes a node; one that gets
another size becomes a staged file.
"""

from __future__ import annotations

import errno
import json
import os
import stat

from mountkit.catalog.values import SEALED_BIT
from mountkit.serve.input_names import InputNames
from mountkit.serve.output_messages import Changes
from mountkit.serve.overlay import Overlay
from mountkit.serve.staged_objects import StagedObjects
from mountkit.serve.values import Done, FileSystemError
from mountkit.staging.schema import OperationState
from mountkit.staging.tree import Node, NodeKind

_PERMISSIONS = 0o7777
OURS = (b"user.s3.", b"user.mountkit.")
"""What the extended attributes begin with that say what is known of a file; nobody sets them."""
_XATTR_CREATE, _XATTR_REPLACE = 1, 2
_XATTR_MAX = 1800
"""S3 takes 2 KB of metadata; names, times and modes need some of it."""


class AttributeChanges:
    """All methods belong to one trio thread; those that change something, into a transaction."""

    def __init__(self, overlay: Overlay, objects: StagedObjects, bucket: InputNames) -> None:
        self._overlay, self._objects, self._bucket = overlay, objects, bucket
        self._journal, self._tree, self._staging = overlay.journal, overlay.tree, overlay.staging
        self._publisher, self._names = overlay.publisher, overlay.names

    def set_attributes(self, inode: int, changes: Changes, caller_uid: int) -> None:
        """SETATTR. An object that gets another size becomes a staged file: ESTALE, on which the kernel looks anew."""
        node = self._names.node(inode) or self._node_to_change(inode, changes.size)
        self._check_owner(node, changes, caller_uid)
        was_changed = node.kind == NodeKind.FILE and self._publisher.changed(node)
        if changes.size is not None:
            self._truncate(node, changes.size)
        if changes.mtime_ns is not None or changes.atime_ns is not None:
            self._set_times(node, changes)
        columns = {
            "mode": None if changes.mode is None else stat.S_IFMT(node.mode) | changes.mode & _PERMISSIONS,
            "uid": changes.uid,
            "gid": changes.gid,
            "mtime_ns": changes.mtime_ns,
        }
        columns = {name: value for name, value in columns.items() if value is not None}
        if columns:
            self._tree.change(node.id, **columns)
        if node.names:
            self._publish_change(self._overlay.fresh(node.id), was_changed, resized=changes.size is not None)

    def _publish_change(self, node: Node, was_changed: bool, *, resized: bool) -> None:
        """After a change of attributes: with the next close where somebody writes, else now."""
        if not resized:
            self._publisher.attributes_changed(node, content_changed=was_changed)
        elif not self._tree.has_writers(node.id) and self._publisher.changed(node):
            self._publisher.publish(node)

    def _check_owner(self, node: Node, changes: Changes, caller_uid: int) -> None:
        """An ordinary user's mount has nobody to give files to."""
        new_uid = changes.uid not in (None, node.uid)
        new_gid = changes.gid not in (None, node.gid)
        if (new_uid or new_gid) and caller_uid != 0:
            raise FileSystemError(errno.EPERM)

    def _truncate(self, node: Node, size: int) -> None:
        if node.kind == NodeKind.OBJECT:  # see `OpenFiles.open`
            raise FileSystemError(errno.ESTALE)
        if node.kind != NodeKind.FILE or node.file is None:
            raise FileSystemError(errno.EISDIR if node.kind == NodeKind.DIRECTORY else errno.EINVAL)
        os.ftruncate(self._staging.descriptor(node.file), size)

    def _set_times(self, node: Node, changes: Changes) -> None:
        if node.file is None:
            return
        status = self._staging.status(node.file)
        times = (
            status.st_atime_ns if changes.atime_ns is None else changes.atime_ns,
            status.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
        )
        os.utime(self._staging.descriptor(node.file), ns=times)

    def _node_to_change(self, inode: int, size: int | None) -> Node:
        """The node of a bucket's object; with a new size that of a staged file, after ESTALE."""
        found = self._tree.of_object(inode & ~SEALED_BIT)
        if found is not None and size is None:
            return found
        place = self._objects.place_of(inode)
        if size is not None:
            self._objects.stage(place, truncate=size == 0)
            node = self._objects.replace(place, truncate=size == 0)
            self._truncate(node, size)
            self._publisher.publish(self._overlay.fresh(node.id))
            raise Done(errno.ESTALE)
        node = self._overlay.object_node(place)
        directory = self._overlay.fresh(place.parent)
        self._tree.put(directory.id, place.name, node.id)
        self._overlay.make_explicit(directory)
        self._tree.change(node.id, etag=node.source_etag)
        return self._overlay.fresh(node.id)

    def extended_attributes(self, inode: int) -> dict[bytes, bytes]:
        node = self._names.node(inode) or self._tree.of_object(inode & ~SEALED_BIT)
        found: dict[bytes, bytes] = {}
        if node is None or node.kind == NodeKind.OBJECT:
            found |= self._bucket.extended_attributes(inode)
        if node is not None:
            found |= {name.encode("utf-8", "surrogateescape"): value for name, value in node.extended.items()}
            if node.kind == NodeKind.FILE:
                found[b"user.mountkit.state"] = self._state(node)
        return found

    def _state(self, node: Node) -> bytes:
        if node.abandoned:
            return b"abandoned"
        if self._publisher.changed(node):
            return b"open"
        operation = self._journal.operation(node.seq) if node.seq else None
        return b"done" if operation is None else OperationState(operation.state).name.lower().encode()

    def set_extended_attribute(self, inode: int, name: bytes, value: bytes | None, flags: int = 0) -> None:
        """Sets one, or takes it away."""
        if not name.startswith(b"user."):
            raise FileSystemError(errno.EOPNOTSUPP)
        if name.startswith(OURS):
            raise FileSystemError(errno.EPERM)
        node = self._names.node(inode) or self._node_to_change(inode, None)
        if node.kind == NodeKind.SYMLINK:
            raise FileSystemError(errno.EPERM)
        there = node.extended
        text = name.decode("utf-8", "surrogateescape")
        if text not in there and (value is None or flags & _XATTR_REPLACE):
            raise FileSystemError(errno.ENODATA)
        if flags & _XATTR_CREATE and text in there:
            raise FileSystemError(errno.EEXIST)
        if value is None:
            del there[text]
        else:
            there[text] = value
        if sum(4 * len(each) // 3 + len(key) + 8 for key, each in there.items()) > _XATTR_MAX:
            raise FileSystemError(errno.ENOSPC)
        was_changed = node.kind == NodeKind.FILE and self._publisher.changed(node)
        self._tree.change(node.id, xattrs=json.dumps({key: each.hex() for key, each in there.items()}))
        if node.names:
            self._publisher.attributes_changed(self._overlay.fresh(node.id), content_changed=was_changed)
