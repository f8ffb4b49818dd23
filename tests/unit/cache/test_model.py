"""The cache against a dictionary: random writes, seals, discards, reopens and corruption; never a wrong byte."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mountkit.cache.checked import Missing
from mountkit.cache.index_writer import BlockRow
from mountkit.cache.reader import SealedFile
from tests.unit.cache.harness import BLOCK, LIFE, NEXT_LIFE, PART, Box, Thing, flip, get

THINGS = [Thing(1, 1), Thing(2, 200_000), Thing(3, BLOCK), Thing(4, BLOCK + 1), Thing(5, 2 * BLOCK + 3 * PART)]
a_thing = st.sampled_from(THINGS)


class CacheMachine(RuleBasedStateMachine):
    """`model` holds the parts that must be there; after corruption it only says what may be there."""

    @initialize()
    def begin(self) -> None:
        self.path = Path(tempfile.mkdtemp())
        self.box = Box(self.path)
        self.writer = self.box.writer(segment_bytes=1 << 20)
        self.reader = self.box.reader()
        self.model: dict[int, set[int]] = {thing.seed: set() for thing in THINGS}
        self.uncommitted: list[tuple[Thing, int, tuple[BlockRow, ...]]] = []
        self.intact = True

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
            self.reader.close()
            self.box_close()
            shutil.rmtree(self.path)

    def box_close(self) -> None:
        os.close(self.box.fd)

    @rule(thing=a_thing, data=st.data(), later=st.booleans())
    def write(self, thing: Thing, data: st.DataObject, later: bool) -> None:
        first = data.draw(st.integers(0, thing.last_part))
        last = data.draw(st.integers(first, thing.last_part))
        rows = self.writer.write(thing.content, thing.size, first, thing.parts(first, last))
        if later:
            self.uncommitted.append((thing, first, rows))
        else:
            self.writer.commit(rows)
            self.model[thing.seed] |= set(range(first, last + 1))

    @rule()
    def commit(self) -> None:
        self.writer.commit(row for _, _, rows in self.uncommitted for row in rows)
        for thing, _, rows in self.uncommitted:
            for row in rows:
                parts = {row.index * 8 + n for n in range(8) if row.parts >> n & 1}
                self.model[thing.seed] |= parts
        self.uncommitted = []

    @rule(thing=a_thing)
    def discard(self, thing: Thing) -> None:
        self.writer.discard(thing.content)
        self.model[thing.seed] = set()
        self.uncommitted = [entry for entry in self.uncommitted if entry[0] != thing]

    @rule(thing=a_thing)
    def seal(self, thing: Thing) -> None:
        complete = len(self.model[thing.seed]) == thing.last_part + 1
        sealed = self.writer.seal(thing.content, thing.size)
        if self.intact:
            assert sealed == complete
        found = self.reader.open_sealed(thing.content)
        if isinstance(found, SealedFile):
            with open(found.fd, "rb") as file:
                assert not sealed or file.read() == thing.data()
        else:
            assert not sealed

    @rule()
    def seal_some(self) -> None:
        whole = [thing for thing in THINGS if len(self.model[thing.seed]) == thing.last_part + 1]
        self.writer.seal_some([(thing.content, thing.size) for thing in THINGS], stop=lambda: False)
        if self.intact:
            assert [thing for thing in THINGS if self.reader.is_sealed(thing.content)] == whole

    @rule(thing=a_thing)
    def verify(self, thing: Thing) -> None:
        if self.reader.sealed(thing.content) is None:
            assert not self.writer.verify(thing.content)
        elif not self.writer.verify(thing.content):
            assert not self.intact
            self.model[thing.seed] = set()

    @rule(life=st.sampled_from([LIFE, NEXT_LIFE]))
    def reopen(self, life: bytes) -> None:
        self.writer.close()
        self.uncommitted = []
        self.writer = self.box.writer(life=life, segment_bytes=1 << 20)
        assert self.writer.warnings == ()

    @rule()
    def housekeep(self) -> None:
        self.writer.housekeep([])

    @rule(data=st.data())
    def corrupt(self, data: st.DataObject) -> None:
        paths = sorted(p for d in ("segments", "objects") for p in (self.path / d).rglob("*") if p.is_file())
        paths = [p for p in paths if p.stat().st_size]
        if paths:
            path = data.draw(st.sampled_from(paths))
            flip(path, data.draw(st.integers(0, path.stat().st_size - 1)))
            self.intact = False

    @rule(thing=a_thing)
    def recheck(self, thing: Thing) -> None:
        assert self.writer.recheck(thing.content, thing.size, 0, thing.last_part) or not self.intact
        answer = get(self.reader, thing)
        assert not isinstance(answer, Missing) or not answer.bad

    @invariant()
    def bytes_are_right(self) -> None:
        for thing in THINGS:
            for part in range(thing.last_part + 1):
                answer = get(self.reader, thing, part * PART, PART)
                if isinstance(answer, Missing):
                    assert not self.intact or (part not in self.model[thing.seed] and not answer.bad)
                else:
                    assert answer == thing.parts(part, part), "also of what a reader remembers from before a discard"
            if self.intact:
                missing = self.writer.missing(thing.content, thing.size, 0, thing.last_part)
                absent = {part for run in missing for part in run}
                assert absent == set(range(thing.last_part + 1)) - self.model[thing.seed]


CacheMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestCacheAgainstItsModel = CacheMachine.TestCase
