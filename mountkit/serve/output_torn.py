"""What a power cut has torn: staged bytes that are older than the journal promises, and what was to come after them.

Torn bytes are never published; the file that they were to replace is taken back if it is still there, staging keeps it
until the next sync is over. Nor is anything that the bucket was to see only after them: a marker may name them, a file
may have been deleted because they were there. All that is given up together, as if it had not been done, so that the
bucket never shows an effect without its cause. Staged bytes that lose their name are kept for `outputs --export`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

from mountkit.serve.overlay import Overlay
from mountkit.staging.files import Stamp
from mountkit.staging.schema import OperationKind, OperationState
from mountkit.staging.tree import Abandoned, Entry, Node, NodeKind

log = logging.getLogger(__name__)
_WHY = {
    Abandoned.UNCLOSED: "was never closed",
    Abandoned.TORN: "lost bytes when the power was cut",
    Abandoned.BEHIND: "was closed after something that lost bytes when the power was cut",
}


class _Loss(NamedTuple):
    """Bytes that were to come, with which operation, and when they were written."""

    seq: int
    since_s: float

    def precedes(self, seq: int, queued_at: float, ctime_ns: int) -> bool:
        """Whether an ordered operation was to come after these very bytes.

        A file that is closed again keeps its place in the order: not what was closed before it was written last.
        """
        return seq > self.seq and max(queued_at, ctime_ns / 1e9) >= self.since_s


def promised(node: Node) -> Stamp:
    """The stamp of the bytes as they were promised last."""
    return Stamp(node.put_size or 0, node.put_mtime_ns or 0, node.put_ctime_ns or 0)


def is_torn(node: Node, stamp: Stamp | None, *, rebooted: bool) -> bool:
    """Whether the disk has not all of the bytes that were promised. Without a reboot: whether it has none.

    Whatever writes to a file makes its ctime younger; it may also have been emptied to be written anew when the power
    was cut. While the machine runs, nothing that was written is lost: an older ctime is that of a clock set back.
    """
    if stamp is None:
        return True
    wanted = promised(node)
    return rebooted and (stamp.ctime_ns < wanted.ctime_ns or stamp.size < wanted.size)


def stamp_of(overlay: Overlay, number: int) -> Stamp | None:
    """What is there of a staging file; None if nothing is."""
    with contextlib.suppress(FileNotFoundError):
        return overlay.staging.stamp(number)
    return None


def keep_for_export(overlay: Overlay, ident: int) -> None:
    """Takes the name away from a file that is abandoned, and remembers it."""
    nodes = overlay.tree
    node, entry = nodes.node(ident), nodes.entry_of(ident)
    assert node is not None and node.file is not None
    path = b"" if entry is None else (nodes.path(entry.parent) or b"") + entry.name
    nodes.change(ident, lost_path=path, names=0)
    if entry is not None:
        _forget(overlay, entry)
    if stamp_of(overlay, node.file) is None:
        log.error("the bytes of %r are lost: was the disk cut off?", path)
        nodes.remove(ident)
    else:
        why = _WHY[Abandoned(node.abandoned)]
        log.warning("%r %s: what is there is kept, `mountkit outputs --export` copies it out", path, why)


def settle(overlay: Overlay, torn: Sequence[Node]) -> None:
    """Gives up these files' bytes and all that was to come after them; within one transaction."""
    whole = [node for node in torn if not _recover(overlay, overlay.fresh(node.id))]
    losses = [_Loss(node.seq or 0, (node.put_ctime_ns or 0) / 1e9) for node in whole]
    undone = _undo_what_followed(overlay, losses, {node.id for node in whole})
    for node in whole:
        overlay.journal.give_up(node.seq)
        overlay.journal.give_up_file(node.file)
        _abandon(overlay, node, Abandoned.TORN, losses)
    if undone:
        log.warning("%d later changes are undone: they were to come after bytes that are lost", undone)


