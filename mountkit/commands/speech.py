"""--verbose, --quiet and --log-format: how much a command and the processes it starts say, and in which form.

Each command takes them, before and after its name; they are shown once, by `mountkit --help`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from mountkit import notes


def _set(variable: str, value: str) -> None:
    os.environ[variable] = value


def _verbose(_context: click.Context, _parameter: click.Parameter, given: bool) -> None:
    if given:
        from mountkit import logs

        _set(notes.LEVEL, notes.VERBOSE)
        logs.basic()


def _quiet(_context: click.Context, _parameter: click.Parameter, given: bool) -> None:
    if given:
        _set(notes.LEVEL, notes.QUIET)


def _format(_context: click.Context, _parameter: click.Parameter, given: str | None) -> None:
    if given:
        _set(notes.FORMAT, given)


def options(*, hidden: bool) -> list[click.Option]:
    return [
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", notes.JSON]),
            callback=_format,
            is_eager=True,
            expose_value=False,
            hidden=hidden,
            help="How the processes of a mount write their log.",
        ),
        click.Option(
            ["--verbose"],
            is_flag=True,
            callback=_verbose,
            expose_value=False,
            hidden=hidden,
            help="Log everything; also of this command, to stderr.",
        ),
        click.Option(
            ["--quiet"],
            is_flag=True,
            callback=_quiet,
            expose_value=False,
            hidden=hidden,
            help="Say nothing beside results and errors; log warnings only.",
        ),
    ]


def add_to(root: click.Group) -> None:
    """Gives them to `root` and every command below it."""
    root.params += options(hidden=False)
    for command in _below(root):
        command.params += options(hidden=True)


def _below(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from _below(command)
