"""The command that records in which order the files of a mount are opened."""

from __future__ import annotations

from typing import TextIO

import click

from mountkit import notes


@click.group()
def trace() -> None:
    """Record in which order files are opened, to fetch them in that order the next time.

    \b
    mountkit trace start /mnt/train
    …one epoch…
    mountkit trace stop /mnt/train --output epoch.trace
    mountkit warm /mnt/train --trace epoch.trace --ahead 2000
    """


@trace.command()
@click.argument("directory")
def start(directory: str) -> None:
    """Begin to record the opens in the mount DIRECTORY lies in; a trace that is running begins anew."""
    from mountkit import traces

    traces.begin_order(directory)


@trace.command()
@click.argument("directory")
@click.option(
    "--output", metavar="FILE", type=click.File("w"), default="-", help="Where to write it (default: stdout)."
)
def stop(directory: str, output: TextIO) -> None:
    """End the trace and write it down: the path of each file once, below the mount, in the order of first opens."""
    from mountkit import traces

    order = traces.end_order(directory)
    kept = [path for path in order.paths if "\n" not in path]
    missing = []
    if not order.is_complete:
        missing.append("not every open could be written down: the cache's disk was full, or they were over 4 million")
    if order.forgotten:
        missing.append(f"{order.forgotten} files were opened whose names are lost: the catalog was begun anew")
    if unwritable := len(order.paths) - len(kept):
        missing.append(f"{unwritable} files have a line break in their name and are left out")
    output.writelines(f"{line}\n" for line in [traces.INCOMPLETE] * bool(missing) + kept)
    notes.say(f"{len(kept)} files of {order.mount} were opened")
    for sentence in missing:
        click.echo(f"warning: the trace is incomplete: {sentence}", err=True)
