"""Staged objects: an object of the bucket that is to be changed is copied into a staging file, which takes its name.

That file is another inode: one inode can never be open natively and through us, and who reads the old version keeps it.
So the operation is answered with ESTALE (see `Done`), and the kernel looks the name up anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3

from mountkit import names
from mountkit.catalog.values import SEALED_BIT, ObjectRow
from mountkit.serve.asking import MustAsk
from mountkit.serve.input_names import InputNames
from mountkit.serve.output_names import Place
from mountkit.serve.overlay import STAGE_S, Overlay
from mountkit.serve.values import FileSystemError
from mountkit.staging.tree import ROOT_NODE, Node, NodeKind


class StagedObjects:
    """All methods belong to one trio thread; `replace` into a transaction."""

    def __init__(self, overlay: Overlay, bucket: InputNames) -> None:
        self._overlay, self._bucket = overlay, bucket
        self._journal, self._tree, self._staging = overlay.journal, overlay.tree, overlay.staging
        self._publisher, self._names = overlay.publisher, overlay.names
        self._staged: dict[int, int] = {}
        """Staging files that hold an object version and that no node has taken yet, by object id."""

    def place_of(self, inode: int) -> Place:
        """Where an object of the bucket has its name. Raises FileSystemError: EPERM for those that have none."""
        ident = inode & ~SEALED_BIT
        node = self._tree.of_object(ident)
        if node is not None:
            entry = self._tree.entry_of(node.id)
            if entry is None:
                raise FileSystemError(errno.ESTALE)
            return Place(entry.parent, entry.name, entry, node, self._bucket.file(ident).row, 0.0)
        relative = self._bucket.file(ident).row.key[len(self._names.underlay.prefix) :]
        if names.classify(relative) is not names.KeyKind.PATH:
            raise FileSystemError(errno.EPERM)
        directory = self._overlay.fresh(ROOT_NODE)
        *above, last = relative.split(b"/")
        for word in above:
            place = self._names.find(directory, word)
            if not place.is_directory or place.node is None:
                raise FileSystemError(errno.ESTALE)
            directory = place.node
        place = self._names.find(directory, last)
        if place.row is None or place.row.id != ident:
            raise FileSystemError(errno.ESTALE)
        return place

    def stage(self, place: Place, *, truncate: bool) -> None:
        """Has the bytes of an object in a staging file. Raises MustAsk until they are there."""
        row = place.row
        assert row is not None
        if truncate or row.id in self._staged:
            return
        if row.size > self._overlay.free_bytes():
            raise FileSystemError(errno.ENOSPC)
        # Not `need`: that it was asked for is not enough, whoever shared the bytes may have taken or dropped them.
        raise MustAsk(("stage", row.id), lambda: self._ask_stage(row), lambda: self._drop(row))

    def replace(self, place: Place, *, truncate: bool) -> Node:
        """The node of a staged file in the place of an object."""
        row = place.row
        assert row is not None
        shown, _, _ = self._names.shown_at(place)
        xattrs = place.node.xattrs if place.node else None
        in_bucket = self._overlay.vacate(place)
        if truncate:
            number = self._journal.new_file()
            self._staging.create(number)
        else:
            number = self._staged[row.id]
            self._journal.when_committed(lambda: self._staged.pop(row.id))
            os.utime(self._staging.descriptor(number), ns=(shown.mtime_ns, shown.mtime_ns))
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
        self._overlay.make_explicit(self._overlay.fresh(place.parent))
        if not truncate:
            pending = place.node is not None and place.node.seq is not None
            if pending:  # under another name, or with other attributes, than the bucket has yet
                self._publisher.publish(self._overlay.fresh(ident))
            else:
                self._publisher.taken_over(ident, row.etag)
        return self._overlay.fresh(ident)

    async def _ask_stage(self, row: ObjectRow) -> None:
        number = self._journal.new_file()
        with self._journal.transaction():
            self._journal.enter_file(number)
        self._staging.create(number)
        self._staging.release(number)
        self._staging.filling.add(number)
        try:
            await self._overlay.call("stage", budget_s=STAGE_S, object=row.id, file=number)
        except BaseException:
            self._remove(number)
            raise
        finally:
            self._staging.filling.discard(number)
        if row.id in self._staged:  # somebody else had it staged meanwhile
            self._remove(number)
        else:
            self._staged[row.id] = number

    def _drop(self, row: ObjectRow) -> None:
        """Who asked for the bytes is answered; where he did not take them nobody will."""
        number = self._staged.pop(row.id, None)
        if number is not None:
            self._remove(number)

    def _remove(self, number: int) -> None:
        self._staging.remove(number)
        with contextlib.suppress(sqlite3.Error):  # a row too many does no harm
            self._journal.forget_file(number)
