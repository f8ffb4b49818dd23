"""The journal's two halves against each other, at random.

An output server changes names and bytes, and movers are killed under it. In the end nothing waits, and the bucket has
what the mount shows.
"""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio

from mountkit.catalog.values import ObjectRow
from mountkit.mover import uploads
from mountkit.mover.upload_jobs import in_directory
from mountkit.mover.upload_order import UploadOrder
from mountkit.mover.uploads import Uploads
from mountkit.serve.values import FileSystemError
from mountkit.staging import schema
from mountkit.staging.queue import UploadJournal
from mountkit.staging.tree import Node, NodeKind
from mountkit.store.retry import RetryingStore
from tests.fakes.memory_store import MemoryStore
from tests.unit.mover.harness import in_trio
from tests.unit.serve.outputs import ME, NOTHING, Outputs, W

STEPS = 60
PREFIX = b"p/"


class SlowStore(MemoryStore):
    """One that takes a moment for each PUT, as long as a file may change under it."""

    chance = random.Random(0)

    def put_object(self, *args: Any, **named: Any) -> Any:
        time.sleep(self.chance.random() * 0.02)
        return super().put_object(*args, **named)


class Program:
    """What runs on the mount: writes, renames and removes files of few names, each step one of it.

    Some of the names are the bucket's at first; of those and what was renamed the mode is changed, too.
    """

    def __init__(self, out: Outputs, chance: random.Random) -> None:
        self.out, self._chance = out, chance
        self._directories = {"": 1, "d0": out.mkdir("d0"), "d1": out.mkdir("d1")}
        self._open: list[tuple[int, int]] = []
        self._count = 0
        self._objects: dict[int, bytes] = {self._row(b"f%d" % number).id: b"object %d" % number for number in range(3)}
        """What the bucket held at first."""

    def step(self) -> None:
        acts: list[tuple[Callable[[], None], float]] = [
            (self._write, 6),
            (self._begin, 3),
            (self._end, 3),
            (self._rename, 3),
            (self._remove, 2),
            (self._change_mode, 2),
            (self._rotate, 3),
            (self._rename_directory, 1),
            (self._look, 2),
            (self._restart, 0.5),
        ]
        (act,) = self._chance.choices([act for act, _ in acts], [weight for _, weight in acts])
        with suppress(FileSystemError):  # there may be nothing of that name
            act()

    def close_all(self) -> None:
        while self._open:
            self._end()

    def shown(self) -> dict[bytes, tuple[bytes, int]]:
        """What a reader of the mount finds in it: bytes, and permissions."""
        rows = self.out.journal.db.execute(
            "SELECT e.parent, e.name, n.id FROM entry e JOIN node n ON n.id = e.node WHERE n.kind <> ?",
            (int(NodeKind.DIRECTORY),),
        ).fetchall()
        found = {}
        for parent, name, ident in rows:
            path, node = self.out.journal.tree.path(parent), self.out.journal.tree.node(ident)
            assert path is not None and node is not None
            found[PREFIX + path + name] = self._bytes(node), node.mode & 0o777
        for number in range(3):  # what nobody has touched
            place = self.out.fs.names.lookup(1, b"f%d" % number)
            if place.node is None and place.row is not None:
                found[place.row.key] = self._objects[place.row.id], 0o644
        return found

    def _bytes(self, node: Node) -> bytes:
        if node.file is None:
            assert node.object is not None
            return self._objects[node.object]
        return os.pread(self.out.staging.descriptor(node.file), self.out.staging.status(node.file).st_size, 0)

    def _row(self, name: bytes) -> ObjectRow:
        row = self.out.fs.names.lookup(1, name).row
        assert row is not None
        return row

    def _place(self) -> tuple[int, bytes]:
        return self._chance.choice(list(self._directories.values())), b"f%d" % self._chance.randrange(3)

    def _create(self, data: bytes, place: tuple[int, bytes] | None = None) -> tuple[int, int]:
        parent, name = place or self._place()
        if self.out.fs.names.lookup(parent, name).row is not None:  # else its bytes had to be fetched
            self.out.do(self.out.fs.entries.unlink, parent, name)
        node, handle = self.out.do(self.out.fs.entries.create, parent, name, 0o644, W | os.O_TRUNC, ME)
        self.out.fs.files.write(node.inode, 0, memoryview(data))
        return node.inode, handle

    def _close(self, handle: int) -> None:
        self.out.do(self.out.fs.files.flush, handle, dying=lambda: False)
        self.out.do(self.out.fs.files.release, handle)

    def _write(self, place: tuple[int, bytes] | None = None) -> None:
        self._count += 1
        self._close(self._create(b"%d" % self._count * self._chance.randrange(1, 9), place)[1])

    def _begin(self) -> None:
        self._open.append(self._create(b"half"))

    def _end(self) -> None:
        if self._open:
            inode, handle = self._open.pop(self._chance.randrange(len(self._open)))
            self.out.fs.files.write(inode, 0, memoryview(b"whole"))
            self._close(handle)

    def _rename(self) -> None:
        self._move(self._place(), self._place())

    def _move(self, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        self.out.do(self.out.fs.renames.rename, *old, *new, 0)

    def _rotate(self) -> None:
        """Something gives way to a new file of its name, and is then changed, moved on or moved back."""
        old, new = self._place(), self._place()
        self._move(old, new)
        if self._chance.random() < 0.8:
            self._write(old)
        if self._chance.random() < 0.5:
            self._change_mode(new)
        if self._chance.random() < 0.5:
            self._move(new, self._chance.choice((old, self._place())))

    def _remove(self) -> None:
        self.out.do(self.out.fs.entries.unlink, *self._place())

    def _change_mode(self, at: tuple[int, bytes] | None = None) -> None:
        place = self.out.fs.names.lookup(*(at or self._place()))
        inode = place.node.inode if place.node is not None else place.row.id if place.row is not None else None
        if inode is not None:
            changes = NOTHING._replace(mode=self._chance.choice((0o600, 0o640)))
            self.out.do(self.out.fs.attributes.set_attributes, inode, changes, 0)

    def _rename_directory(self) -> None:
        self._count += 1
        name = self._chance.choice([name for name in self._directories if name])
        new = f"x{self._count}"
        self.out.do(self.out.fs.renames.rename, 1, name.encode(), 1, new.encode(), 0)
        self._directories[new] = self._directories.pop(name)

    def _look(self) -> None:
        self.out.upkeep.look()

    def _restart(self) -> None:
        self.out = self.out.again(first=False)


class Movers:
    """One after another, each until it is killed."""

    def __init__(self, directory_fd: int, store: MemoryStore, nursery: trio.Nursery) -> None:
        self._fd, self._store, self._nursery = directory_fd, store, nursery
        self._staging_fd = os.open(schema.STAGING, os.O_RDONLY, dir_fd=directory_fd)
        self._scope: trio.CancelScope | None = None
        self.uploads: Uploads

    async def begin(self) -> None:
        if self._scope is not None:
            self._scope.cancel()  # threads go on wherever they are, as bytes on their way do
        self._scope = await self._nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        journal = UploadJournal(self._fd)
        store = RetryingStore(self._store, budget_s=0.3, metadata_budget_s=0.3)
        self.uploads = Uploads(journal, in_directory(self._staging_fd), store, None)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.uploads.run)
                task_status.started(nursery.cancel_scope)
        finally:
            journal.close()

    def close(self) -> None:
        os.close(self._staging_fd)


