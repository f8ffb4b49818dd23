"""Where our processes write what happened: one file a state directory, appended to by all processes of its mounts.

How much, and whether as text or as JSON, stands in the environment (`notes`), which each hands to those it starts.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time

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
    """From here on logs (and stderr) go to the state directory's file; a large one of earlier days is put aside.

    Where the file cannot be written (full or read-only disk), stderr stays; so it does in a unit, where it is the
    journal.
    """
    if _unit():
        return
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(FILE_NAME, flags, 0o600, dir_fd=state_fd)
        if os.fstat(fd).st_size > _LIMIT_BYTES:
            os.rename(FILE_NAME, FILE_NAME + ".1", src_dir_fd=state_fd, dst_dir_fd=state_fd)
            os.close(fd)
            fd = os.open(FILE_NAME, flags, 0o600, dir_fd=state_fd)
    except OSError as exc:
        logging.getLogger(__name__).warning("cannot write a log file: %s", exc)
        return
    os.dup2(fd, 2)
    os.close(fd)


def place(file: str) -> str:
    """Where to look for what a mount says whose log file would be `file`."""
    scope, unit = ("--user " if os.environ.get("MOUNTKIT_MANAGER") == "user" else ""), _unit()
    return f"journalctl {scope}-u {unit}" if unit else file


def _unit() -> str:
    """The unit of systemd this process runs in, if it runs in one."""
    return os.environ.get("MOUNTKIT_UNIT", "")
