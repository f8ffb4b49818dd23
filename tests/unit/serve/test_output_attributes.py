"""What a change of attributes queues for the bucket."""

from __future__ import annotations

import time

from mountkit.staging.tree import NODE_BIT
from tests.unit.serve.outputs import NOTHING, Outputs


def test_times_set_after_close_go_with_the_file_or_after_it(out: Outputs) -> None:
    inode = out.write("a", b"x")
    out.do(out.fs.attributes.set_attributes, inode, NOTHING._replace(mtime_ns=10**18), 0)
    assert out.queued() == ["PUT a"]
    out.finish()
    out.do(out.fs.attributes.set_attributes, inode, NOTHING._replace(mtime_ns=2 * 10**18), 0)
    assert out.queued() == ["COPY a a"]
    assert out.fs.names.attributes(inode)[0].mtime_ns == 2 * 10**18


def test_a_directory_shows_when_its_names_were_changed_as_finely_as_a_local_one(out: Outputs) -> None:
    inode = out.mkdir("d")
    out.journal.db.execute("UPDATE node SET mtime_ns = 5 WHERE id = ?", (inode & ~NODE_BIT,))
    out.journal.tree.undone()
    for name in ("a", "b", "c"):
        before = time.time_ns()
        out.write(name, b"x", inode)
        assert out.node_of(inode).mtime_ns >= before - 4_000_000
