"""Whether a directory answers, asked from another process, so that a dead mount cannot hang this one."""

from __future__ import annotations

import os
import subprocess

from mountkit.errors import MountError, UsageError

_ANSWER_TIMEOUT_S = 15.0


def must_answer(directory: str, shown: str) -> None:
    """Raises MountError unless `directory` answers, UsageError if it is not there.

    statfs: the kernel never caches its answer.
    """
    asker = subprocess.Popen(
        ["stat", "--file-system", "--format=%T", "--", directory],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
    )
    hint = "`mountkit status` tells the state of the mounts"
    try:
        _, words = asker.communicate(timeout=_ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        asker.kill()  # not waited for: it may hang in the kernel as long as the mount does
        raise MountError(f"{shown} does not answer within {_ANSWER_TIMEOUT_S:g} s", hint) from None
    except BaseException:
        asker.kill()
        raise
    if asker.returncode:
        reason = words.strip().rpartition(": ")[2]
        if reason == os.strerror(2):
            raise UsageError(f"{shown} does not exist", "check its spelling; it must be there before the run")
        raise MountError(f"{shown} does not answer: {reason}", hint)
