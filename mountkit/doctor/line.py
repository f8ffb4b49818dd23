"""Lines of a diagnosis, and how they look."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import click

from mountkit.errors import MountkitError

_LONGEST, _NAMES = 110, 16


class Verdict(StrEnum):
    FINE = "fine"
    NOTE = "note"
    """Worth knowing; a mount works."""
    FAULT = "fault"
    """A mount fails."""


_SIGNS = {Verdict.FINE: ("✓", "green"), Verdict.NOTE: ("!", "yellow"), Verdict.FAULT: ("✗", "red")}


@dataclass(frozen=True, slots=True)
class Line:
    """One finding: what was looked at, what was found, and for what is not fine what to do."""

    section: str
    name: str
    verdict: Verdict
    text: str
    way_out: str = ""
    exit_code: int = 0
    """Of a fault: what `mountkit mount` would end with."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Line:
        return cls(**{**data, "verdict": Verdict(data["verdict"])})


class Section:
    """Makes the lines of one section."""

    def __init__(self, title: str) -> None:
        self.title = title

    def fine(self, name: str, text: str) -> Line:
        return Line(self.title, name, Verdict.FINE, text)

    def note(self, name: str, text: str, way_out: str) -> Line:
        return Line(self.title, name, Verdict.NOTE, text, way_out)

    def fault(self, name: str, error: MountkitError) -> Line:
        return Line(self.title, name, Verdict.FAULT, error.sentence, error.hint, error.exit_code)

    def weighed(self, name: str, error: MountkitError, *, stops: bool) -> Line:
        """A fault, or, where a mount works without it, a note."""
        return self.fault(name, error) if stops else self.note(name, error.sentence, error.hint)


def as_text(line: Line, width: int = 0) -> Iterator[str]:
    """The line as it is shown, in colours that `click.echo` takes away where nobody sees them."""
    width = min(_LONGEST, width or shutil.get_terminal_size((80, 24)).columns)
    sign, colour = _SIGNS[line.verdict]
    indent = " " * (4 + _NAMES)
    first, *rest = textwrap.wrap(line.text, width - len(indent), break_long_words=False, break_on_hyphens=False) or [""]
    yield f"  {click.style(sign, fg=colour, bold=True)} {line.name:<{_NAMES}}{first}"
    yield from (indent + text for text in rest)
    if line.way_out:
        wrapped = textwrap.wrap(line.way_out, width - len(indent) - 2, break_long_words=False, break_on_hyphens=False)
        yield from (f"{indent}{'→ ' if not number else '  '}{text}" for number, text in enumerate(wrapped))
