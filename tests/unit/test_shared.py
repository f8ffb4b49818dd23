"""The memory that outlives servers."""

import multiprocessing
import os
import random
from collections.abc import Iterator

import pytest

from mountkit.serve.shared import AnotherFileIsOpen, ServerCounters, SharedMemory


@pytest.fixture
def fd() -> Iterator[int]:
    fd = SharedMemory.create()
    yield fd
    os.close(fd)


def test_counters_are_seen_by_every_process_and_added_over_slots(fd: int) -> None:
    writer, reader = SharedMemory(fd), SharedMemory(fd)
    writer.store_counters(0, ServerCounters(reads=3, hits=2))
    writer.store_counters(5, ServerCounters(reads=4))
    assert reader.counters(0).hits == 2
    assert reader.total().reads == 7


def test_what_a_server_works_on_is_known_after_its_death(fd: int) -> None:
    server, keeper = SharedMemory(fd), SharedMemory(fd)
    server.request_buffer(1)[:40] = bytes(8) + (500).to_bytes(8, "little") + bytes(24)
    server.store_in_flight(1, 7, 488)
    server.store_in_flight(1, 8, 490)
    server.store_in_flight(1, 8, 0)
    server.store_in_flight(2, 1, 502)
    server.store_in_flight(2, 0, 504)  # no place was left
    assert keeper.in_flight(1) == {500, 488}
    keeper.clear_in_flight(1)
    assert keeper.in_flight(1) == {500}
    assert keeper.in_flight(2) == {502}
    assert keeper.counters(1) == ServerCounters()


def test_the_process_of_a_slot_is_known_after_its_death(fd: int) -> None:
    server, keeper = SharedMemory(fd), SharedMemory(fd)
    assert keeper.server(3) == (0, 0)
    server.store_server(3, 77, 12345)
    server.store_counters(3, ServerCounters(reads=1, pss_bytes=5))
    server.store_in_flight(3, 1, 8)
    assert keeper.server(3) == (77, 12345)


def test_all_opens_of_an_inode_share_one_backing_id_until_the_last_release(fd: int) -> None:
    one, other = SharedMemory(fd), SharedMemory(fd)
    closed: list[int] = []
    assert one.acquire_backing(77, 1, lambda: 5) == 5
    assert other.acquire_backing(77, 1, lambda: 6) == 5
    one.release_backing(77, closed.append)
    assert closed == []
    other.release_backing(77, closed.append)
    assert closed == [5]
    assert other.acquire_backing(77, 1, lambda: 6) == 6


def test_another_file_of_an_inode_waits_until_the_last_handle_of_the_old_one_is_closed(fd: int) -> None:
    one, other = SharedMemory(fd), SharedMemory(fd)
    for memory in (one, other):
        memory.acquire_backing(77, 1, lambda: 5)
    assert not one.is_barred(77)
    with pytest.raises(AnotherFileIsOpen):
        other.acquire_backing(77, 2, lambda: pytest.fail("the kernel would refuse it"))
    for memory in (one, other):
        assert memory.is_barred(77)
        with pytest.raises(AnotherFileIsOpen):
            memory.acquire_backing(77, 1, lambda: pytest.fail("it is still open"))
    closed: list[int] = []
    one.release_backing(77, closed.append)
    assert (closed, one.is_barred(77)) == ([], True)
    other.release_backing(77, closed.append)
    assert (closed, one.is_barred(77)) == ([5], False)
    assert one.acquire_backing(77, 2, lambda: 6) == 6


def test_releasing_what_is_not_there_does_nothing(fd: int) -> None:
    SharedMemory(fd).release_backing(1, lambda _: pytest.fail("nothing to close"))


def test_a_failed_open_leaves_no_entry(fd: int) -> None:
    memory = SharedMemory(fd)

    def fails() -> int:
        raise OSError

    with pytest.raises(OSError):
        memory.acquire_backing(3, 1, fails)
    assert memory.acquire_backing(3, 1, lambda: 9) == 9


def test_the_table_agrees_with_a_dictionary_over_random_opens_and_releases(fd: int) -> None:
    memory, rnd = SharedMemory(fd), random.Random(4)
    inodes = [rnd.randrange(1, 1 << 63) for _ in range(60)] + [n << 40 for n in range(1, 60)]
    model: dict[int, tuple[int, int]] = {}
    for step in range(6000):
        inode = rnd.choice(inodes)
        if rnd.random() < 0.5:
            expected = model[inode][0] if inode in model else step
            assert memory.acquire_backing(inode, 1, lambda s=step: s) == expected  # type: ignore[misc]
            model[inode] = expected, model.get(inode, (0, 0))[1] + 1
        else:
            closed: list[int] = []
            memory.release_backing(inode, closed.append)
            backing, opens = model.pop(inode, (0, 0))
            assert closed == ([backing] if opens == 1 else [])
            if opens > 1:
                model[inode] = backing, opens - 1


def _hammer(fd: int) -> None:
    memory = SharedMemory(fd)
    for _ in range(500):
        memory.acquire_backing(1, 1, lambda: 1)
    for _ in range(499):
        memory.release_backing(1, lambda _: os._exit(9))
    os._exit(0)


def test_processes_do_not_lose_each_others_counts(fd: int) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_hammer, args=(fd,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0] * 4
    memory, closed = SharedMemory(fd), list[int]()
    for _ in range(4):
        assert not closed
        memory.release_backing(1, closed.append)
    assert closed == [1]
