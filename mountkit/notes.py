"""Notes: what a command says beside its result and its errors, on stderr. With --quiet it says none of it.

How much is wanted is said once, in the environment, which is where our other processes learn it from (`logs`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

LEVEL, FORMAT = "MOUNTKIT_LOG_LEVEL", "MOUNTKIT_LOG_FORMAT"
QUIET, VERBOSE = "warning", "debug"
"""What --quiet and --verbose make of LEVEL; anything else is `info`."""
JSON = "json"


def are_wanted() -> bool:
    return os.environ.get(LEVEL) != QUIET


def say(text: str) -> None:
    """Says it where somebody wants to know; a stderr that is closed is no failure."""
    if are_wanted():
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)  # noqa: T201


def console() -> Console:
    """Where progress is shown."""
    from rich.console import Console

    return Console(stderr=True, quiet=not are_wanted())
