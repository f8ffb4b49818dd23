"""What an earlier mount of a state directory left: taken up, or kept for `outputs --export` where it is not whole.

All of it happens before the first request of a new session, in one transaction. After a power cut the journal may be
younger than the bytes that it promises: see `output_torn`.
"""

from __future__ import annotations

import os

from mountkit.catalog.schema import boot_id
from mountkit.serve import output_torn
from mountkit.serve.overlay import Overlay
from mountkit.staging.tree import Abandoned


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
        output_torn.keep_for_export(overlay, ident)
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
    torn, changed = [], []
    for (ident,) in rows.fetchall():
        node = overlay.fresh(ident)
        assert node.file is not None
        stamp = output_torn.stamp_of(overlay, node.file)
        if output_torn.is_torn(node, stamp, rebooted=rebooted):
            torn.append(node)
        elif stamp != output_torn.promised(node):
            changed.append(ident)
    output_torn.settle(overlay, torn)
    for ident in changed:
        left = nodes.node(ident)
        if left is not None and left.names:
            overlay.publisher.publish(left)
