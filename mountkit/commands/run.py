"""`mountkit run`, and what becomes of runs: `runs`, `logs`, `stop`, `wait` and `rerun`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from mountkit.commands.flags import mount_flags
from mountkit.run import options as run_options
from mountkit.run.options import RUN_OPTIONS


def _run_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(RUN_OPTIONS):
        names = (f"--{option.name}", option.short) if option.short else (f"--{option.name}",)
        if option.parse is None:
            decorate = click.option(*names, is_flag=True, default=None, help=option.words)
        else:
            decorate = click.option(*names, multiple=option.multiple, metavar=option.metavar, help=option.words)
        command = decorate(command)
    return command


def _mount_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    return mount_flags(command, without=run_options.NO_MOUNT_FLAGS)


@click.command(context_settings={"allow_interspersed_args": False})
@_run_flags
@click.option("--tty/--no-tty", default=None, help="Give the container a terminal (default: if this is one).")
@click.option("--dry-run", is_flag=True, help="Print the `docker run` that does the same, secrets hidden, and stop.")
@_mount_flags
@click.argument("image")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(image: str, arguments: tuple[str, ...], dry_run: bool, **options: Any) -> None:
    """Run IMAGE with its inputs mounted; ends with the container's exit code.

    Options stand before IMAGE; everything after it belongs to the program. IMAGE may be the name of a run in
    mountkit.yaml, and an input the name of a mount there.
    """
    from mountkit import project
    from mountkit.run import command, presets

    named = project.find_run(image)
    flags = run_options.wanted(options, image=None if named else image, arguments=arguments)
    wanted = presets.complete(project.resolve(flags), named)
    if wanted.tty is None:
        wanted = replace(wanted, tty=not wanted.detach and sys.stdin.isatty() and sys.stdout.isatty())
    if dry_run:
        click.echo(command.dry_run(wanted))
        return
    sys.exit(command.run(wanted))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: a list of objects.")
def runs(as_json: bool) -> None:
    """Show the runs of this user, those that go on and those that have ended."""
    from mountkit.run import history, records

    history.collect_orphans()
    summaries = [history.summary(one) for one in records.all_runs()]
    click.echo(history.as_json(summaries) if as_json else history.as_table(summaries))


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
def logs(run: str, follow: bool) -> None:
    """Show what the container of RUN (id, its beginning or end, or name) wrote."""
    from mountkit.run import history

    history.show_log(run, follow=follow)


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--kill", is_flag=True, help="Give the container no time to end by itself.")
def stop(run: str, kill: bool) -> None:
    """Stop RUN as Ctrl-C would, and wait until nothing of it is left."""
    from mountkit.run import history

    sys.exit(history.stop(run, kill=kill))


@click.command()
@click.argument("run", metavar="RUN")
def wait(run: str) -> None:
    """Wait for the end of RUN; ends with its container's exit code."""
    from mountkit.run import history

    sys.exit(history.wait(run))


@click.command()
@click.argument("run", metavar="RUN")
def rerun(run: str) -> None:
    """Run again what RUN ran."""
    from mountkit.run import history

    sys.exit(history.rerun(run))
