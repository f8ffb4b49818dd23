"""What several commands share: a mount's options as flags, and what they say about their arguments."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Callable, Container
from typing import Any

import click

from mountkit.config import OPTIONS


def mount_flags(command: Callable[..., Any], without: Container[str] = ()) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        if option.name in without:
            continue
        if option.parse is None:
            decorate = click.option(f"--{option.name}", is_flag=True, default=None, help=option.words)
        else:
            decorate = click.option(f"--{option.name}", metavar=option.metavar, help=option.words)
        command = decorate(command)
    return command


def missing(name: str) -> click.MissingParameter:
    """The complaint about an argument that is not there."""
    return click.MissingParameter(ctx=click.get_current_context(), param_hint=f"'{name}'", param_type="argument")


def relative(path: str, mount_point: str) -> str:
    """`path` as seen from its mount; "" for the mount point."""
    from mountkit import mountinfo

    return os.path.relpath(mountinfo.resolve(path), mount_point).removeprefix(".")


def wrapped(text: str, *, indent: int) -> list[str]:
    """`text` in lines that fit the terminal beside `indent` columns; words are never broken, so paths can be copied."""
    width = min(110, shutil.get_terminal_size((80, 24)).columns) - indent
    return textwrap.wrap(text, max(30, width), break_long_words=False, break_on_hyphens=False) or [""]
