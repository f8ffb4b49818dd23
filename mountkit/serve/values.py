"""What the file systems of a mount answer, and how they fail: words without behaviour. Knows no FUSE and no network."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import NamedTuple

from mountkit.serve.messages import Attributes

ROOT = 1
_VOID_UNTIL = 1.0


class FileSystemError(Exception):
    """An operation that fails with `errno`."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


class NotNow(FileSystemError):
    """The catalog cannot be read at this moment: it is being begun anew, or moved. Ask again."""

    def __init__(self) -> None:
        super().__init__(errno.EIO)


class Done(Exception):
    """The operation is to be committed although it is answered with an error."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


class Found(NamedTuple):
    """Answer to a lookup: `attributes` is None where the name is known to be absent."""

    attributes: Attributes | None
    timeout_s: float


class DirectoryEntry(NamedTuple):
    name: bytes
    cookie: int
    attributes: Attributes
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Presentation:
    """How the mount shows what it holds."""

    uid: int
    gid: int
    umask: int
    ttl_s: float
    passthrough: bool
    data_budget_s: float = 60.0
    metadata_budget_s: float = 10.0
    writable: bool = False

    def fresh_after(self, now: float) -> float:
        """How new evidence must be to be believed at `now`; what a refresh has declared void, dated 0, never is."""
        return max(_VOID_UNTIL, now - self.ttl_s)
