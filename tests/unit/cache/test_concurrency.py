"""Many fetch threads, a sealer, a discarder and readers at once."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from mountkit.cache.checked import Missing, WouldBlock
from mountkit.cache.reader import SealedFile
from tests.unit.cache.harness import BLOCK, PART, Box, Thing, get, put

THINGS = [Thing(n, size) for n, size in enumerate([70_000, 300_000, BLOCK, 2 * BLOCK + 5, 5 * BLOCK] * 24)]


def test_thirty_two_writers_a_sealer_and_readers_agree(box: Box) -> None:  # noqa: C901 - three small actors
    writer, reader = box.writer(segment_bytes=8 << 20), box.reader()
    done = Event()

    def fetch(worker: int) -> None:
        chance = random.Random(worker)
        for thing in chance.sample(THINGS, 24):
            if chance.random() < 0.5:
                put(writer, thing)
                continue
            for part in chance.sample(range(thing.last_part + 1), thing.last_part + 1):
                writer.commit(writer.write(thing.content, thing.size, part, thing.parts(part, part)))

    def seal() -> int:
        sealed = 0
        while not done.is_set():
            for content, size in writer.unsealed(10):
                assert writer.seal(content, size)
                sealed += 1
        return sealed

    def read(worker: int) -> int:
        chance, right = random.Random(100 + worker), 0
        while not done.is_set():
            thing = chance.choice(THINGS)
            start = chance.randint(0, thing.size)
            answer = reader.read(thing.content, thing.size, start, 3 * PART, wait=bool(worker % 2))
            if isinstance(answer, bytes):
                assert answer == thing.data(start, start + 3 * PART)
                right += 1
            else:
                assert isinstance(answer, Missing | WouldBlock)
                assert not getattr(answer, "bad", False)
            sealed = reader.open_sealed(thing.content)
            if isinstance(sealed, SealedFile):
                assert os.pread(sealed.fd, PART, start) == thing.data(start, start + PART)
                os.close(sealed.fd)
        return right

    with ThreadPoolExecutor(40) as pool:
        others = [pool.submit(seal), *(pool.submit(read, n) for n in range(4))]
        fetchers = [pool.submit(fetch, n) for n in range(32)]
        try:
            for fetcher in fetchers:
                fetcher.result()
        finally:
            done.set()
        for other in others:
            assert other.result() > 0
    for thing in THINGS:
        if writer.is_complete(thing.content, thing.size):
            assert get(reader, thing) == thing.data()
            assert writer.seal(thing.content, thing.size)
    used = writer.usage().bytes_used
    writer.housekeep([])
    assert writer.usage().bytes_used <= used + len(THINGS) * 4096
    writer.close()
    reader.close()


def test_discards_beside_writes_never_leave_rows_without_bytes(box: Box) -> None:
    writer, reader = box.writer(segment_bytes=1 << 20), box.reader()
    few = THINGS[:10]

    def churn(worker: int) -> None:
        chance = random.Random(worker)
        for _ in range(60):
            thing = chance.choice(few)
            action = chance.random()
            if action < 0.2:
                writer.discard(thing.content)
            elif action < 0.4:
                writer.seal(thing.content, thing.size)
            elif action < 0.5:
                assert writer.recheck(thing.content, thing.size, 0, thing.last_part)
            else:
                put(writer, thing)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(churn, range(8)))
    for thing in few:
        answer = get(reader, thing)
        assert answer == thing.data() or answer == Missing(0, thing.last_part)
    writer.close()
    reader.close()
