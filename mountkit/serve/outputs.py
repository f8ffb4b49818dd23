"""The parts of a writable mount's server, put together: journal, staging files, file system, responder, upkeep."""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import secrets
import time

from mountkit.catalog.view import CatalogView
from mountkit.config import OutputSettings
from mountkit.serve import writer_lock
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.output_fs import OutputFileSystem
from mountkit.serve.output_upkeep import Upkeep
from mountkit.serve.overlay import Overlay
from mountkit.serve.values import Presentation
from mountkit.staging import tree
from mountkit.staging.files import StagingFiles
from mountkit.staging.journal import Journal

log = logging.getLogger(__name__)


def open_outputs(
    state_fd: int,
    bucket: InputFileSystem,
    view: CatalogView,
    mover: MoverLink,
    show: Presentation,
    settings: OutputSettings,
    *,
    directory: str,
    source: str,
    first: bool,
) -> tuple[OutputFileSystem, Upkeep]:
    """The file system and its upkeep. `first`: of a new session of the kernel, which has nothing open yet.

    Raises MountError if another server stages here; sqlite3.Error, ValueError on a journal that cannot be used.
    """
    writer_lock.take(state_fd)
    _raise_file_limit()
    upkeep: Upkeep | None = None

    def queued() -> None:
        if upkeep is not None:
            upkeep.note_queued()

    journal = Journal(state_fd, queued)
    staging = StagingFiles(state_fd)
    files = OutputFileSystem(journal, staging, bucket, view, mover, show, settings)
    with journal.transaction():
        tree.seed(journal.db, show.uid, show.gid, time.time_ns(), 0o755 & ~show.umask)
        write_settings(journal, settings, directory, source)
        if first:
            begin_session(files.overlay)
    upkeep = Upkeep(files, mover, state_fd)
    return files, upkeep


def write_settings(journal: Journal, settings: OutputSettings, directory: str, source: str) -> None:
    """What the mover has to know of this mount; `journal` names the journal itself, for ever."""
    for name, value in (dataclasses.asdict(settings) | {"directory": directory, "source": source}).items():
        journal.set_setting(name, value)
    if journal.setting("journal") is None:
        journal.set_setting("journal", secrets.token_hex(8))


def begin_session(overlay: Overlay) -> None:
    """Settles what an earlier mount left open: nobody writes to it any more."""
    journal, nodes = overlay.journal, overlay.tree
    for ident, flags in nodes.open_nodes().items():
        node = nodes.node(ident)
        if node is not None and node.put_size is None and any(each & os.O_ACCMODE for each in flags):
            nodes.change(ident, abandoned=1)
    nodes.close_all_handles()
    journal.forget_replies()
    for (ident,) in journal.db.execute("SELECT id FROM node WHERE abandoned = 1 AND lost_path IS NULL").fetchall():
        entry = nodes.entry_of(ident)
        path = b"" if entry is None else (nodes.path(entry.parent) or b"") + entry.name
        nodes.change(ident, lost_path=path, names=0)
        if entry is not None:
            nodes.forget(entry.parent, entry.name)
        log.warning("%r was never closed: its bytes are kept, `mountkit outputs --export` copies them out", path)
    _check_staged(overlay)
    _clear_staging(overlay)


def _check_staged(overlay: Overlay) -> None:
    """Files are published as they are now: nobody may have closed them after they were changed, or said so in time."""
    journal, nodes = overlay.journal, overlay.tree
    rows = journal.db.execute("SELECT id FROM node WHERE file IS NOT NULL AND names > 0 AND put_size IS NOT NULL")
    for (ident,) in rows.fetchall():
        node = nodes.node(ident)
        assert node is not None
        try:
            if overlay.publisher.changed(node):
                overlay.publisher.publish(node)
        except FileNotFoundError:
            entry = nodes.entry_of(ident)
            log.error("the bytes of %r are lost: was the disk cut off?", overlay.publisher.key_of(ident))
            journal.cancel(node.seq)
            nodes.change(ident, names=0)
            if entry is not None:
                nodes.forget(entry.parent, entry.name)


def _clear_staging(overlay: Overlay) -> None:
    """Removes staging files that a killed server made and never entered."""
    db = overlay.journal.db
    known = {file for (file,) in db.execute("SELECT file FROM node WHERE file IS NOT NULL")}
    known |= {
        file for (file,) in db.execute("SELECT file FROM operation WHERE file IS NOT NULL AND state IN (0, 1, 3)")
    }
    for number in overlay.staging.numbers():
        if number not in known:
            overlay.staging.remove(number)
            overlay.journal.forget_file(number)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
