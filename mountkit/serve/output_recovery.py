"""What an earlier mount of a state directory left: taken up, or kept for `outputs --export` where it is not whole.

All of it happens before the first request of a new session, in one transaction. After a power cut the journal may be
younger than the bytes that it promises: such bytes are never published. The file that they were to replace is taken
back if it is still there; staging keeps it until the next sync is over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os

from mountkit.catalog.schema import boot_id
from mountkit.serve.overlay import Overlay
from mountkit.staging.files import Stamp
from mountkit.staging.schema import OperationKind, OperationState
from mountkit.staging.tree import Abandoned, Entry, Node, NodeKind

log = logging.getLogger(__name__)
_WHY = {
    Abandoned.UNCLOSED: "was never closed",
    Abandoned.TORN: "lost bytes when the power was cut",
}


def begin_session(overlay: Overlay) -> None:
    """Settles what an earlier mount left open: nobody writes to it any more."""
    journal, nodes = overlay.journal, overlay.tree
    for ident, flags in nodes.open_nodes().items():
        node = nodes.node(ident)
        if node is not None and node.put_size is None and any(each & os.O_ACCMODE for each in flags):
            nodes.change(ident, abandoned=int(Abandoned.UNCLOSED))
    nodes.close_all_handles()
    journal.forget_replies()
    rows = journal.db.execute("SELECT id FROM node WHERE abandoned > 0 AND lost_path IS NULL")
    for (ident,) in rows.fetchall():
        _keep_for_export(overlay, ident)
    _check_staged(overlay)
    journal.set_setting("boot", boot_id())


def clear_staging(overlay: Overlay) -> None:
    """Removes staging files that a killed server made and never entered, or did not come to remove."""
    db = overlay.journal.db
    known = {file for (file,) in db.execute("SELECT file FROM node WHERE file IS NOT NULL")}
    known |= {
        file for (file,) in db.execute("SELECT file FROM operation WHERE file IS NOT NULL AND state IN (0, 1, 3)")
    }
    for number in overlay.staging.numbers():
        if number not in known:
            overlay.staging.remove(number)
            overlay.journal.forget_file(number)


def _check_staged(overlay: Overlay) -> None:
    """Files are published as they are now: nobody may have closed them after they were changed, or said so in time.

    Not those that a power cut has torn.
    """
    journal, nodes = overlay.journal, overlay.tree
    rebooted = journal.setting("boot") not in (None, boot_id())
    rows = journal.db.execute("SELECT id FROM node WHERE file IS NOT NULL AND names > 0 AND put_size IS NOT NULL")
    for (ident,) in rows.fetchall():
        node = nodes.node(ident)
        assert node is not None and node.file is not None
        stamp = _stamp(overlay, node.file)
        promised = Stamp(node.put_size or 0, node.put_mtime_ns or 0, node.put_ctime_ns or 0)
        if stamp is None or _is_torn(stamp, promised, rebooted=rebooted):
            _on_torn(overlay, node)
        elif stamp != promised:
            overlay.publisher.publish(node)


def _stamp(overlay: Overlay, number: int) -> Stamp | None:
    with contextlib.suppress(FileNotFoundError):
        return overlay.staging.stamp(number)
    return None


def _is_torn(stamp: Stamp, promised: Stamp, *, rebooted: bool) -> bool:
    """Whether the bytes are older than those that were promised: whatever writes to a file makes its ctime younger.

    Or emptied to be written anew, when the power was cut.
    """
    older = (stamp.ctime_ns, stamp.size) < (promised.ctime_ns, promised.size)
    return older or (rebooted and stamp.size < promised.size)


def _on_torn(overlay: Overlay, node: Node) -> None:
    """The journal reached the disk and these bytes did not."""
    journal, nodes = overlay.journal, overlay.tree
    number = node.file
    assert number is not None
    operation = journal.operation(node.seq) if node.seq else None
    if operation is not None and operation.state == OperationState.DONE:
        nodes.change(node.id, seq=None, etag=operation.etag, done_at=operation.finished_at)
        node = node._replace(seq=None, etag=operation.etag)
    if node.kind == NodeKind.SYMLINK:
        os.pwrite(overlay.staging.create(number), node.target or b"", 0)
        overlay.publisher.publish(node)
    elif node.seq is None and node.etag:
        overlay.become_object(node)
    else:
        journal.give_up(node.seq)
        entry = nodes.entry_of(node.id)
        nodes.change(node.id, seq=None, abandoned=int(Abandoned.TORN))
        _keep_for_export(overlay, node.id)
        if entry is not None:
            _take_back(overlay, entry, node)


def _keep_for_export(overlay: Overlay, ident: int) -> None:
    """Takes the file's name away and remembers it."""
    nodes = overlay.tree
    node, entry = nodes.node(ident), nodes.entry_of(ident)
    assert node is not None and node.file is not None
    path = b"" if entry is None else (nodes.path(entry.parent) or b"") + entry.name
    nodes.change(ident, lost_path=path, names=0)
    if entry is not None:
        nodes.forget(entry.parent, entry.name)
    if _stamp(overlay, node.file) is None:
        log.error("the bytes of %r are lost: was the disk cut off?", path)
        nodes.remove(ident)
    else:
        why = _WHY[Abandoned(node.abandoned)]
        log.warning("%r %s: what is there is kept, `mountkit outputs --export` copies it out", path, why)


def _take_back(overlay: Overlay, entry: Entry, torn: Node) -> None:
    """Gives a name to the file that had it before, unless the bucket has that one or its bytes are gone."""
    rows = overlay.journal.db.execute(
        "SELECT file, size, mtime_ns, ctime_ns, metadata, state FROM operation"
        " WHERE key = ? AND kind = ? AND file <> ? ORDER BY seq DESC",
        (overlay.publisher.key(entry.parent, entry.name), int(OperationKind.PUT), torn.file),
    )
    for file, size, mtime_ns, ctime_ns, metadata, state in rows.fetchall():
        if state == OperationState.DONE:
            return
        if _stamp(overlay, file) == Stamp(size, mtime_ns, ctime_ns):
            _restore(overlay, entry, file, json.loads(metadata), in_bucket=torn.in_bucket)
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
