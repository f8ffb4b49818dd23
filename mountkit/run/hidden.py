"""Secrets given on the command line, taken out of it: `mountkit run lightly/sampling token=…`.

Arguments are world-readable in /proc and shown by `docker inspect`. So before anything else mountkit puts such a value
into a sealed memory file and becomes itself again, with `token=fd:N` in its place: no environment, no disk, no argv.
Until then, for the few hundredths of a second a Python needs to start, the word is visible; `token=env:NAME` never is.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
from collections.abc import Sequence

ARGUMENTS = ("token",)
"""The `name=value` arguments whose value is a secret, before anybody has read a preset. A test holds them equal."""
_OTHERS = ("-e", "--env", "-l", "--label", "--secret")
"""Options of `run` whose own values look the same."""
_REFERENCE = re.compile(r"fd:\d+|env:[A-Za-z_][A-Za-z0-9_]*")
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def is_reference(value: str) -> bool:
    """Whether `value` only says where the secret is."""
    return _REFERENCE.fullmatch(value) is not None


def seal(value: str) -> int:
    """A descriptor of a memory file that holds `value` and can never change; not inherited by programs we start."""
    fd = os.memfd_create("mountkit-secret", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, os.fsencode(value))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def open_value(reference: str) -> str:
    """What `fd:N` or `env:NAME` refers to."""
    kind, _, name = reference.partition(":")
    if kind == "env":
        return os.environ.get(name, "")
    return os.fsdecode(os.pread(int(name), 1 << 16, 0))


def secret_words(words: Sequence[str]) -> list[int]:
    """Where in the command line `words` (without the program) of a `run` an open secret stands."""
    if "run" not in words:
        return []
    first = words.index("run") + 1
    return [n for n in range(first, len(words)) if _open_secret(words[n]) and words[n - 1] not in _OTHERS]


def hide() -> None:
    """Returns in a process whose command line holds no secret: this one, or its successor by exec."""
    words = sys.orig_argv
    start = len(words) - len(sys.argv[1:])
    found = [start + number for number in secret_words(sys.argv[1:])]
    if not found:
        _keep_from_programs(sys.argv[1:])
        return
    cleaned = list(words)
    for number in found:
        name, _, value = words[number].partition("=")
        fd = seal(value)
        os.set_inheritable(fd, True)
        cleaned[number] = f"{name}=fd:{fd}"
    os.execv(sys.executable, [sys.executable, *cleaned[1:]])


def _open_secret(word: str) -> bool:
    name, separator, value = word.partition("=")
    return bool(separator and value) and name in ARGUMENTS and not is_reference(value)


def _keep_from_programs(words: Sequence[str]) -> None:
    """A descriptor that came through exec goes no further."""
    for word in words:
        name, _, value = word.partition("=")
        if name in ARGUMENTS and value.startswith("fd:") and is_reference(value):
            try:
                os.set_inheritable(int(value[3:]), False)
            except OSError:
                continue  # whoever reads it will say that there is nothing
