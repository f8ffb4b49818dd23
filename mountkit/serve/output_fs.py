"""The writable file system: what programs do to names, attributes and open files. Knows no FUSE and no network.

Every operation is one turn on what this machine knows, inside one transaction where it changes something; it raises
MustAsk (see `asking`) where the bucket has to be asked first, before it has changed anything. What the bucket
shall become is queued in the same transaction (`staging.publishing`).
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable
from typing import Any

import trio

from mountkit import errors, names
from mountkit.catalog.values import SEALED_BIT, ObjectRow
from mountkit.catalog.view import CatalogView
from mountkit.config import OutputSettings
from mountkit.errors import MountkitError, StoreUnavailable
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.output_listing import OutputListing
from mountkit.serve.output_messages import Changes
from mountkit.serve.output_names import KEY_MAX, Names, Place
from mountkit.serve.values import FileSystemError, Presentation
from mountkit.staging.files import StagingFiles
from mountkit.staging.journal import Journal
from mountkit.staging.publishing import Publisher
from mountkit.staging.schema import OperationState
from mountkit.staging.tree import ROOT_NODE, Node, NodeKind

_ACCESS = os.O_ACCMODE
_STAGE_S = 7 * 86400.0
"""The mover gives up by itself when the bucket does not answer; a large object just takes long."""
_PERMISSIONS = 0o7777
_NOREPLACE, _EXCHANGE = 1, 2
_XATTR_CREATE, _XATTR_REPLACE = 1, 2
_XATTR_MAX = 1800
"""S3 takes 2 KB of metadata; names, times and modes need some of it."""


class OutputFileSystem:
    """One writable mount. All methods belong to one trio thread."""

    def __init__(
        self,
        journal: Journal,
        files: StagingFiles,
        bucket: InputFileSystem,
        view: CatalogView,
        mover: MoverLink,
        show: Presentation,
        settings: OutputSettings,
    ) -> None:
        self.names = Names(journal, files, bucket.names, view, show)
        self.listing = OutputListing(self.names, journal.tree, bucket.listing, show)
        self.publisher = Publisher(journal, files, view.prefix, clobber=settings.clobber)
        self.journal, self.staging, self.show, self.settings = journal, files, show, settings
        self.used_bytes = 0
        """What staging takes on the disk, as upkeep last saw it, and what was written through us since."""
        self._tree = journal.tree
        self._bucket, self._view, self._mover = bucket, view, mover
        self._staged: dict[int, int] = {}
        """Staging files that hold an object version, made to be changed, by object id."""

    # ---- making and taking away names ----------------------------------------------------------------------
    def create(self, parent: int, name: bytes, mode: int, flags: int, owner: tuple[int, int]) -> tuple[Node, int]:
        """A new file, or the one that is there, open: its node and handle."""
        directory, place = self._new_place(parent, name)
        if place.exists:
            if flags & os.O_EXCL:
                raise FileSystemError(errno.EEXIST)
            return self._open_at(place, flags)
        node = self._new_file(directory, name, stat.S_IFREG | mode & _PERMISSIONS, owner)
        return node, self._tree.open_handle(node.id, flags)

    def make_node(self, parent: int, name: bytes, mode: int, owner: tuple[int, int]) -> Node:
        """MKNOD: an empty file; devices, sockets and pipes cannot be."""
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise FileSystemError(errno.EPERM)
        directory, place = self._new_place(parent, name)
        if place.exists:
            raise FileSystemError(errno.EEXIST)
        node = self._new_file(directory, name, stat.S_IFREG | mode & _PERMISSIONS, owner)
        self.publisher.publish(node)
        return node

    def make_directory(self, parent: int, name: bytes, mode: int, owner: tuple[int, int]) -> Node:
        directory, place = self._new_place(parent, name)
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
        self._touch(directory)
        self.publisher.mark_directory(self._fresh(ident))
        return self._fresh(ident)

    def make_symlink(self, parent: int, name: bytes, target: bytes, owner: tuple[int, int]) -> Node:
        """A link, kept in the bucket as an object that holds its target."""
        directory, place = self._new_place(parent, name)
        if place.exists:
            raise FileSystemError(errno.EEXIST)
        self._check_room()
        number = self.journal.new_file()
        os.pwrite(self.staging.create(number), target, 0)
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
        self._touch(directory)
        self.publisher.publish(self._fresh(ident))
        return self._fresh(ident)

    def unlink(self, parent: int, name: bytes) -> None:
        directory, place = self._old_place(parent, name)
        if place.is_directory:
            raise FileSystemError(errno.EISDIR)
        self._remove(directory, place)
        self._touch(directory, thinned=True)

    def remove_directory(self, parent: int, name: bytes) -> None:
        directory, place = self._old_place(parent, name)
        if not place.is_directory or place.node is None:
            raise FileSystemError(errno.ENOTDIR)
        self._remove_directory(directory, place, place.node)
        self._touch(directory, thinned=True)

    def _remove_directory(self, directory: Node, place: Place, node: Node) -> None:
        if not self.listing.is_empty(node):
            raise FileSystemError(errno.ENOTEMPTY)
        key = self.publisher.key(directory.id, place.name)
        seq = self.publisher.remove_directory(node, key)
        below = self.journal.open_below(key + b"/")
        last = max([*below, *([seq] if seq else [])], default=None)
        self._tree.put(directory.id, place.name, None, seq=last)
        if last is None:
            self._mark_gone(directory, place.name)
        self._tree.change(node.id, names=0, seq=None)

    def _remove(self, directory: Node, place: Place) -> None:
        """The name is gone, and its object shall be."""
        key = self.publisher.key(directory.id, place.name)
        in_bucket = self._vacate(place, key)
        if in_bucket:
            self._tree.put(directory.id, place.name, None, seq=self.publisher.delete(key))
            return
        self._leave(directory, place.name, key)

    def _leave(self, directory: Node, name: bytes, key: bytes) -> None:
        """Nothing is under a name any more that the bucket never had."""
        under_way = self.journal.open_of_key(key)
        if under_way:
            self._tree.put(directory.id, name, None, seq=under_way[-1].seq)
        elif directory.made_at is not None:
            self._tree.forget(directory.id, name)
        else:
            self._tree.put(directory.id, name, None)
            self._mark_gone(directory, name)

    def _mark_gone(self, directory: Node, name: bytes) -> None:
        self.journal.db.execute(
            "UPDATE entry SET since = ? WHERE parent = ? AND name = ?", (time.time(), directory.id, name)
        )

    def _vacate(self, place: Place, key: bytes) -> bool:
        """Takes away what is under a name. Whether the bucket has, or may get, an object there."""
        node = place.node
        if node is None:
            return place.row is not None
        in_bucket = self.publisher.detach(node, key)
        self._tree.change(node.id, names=0, seq=None)
        return in_bucket

    # ---- rename --------------------------------------------------------------------------------------------
    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        if flags & ~_NOREPLACE:
            raise FileSystemError(errno.EINVAL)
        directory, place = self._old_place(parent, name)
        new_directory, new_place = self._new_place(new_parent, new_name)
        if new_place.exists and flags & _NOREPLACE:
            raise FileSystemError(errno.EEXIST)
        if place.node is not None and new_place.node is not None and place.node.id == new_place.node.id:
            return
        if place.is_directory:
            assert place.node is not None
            self._rename_directory(directory, place, place.node, new_directory, new_place)
        else:
            if new_place.is_directory:
                raise FileSystemError(errno.EISDIR)
            self._rename_file(directory, place, new_directory, new_place)
        self._touch(directory, thinned=True)
        self._touch(self._fresh(new_directory.id))

    def _rename_file(self, directory: Node, place: Place, new_directory: Node, new_place: Place) -> None:
        old_key = self.publisher.key(directory.id, place.name)
        new_key = self.publisher.key(new_directory.id, new_place.name)
        replaces = _etag_at(new_place)
        taken = self._vacate(new_place, new_key)
        node = place.node or self._object_node(place)
        self._tree.forget(directory.id, place.name)
        self._tree.put(new_directory.id, new_place.name, node.id)
        self._move(node, old_key, taken=taken, replaces=replaces)
        self._leave(directory, place.name, old_key)

    def _move(self, node: Node, old_key: bytes, *, taken: bool, replaces: str = "") -> None:
        writers = self._tree.has_writers(node.id)
        self.publisher.move(node, old_key, taken=taken, replaces=replaces, writers=writers)

    def _object_node(self, place: Place) -> Node:
        """The node of an object that is to have another name or other attributes than in the bucket."""
        row = place.row
        assert row is not None
        shown, _, _ = self.names.shown_at(place)
        ident = self._tree.add(
            NodeKind.OBJECT,
            mode=shown.mode,
            uid=shown.uid,
            gid=shown.gid,
            size=row.size,
            mtime_ns=row.mtime_ns,
            object=row.id,
            source_key=row.key,
            source_etag=row.etag,
            in_bucket=1,
        )
        return self._fresh(ident)

    def _rename_directory(
        self, directory: Node, place: Place, node: Node, new_directory: Node, new_place: Place
    ) -> None:
        if self._tree.is_below(new_directory.id, node.id):
            raise FileSystemError(errno.EINVAL)
        if new_place.exists:
            if not new_place.is_directory or new_place.node is None:
                raise FileSystemError(errno.ENOTDIR)
            self._remove_directory(new_directory, new_place, new_place.node)
        self._take_in(node)
        old_key = self.publisher.key(directory.id, place.name)
        moved = [(n, self.publisher.key(e.parent, e.name)) for e, n in self._tree.below(node.id) if n is not None]
        self._tree.forget(directory.id, place.name)
        self._tree.put(new_directory.id, new_place.name, node.id)
        self._tree.forget_paths()
        self.names.underlay.forget_catalog_ids()
        last = self._move_directory(self._fresh(node.id), old_key)
        for each, key in moved:
            if each.kind == NodeKind.DIRECTORY:
                last = self._move_directory(self._fresh(each.id), key) or last
            else:
                self._move(each, key, taken=False)
        below = self.journal.open_below(old_key + b"/")
        last = max(below, default=last)
        self._tree.put(directory.id, place.name, None, seq=last)
        if last is None:
            self._mark_gone(directory, place.name)

    def _move_directory(self, node: Node, old_key: bytes) -> int | None:
        """Markers and the dates of a directory whose path is another now."""
        seq = self.publisher.remove_directory(node, old_key)
        self._tree.change(node.id, derived=0, made_at=time.time(), seq=None, in_bucket=0)
        # What was removed in it before is no concern of the new place.
        self.journal.db.execute("DELETE FROM entry WHERE parent = ? AND node IS NULL", (node.id,))
        if not self._tree.children(node.id, limit=1):
            self.publisher.mark_directory(self._fresh(node.id))
        return seq

    def _take_in(self, node: Node) -> None:
        """Has the overlay know everything below a directory, so that the bucket need not be looked at any more."""
        above = self._catalog_id_of_all(node)
        if above is None:
            return
        self.names.asking.need(("tree", above), lambda: self._ask_tree(above))
        pending = [node]
        while pending:
            directory = pending.pop()
            for name in self.listing.names(directory):
                place = self.names.find(directory, name)
                if place.is_directory and place.node is not None:
                    self._tree.change(place.node.id, derived=0)
                    pending.append(place.node)
                elif place.row is not None and place.node is None:
                    self._tree.put(directory.id, name, self._object_node(place).id)

    def _catalog_id_of_all(self, node: Node) -> int | None:
        """The directory of the catalog that may have more names than the overlay knows."""
        made_here = node.made_at is not None and not node.in_bucket
        if made_here and time.time() - (node.made_at or 0.0) < self.show.ttl_s:
            return None
        return self.names.underlay.catalog_id(node)

    async def _ask_tree(self, directory: int) -> None:
        answer = await self._call("tree", budget_s=_STAGE_S, directory=directory)
        if answer.get("objects", 0) > 100_000:
            raise FileSystemError(errno.EXDEV)

    # ---- attributes ----------------------------------------------------------------------------------------
    def set_attributes(self, inode: int, changes: Changes, caller_uid: int) -> None:
        """SETATTR. An object that gets another size becomes a staged file: ESTALE, on which the kernel looks anew."""
        node = self.names.node(inode) or self._node_to_change(inode, changes.size)
        self._check_owner(node, changes, caller_uid)
        was_changed = node.kind == NodeKind.FILE and self.publisher.changed(node)
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
            self._publish_change(self._fresh(node.id), was_changed, resized=changes.size is not None)

    def _publish_change(self, node: Node, was_changed: bool, *, resized: bool) -> None:
        """After a change of attributes: with the next close where somebody writes, else now."""
        if not resized:
            self.publisher.attributes_changed(node, content_changed=was_changed)
        elif not self._tree.has_writers(node.id) and self.publisher.changed(node):
            self.publisher.publish(node)

    def _check_owner(self, node: Node, changes: Changes, caller_uid: int) -> None:
        """An ordinary user's mount has nobody to give files to."""
        new_uid = changes.uid not in (None, node.uid)
        new_gid = changes.gid not in (None, node.gid)
        if (new_uid or new_gid) and caller_uid != 0:
            raise FileSystemError(errno.EPERM)

    def _truncate(self, node: Node, size: int) -> None:
        if node.kind != NodeKind.FILE or node.file is None:
            raise FileSystemError(errno.EISDIR if node.kind == NodeKind.DIRECTORY else errno.EINVAL)
        os.ftruncate(self.staging.descriptor(node.file), size)

    def _set_times(self, node: Node, changes: Changes) -> None:
        if node.file is None:
            return
        status = self.staging.status(node.file)
        times = (
            status.st_atime_ns if changes.atime_ns is None else changes.atime_ns,
            status.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
        )
        os.utime(self.staging.descriptor(node.file), ns=times)

    def _node_to_change(self, inode: int, size: int | None) -> Node:
        """The node of a bucket's object; with a new size that of a staged file, after ESTALE."""
        found = self._tree.of_object(inode & ~SEALED_BIT)
        if found is not None and size is None:
            return found
        place = self._place_of_object(inode)
        if size is not None:
            self._stage(place, truncate=size == 0)
            node = self._file_from(place, truncate=size == 0)
            self._truncate(node, size)
            self.publisher.publish(self._fresh(node.id))
            raise Done(errno.ESTALE)
        node = self._object_node(place)
        directory = self._fresh(place.parent)
        self._tree.put(directory.id, place.name, node.id)
        self._make_explicit(directory)
        self._tree.change(node.id, etag=node.source_etag)
        return self._fresh(node.id)

    def extended_attributes(self, inode: int) -> dict[bytes, bytes]:
        node = self.names.node(inode) or self._tree.of_object(inode & ~SEALED_BIT)
        found: dict[bytes, bytes] = {}
        if node is None or node.kind == NodeKind.OBJECT:
            found |= self._bucket.names.extended_attributes(inode)
        if node is not None:
            found |= {name.encode("utf-8", "surrogateescape"): value for name, value in node.extended.items()}
            if node.kind == NodeKind.FILE:
                found[b"user.mountkit.state"] = self._state(node)
        return found

    def _state(self, node: Node) -> bytes:
        if node.abandoned:
            return b"abandoned"
        if self.publisher.changed(node):
            return b"open"
        operation = self.journal.operation(node.seq) if node.seq else None
        return b"done" if operation is None else OperationState(operation.state).name.lower().encode()

    def set_extended_attribute(self, inode: int, name: bytes, value: bytes | None, flags: int = 0) -> None:
        """Sets one, or takes it away."""
        if not name.startswith(b"user."):
            raise FileSystemError(errno.EOPNOTSUPP)
        if name.startswith((b"user.s3.", b"user.mountkit.")):
            raise FileSystemError(errno.EPERM)
        node = self.names.node(inode) or self._node_to_change(inode, None)
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
        was_changed = node.kind == NodeKind.FILE and self.publisher.changed(node)
        self._tree.change(node.id, xattrs=json.dumps({key: each.hex() for key, each in there.items()}))
        if node.names:
            self.publisher.attributes_changed(self._fresh(node.id), content_changed=was_changed)

    # ---- open files ----------------------------------------------------------------------------------------
    def open(self, inode: int, flags: int) -> tuple[Node, int]:
        """Opens a staged file. An object that is to be changed becomes one first: ESTALE (see `Done`)."""
        node = self.names.node(inode)
        if node is None:
            place = self._place_of_object(inode)
            truncate = bool(flags & os.O_TRUNC)
            self._check_room()
            self._stage(place, truncate=truncate)
            self._file_from(place, truncate=truncate)
            raise Done(errno.ESTALE)
        if node.kind != NodeKind.FILE:
            raise FileSystemError(errno.EISDIR if node.kind == NodeKind.DIRECTORY else errno.ELOOP)
        return self._open_node(node, flags)

    def _open_node(self, node: Node, flags: int) -> tuple[Node, int]:
        assert node.file is not None
        if flags & _ACCESS:
            self._check_room()
        if flags & os.O_TRUNC:
            os.ftruncate(self.staging.descriptor(node.file), 0)
        return node, self._tree.open_handle(node.id, flags)

    def _open_at(self, place: Place, flags: int) -> tuple[Node, int]:
        """Opens what a CREATE found there already."""
        if place.is_directory:
            raise FileSystemError(errno.EISDIR)
        if place.node is not None and place.node.kind == NodeKind.FILE:
            return self._open_node(place.node, flags)
        if place.row is None:
            raise FileSystemError(errno.ELOOP)
        truncate = bool(flags & os.O_TRUNC)
        self._stage(place, truncate=truncate)
        return self._open_node(self._file_from(place, truncate=truncate), flags & ~os.O_TRUNC)

    def flush(self, handle: int, *, dying: Callable[[], bool]) -> int | None:
        """A descriptor of an open file was closed: what is to be uploaded now, if anything."""
        node = self._node_of_handle(handle)
        if node is None or not node.names:
            return None
        if node.put_size is None and dying():
            if not node.abandoned:
                self._tree.change(node.id, abandoned=1)
            return None
        return self.publisher.publish(node) if self.publisher.changed(node) else node.seq

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
        if node is not None and last_writer and node.names and not node.abandoned and self.publisher.changed(node):
            with self.names.transaction():
                self.publisher.publish(node)  # written through a mapping after close
        if node is not None and node.file is not None and not left:
            self.staging.release(node.file)
            if not node.names and not self.journal.file_in_use(node.file):
                with self.names.transaction():
                    self._discard(node)
        return True

    def discard(self, ident: int) -> None:
        """Clears away a node without name and handle, unless its bytes are still being sent."""
        node = self._tree.node(ident)
        if node is not None and (node.file is None or not self.journal.file_in_use(node.file)):
            self._discard(node)

    def _discard(self, node: Node) -> None:
        self._tree.remove(node.id)
        if node.file is not None:
            self.journal.forget_file(node.file)
            self.staging.remove(node.file)

    def become_object(self, node: Node) -> None:
        """A clean file's bytes are dropped; its dates and attributes stay known while the bucket has that object."""
        assert node.file is not None
        key = self.publisher.key_of(node.id)
        self._tree.change(
            node.id,
            kind=int(NodeKind.OBJECT),
            file=None,
            mtime_ns=node.put_mtime_ns,
            size=node.put_size,
            source_key=key,
            source_etag=node.etag,
            object=None,
        )
        self.journal.forget_file(node.file)
        self.staging.remove(node.file)

    def descriptor(self, inode: int) -> int:
        """The staging file of an open file."""
        node = self.names.node(inode)
        if node is None or node.file is None:
            raise FileSystemError(errno.EBADF)
        return self.staging.descriptor(node.file)

    def write(self, inode: int, offset: int, data: memoryview) -> int:
        self._check_room()
        written = os.pwrite(self.descriptor(inode), data, offset)
        self.used_bytes += written
        return written

    def _node_of_handle(self, handle: int) -> Node | None:
        found = self._tree.handle(handle)
        return self._tree.node(found[0]) if found and found[1] & _ACCESS else None

    def failure(self) -> int:
        """The errno of an upload that failed for good, 0 where none did, as the journal says at this moment."""
        failed = self.journal.first_failed()
        return 0 if failed is None else _errno(failed.error)

    async def commit(self, seqs: list[int]) -> int:
        """Returns once these operations are done: 0, or the errno of one that failed."""
        if not seqs:
            return 0
        sent = -1
        while True:
            try:
                answer = await self._mover.call("commit", budget_s=self.show.data_budget_s + 2.0, seqs=seqs)
            except StoreUnavailable:
                now_sent = self._sent(seqs)
                if now_sent <= sent:
                    return errno.EIO
                sent = now_sent
                continue
            except MountkitError as exc:
                return exc.errno
            errors_found = answer.body.get("errors", {})
            return _errno(json.dumps(next(iter(errors_found.values())))) if errors_found else 0

    def _sent(self, seqs: list[int]) -> int:
        marks = ", ".join("?" * len(seqs))
        (total,) = self.journal.db.execute(
            f"SELECT coalesce(sum(sent_bytes), 0) FROM operation WHERE seq IN ({marks})",  # noqa: S608
            seqs,
        ).fetchone()
        return int(total)

    def to_commit(self, inode: int, handle: int | None) -> list[int]:
        """What an fsync has to wait for; queues the file as it is now."""
        node = self.names.node(inode)
        if node is None or not node.names:
            return []
        if node.kind == NodeKind.FILE and handle is not None and self.publisher.changed(node):
            self.publisher.publish(node)
        key = self.publisher.key_of(node.id)
        if node.kind == NodeKind.DIRECTORY:
            path = b"" if node.id == ROOT_NODE else (key or b"") + b"/"
            return self.journal.open_in_directory(self._view.prefix if node.id == ROOT_NODE else path)
        return [operation.seq for operation in self.journal.open_of_key(key)] if key else []

    def free_bytes(self) -> int:
        """How much more may be staged."""
        disk = os.statvfs(self.staging.directory_fd)
        return max(0, min(self.settings.staging_size_bytes - self.used_bytes, disk.f_bavail * disk.f_frsize))

    # ---- inside --------------------------------------------------------------------------------------------
    def _check_room(self) -> None:
        if self.used_bytes >= self.settings.staging_size_bytes:
            raise FileSystemError(errno.ENOSPC)

    def _fresh(self, ident: int) -> Node:
        node = self._tree.node(ident)
        assert node is not None
        return node

    def _old_place(self, parent: int, name: bytes) -> tuple[Node, Place]:
        directory = self._directory(parent, name)
        place = self.names.find(directory, name)
        if not place.exists:
            raise FileSystemError(errno.ENOENT)
        return directory, place

    def _new_place(self, parent: int, name: bytes) -> tuple[Node, Place]:
        directory = self._directory(parent, name)
        place = self.names.find(directory, name)
        if not place.exists:
            if not names.valid_name(name):
                raise FileSystemError(errno.EILSEQ)
            if len(self.publisher.key(directory.id, name)) > KEY_MAX:
                raise FileSystemError(errno.ENAMETOOLONG)
        return directory, place

    def _directory(self, parent: int, name: bytes) -> Node:
        if len(name) > names.NAME_MAX:
            raise FileSystemError(errno.ENAMETOOLONG)
        if self.names.is_hidden(parent, name):
            raise FileSystemError(errno.EPERM)
        return self.names.directory(parent)

    def _new_file(self, directory: Node, name: bytes, mode: int, owner: tuple[int, int]) -> Node:
        self._check_room()
        number = self.journal.new_file()
        self.staging.create(number)
        ident = self._tree.add(
            NodeKind.FILE, file=number, mode=mode, uid=owner[0], gid=owner[1], mtime_ns=time.time_ns()
        )
        self._tree.put(directory.id, name, ident)
        self._touch(directory)
        return self._fresh(ident)

    def _touch(self, directory: Node, *, thinned: bool = False) -> None:
        """Something in a directory was changed: its mtime, and whether it needs a marker."""
        if not thinned and directory.seq is not None:
            self.publisher.needs_no_marker(directory)
        self._tree.change(directory.id, mtime_ns=time.time_ns(), thinned=int(thinned))
        self._make_explicit(directory)

    def _make_explicit(self, directory: Node) -> None:
        """The directory stays, whatever becomes of it in the bucket, and so do those above it."""
        while directory.derived and directory.id != ROOT_NODE:
            self._tree.change(directory.id, derived=0)
            entry = self._tree.entry_of(directory.id)
            if entry is None:
                return
            directory = self._fresh(entry.parent)

    def _place_of_object(self, inode: int) -> Place:
        """Where an object of the bucket has its name. Raises FileSystemError: EPERM for those that have none."""
        ident = inode & ~SEALED_BIT
        node = self._tree.of_object(ident)
        if node is not None:
            entry = self._tree.entry_of(node.id)
            row = self._view.object(ident)
            if entry is None or row is None:
                raise FileSystemError(errno.ESTALE)
            return Place(entry.parent, entry.name, entry, node, row, 0.0)
        row = self._view.object(ident)
        if row is None:
            raise FileSystemError(errno.ESTALE)
        relative = row.key[len(self._view.prefix) :]
        if names.classify(relative) is not names.KeyKind.PATH:
            raise FileSystemError(errno.EPERM)
        directory = self._fresh(ROOT_NODE)
        *above, last = relative.split(b"/")
        for word in above:
            place = self.names.find(directory, word)
            if not place.is_directory or place.node is None:
                raise FileSystemError(errno.ESTALE)
            directory = place.node
        place = self.names.find(directory, last)
        if place.row is None or place.row.id != ident:
            raise FileSystemError(errno.ESTALE)
        return place

    def _stage(self, place: Place, *, truncate: bool) -> None:
        """Has the bytes of an object in a staging file. Raises MustAsk until they are there."""
        row = place.row
        assert row is not None
        if truncate or row.id in self._staged:
            return
        if row.size > self.free_bytes():
            raise FileSystemError(errno.ENOSPC)
        self.names.asking.need(("stage", row.id), lambda: self._ask_stage(row))

    async def _ask_stage(self, row: ObjectRow) -> None:
        number = self.journal.new_file()
        with self.journal.transaction():
            self.journal.enter_file(number)
        self.staging.create(number)
        self.staging.release(number)
        try:
            await self._call("stage", budget_s=_STAGE_S, object=row.id, file=number)
        except BaseException:
            self.staging.remove(number)
            raise
        if row.id in self._staged:  # somebody else had it staged meanwhile
            self.staging.remove(number)
        else:
            self._staged[row.id] = number

    def _file_from(self, place: Place, *, truncate: bool) -> Node:
        """The node of a staged file in the place of an object."""
        row = place.row
        assert row is not None
        shown, _, _ = self.names.shown_at(place)
        key = self.publisher.key(place.parent, place.name)
        xattrs = place.node.xattrs if place.node else None
        in_bucket = self._vacate(place, key)
        if truncate:
            number = self.journal.new_file()
            self.staging.create(number)
        else:
            number = self._staged.pop(row.id)
            os.utime(self.staging.descriptor(number), ns=(shown.mtime_ns, shown.mtime_ns))
        ident = self._tree.add(
            NodeKind.FILE,
            file=number,
            mode=shown.mode,
            uid=shown.uid,
            gid=shown.gid,
            mtime_ns=shown.mtime_ns,
            xattrs=xattrs,
            in_bucket=int(in_bucket),
            if_match=row.etag,
        )
        self._tree.put(place.parent, place.name, ident)
        self._make_explicit(self._fresh(place.parent))
        if not truncate:
            pending = place.node is not None and place.node.seq is not None
            if pending:  # under another name, or with other attributes, than the bucket has yet
                self.publisher.publish(self._fresh(ident))
            else:
                self.publisher.taken_over(ident, row.etag)
        return self._fresh(ident)

    async def _call(self, op: str, *, budget_s: float, **arguments: object) -> dict[str, Any]:
        try:
            with trio.fail_after(budget_s):
                return (await self._mover.call(op, budget_s=budget_s, **arguments)).body
        except MountkitError as exc:
            raise FileSystemError(exc.errno) from exc


class Done(Exception):
    """The operation is to be committed although it is answered with an error."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


def _etag_at(place: Place) -> str:
    """Which object the bucket has at a name, as the mount shows it; empty where it has none yet."""
    if place.row is not None:
        return place.row.etag
    return (place.node.etag or place.node.if_match or "") if place.node is not None else ""


def _errno(text: str | None) -> int:
    found = errors.from_json(json.loads(text)) if text else MountkitError("")
    return found.errno if found.errno in (errno.ENOSPC, errno.EACCES, errno.EDQUOT) else errno.EIO
