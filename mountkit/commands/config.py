"""`mountkit config`: check, show and describe mountkit.yaml."""

from __future__ import annotations

import click


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
