"""The line of updatedb.conf(5) that says which file systems `updatedb` passes over. Pure: text in, text out.

`updatedb` would walk through, and so list, every bucket that is mounted, every day.
"""

from __future__ import annotations

import re

from mountkit.mountinfo import FSTYPE

CONFIGURATION = "/etc/updatedb.conf"
_PRUNED = re.compile(r'^[ \t]*PRUNEFS[ \t]*=[ \t]*"([^"\n]*)"', re.MULTILINE)
_NAMED = re.compile(r"^[ \t]*PRUNEFS\b", re.MULTILINE)


def passes_over(text: str) -> bool:
    """Whether `updatedb` leaves our mounts alone; it compares types without regard to case."""
    found = _PRUNED.search(text)
    return found is not None and FSTYPE in found[1].lower().split()


def with_ours(text: str) -> str:
    """The same configuration, our mounts passed over; unchanged if they are, or if its list is not to be understood."""
    if passes_over(text):
        return text
    found = _PRUNED.search(text)
    if found is not None:
        return f"{text[: found.end(1)]}{' ' if found[1].strip() else ''}{FSTYPE}{text[found.end(1) :]}"
    if _NAMED.search(text):
        return text
    return f'{text}{"" if text.endswith(chr(10)) or not text else chr(10)}PRUNEFS="{FSTYPE}"\n'
