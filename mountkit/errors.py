"""Every failure mountkit can name: one sentence, one hint, one errno, one exit code.

    MountkitError
    ├── UsageError              2   the words on the command line or in a file make no sense
    ├── MountError              3   a directory cannot be mounted, unmounted or asked
    │   ├── MountBusy           4   somebody still works in it
    │   └── UploadsLeft         9   not everything that was written is in the bucket
    ├── HostError               5   this machine lacks something (FUSE, rights, disk, an engine)
    │   └── EngineError         6   the container engine does not do as asked
    │       └── ImageMissing    8   the image is neither here nor to be had
    └── StoreError              7   the bucket said no, or said nothing
        ├── ObjectMissing           the key (or this version of it) is not there
        ├── ObjectChanged           the key holds another version than asked for
        ├── AccessDenied            the credentials do not allow it
        ├── CredentialsError        there are none, or the server does not know or accept them
        ├── BucketMissing           no such bucket
        ├── WrongRegion             the bucket lives elsewhere; carries where
        ├── UploadMissing           the multipart upload (or a part of it) is not there, or not any more
        ├── StoreFull               a quota or the server's disk leaves no room
        ├── ObjectArchived          the object must be restored before it can be read
        ├── BadAnswer               the answer contradicts the request (length, range, ETag, XML)
        └── StoreUnavailable        no usable answer: refused, timed out, 5xx, SlowDown; worth a retry

Errors cross process borders as JSON (`to_json`, `from_json`): the mover meets them, a server turns them into an errno,
the command line into two lines on stderr.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar


class MountkitError(Exception):
    """A failure with a name: `sentence` says what happened and why, `hint` what to do."""

    errno: ClassVar[int] = errno.EIO
    exit_code: ClassVar[int] = 1

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint

    def __str__(self) -> str:
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        """This error as plain data for another process."""
        return {"kind": type(self).__name__, "sentence": self.sentence, "hint": self.hint}


class UsageError(MountkitError):
    errno = errno.EINVAL
    exit_code = 2


class MountError(MountkitError):
    exit_code = 3


class MountBusy(MountError):
    errno = errno.EBUSY
    exit_code = 4


class UploadsLeft(MountError):
    exit_code = 9


class HostError(MountkitError):
    exit_code = 5


class EngineError(HostError):
    exit_code = 6


class ImageMissing(EngineError):
    exit_code = 8


class StoreError(MountkitError):
    exit_code = 7
    transient: ClassVar[bool] = False
    """Whether the same request may succeed when it is simply sent again."""


class ObjectMissing(StoreError):
    errno = errno.ENOENT


class ObjectChanged(StoreError):
    errno = errno.ESTALE


class AccessDenied(StoreError):
    errno = errno.EACCES


class CredentialsError(StoreError):
    errno = errno.EACCES


class BucketMissing(StoreError):
    errno = errno.ENOENT


class WrongRegion(StoreError):
    """`region` is where the bucket really is, or "" where the server did not say."""

    def __init__(self, sentence: str, hint: str = "", *, region: str = "") -> None:
        super().__init__(sentence, hint)
        self.region = region


class UploadMissing(StoreError):
    pass


class StoreFull(StoreError):
    errno = errno.ENOSPC


class ObjectArchived(StoreError):
    pass


class BadAnswer(StoreError):
    transient = True


class StoreUnavailable(StoreError):
    """`slow_down` is set where the server asked for fewer requests (503 SlowDown, 429)."""

    transient = True

    def __init__(self, sentence: str, hint: str = "", *, slow_down: bool = False) -> None:
        super().__init__(sentence, hint)
        self.slow_down = slow_down


def _kinds(base: type[MountkitError]) -> dict[str, type[MountkitError]]:
    found = {base.__name__: base}
    for child in base.__subclasses__():
        found |= _kinds(child)
    return found


_KINDS = _kinds(MountkitError)


def from_json(data: dict[str, Any]) -> MountkitError:
    """The error another process sent; a kind this version does not know becomes a plain MountkitError."""
    kind = _KINDS.get(str(data.get("kind")), MountkitError)
    return kind(str(data.get("sentence", "unknown error")), str(data.get("hint", "")))


def named(raised: BaseException) -> MountkitError | None:
    """The MountkitError that `raised` is, or that a group of nothing but such errors holds first; else None."""
    if isinstance(raised, MountkitError):
        return raised
    if isinstance(raised, BaseExceptionGroup) and raised.split(MountkitError)[1] is None:
        return named(raised.exceptions[0])
    return None


def two_lines(error: MountkitError) -> str:
    """How an error looks on stderr."""
    return f"error: {error.sentence}" + (f"\nhint: {error.hint}" if error.hint else "")
