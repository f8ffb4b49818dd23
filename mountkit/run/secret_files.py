"""Secrets on their way into a container: files in memory, and the script that makes variables of them.

The files lie in a directory of the run's own, on a tmpfs, below one that only this user may enter; the container has it
bound at /run/secrets. Their values are in nobody's arguments, in no environment that an engine shows, and in no record.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence

from mountkit import places
from mountkit.errors import HostError, UsageError
from mountkit.run.plan import SHIM_TARGET, Secret

SHIM = """#!/bin/sh
# mountkit: exports secrets as the variables the program expects them in, then becomes the program.
while [ "$1" != "--" ]; do
    mountkit_value= mountkit_more=
    while IFS= read -r mountkit_line || [ -n "$mountkit_line" ]; do
        mountkit_value=$mountkit_value$mountkit_more$mountkit_line
        mountkit_more='
'
    done < "/run/secrets/${1%%:*}"
    export "${1#*:}=$mountkit_value"
    shift
done
shift
unset mountkit_value mountkit_more mountkit_line
exec "$@"
"""
_MOST_BYTES = 1 << 20


def read(secret: Secret) -> bytes:
    """The value of `secret`, without the end of its last line. Raises UsageError."""
    what = f"the secret {secret.name}"
    if secret.source.startswith("env:"):
        name = secret.source[4:]
        if name not in os.environ:
            raise UsageError(f"{what}: the variable {name} is not set here", "set it, or name a file")
        return os.environb[os.fsencode(name)]
    try:
        if secret.source.startswith("fd:"):
            return os.pread(int(secret.source[3:]), _MOST_BYTES, 0).rstrip(b"\r\n")
        with open(secret.source, "rb") as file:
            return file.read(_MOST_BYTES).rstrip(b"\r\n")
    except (OSError, ValueError) as exc:
        reason = os.strerror(exc.errno or 0) if isinstance(exc, OSError) else "it is no descriptor"
        raise UsageError(f"{what}: cannot read {secret.source}: {reason}", "name a file you may read") from exc


def write(values: dict[str, bytes], *, run_id: str, uid: int | None, gid: int | None) -> str:
    """Writes the files and the shim for the container's user; the directory, to be given to `remove`. Raises HostError.

    Readable for that user alone where we may give files away, else for all users of the container; on this host the
    way to them is closed to everybody but us.
    """
    directory = place(run_id)
    try:
        os.makedirs(os.path.join(directory, "secrets"), mode=0o755)
        os.chmod(os.path.join(directory, "secrets"), 0o755)
        for name, value in values.items():
            _write(os.path.join(directory, "secrets", name), value, uid, gid)
        shim = os.open(os.path.join(directory, "entry"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o555)
        with open(shim, "w", encoding="ascii") as file:
            os.fchmod(shim, 0o555)
            file.write(SHIM)
    except OSError as exc:
        remove(directory)
        raise HostError(f"cannot write the secrets to {directory}: {os.strerror(exc.errno or 0)}") from exc
    except BaseException:
        remove(directory)
        raise
    return directory


def place(run_id: str) -> str:
    """The directory of a run's secrets; not created here, but the one above it is."""
    return os.path.join(places.ensure_memory_directory(), f"secrets-{run_id}")


def remove(directory: str) -> None:
    """Takes the secrets away; a directory that is gone is fine."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


def shim_command(secrets: Sequence[Secret], program: Sequence[str]) -> tuple[str, ...]:
    """The entrypoint that exports the secrets which want a variable and then becomes `program`."""
    exports = [f"{secret.name}:{secret.variable}" for secret in secrets if secret.variable]
    return ("/bin/sh", SHIM_TARGET, *exports, "--", *program)


def user_numbers(user: str, passwd: str) -> tuple[int | None, int | None]:
    """uid and gid that `user` (NAME, UID, with :GROUP) is in a container with this /etc/passwd; None where unknown."""
    name, _, group = user.partition(":")
    uid, gid = (0, 0) if not name else (int(name) if name.isdigit() else None, None)
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) > 3 and (fields[0] == name or fields[2] == name) and fields[2].isdigit():
            uid, gid = int(fields[2]), int(fields[3]) if fields[3].isdigit() else None
            break
    return uid, int(group) if group.isdigit() else gid


def _write(path: str, value: bytes, uid: int | None, gid: int | None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
    with open(fd, "wb") as file:
        mode = 0o444
        if uid is not None:
            with contextlib.suppress(PermissionError):
                os.fchown(fd, uid, -1 if gid is None else gid)
                mode = 0o400
        os.fchmod(fd, mode)
        file.write(value)
