"""The server's half of the journal: what is committed together, and what two connections see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from mountkit.staging import schema
from mountkit.staging.files import Stamp
from mountkit.staging.journal import Journal
from mountkit.staging.tree import NodeKind, seed

STAMP = Stamp(1, 2, 3)


@pytest.fixture
def journal(directory_fd: int) -> Iterator[Journal]:
    made = Journal(directory_fd)
    with made.transaction():
        seed(made.db, 0, 0, 1, 0o755)
    yield made
    made.close()


def test_the_mover_may_have_made_the_file_first(directory_fd: int) -> None:
    with closing(schema.open_journal(directory_fd)):
        pass
    with closing(Journal(directory_fd)) as journal, journal.transaction():
        seed(journal.db, 0, 0, 1, 0o755)


def test_nothing_of_a_transaction_that_failed_stays(journal: Journal) -> None:
    told: list[int] = []
    journal._changed = lambda: told.append(1)
    with pytest.raises(ZeroDivisionError), journal.transaction():
        ident = journal.tree.add(NodeKind.FILE, mode=0, uid=0, gid=0, mtime_ns=0, file=1)
        journal.tree.put(1, b"a", ident)
        handle = journal.tree.open_handle(ident, os.O_WRONLY)
        journal.queue_put(b"a", 1, STAMP, {}, ordered=False)
        raise ZeroDivisionError
    assert journal.tree.node(ident) is None
    assert journal.tree.find(1, b"a") is None
    assert journal.tree.handle(handle) is None
    assert journal.open_count() == 0
    assert not told


def test_what_memory_says_of_a_node_is_what_the_file_says(journal: Journal) -> None:
    with journal.transaction():
        ident = journal.tree.add(NodeKind.FILE, mode=0o644, uid=1, gid=2, mtime_ns=3, file=7)
        journal.tree.change(ident, size=9, etag='"x"')
        known = journal.tree.node(ident)
    journal.tree.undone()
    assert journal.tree.node(ident) == known


def test_an_operation_that_has_begun_is_not_cancelled(journal: Journal) -> None:
    with journal.transaction():
        seqs = [journal.queue_put(b"k%d" % n, 1, STAMP, {}, ordered=False) for n in range(5)]
        for state, seq in enumerate(seqs):
            journal.db.execute("UPDATE operation SET state = ? WHERE seq = ?", (state, seq))
        assert [journal.cancel(seq) for seq in seqs] == [True, False, False, True, False]


def test_a_put_keeps_its_place_when_other_bytes_take_its_own(journal: Journal) -> None:
    with journal.transaction():
        seq = journal.queue_put(b"a", 1, STAMP, {}, ordered=False)
        marker = journal.queue_put(b"latest", 2, STAMP, {}, ordered=True)
        assert journal.replace_put(seq, b"a", 1, Stamp(9, 9, 9), {}, live=False)
        assert not journal.replace_put(seq, b"b", 1, STAMP, {}, live=False)
    assert [each.seq for each in journal.open_of_key(b"a")] == [seq]
    assert seq < marker


def test_replies_are_found_by_request_and_opcode(journal: Journal) -> None:
    with journal.transaction():
        journal.remember_reply(10, 9, b"made")
    assert journal.reply(10, 9) == b"made"
    assert journal.reply(10, 11) is None
    assert journal.reply(12, 9) is None


def test_a_handles_number_is_never_given_out_twice(directory_fd: int) -> None:
    seen = set()
    for _ in range(3):
        with closing(Journal(directory_fd)) as journal, journal.transaction():
            handle = journal.tree.open_handle(5, 0)
            assert handle not in seen
            seen.add(handle)
            journal.tree.close_handle(handle)


def test_a_file_number_of_an_open_operation_is_not_used_again(directory_fd: int) -> None:
    with closing(Journal(directory_fd)) as journal, journal.transaction():
        number = journal.new_file()
        journal.queue_put(b"a", number, STAMP, {}, ordered=False)
    with closing(Journal(directory_fd)) as journal:
        assert journal.new_file() > number


def test_what_is_open_in_a_directory_is_found_by_key(journal: Journal) -> None:
    with journal.transaction():
        for key in (b"p/d/a", b"p/d/deep/x", b"p/d/", b"p/d0", b"p/e"):
            journal.queue_put(key, 1, STAMP, {}, ordered=False)
    assert journal.open_in_directory(b"p/d/") == [3, 1]
    assert sorted(journal.open_below(b"p/d/")) == [1, 2, 3]
