"""`mountkit systemd`: units for the mounts of mountkit.yaml, and the helpers of mount(8)."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from mountkit.errors import UsageError

if TYPE_CHECKING:
    from mountkit.systemd.install import Voice

_user = click.option("--user", is_flag=True, help="Units of your own instead of the system's.")
_yes = click.option("--yes", "-y", is_flag=True, help="Change what is there without a question.")


@click.group()
def systemd() -> None:
    """Mounts that stay: at boot, in fstab, watched and restarted by systemd."""


@systemd.command()
@click.argument("names", nargs=-1, metavar="NAME…")
@click.option("--all", "every", is_flag=True, help="Every mount of mountkit.yaml.")
@_user
@click.option("--now", is_flag=True, help="Start them, too.")
@click.option("--credentials", default="", metavar="FILE|env", help="A file like ~/.aws/credentials, or this shell's.")
@_yes
def install(names: tuple[str, ...], every: bool, user: bool, now: bool, credentials: str, yes: bool) -> None:
    """Write and enable units for mounts of mountkit.yaml. What is right already is left alone."""
    from mountkit import project
    from mountkit.systemd import install as installation
    from mountkit.systemd.units import Scope

    found = project.load(project.required().path, {})  # a unit has no variables but its own
    if every == bool(names):
        raise UsageError("say either the names of mounts or --all", f"{found.path} lists them")
    wanted = [one.name for one in found.all_mounts()] if every else list(names)
    installation.install(found, wanted, Scope(user), _voice(yes), credentials=credentials, now=now)


@systemd.command()
@click.argument("names", nargs=-1, metavar="NAME…")
@click.option("--all", "every", is_flag=True, help="Every one there is.")
@_user
def uninstall(names: tuple[str, ...], every: bool, user: bool) -> None:
    """Stop, disable and remove units."""
    from mountkit.systemd import install as installation
    from mountkit.systemd import units

    scope = units.Scope(user)
    if every == bool(names):
        raise UsageError("say either the names of mounts or --all", "`mountkit systemd status` lists them")
    installation.uninstall(units.installed(scope) if every else names, scope, _voice(yes=True))


@systemd.command()
@click.argument("names", nargs=-1, metavar="NAME…")
@_user
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: a list of objects.")
def status(names: tuple[str, ...], user: bool, as_json: bool) -> None:
    """Show the units of mounts: whether they run, start at boot, and what they say."""
    from mountkit.systemd import install as installation
    from mountkit.systemd import units

    scope = units.Scope(user)
    found = [(name, installation.show(scope, units.unit(name))) for name in names or units.installed(scope)]
    if as_json:
        click.echo(json.dumps([{"name": name, **state} for name, state in found], indent=2))
        return
    for name, state in found:
        restarts = f", restarted {state['NRestarts']} times" if state["NRestarts"] not in ("", "0") else ""
        click.echo(f"{units.unit(name)}: {state['ActiveState']}, {state['UnitFileState'] or 'no such unit'}{restarts}")
        if state["StatusText"]:
            click.echo(f"  {state['StatusText']}")
    if not found:
        click.echo("no units; `mountkit systemd install NAME` writes them")


@systemd.command("install-helpers")
@click.option("--directory", default="/sbin", show_default=True, metavar="DIR", help="Where mount(8) looks.")
@_yes
def install_helpers(directory: str, yes: bool) -> None:
    """Write what `mount -t fuse.mountkit`, fstab and umount call."""
    from mountkit.systemd import install as installation

    if not installation.install_helpers(directory, _voice(yes)):
        click.echo(f"the helpers in {directory} are as they shall be")


@systemd.command("uninstall-helpers")
@click.option("--directory", default="/sbin", show_default=True, metavar="DIR", help="Where mount(8) looks.")
def uninstall_helpers(directory: str) -> None:
    """Remove them."""
    from mountkit.systemd import install as installation

    installation.remove([file.path for file in installation.helper_files(directory)], _voice(yes=True))


def _voice(yes: bool) -> Voice:
    """Asks at a terminal; where nobody could answer the difference stands in the output, and it is done."""
    from mountkit.systemd.install import Voice

    silent = yes or not sys.stdin.isatty()
    return Voice(say=click.echo, ask=lambda question: silent or click.confirm(question, default=True))
