"""Renames: a name and all that is below it elsewhere at once here, and copied and deleted in the bucket after that.

A change is made as `overlay` says. Before a directory of the bucket is renamed the overlay takes in all that is below
it, so that nothing of it is looked for at the old place; nodes, and so inodes, stay what they are.
"""

from __future__ import annotations

import errno
import time

from mountkit.serve.output_entries import Entries
from mountkit.serve.output_names import Place
from mountkit.serve.overlay import STAGE_S, Overlay
from mountkit.serve.values import FileSystemError
from mountkit.staging.tree import Node, NodeKind

_NOREPLACE = 1
_OBJECTS_MAX = 100_000


class Renames:
    """All methods belong to one trio thread, and into a transaction."""

    def __init__(self, overlay: Overlay, entries: Entries) -> None:
        self._overlay, self._entries = overlay, entries
        self._journal, self._tree, self._publisher = overlay.journal, overlay.tree, overlay.publisher
        self._names, self._listing = overlay.names, overlay.listing

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        if flags & ~_NOREPLACE:
            raise FileSystemError(errno.EINVAL)
        directory, place = self._entries.old_place(parent, name)
        new_directory, new_place = self._entries.new_place(new_parent, new_name)
        if new_place.exists and flags & _NOREPLACE:
            raise FileSystemError(errno.EEXIST)
        if (directory.id, place.name) == (new_directory.id, new_place.name):
            return
        if place.is_directory:
            assert place.node is not None
            self._rename_directory(directory, place, place.node, new_directory, new_place)
        else:
            if new_place.is_directory:
                raise FileSystemError(errno.EISDIR)
            self._rename_file(directory, place, new_directory, new_place)
        self._overlay.touch(directory, thinned=True)
        self._overlay.touch(self._overlay.fresh(new_directory.id))

    def _rename_file(self, directory: Node, place: Place, new_directory: Node, new_place: Place) -> None:
        old_key = self._publisher.key(directory.id, place.name)
        replaces = _etag_at(new_place)
        taken = self._overlay.vacate(new_place)
        node = place.node or self._overlay.object_node(place)
        self._tree.forget(directory.id, place.name)
        self._tree.put(new_directory.id, new_place.name, node.id)
        self._move(node, old_key, taken=taken, replaces=replaces)
        self._overlay.leave(directory, place.name, old_key)

    def _rename_directory(
        self, directory: Node, place: Place, node: Node, new_directory: Node, new_place: Place
    ) -> None:
        if self._tree.is_below(new_directory.id, node.id):
            raise FileSystemError(errno.EINVAL)
        if new_place.exists:
            if not new_place.is_directory or new_place.node is None:
                raise FileSystemError(errno.ENOTDIR)
            self._entries.take_away(new_directory, new_place, new_place.node)
        self._take_in(node)
        old_key = self._publisher.key(directory.id, place.name)
        moved = [(n, self._publisher.key(e.parent, e.name)) for e, n in self._tree.below(node.id) if n is not None]
        self._tree.forget(directory.id, place.name)
        self._tree.put(new_directory.id, new_place.name, node.id)
        self._tree.forget_paths()
        self._names.underlay.forget_catalog_ids()
        last = self._move_directory(self._overlay.fresh(node.id), old_key)
        for each, key in moved:
            if each.kind == NodeKind.DIRECTORY:
                last = self._move_directory(self._overlay.fresh(each.id), key) or last
            else:
                self._move(each, key, taken=False)
        below = self._journal.open_below(old_key + b"/")
        last = max(below, default=last)
        self._tree.put(directory.id, place.name, None, seq=last)
        if last is None:
            self._overlay.mark_gone(directory, place.name)

    def _move(self, node: Node, old_key: bytes, *, taken: bool, replaces: str = "") -> None:
        writers = self._tree.has_writers(node.id)
        self._publisher.move(node, old_key, taken=taken, replaces=replaces, writers=writers)

    def _move_directory(self, node: Node, old_key: bytes) -> int | None:
        """Markers and the dates of a directory whose path is another now."""
        seq = self._publisher.remove_directory(node, old_key)
        self._tree.change(node.id, derived=0, made_at=time.time(), seq=None, in_bucket=0)
        # What was removed in it before is no concern of the new place.
        self._journal.db.execute("DELETE FROM entry WHERE parent = ? AND node IS NULL", (node.id,))
        if not self._tree.children(node.id, limit=1):
            self._publisher.mark_directory(self._overlay.fresh(node.id))
        return seq

    def _take_in(self, node: Node) -> None:
        """Has the overlay know everything below a directory, so that the bucket need not be looked at any more."""
        above = self._catalog_id_of_all(node)
        if above is None:
            return
        self._names.asking.need(("tree", above), lambda: self._ask_tree(above))
        pending = [node]
        while pending:
            directory = pending.pop()
            for name in self._listing.names(directory):
                place = self._names.find(directory, name)
                if place.is_directory and place.node is not None:
                    self._tree.change(place.node.id, derived=0)
                    pending.append(place.node)
                elif place.row is not None and place.node is None:
                    self._tree.put(directory.id, name, self._overlay.object_node(place).id)

    def _catalog_id_of_all(self, node: Node) -> int | None:
        """The directory of the catalog that may have more names than the overlay knows."""
        made_here = node.made_at is not None and not node.in_bucket
        if made_here and time.time() - (node.made_at or 0.0) < self._overlay.show.ttl_s:
            return None
        return self._names.underlay.catalog_id(node)

    async def _ask_tree(self, directory: int) -> None:
        answer = await self._overlay.call("tree", budget_s=STAGE_S, directory=directory)
        if answer.get("objects", 0) > _OBJECTS_MAX:
            raise FileSystemError(errno.EXDEV)


def _etag_at(place: Place) -> str:
    """Which object the bucket has at a name, as the mount shows it; empty where it has none yet."""
    if place.row is not None:
        return place.row.etag
    return (place.node.etag or place.node.if_match or "") if place.node is not None else ""
