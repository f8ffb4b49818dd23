"""kill -9 at any moment: what is there afterwards is right, and the cache works on."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from mountkit.cache.checked import Missing
from tests.unit.cache.harness import BLOCK, PART, Box, Thing, get, opened, put

SIZES = [1, 5_000, 100_000, PART, 400_000, BLOCK, BLOCK + 1, 3 * BLOCK + 77]


def things() -> list[Thing]:
    return [Thing(n, SIZES[n % len(SIZES)]) for n in range(160)]


def work(path: Path, seed: int) -> None:
    """Write, commit, seal, discard in four threads until killed; a line per hundred steps."""
    from concurrent.futures import ThreadPoolExecutor

    with opened(path) as box:
        writer = box.writer(segment_bytes=1 << 20)

        def steps(worker: int) -> None:
            chance = random.Random(seed * 10 + worker)
            for step in range(10**9):
                thing = chance.choice(things())
                action = chance.random()
                if action < 0.05:
                    writer.discard(thing.content)
                elif action < 0.3:
                    writer.seal(thing.content, thing.size)
                elif action < 0.6:
                    part = chance.randint(0, thing.last_part)
                    writer.commit(writer.write(thing.content, thing.size, part, thing.parts(part, part)))
                else:
                    put(writer, thing)
                if step % 25 == 0:
                    print(step, flush=True)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(steps, range(4)))


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_writer_leaves_right_bytes_or_none(box: Box, seed: int) -> None:
    reader = box.reader()
    cached = 0
    for life in range(3):
        call = f"work(pathlib.Path({str(box.path)!r}), {seed * 3 + life})"
        code = f"import pathlib; from tests.unit.cache.test_crash import work; {call}"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(10 + 7 * seed):
                assert child.stdout.readline(), "the writer died by itself"
                for thing in random.Random(life).sample(things(), 8):
                    answer = get(reader, thing)
                    assert isinstance(answer, Missing) or answer == thing.data()
            child.kill()
        writer = box.writer(segment_bytes=1 << 20)
        assert writer.warnings == ()
        for thing in things():
            for part in range(thing.last_part + 1):
                answer = get(reader, thing, part * PART, PART)
                if isinstance(answer, Missing):
                    assert not answer.bad, "rows are committed after their bytes"
                else:
                    assert answer == thing.parts(part, part)
                    cached += 1
            sealed = reader.open_sealed(thing.content)
            if hasattr(sealed, "fd"):
                with open(sealed.fd, "rb") as file:
                    assert file.read() == thing.data()
        writer.close()
    assert cached > 20
    writer = box.writer()
    put(writer, *things())
    for thing in things():
        assert writer.seal(thing.content, thing.size)
        assert get(reader, thing) == thing.data()
    writer.close()
    reader.close()