@asynccontextmanager
async def moving(directory_fd: int, store: MemoryStore) -> AsyncIterator[Movers]:
    async with trio.open_nursery() as nursery:
        movers = Movers(directory_fd, store, nursery)
        await movers.begin()
        yield movers
        nursery.cancel_scope.cancel()
    movers.close()


async def _silent(_: dict[str, Any]) -> None:
    pass


def _mode(store: MemoryStore, key: bytes) -> int:
    """As the bucket has it; what nobody has changed has none."""
    return int(store.head(key).metadata.get("mode", 0o644)) & 0o777


@pytest.mark.parametrize("seed", [*range(1, 8), *(pytest.param(n, marks=pytest.mark.soak) for n in range(8, 200))])
@in_trio
async def test_whatever_happens_a_drain_ends_and_the_bucket_has_what_the_mount_shows(
    directory_fd: int, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """[uploads-1] [uploads-5]"""
    monkeypatch.setattr(uploads, "UploadOrder", functools.partial(UploadOrder, linger_s=0.02))
    monkeypatch.setattr(uploads, "_CHANGING_S", 0.05)
    chance = random.Random(seed)
    out, store = Outputs(directory_fd), SlowStore()
    out.lists([store.put(b"p/f%d" % number, b"object %d" % number) for number in range(3)])
    program = Program(out, chance)
    async with moving(directory_fd, store) as movers:
        for _ in range(STEPS):
            program.step()
            if chance.random() < 0.4:
                await trio.sleep(chance.random() * 0.03)
            if chance.random() < 0.02:
                await movers.begin()
        program.close_all()
        for _ in range(2):  # the first may make room for what the second does
            with trio.fail_after(10):
                assert await movers.uploads.drain(_silent) == {"left": 0, "failed": 0, "errors": {}}
            program.out.upkeep.look()
        in_bucket = [key for key in store.keys() if not key.endswith(b"/")]  # noqa: SIM118 - no dict
        assert {key: (store.data(key), _mode(store, key)) for key in in_bucket} == program.shown()
    program.out.journal.close()
    program.out.staging.close()
    program.out.catalog.close()
