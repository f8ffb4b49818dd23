"""The password file of s3fs users: `ACCESS:SECRET` or `bucket:ACCESS:SECRET` a line; refused if others can read it."""

from __future__ import annotations

import os
import stat

from mountkit.errors import UsageError

_MAX_BYTES = 1 << 20


def read_passwd_file(path: str, bucket: str) -> tuple[str, str]:
    """The access key and the secret for `bucket`: its own line, else the line without a bucket.

    Raises UsageError for a file that is missing, is no regular file, belongs to somebody else, is open to others, holds
    a line that makes no sense, or says nothing for this bucket. No error ever quotes a line.
    """
    default: tuple[str, str] | None = None
    own: tuple[str, str] | None = None
    for number, raw in enumerate(_read(path).splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        words = line.split(":")
        if len(words) not in (2, 3) or not all(words):
            raise UsageError(
                f"line {number} of `{path}` is neither ACCESS:SECRET nor bucket:ACCESS:SECRET",
                "write one account a line; lines that start with # are comments",
            )
        if len(words) == 2:
            default = default or (words[0], words[1])
        elif words[0] == bucket:
            own = own or (words[1], words[2])
    found = own or default
    if found is None:
        raise UsageError(f"`{path}` names no account for the bucket `{bucket}`", f"add a line {bucket}:ACCESS:SECRET")
    return found


def _read(path: str) -> str:
    # O_NONBLOCK: a FIFO must not hold us; the checks are made on the descriptor that is read, not on the name.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise UsageError(f"the password file `{path}` cannot be read: {exc.strerror}", "check --passwd-file") from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"the password file `{path}` is no regular file", "check --passwd-file")
        if status.st_uid not in (os.geteuid(), 0):
            raise UsageError(f"the password file `{path}` belongs to another user", f"chown {os.geteuid()} {path}")
        if stat.S_IMODE(status.st_mode) & ~0o600:
            raise UsageError(f"others can read or run the password file `{path}`", f"chmod 600 {path}")
        if status.st_size > _MAX_BYTES:
            raise UsageError(f"`{path}` is too large for a password file", "check --passwd-file")
        with open(fd, encoding="utf-8", closefd=False) as file:
            return file.read()
    except UnicodeDecodeError as exc:
        raise UsageError(f"`{path}` is no text file", "check --passwd-file") from exc
    finally:
        os.close(fd)
