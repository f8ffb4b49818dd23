"""What is done without being asked for."""

from __future__ import annotations

import errno
import os

from tests.unit.mover.harness import in_trio
from tests.unit.serve.outputs import ME, NOTHING, Outputs, W, lose_catalog, refused


def test_a_log_is_sent_while_it_is_open_and_a_checkpoint_is_not(out: Outputs) -> None:
    log, _ = out.do(out.fs.entries.create, 1, b"log", 0o644, W | os.O_APPEND, ME)
    checkpoint, _ = out.do(out.fs.entries.create, 1, b"ckpt", 0o644, W, ME)
    out.fs.files.write(log.inode, 0, memoryview(b"line"))
    for turn in range(3):
        out.fs.files.write(checkpoint.inode, turn << 21, memoryview(bytes(1 << 21)))
        out.upkeep.upload_what_grows()
    assert out.queued() == ["PUT log"]


def test_a_clean_file_makes_room_and_keeps_its_dates(directory_fd: int) -> None:
    out = Outputs(directory_fd, staging_size_bytes=64 << 10)
    out.holds()
    inode = out.write("a", bytes(60_000))
    out.do(out.fs.attributes.set_attributes, inode, NOTHING._replace(mtime_ns=10**18), 0)
    out.finish('"a"')
    out.holds("a")
    out.upkeep.look()
    assert out.staging.numbers() == []
    place = out.fs.names.lookup(1, b"a")
    assert out.fs.names.shown_at(place)[0].mtime_ns == 10**18


def test_a_file_that_made_room_is_looked_up_anew_by_who_still_knows_its_inode(directory_fd: int) -> None:
    """The kernel keeps a name for the TTL: an open or a truncation may come without a lookup."""
    out = Outputs(directory_fd, staging_size_bytes=64 << 10)
    out.holds()
    inode = out.write("a", bytes(60_000))
    out.finish('"a"')
    out.holds("a")
    out.upkeep.look()
    assert out.staging.numbers() == []
    refused(errno.ESTALE, out, out.fs.files.open, inode, os.O_RDONLY)
    refused(errno.ESTALE, out, out.fs.files.open, inode, W)
    refused(errno.ESTALE, out, out.fs.attributes.set_attributes, inode, NOTHING._replace(size=5), 0)


@in_trio
async def test_a_catalog_that_cannot_be_read_leaves_thinned_directories_for_later(out: Outputs) -> None:
    inode = out.mkdir("d")
    out.finish()
    out.write("f", b"x", inode)
    out.do(out.fs.entries.unlink, inode, b"f")
    out.journal.db.execute("UPDATE node SET made_at = NULL, in_bucket = 0 WHERE thinned = 1")
    out.journal.tree.undone()
    lose_catalog(out)
    await out.upkeep.mark_empty_directories()
    assert out.journal.db.execute("SELECT count(*) FROM node WHERE thinned = 1").fetchone() == (1,)
