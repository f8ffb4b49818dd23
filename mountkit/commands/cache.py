"""`mountkit cache`: what is kept on this machine's disks, whose it is, whether it is right; less of it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mountkit import notes

if TYPE_CHECKING:
    from mountkit.states import State

_cache_option = click.option(
    "--cache", "directory", metavar="DIR", help="Only what is below DIR (default: wherever mounts cache)."
)
_which = click.argument("which", nargs=-1, metavar="[SOURCE|NAME|DIR]…")


@click.group()
def cache() -> None:
    """List, check, empty and shrink what mounts have cached, also of mounts that are gone."""


def _states(directory: str | None, which: tuple[str, ...] = ()) -> list[State]:
    """Those below `directory`, or all of mounts by hand, of mountkit.yaml and of live mounts; of them, `which`."""
    from mountkit import project, states
    from mountkit.config import mount_settings

    named = project.readable_mounts()
    places = {mount_settings("bucket", "/", cache=directory).cache_directory}
    if directory is None:
        places |= {str(one.options["cache"]) for one in named if "cache" in one.options}
    sources = {one.name: one.source for one in named}
    found = states.find(places, live_elsewhere=directory is None)
    return states.chosen(found, [sources.get(word, word) for word in which]) if which else found


@cache.command("list")
@_cache_option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: a list of objects.")
def list_(directory: str | None, as_json: bool) -> None:
    """Show what is cached: source, size, objects, when it was last used, and by whom it is in use."""
    from mountkit.report import size

    found = _states(directory)
    if as_json:
        click.echo(json.dumps([state.to_json() for state in found], indent=2))
    elif not found:
        click.echo("nothing is cached")
    else:
        for state in found:
            click.echo("\n".join(_lines(state)))
        click.echo(f"\n{size(sum(state.size_bytes for state in found))} in all")


def _lines(state: State) -> Iterator[str]:
    from mountkit.report import size

    source = state.source or "unknown source"
    yield f"{source} ({state.name[:8]}{', s3fs' if state.driver == 's3fs' else ''})"
    objects = "" if state.driver == "s3fs" else f" in {state.objects:,} objects"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.last_used)) if state.last_used else "nobody knows when"
    yield f"  {size(state.size_bytes)}{objects}, last used {when}{f', as {state.identity}' if state.identity else ''}"
    yield from (f"  in use by {directory}" for directory in state.used_by)
    if state.busy and not state.used_by:
        yield "  in use by a mount that is starting or ending"


@cache.command()
@_which
@_cache_option
def verify(which: tuple[str, ...], directory: str | None) -> None:
    """Read everything that is cached and compare it with its checksums; what is bad is fetched again."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from mountkit import states
    from mountkit.report import size

    console = notes.console()
    bad = 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    for state in _states(directory, which):
        if state.driver == "s3fs":
            click.echo(f"{state.title}: s3fs keeps no checksums")
            continue
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
            bar = progress.add_task(state.title, total=state.size_bytes)
            found = states.verify(state, lambda count: progress.advance(bar, count))  # noqa: B023
        words = f"{found.objects:,} objects, {size(found.checked_bytes)}"
        unknown = f"; {found.unknown:,} belong to nothing that is known and are never read" if found.unknown else ""
        if found.bad:
            bad += len(found.bad)
            mended = "they were fetched again" if state.used_by else "they are fetched again when they are read"
            click.echo(f"{state.title}: {words}, {len(found.bad)} of them not what was written: {mended}{unknown}")
            for key in found.bad:
                click.echo(f"  {key}")
        else:
            click.echo(f"{state.title}: {words}, all as they were written{unknown}")
    if bad:
        sys.exit(1)


@cache.command()
@_which
@_cache_option
@click.option("--all", "every", is_flag=True, help="Everything that is not in use.")
@click.option("--in-use", is_flag=True, help="Also what a live mount uses: it goes on and fetches everything anew.")
def clear(which: tuple[str, ...], directory: str | None, every: bool, in_use: bool) -> None:
    """Delete what is cached of these sources."""
    from mountkit import states
    from mountkit.errors import UsageError
    from mountkit.report import size

    if every == bool(which):
        raise UsageError("say either what to clear or --all", "`mountkit cache list` shows what there is")
    for state in _states(directory, which):
        if every and state.used_by and not in_use:
            click.echo(f"{state.title}: left, it is mounted at {', '.join(state.used_by)}")
            continue
        freed = states.clear(state, in_use=in_use)
        click.echo(f"{state.title}: {size(freed)} deleted")


@cache.command()
@click.argument("size")
@_which
@_cache_option
def limit(size: str, which: tuple[str, ...], directory: str | None) -> None:
    """Shrink each of these caches (default: every one) to at most SIZE, like 20GB; the longest unused goes first."""
    from mountkit import report, states
    from mountkit.config import parse_size

    most = parse_size(size)
    for state in _states(directory, which):
        if state.driver == "s3fs" and not which:
            continue
        freed = states.limit(state, most)
        click.echo(f"{state.title}: {report.size(freed)} deleted")
