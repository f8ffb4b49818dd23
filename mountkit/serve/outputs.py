"""The parts of a writable mount's server, put together: journal, staging files, file system, responder, upkeep."""

from __future__ import annotations

import dataclasses
import resource
import secrets
import time

from mountkit.catalog.view import CatalogView
from mountkit.config import OutputSettings
from mountkit.serve import writer_lock
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.output_fs import OutputFileSystem
from mountkit.serve.output_recovery import begin_session, clear_staging
from mountkit.serve.output_upkeep import Upkeep
from mountkit.serve.values import Presentation
from mountkit.staging import tree
from mountkit.staging.files import StagingFiles
from mountkit.staging.journal import Journal


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
        clear_staging(files.overlay)
    upkeep = Upkeep(files, mover, state_fd)
    return files, upkeep


def write_settings(journal: Journal, settings: OutputSettings, directory: str, source: str) -> None:
    """What the mover has to know of this mount; `journal` names the journal itself, for ever."""
    for name, value in (dataclasses.asdict(settings) | {"directory": directory, "source": source}).items():
        journal.set_setting(name, value)
    if journal.setting("journal") is None:
        journal.set_setting("journal", secrets.token_hex(8))


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
