"""What a writable mount does without being asked: sees what the mover has done, syncs, uploads what grows, clears away.

Each round is a few queries; all of it may be missed for a while or done twice.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sqlite3
import time

import trio

from mountkit.catalog.values import Kind
from mountkit.serve.asking import MustAsk
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.output_fs import OutputFileSystem
from mountkit.serve.values import FileSystemError
from mountkit.staging import schema
from mountkit.staging.schema import OperationState
from mountkit.staging.tree import ROOT_NODE, Node, NodeKind

log = logging.getLogger(__name__)
_LOOK_S = 0.2
_SYNC_S = 1.0
_TELL_S = 0.01
_FINISH_S = 3.0
_KEPT_OPERATIONS = 10_000
_CHECKPOINT_PAGES = 1000
_SYNCED_ONE_BY_ONE = 32
_LOG_BYTES = 1 << 20
"""A file that is not opened with O_APPEND is uploaded while it is open only if it grows by less than this at a time: so
grow logs, not checkpoints, of which the bucket shall never show a half."""
_STRETCH = 500


class Upkeep:
    """The background tasks of one output server; `run` them for as long as it serves."""

    def __init__(self, files: OutputFileSystem, mover: MoverLink, state_fd: int) -> None:
        self._files, self._overlay, self._mover, self._state_fd = files.files, files.overlay, mover, state_fd
        self._journal, self._tree = self._overlay.journal, self._overlay.tree
        self._db = self._journal.db
        self._queued = trio.Event()
        self._grown: dict[int, tuple[int, float]] = {}
        """Of each file open for writing: its size at the last look, and when that was."""

    def note_queued(self) -> None:
        """Something was queued for the mover."""
        self._queued.set()

    async def finish(self) -> None:
        """The kernel has ended the session: what is known to be needed is queued while this server is still there."""
        with trio.move_on_after(_FINISH_S), contextlib.suppress(sqlite3.Error):
            self.look()
            await self.mark_empty_directories()
            await self._sync_round([])

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_mover)
            nursery.start_soon(self._look)
            nursery.start_soon(self._sync)
            nursery.start_soon(self._upload_what_grows)

    async def _tell_mover(self) -> None:
        while True:
            await self._mover.linked()
            await self._mover.tell("staged")
            await self._queued.wait()
            await trio.sleep(_TELL_S)
            self._queued = trio.Event()

    # ---- what the mover has done ---------------------------------------------------------------------------
    async def _look(self) -> None:
        seen, due = -1, 0.0
        while True:
            await trio.sleep(_LOOK_S)
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
            thinned = self._db.execute("SELECT 1 FROM node WHERE thinned = 1 LIMIT 1").fetchone()
            if version == seen and not thinned and time.monotonic() < due:
                continue
            seen, due = version, time.monotonic() + 5.0
            try:
                self.look()
                await self.mark_empty_directories()
            except sqlite3.Error as exc:
                log.warning("the journal cannot be kept: %s", exc)

    def look(self) -> None:
        """One round: notes what is done, clears away what is not needed any more."""
        with self._journal.transaction():
            self._tree.settle_handles()
        while self._note_done():
            pass
        self._note_gone()
        self._discard_unlinked()
        self._make_room()
        self._prune()

    def _note_done(self) -> bool:
        """Copies results to nodes; False once there are no more."""
        rows = self._db.execute(
            "SELECT n.id, o.state, o.etag, o.finished_at FROM node n LEFT JOIN operation o ON o.seq = n.seq"
            " WHERE n.seq IS NOT NULL AND (o.state IS NULL OR o.state IN (?, ?)) LIMIT ?",
            (int(OperationState.DONE), int(OperationState.CANCELLED), _STRETCH),
        ).fetchall()
        if not rows:
            return False
        with self._journal.transaction():
            for ident, state, etag, finished_at in rows:
                node = self._tree.node(ident)
                if node is None:
                    continue
                if state == OperationState.CANCELLED:
                    self._republish(node)
                else:
                    self._note_one_done(node, etag, finished_at)
        return True

    def _note_one_done(self, node: Node, etag: str | None, finished_at: float | None) -> None:
        self._tree.change(node.id, seq=None, in_bucket=1, etag=etag, done_at=finished_at or time.time())
        if node.kind == NodeKind.OBJECT:
            self._tree.change(node.id, source_key=self._overlay.publisher.key_of(node.id), source_etag=etag)

    def _republish(self, node: Node) -> None:
        """The mover found other bytes than were promised: what is there now is sent at the next close, or at once."""
        self._tree.change(node.id, seq=None)
        writers = self._tree.has_writers(node.id)
        fresh = self._tree.node(node.id)
        if fresh and fresh.kind == NodeKind.FILE and fresh.names and not writers and not fresh.abandoned:
            self._overlay.publisher.publish(fresh)

    def _note_gone(self) -> None:
        """Tombstones: dated once the bucket has lost the object, taken away once the catalog was told of it."""
        rows = self._db.execute(
            "SELECT e.id, e.parent, e.name, e.since, o.state, o.finished_at FROM entry e"
            " LEFT JOIN operation o ON o.seq = e.seq WHERE e.node IS NULL ORDER BY e.id LIMIT ?",
            (_STRETCH,),
        ).fetchall()
        dated, over = [], []
        for ident, parent, name, since, state, finished_at in rows:
            if since is None:
                if state in (None, OperationState.DONE, OperationState.CANCELLED):
                    dated.append((finished_at or time.time(), ident))
            elif self._is_known_gone(parent, name, since):
                over.append((ident,))
        if dated or over:
            with self._journal.transaction():
                self._db.executemany("UPDATE entry SET since = ? WHERE id = ?", dated)
                self._db.executemany("DELETE FROM entry WHERE id = ?", over)

    def _is_known_gone(self, parent: int, name: bytes, since: float) -> bool:
        directory = self._tree.node(parent)
        if directory is None or not directory.names:
            return True
        known = self._overlay.names.underlay.known_now(directory, name)
        if known is not None and known.as_of > since:
            return True
        return known is not None and known.kind is Kind.ABSENT and time.time() - since > self._overlay.show.ttl_s

    async def mark_empty_directories(self) -> None:
        """Directories that lost their last name stay in the bucket by a marker; the bucket may have to be asked."""
        rows = self._db.execute("SELECT id FROM node WHERE thinned = 1 LIMIT ?", (_STRETCH,)).fetchall()
        for (ident,) in rows:
            question = functools.partial(self._mark_if_empty, ident)
            try:
                try:
                    question()
                except MustAsk as need:
                    await self._overlay.names.asking.settle(need, question)
            except FileSystemError:
                return  # the bucket does not answer: later
            await trio.lowlevel.checkpoint()

    def _mark_if_empty(self, ident: int) -> None:
        node = self._tree.node(ident)
        unmarked = node is not None and node.names and not node.in_bucket and node.seq is None and ident != ROOT_NODE
        with self._journal.transaction():
            if node is not None and unmarked and self._overlay.listing.is_empty(node):
                self._overlay.publisher.mark_directory(node)
            self._tree.change(ident, thinned=0)

    def _discard_unlinked(self) -> None:
        rows = self._db.execute(
            "SELECT id FROM node WHERE names = 0 AND lost_path IS NULL"
            " AND NOT EXISTS (SELECT 1 FROM handle h WHERE h.node = node.id) LIMIT ?",
            (_STRETCH,),
        ).fetchall()
        if rows:
            with self._journal.transaction():
                for (ident,) in rows:
                    self._files.discard(ident)

    def _make_room(self) -> None:
        """Clean files stay as a cache of their objects; the oldest go when staging is more than half full."""
        written = (node.file for ident in self._writing() if (node := self._tree.node(ident)) and node.file is not None)
        self._overlay.used_bytes = used = self._overlay.staging.used_bytes(written)
        half = self._overlay.settings.staging_size_bytes // 2
        if used <= half:
            return
        rows = self._db.execute(
            "SELECT id, file FROM node n WHERE kind = ? AND seq IS NULL AND done_at IS NOT NULL AND names > 0"
            " AND NOT EXISTS (SELECT 1 FROM handle h WHERE h.node = n.id) ORDER BY done_at LIMIT ?",
            (int(NodeKind.FILE), _STRETCH),
        ).fetchall()
        with self._journal.transaction():
            for ident, file in rows:
                node = self._tree.node(ident)
                if used <= half or node is None:
                    break
                if self._overlay.publisher.changed(node) or not self._overlay.names.underlay.is_known_by(node):
                    continue
                used -= self._overlay.staging.status(file).st_blocks * 512
                self._overlay.become_object(node)
        self._overlay.used_bytes = max(0, used)

    def _prune(self) -> None:
        self._db.execute(
            "DELETE FROM operation WHERE seq < (SELECT max(seq) FROM operation) - ? AND state IN (2, 4)"
            " AND NOT EXISTS (SELECT 1 FROM node n WHERE n.seq = operation.seq)"
            " AND NOT EXISTS (SELECT 1 FROM entry e WHERE e.node IS NULL AND e.seq = operation.seq)",
            (_KEPT_OPERATIONS,),
        )

    # ---- files that grow -----------------------------------------------------------------------------------
    async def _upload_what_grows(self) -> None:
        interval = self._overlay.settings.live_s
        while True:
            await trio.sleep(interval)
            try:
                self.upload_what_grows()
            except (sqlite3.Error, OSError) as exc:
                log.warning("files that grow cannot be uploaded now: %s", exc)

    def upload_what_grows(self) -> None:
        """Queues each file that is open for writing and has only grown since the last look."""
        before, self._grown = self._grown, {}
        for ident, flags in self._tree.open_nodes().items():
            if not any(each & os.O_ACCMODE for each in flags):
                continue
            node = self._tree.node(ident)
            if node is None or not node.names or node.file is None:
                continue
            size = self._overlay.staging.status(node.file).st_size
            self._grown[ident] = size, time.monotonic()
            appended = any(each & os.O_APPEND for each in flags)
            known = before.get(ident)
            if size <= (node.put_size or 0) or not (appended or (known and 0 <= size - known[0] < _LOG_BYTES)):
                continue
            with self._journal.transaction():
                self._overlay.publisher.publish(node, live=True)

    # ---- power cuts ----------------------------------------------------------------------------------------
    async def _sync(self) -> None:
        """Once a second while something changes: data and journal reach the disk, as a local file system's would."""
        last = -1
        while True:
            await trio.sleep(_SYNC_S)
            writing = self._writing()
            if self._journal.commits == last and not writing:
                continue
            last = self._journal.commits
            await self._sync_round(writing)

    def _writing(self) -> list[int]:
        """The nodes that somebody has open for writing."""
        return [node for node, flags in self._tree.open_nodes().items() if any(f & os.O_ACCMODE for f in flags)]

    async def _sync_round(self, writing: list[int]) -> None:
        """Syncs what was made or opened since the last round, and `writing`; then files go that nothing needs."""
        numbers, doomed = self._overlay.staging.take_changed(), self._overlay.staging.take_doomed()
        for ident in writing:
            node = self._tree.node(ident)
            if node is not None and node.file is not None:
                numbers.add(node.file)
        await trio.to_thread.run_sync(self._sync_now, numbers)
        with contextlib.suppress(OSError):  # a disk that fails: the sync says so, and the next session clears away
            for number in doomed:
                self._overlay.staging.remove(number)

    def _sync_now(self, numbers: set[int]) -> None:
        try:
            directory = self._overlay.staging.directory_fd
            if len(numbers) > _SYNCED_ONE_BY_ONE:
                _sync_file_system(directory)
            else:
                for number in numbers:
                    with contextlib.suppress(FileNotFoundError):
                        _sync_one(str(number), directory)
                os.fsync(directory)
            for name in (schema.FILE, schema.FILE + "-wal"):
                with contextlib.suppress(FileNotFoundError):
                    _sync_one(name, self._state_fd)
            self._checkpoint()
        except (OSError, sqlite3.Error) as exc:
            log.warning("staged files could not be synced: %s", exc)

    def _checkpoint(self) -> None:
        size = os.stat(schema.FILE + "-wal", dir_fd=self._state_fd).st_size
        if size > _CHECKPOINT_PAGES * 4096:
            with contextlib.closing(schema.open_journal(self._state_fd)) as db:
                schema.checkpoint(db)


def _sync_one(name: str, directory_fd: int) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_file_system(fd: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
