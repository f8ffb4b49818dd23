"""What a change of attributes queues for the bucket."""

from __future__ import annotations

from tests.unit.serve.outputs import NOTHING, Outputs


def test_times_set_after_close_go_with_the_file_or_after_it(out: Outputs) -> None:
    inode = out.write("a", b"x")
    out.do(out.fs.attributes.set_attributes, inode, NOTHING._replace(mtime_ns=10**18), 0)
    assert out.queued() == ["PUT a"]
    out.finish()
    out.do(out.fs.attributes.set_attributes, inode, NOTHING._replace(mtime_ns=2 * 10**18), 0)
    assert out.queued() == ["COPY a a"]
    assert out.fs.names.attributes(inode)[0].mtime_ns == 2 * 10**18
