"""The options of a mount as docs/configuration.md lists them: made of the same table as the command line.

`mountkit config options` prints it, and a test compares it with the page.
"""

from __future__ import annotations

from mountkit.config import OPTIONS


def as_markdown() -> str:
    """A line an option, its words as `--help` has them."""
    rows = [(f"--{option.name} {option.metavar}".rstrip(), option.words.rstrip(".")) for option in OPTIONS]
    lines = ["| option | meaning |", "|---|---|", *(f"| `{name}` | {words} |" for name, words in rows)]
    return "\n".join(lines) + "\n"
