"""`mountkit config`: check, show and describe mountkit.yaml."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from mountkit import notes
from mountkit.commands.flags import missing, mount_flags
from mountkit.errors import UsageError


@click.group()
def config() -> None:
    """Check and show mountkit.yaml."""


@config.command()
@click.argument("file", required=False)
def check(file: str | None) -> None:
    """Read every entry of mountkit.yaml (or FILE), and say what is wrong with the first that is."""
    from mountkit import project

    found = project.load(file) if file else project.required()
    found.check()
    click.echo(f"{found.path}: {len(found.mounts.entries)} mounts, {len(found.runs.entries)} runs, all right")


@config.command()
@click.argument("file", required=False)
def show(file: str | None) -> None:
    """Print what mountkit.yaml (or FILE) says, aliases resolved, variables as they are written."""
    from mountkit import project, yamlfile

    found = project.load(file) if file else project.required()
    click.echo(f"# {found.path}")
    for name, table in (("mounts", found.mounts), ("runs", found.runs)):
        click.echo(f"{name}:{yamlfile.dump(table, 1)}", nl=False)


@config.command()
def schema() -> None:
    """Print the JSON Schema of mountkit.yaml, for editors."""
    from mountkit import project_schema

    click.echo(project_schema.as_text(), nl=False)


@config.command()
def options() -> None:
    """Print the table of a mount's options, as docs/configuration.md has it."""
    from mountkit import option_table

    click.echo(option_table.as_markdown(), nl=False)


@config.command()
@click.argument("file", default="mountkit.yaml")
@click.option("--source", metavar="SOURCE", help="Bucket, bucket/prefix or s3://bucket/prefix?region=….")
@click.option("--directory", metavar="DIR", help="Where it is mounted; relative to the file.")
@click.option("--name", metavar="NAME", help="What the mount is called (default: the end of the source).")
@mount_flags
def init(file: str, source: str | None, directory: str | None, name: str | None, **flags: Any) -> None:
    """Write a first mountkit.yaml (or FILE) with one mount. Asks at a terminal for what no flag says."""
    from mountkit import project_init as first

    options = {option: value for option, value in flags.items() if value is not None}
    asks = sys.stdin.isatty()
    if source is None:
        source = _asked("Which bucket (bucket, bucket/prefix or s3://bucket/prefix)", first.checked_source, asks, "")
        if asks and "endpoint" not in options:
            options |= {"endpoint": url} if (url := click.prompt("Its server, if it is not AWS", default="")) else {}
    suggested = first.suggested_name(source)
    name = first.checked_name(name) if name else _asked("Name of the mount", first.checked_name, asks, suggested)
    if directory is None:
        directory = _asked("Mounted at which directory", str, asks, "" if not asks else f"/mnt/{name}")
    first.write(file, first.text(name, source, directory, options))
    notes.say(f"wrote {file}: `mountkit mount {name}` mounts {source} at {directory}")


def _asked(question: str, parse: Callable[[str], str], asks: bool, default: str) -> str:
    """An answer that makes sense; the default where nobody can be asked."""
    if not asks:
        if not default:
            raise missing("--source and --directory")
        return default

    def checked(text: str) -> str:
        try:
            return parse(text)
        except UsageError as exc:
            raise click.BadParameter(f"{exc.sentence} ({exc.hint})") from None

    answer: str = click.prompt(question, default=default or None, value_proc=checked)
    return answer
