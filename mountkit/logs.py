"""Where our processes write what happened: one file a state directory, appended to by all processes of its mounts.

Once it is large, whoever is about to write a line puts it aside under a second name, whose earlier file goes. The
others notice at their next line, and go on in the new file; a line that meets the moment is in one of the two. Nobody
waits for anybody: a stopped process could have all others wait.

How much, and whether as text or as JSON, stands in the environment (`notes`), which each hands to those it starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sys
import time
from typing import TextIO

from mountkit import notes

FILE_NAME = "mountkit.log"
_LIMIT_BYTES = 10 << 20
_FORMAT = "%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s"
_JOURNAL_FORMAT = "%(name)s: %(message)s"
_LEVELS = {notes.VERBOSE: logging.DEBUG, notes.QUIET: logging.WARNING}
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _AsJSON(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


class _ForJournal(logging.Formatter):
    """The journal has its own time and process; the level goes in front, as sd-daemon(3) wants it."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        level = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(level + line for line in self._inner.format(record).splitlines())


def basic() -> None:
    """Everything that is wanted to stderr, until a better place is known."""
    logging.basicConfig(level=_LEVELS.get(os.environ.get(notes.LEVEL, ""), logging.INFO), stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(_formatter())
    for noisy in ("boto3", "botocore", "urllib3", "pyfuse3", "s3transfer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _formatter() -> logging.Formatter:
    if os.environ.get(notes.FORMAT) == notes.JSON:
        return _ForJournal(_AsJSON()) if _unit() else _AsJSON()
    return _ForJournal(logging.Formatter(_JOURNAL_FORMAT)) if _unit() else logging.Formatter(_FORMAT)


def to_state_directory(state_fd: int) -> None:
    """From here on logs (and stderr) go to the state directory's file.

    Where the file cannot be written (full or read-only disk), stderr stays; so it does in a unit, where it is the
    journal.
    """
    if _unit():
        return
    shared = _SharedFile(state_fd)
    try:
        shared.open()
    except OSError as exc:
        shared.close()
        logging.getLogger(__name__).warning("cannot write a log file: %s", exc)
        return
    root = logging.getLogger()
    shared.setFormatter(_formatter())
    for earlier in list(root.handlers):
        root.removeHandler(earlier)
        earlier.close()
    root.addHandler(shared)


class _SharedFile(logging.StreamHandler[TextIO]):
    """The log file of a state directory, at stderr."""

    def __init__(self, state_fd: int) -> None:
        super().__init__(sys.stderr)
        self._directory = os.dup(state_fd)

    def open(self) -> None:
        """Has stderr be the file of that name, which is made where missing. Raises OSError."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(FILE_NAME, flags, 0o600, dir_fd=self._directory)
        os.dup2(fd, 2)
        os.close(fd)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a disk that fails: the line goes where the last one went
            self._follow()
        super().emit(record)

    def _follow(self) -> None:
        ours = os.fstat(2)
        try:
            there = os.stat(FILE_NAME, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            self.open()
            return
        if not os.path.samestat(ours, there):
            self.open()
        elif there.st_size > _LIMIT_BYTES:
            self._put_aside(there)
            self.open()

    def _put_aside(self, full: os.stat_result) -> None:
        """Renames this very file, if nobody else is about to: else it could be the next one, over all its lines."""
        fd = os.open(FILE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), full) and os.path.samestat(
                full, os.stat(FILE_NAME, dir_fd=self._directory)
            ):
                os.rename(FILE_NAME, FILE_NAME + ".1", src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BlockingIOError:
            pass  # somebody does it
        finally:
            os.close(fd)

    def close(self) -> None:
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
        super().close()


def place(file: str) -> str:
    """Where to look for what a mount says whose log file would be `file`."""
    scope, unit = ("--user " if os.environ.get("MOUNTKIT_MANAGER") == "user" else ""), _unit()
    return f"journalctl {scope}-u {unit}" if unit else file


def _unit() -> str:
    """The unit of systemd this process runs in, if it runs in one."""
    return os.environ.get("MOUNTKIT_UNIT", "")
