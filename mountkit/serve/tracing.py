"""A server's part in the traces of its mount: it writes down what is opened, each version once."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable

from mountkit import tracefile

log = logging.getLogger(__name__)
_PAGE_IDS = 1 << 16
_MOST_PAGES = 1 << 10
"""8 MiB of memory a trace: ids are given out one after the other, so one page holds those of one time."""


class Tracing:
    """The traces that are under way; while there is none, looking for one is all it does.

    It looks `1 / tracefile.LOOK_S` times a second at most: opens of sealed files are too many to look at each.
    """

    def __init__(self, state_fd: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`state_fd` stays the caller's and open."""
        self._state_fd, self._clock = state_fd, clock
        self._looked_at = -tracefile.LOOK_S
        self._traces: dict[str, _Trace] = {}

    def __repr__(self) -> str:
        return f"<Tracing {sorted(self._traces)}>"

    def opened(self, ident: int) -> None:
        """Somebody opens this version, and is about to be told that he may."""
        now = self._clock()
        if now - self._looked_at >= tracefile.LOOK_S:
            self._looked_at = now
            self._look()
        for trace in self._traces.values():
            trace.note(ident)

    def _look(self) -> None:
        try:
            directory = tracefile.open_directory(self._state_fd)
        except OSError:
            self._forget(set())
            return
        try:
            found = set(tracefile.names(directory))
            self._forget(found)
            for name in found - self._traces.keys():
                self._join(directory, name)
        except OSError as exc:
            log.warning("cannot look which opens to write down: %s", exc)
        finally:
            os.close(directory)

    def _forget(self, found: set[str]) -> None:
        for name, trace in list(self._traces.items()):
            if name not in found or not trace.is_there():
                trace.close()
                del self._traces[name]

    def _join(self, directory: int, name: str) -> None:
        try:
            fd = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except OSError as exc:
            log.debug("no opens are written down in the trace %s: %s", name, exc)
        else:
            self._traces[name] = _Trace(fd)


class _Trace:
    """One trace file, and what this server has written into it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pages: dict[int, bytearray] = {}
        self._lost = False

    def is_there(self) -> bool:
        """Whether the file is still the one of its name and takes more; tells the file if it does not have all."""
        status = os.fstat(self._fd)
        if self._lost or status.st_size >= tracefile.LIMIT_BYTES:
            self._say_incomplete(status)
        return status.st_nlink > 0

    def note(self, ident: int) -> None:
        page, place = divmod(ident, _PAGE_IDS)
        bits = self._pages.get(page)
        if bits is None:
            bits = self._page(page)
        byte, mask = place >> 3, 1 << (place & 7)
        if bits[byte] & mask or self._lost:
            return
        try:
            os.write(self._fd, ident.to_bytes(tracefile.ID_BYTES, "little"))  # at once and whole, also beside others
        except OSError as exc:
            log.warning("an open could not be written down in a trace: %s", exc)
            self._say_incomplete(os.fstat(self._fd))
        else:
            bits[byte] |= mask

    def close(self) -> None:
        os.close(self._fd)

    def _page(self, page: int) -> bytearray:
        if len(self._pages) >= _MOST_PAGES:
            self._pages.clear()  # some are written down once more
        bits = self._pages[page] = bytearray(_PAGE_IDS >> 3)
        return bits

    def _say_incomplete(self, status: os.stat_result) -> None:
        """By its mode: changing that needs no room on a full disk."""
        self._lost = True
        if not status.st_mode & stat.S_IWUSR:
            return
        try:
            os.fchmod(self._fd, stat.S_IRUSR)
        except OSError as exc:
            log.warning("a trace cannot be marked as incomplete: %s", exc)
