"""What several commands share: a mount's options as flags, and what they say about their arguments."""

from __future__ import annotations

import os
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
