"""The head of a database's WAL-index: tells without asking SQLite whether anything was committed since the last look.

https://www.sqlite.org/walformat.html, section 2.1: every commit changes these bytes, before anybody can read what it
brought, and a reader that finds them as they were would read what it has read.
"""

from __future__ import annotations

import mmap
import os

_HEAD_BYTES = 48


class WalIndexHead:
    """Of a database that this process has open; to be closed after that, as SQLite's locks go with any descriptor of
    the file that is closed."""

    def __init__(self, directory_fd: int, database: str) -> None:
        """Raises OSError, ValueError where there is no WAL-index (yet)."""
        self._fd = os.open(f"{database}-shm", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            self._memory = mmap.mmap(self._fd, _HEAD_BYTES, prot=mmap.PROT_READ)
        except BaseException:
            os.close(self._fd)
            raise

    def read(self) -> bytes:
        return self._memory[:_HEAD_BYTES]

    def close(self) -> None:
        self._memory.close()
        os.close(self._fd)
