"""Trace: the files that were opened since it began, each once, in the order of their first opens.

A mark in the state directory tells the servers that opens of sealed files, which are no business of the mover's
otherwise, are wanted too. A trace lives in the mover's memory and ends with it.
"""

from __future__ import annotations

import contextlib
import os

from mountkit import places
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import ObjectRow
from mountkit.errors import UsageError

_MAX_FILES = 10_000_000


class Trace:
    """One mover's trace; none is running at first, and none of an earlier mover's mark is left."""

    def __init__(self, catalog: Catalog, state_fd: int) -> None:
        """`state_fd` stays the caller's."""
        self._catalog, self._state_fd = catalog, state_fd
        self._opened: dict[int, None] | None = None
        self._unmark()

    def __repr__(self) -> str:
        return f"<Trace {'off' if self._opened is None else len(self._opened)}>"

    def start(self) -> None:
        """Begins anew, also where one is running."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(places.TRACE_MARK, flags, 0o600, dir_fd=self._state_fd))
        self._opened = {}

    def opened(self, row: ObjectRow) -> None:
        """Somebody opened this file."""
        if self._opened is not None and len(self._opened) < _MAX_FILES:
            self._opened[row.id] = None

    def stop(self) -> list[str]:
        """Ends it: the paths below the mount. Raises UsageError if none is running."""
        opened, self._opened = self._opened, None
        self._unmark()
        if opened is None:
            raise UsageError("no trace is running", "begin one with `mountkit trace start DIR`; it ends with its mover")
        paths = (self._catalog.path_of(ident) for ident in opened)
        return [os.fsdecode(path) for path in paths if path is not None]

    def _unmark(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(places.TRACE_MARK, dir_fd=self._state_fd)
