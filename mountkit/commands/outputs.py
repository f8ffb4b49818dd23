"""`mountkit outputs` and `drain`: where what was written is, and waiting until it is in the bucket."""

from __future__ import annotations

import json
import os

import click

from mountkit import notes
from mountkit.config import OPTIONS
from mountkit.errors import UsageError


def _default_cache(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str:
    if value:
        return os.path.abspath(value)
    return os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")


_cache = click.option(
    "--cache", "cache", metavar="DIR", callback=_default_cache, help="Where the cache is, if nothing is mounted."
)


@click.command()
@click.argument("directory")
@click.option("--wait", is_flag=True, help="Wait until everything is in the bucket.")
@click.option("--export", "target", metavar="TARGET", help="Copy what is not in the bucket to this directory.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: a list of objects.")
@_cache
def outputs(directory: str, wait: bool, target: str | None, as_json: bool, cache: str) -> None:
    """Show what was written into the mount at DIRECTORY: staged, uploading, done or failed, and why."""
    from mountkit import outputs as staged
    from mountkit import report

    if target is not None and wait:
        raise UsageError("--export and --wait are two different things", "say one of them")
    place = staged.find(directory, cache)
    if target is not None:
        files, count = staged.export(place, target)
        notes.say(f"{files} files, {report.size(count)} were copied to {target}")
        return
    if wait:
        staged.drain(place, timeout_s=float("inf"), show=report.show_drain, retry=False)
    found = staged.listing(place)
    if as_json:
        click.echo(json.dumps([report.output_json(output) for output in found], indent=2))
    else:
        click.echo(report.outputs_text(found))


@click.command()
@click.argument("directory")
@click.option("--timeout", metavar="TIME", help="Give up waiting after this long (default: the mount's drain-timeout).")
@_cache
def drain(directory: str, timeout: str | None, cache: str) -> None:
    """Wait until everything written into the mount at DIRECTORY is in the bucket; what failed is tried again."""
    from mountkit import outputs as staged
    from mountkit import report

    parse = next(option.parse for option in OPTIONS if option.name == "drain-timeout")
    assert parse is not None
    place = staged.find(directory, cache)
    details = place.info.details if place.info is not None else {}
    timeout_s = parse(timeout) if timeout else float(details.get("drain_timeout_s", 0.0))
    staged.drain(place, timeout_s=timeout_s, show=report.show_drain)
