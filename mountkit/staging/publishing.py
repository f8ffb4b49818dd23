"""What has to be done in the bucket so that it becomes what the mount shows: the rules by which operations are queued.

Called inside a transaction of the journal, together with the change of the tree that makes it necessary. Nothing that
a later operation makes needless is left queued, unless the mover has begun it.
"""

from __future__ import annotations

import fnmatch
import re
import stat
import time
from typing import Any, Final

from mountkit.staging.files import StagingFiles, Stamp
from mountkit.staging.journal import Journal
from mountkit.staging.schema import OperationKind, OperationState
from mountkit.staging.tree import Node, NodeKind

MARKERS: Final = ("latest*", "*.json", "_SUCCESS", "*.done")
"""Names of files that say that others are there: never in the bucket before what was closed before them."""
_LARGE_BYTES: Final = 1 << 20
"""Files from here on may be sent in parts, of which the mover remembers what they were."""
_DIRECTORY_TYPE: Final = "application/x-directory"


_MARKER: Final = re.compile("|".join(fnmatch.translate(pattern) for pattern in MARKERS))


def is_marker(name: bytes) -> bool:
    return _MARKER.match(name.decode("utf-8", "replace")) is not None


class Publisher:
    """Queues operations for nodes of the overlay."""

    def __init__(self, journal: Journal, files: StagingFiles, prefix: bytes, *, clobber: bool = True) -> None:
        """Without `clobber` each PUT says which object it may replace."""
        self._clobber = clobber
        self._journal, self._tree, self._files, self._prefix = journal, journal.tree, files, prefix

    def key(self, parent: int, name: bytes) -> bytes:
        """The key of a name in a directory."""
        return self._prefix + (self._tree.path(parent) or b"") + name

    def key_of(self, node: int) -> bytes | None:
        """The key of a node; None once it has no name. A directory's is that of its marker."""
        entry = self._tree.entry_of(node)
        return self.key(entry.parent, entry.name) if entry else None

    # ---- files ---------------------------------------------------------------------------------------------
    def changed(self, node: Node) -> bool:
        """Whether the bytes are others than those of the newest PUT."""
        assert node.file is not None
        return self._files.stamp(node.file) != (node.put_size, node.put_mtime_ns, node.put_ctime_ns)

    def publish(self, node: Node, *, live: bool = False) -> int | None:
        """Queues the file as it is now, in place of what was queued of it before; None if it has no name any more."""
        entry = self._tree.entry_of(node.id)
        if entry is None or node.file is None:
            return None
        key = self.key(entry.parent, entry.name)
        stamp = self._files.settled_stamp(node.file)
        self._files.note_changed(node.file)
        metadata = _metadata(node, stamp.mtime_ns)
        if not self._clobber:
            metadata["if_match"] = node.etag or node.if_match or ""
        ordered = bool(node.ordered) or is_marker(entry.name)
        queued_at = None
        if node.seq is not None:
            # An ordered one may name by now what was closed meanwhile: it goes to the end.
            keeps_place = not ordered or self._journal.is_newest(node.seq)
            if keeps_place and self._journal.replace_put(node.seq, key, node.file, stamp, metadata, live=live):
                self._note_put(node.id, stamp, abandoned=0)
                return node.seq
            queued_at = self._journal.pending_since(node.seq)
        in_bucket = self._supersede(node, key)
        if stamp.size >= _LARGE_BYTES:
            self._journal.enter_file(node.file)
        seq = self._journal.queue_put(key, node.file, stamp, metadata, ordered=ordered, live=live, queued_at=queued_at)
        self._note_put(node.id, stamp, seq=seq, in_bucket=int(in_bucket), abandoned=0)
        return seq

    def taken_over(self, node: int, etag: str) -> None:
        """The bytes as they are now are what the bucket has as `etag`."""
        found = self._tree.node(node)
        assert found is not None and found.file is not None
        stamp = self._files.settled_stamp(found.file)
        self._note_put(node, stamp, etag=etag, done_at=time.time(), in_bucket=1)

    def _note_put(self, node: int, stamp: Stamp, **columns: Any) -> None:
        self._tree.change(
            node, put_size=stamp.size, put_mtime_ns=stamp.mtime_ns, put_ctime_ns=stamp.ctime_ns, **columns
        )

    def attributes_changed(self, node: Node, *, content_changed: bool) -> int | None:
        """After a change of mode, times or extended attributes; `content_changed`: it had others bytes before that."""
        if node.kind == NodeKind.DIRECTORY:
            return self._directory_changed(node)
        if node.kind == NodeKind.OBJECT:
            return self._object_changed(node)
        if content_changed or node.put_size is None or node.abandoned:
            return None  # the next close publishes bytes and attributes
        operation = self._journal.operation(node.seq) if node.seq else None
        if operation is not None and operation.state != OperationState.DONE:
            return self.publish(node)
        key = self.key_of(node.id)
        if key is None or node.file is None:
            return None
        stamp = self._files.settled_stamp(node.file)
        etag = operation.etag if operation else node.etag
        seq = self._journal.queue_copy(key, key, etag, _metadata(node, stamp.mtime_ns), ordered=False)
        self._note_put(node.id, stamp, seq=seq, in_bucket=1)
        return seq

    def _object_changed(self, node: Node) -> int | None:
        key = self.key_of(node.id)
        if key is None:
            return None
        metadata = _metadata(node, node.mtime_ns)
        if node.seq is not None and self._journal.replace_copy(node.seq, key, metadata):
            return node.seq
        source_key, source_etag = self._unstarted_source(node, key)
        if source_key == key:
            return self._copy_in_place(node, key, source_etag)
        seq = self._journal.queue_copy(key, source_key, source_etag, metadata, ordered=True)
        self._delete_after_copy(source_key)
        self._tree.change(node.id, seq=seq, source_key=source_key, source_etag=source_etag)
        return seq

    def _copy_in_place(self, node: Node, key: bytes, etag: str | None) -> int:
        """The object lies under its key, or will: it gets the node's attributes there."""
        seq = self._journal.queue_copy(key, key, etag, _metadata(node, node.mtime_ns), ordered=False)
        self._tree.change(node.id, seq=seq, source_key=key, source_etag=etag, in_bucket=1)
        return seq

    # ---- names ---------------------------------------------------------------------------------------------
    def detach(self, node: Node) -> bool:
        """Nothing of this node shall come to its key any more. Whether the bucket has, or may get, an object there."""
        self._journal.cancel(node.seq)
        return bool(node.in_bucket) or self._journal.may_be_done(node.seq)

    def move(self, node: Node, old_key: bytes, *, taken: bool, replaces: str = "", writers: bool) -> None:
        """The node has got another name (the tree knows it already): its bytes shall be under that key, and not here.

        `taken`: whether the bucket may have an object at the new key, and `replaces` its ETag, if known; `writers`:
        somebody has it open for writing.
        """
        if node.kind == NodeKind.OBJECT:
            self._move_object(node, old_key, taken=taken)
            return
        operation = self._journal.operation(node.seq) if node.seq else None
        was_there = self.detach(node)
        self._tree.change(
            node.id, ordered=1, in_bucket=int(taken), seq=None, etag=None, done_at=None, if_match=replaces
        )
        published = node.put_size is not None and not node.abandoned
        done = node.seq is None or (operation is not None and operation.state == OperationState.DONE)
        if published and not self.changed(node):
            etag = operation.etag if operation is not None and node.seq else node.etag
            if done and was_there and etag and node.kind == NodeKind.FILE:
                self._copy_instead(node, old_key, etag)
            else:
                self._republish(node.id)
        elif published and not writers:
            self._republish(node.id)
        if was_there:
            self.delete(old_key)

    def _republish(self, node: int) -> None:
        self.publish(self._fresh(node))

    def _fresh(self, node: int) -> Node:
        found = self._tree.node(node)
        assert found is not None
        return found

    def _copy_instead(self, node: Node, old_key: bytes, etag: str) -> None:
        key = self.key_of(node.id)
        assert key is not None and node.file is not None
        taken = bool(self._fresh(node.id).in_bucket) | self._cancel_needless(key)
        stamp = self._files.stamp(node.file)
        seq = self._journal.queue_copy(key, old_key, etag, _metadata(node, stamp.mtime_ns), ordered=True)
        self._tree.change(node.id, seq=seq, in_bucket=int(taken))

    def _move_object(self, node: Node, old_key: bytes, *, taken: bool) -> None:
        key = self.key_of(node.id)
        assert key is not None
        source_key, source_etag = self._unstarted_source(node, old_key)
        if source_key == key:  # renamed, and back before it was copied
            self._cancel_deletions(key)
            self._tree.change(node.id, etag=None)
            self._copy_in_place(node, key, source_etag)
        else:
            taken |= self._cancel_needless(key)
            seq = self._journal.queue_copy(key, source_key, source_etag, self._kept_metadata(node), ordered=True)
            self._tree.change(
                node.id, seq=seq, source_key=source_key, source_etag=source_etag, in_bucket=int(taken), etag=None
            )
            self._delete_after_copy(source_key)
        if source_key != old_key and (node.in_bucket or self._journal.may_be_done(node.seq)):
            self.delete(old_key)

    def _unstarted_source(self, node: Node, key: bytes) -> tuple[bytes, str | None]:
        """Where the bytes of an object node at `key` are to be copied from; a copy that had not begun is cancelled.

        Not one whose source is to become something else after it: a later copy would find that there.
        """
        assert node.source_key is not None
        if node.seq is None or node.source_key == key:
            self._journal.cancel(node.seq)
            return node.source_key if node.seq is None else key, node.source_etag
        if not self._journal.is_written_after(node.seq, node.source_key) and self._journal.cancel(node.seq):
            return node.source_key, node.source_etag
        operation = self._journal.operation(node.seq)
        return key, operation.etag if operation else None

    def _kept_metadata(self, node: Node) -> dict[str, Any] | None:
        """None: what the store has of the object goes with the copy."""
        changed = node.xattrs or node.etag or self._journal.has_metadata(node.seq)
        return _metadata(node, node.mtime_ns) if changed else None

    def _delete_after_copy(self, key: bytes) -> int:
        """As `delete`; one that was queued before the copy has to wait for it."""
        self._cancel_deletions(key)
        return self.delete(key)

    def _cancel_deletions(self, key: bytes) -> None:
        for operation in self._journal.open_of_key(key):
            if operation.kind == OperationKind.DELETE:
                self._journal.cancel(operation.seq)

    def delete(self, key: bytes) -> int:
        """Has an object deleted, if it is there."""
        return self._journal.queue_delete(key)

    # ---- directories ---------------------------------------------------------------------------------------
    def mark_directory(self, node: Node) -> int | None:
        """Queues the marker object that keeps an empty directory in the bucket."""
        key = self.key_of(node.id)
        if key is None:
            return None
        self._journal.cancel(node.seq)
        there = bool(node.in_bucket) or self._journal.may_be_done(node.seq)
        metadata = _metadata(node, node.mtime_ns) | {"content_type": _DIRECTORY_TYPE}
        seq = self._journal.queue_put(key + b"/", None, Stamp(0, node.mtime_ns, 0), metadata, ordered=False)
        self._tree.change(node.id, seq=seq, in_bucket=int(there))
        return seq

    def needs_no_marker(self, node: Node) -> None:
        """Something is in the directory: a marker that was not sent yet is not needed."""
        if self._journal.cancel(node.seq):
            there = bool(node.in_bucket) or self._journal.may_be_done(node.seq)
            self._tree.change(node.id, seq=None, in_bucket=int(there))

    def remove_directory(self, node: Node, key: bytes) -> int | None:
        """The directory is gone, and so shall be its marker."""
        was_there = bool(node.in_bucket) or bool(node.derived) or node.made_at is None
        self._journal.cancel(node.seq)
        was_there |= self._journal.may_be_done(node.seq)
        return self.delete(key + b"/") if was_there else None

    def _directory_changed(self, node: Node) -> int | None:
        if node.seq is not None or node.in_bucket or node.xattrs:
            return self.mark_directory(node)
        return None

    # ---- inside --------------------------------------------------------------------------------------------
    def _supersede(self, node: Node, key: bytes) -> bool:
        """Cancels what the next PUT of `key` makes needless. Whether the bucket has, or may get, an object there."""
        self._journal.cancel(node.seq)
        may_be_done = self._journal.may_be_done(node.seq)
        return self._cancel_needless(key) or may_be_done or bool(node.in_bucket)

    def _cancel_needless(self, key: bytes) -> bool:
        """Whether an object is, or may be, there: a deletion was among it, or something that had begun once."""
        operations = self._journal.open_of_key(key)
        if not operations or self._journal.is_source(key):
            return False
        taken = False
        for operation in operations:
            cancelled = self._journal.cancel(operation.seq)
            deletion = operation.kind == OperationKind.DELETE
            taken |= cancelled if deletion else self._journal.may_be_done(operation.seq)
        return taken


def _metadata(node: Node, mtime_ns: int) -> dict[str, Any]:
    found: dict[str, Any] = {"mtime_ns": mtime_ns, "mode": node.mode, "uid": node.uid, "gid": node.gid}
    if stat.S_ISLNK(node.mode):
        found["symlink"] = True
    if node.xattrs:
        found["xattrs"] = {name: value.hex() for name, value in node.extended.items()}
    return found