def _recover(overlay: Overlay, node: Node) -> bool:
    """Whether nothing is lost of a torn file: the bucket has those bytes, or the journal itself."""
    nodes, journal = overlay.tree, overlay.journal
    operation = journal.operation(node.seq) if node.seq else None
    if operation is not None and operation.state == OperationState.DONE:
        nodes.change(node.id, seq=None, etag=operation.etag, done_at=operation.finished_at)
        node = overlay.fresh(node.id)
    if node.kind == NodeKind.SYMLINK and node.file is not None:
        os.pwrite(overlay.staging.create(node.file), node.target or b"", 0)
        overlay.publisher.publish(node)
        return True
    if node.seq is None and node.etag:
        overlay.become_object(node)
        return True
    return False


def _undo_what_followed(overlay: Overlay, losses: Sequence[_Loss], torn: set[int]) -> int:
    """Gives up every ordered operation that was to come after these; how many."""
    db = overlay.journal.db
    rows = db.execute(
        "SELECT seq, queued_at, ctime_ns FROM operation WHERE ordered = 1 AND state IN (0, 1, 3) ORDER BY seq DESC"
    ).fetchall()
    late = [seq for seq, queued_at, ctime_ns in rows if any(each.precedes(seq, queued_at, ctime_ns) for each in losses)]
    for seq in late:
        overlay.journal.give_up(seq)
        for entry in overlay.tree.absent_because(seq):  # deleted: as if it had not been
            overlay.tree.forget(entry.parent, entry.name)
        for (ident,) in db.execute("SELECT id FROM node WHERE seq = ?", (seq,)).fetchall():
            if ident not in torn:
                _take_name(overlay, overlay.fresh(ident), losses)
    return len(late)


def _take_name(overlay: Overlay, node: Node, losses: Sequence[_Loss]) -> None:
    """What was to have its name only after bytes that are lost: the bucket has no word of it."""
    if node.kind == NodeKind.OBJECT:
        entry = overlay.tree.entry_of(node.id)
        overlay.tree.change(node.id, names=0, seq=None)
        if entry is not None:
            _forget(overlay, entry)
    elif node.file is not None:
        _abandon(overlay, node, Abandoned.BEHIND, losses)


def _abandon(overlay: Overlay, node: Node, why: Abandoned, losses: Sequence[_Loss]) -> None:
    entry = overlay.tree.entry_of(node.id)
    overlay.tree.change(node.id, seq=None, abandoned=int(why))
    keep_for_export(overlay, node.id)
    if entry is not None:
        _take_back(overlay, entry, node, losses)


def _forget(overlay: Overlay, entry: Entry) -> None:
    overlay.tree.forget(entry.parent, entry.name)
    overlay.tree.change(entry.parent, thinned=1)


def _take_back(overlay: Overlay, entry: Entry, lost: Node, losses: Sequence[_Loss]) -> None:
    """Gives a name to the file that had it before, unless the bucket has that one or its bytes are gone."""
    rows = overlay.journal.db.execute(
        "SELECT file, size, mtime_ns, ctime_ns, metadata, state, seq, queued_at, ordered FROM operation"
        " WHERE key = ? AND kind = ? AND file <> ? ORDER BY seq DESC",
        (overlay.publisher.key(entry.parent, entry.name), int(OperationKind.PUT), lost.file),
    )
    for file, size, mtime_ns, ctime_ns, metadata, state, seq, queued_at, ordered in rows.fetchall():
        if state == OperationState.DONE:
            return
        if ordered and any(each.precedes(seq, queued_at, ctime_ns) for each in losses):
            continue
        if stamp_of(overlay, file) == Stamp(size, mtime_ns, ctime_ns):
            _restore(overlay, entry, file, json.loads(metadata), in_bucket=lost.in_bucket)
            return


def _restore(overlay: Overlay, entry: Entry, file: int, metadata: dict[str, int], *, in_bucket: int) -> None:
    nodes = overlay.tree
    ident = nodes.add(
        NodeKind.FILE,
        file=file,
        **{name: metadata[name] for name in ("mode", "uid", "gid", "mtime_ns")},
        xattrs=json.dumps(metadata.get("xattrs", {})),
        in_bucket=in_bucket,
    )
    nodes.put(entry.parent, entry.name, ident)
    restored = nodes.node(ident)
    assert restored is not None
    overlay.publisher.publish(restored)
