"""`mountkit mount`, `unmount`, `status`, `upgrade`, `refresh` and `warm`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import click

from mountkit import errors, notes
from mountkit.commands.flags import missing, mount_flags, relative
from mountkit.config import (
    PASSWD_CREDENTIAL,
    MountSettings,
    handed_credential,
    mount_settings,
    parse_mount_options,
)
from mountkit.errors import MountError, MountkitError, UsageError


@click.command()
@click.argument("source", required=False)
@click.argument("directory", required=False)
@mount_flags
@click.option("--foreground", "-f", is_flag=True, help="Stay: this process is the mount's keeper.")
@click.option("-o", "mount_options", multiple=True, metavar="OPT,…", help="Options as mount(8) writes them.")
@click.option("--all", "every", is_flag=True, help="Every mount of mountkit.yaml.")
def mount(
    source: str | None,
    directory: str | None,
    foreground: bool,
    mount_options: tuple[str, ...],
    every: bool,
    **flags: Any,
) -> None:
    """Mount SOURCE (bucket, bucket/prefix or s3://bucket/prefix?region=…) at DIRECTORY, read-only.

    Without DIRECTORY, SOURCE is the name of a mount in mountkit.yaml.
    """
    given: dict[str, Any] = {}
    for text in mount_options:
        given |= {name.replace("-", "_"): value for name, value in parse_mount_options(text).items()}
    given |= {name: value for name, value in flags.items() if value is not None}
    if source is not None and directory is not None and not every:
        mount_one(source, directory, given, foreground)
        return
    from mountkit import project

    if not every and source is None:
        raise missing("SOURCE")
    if not every and not project.find_file():
        raise UsageError(
            "missing argument 'DIRECTORY'",
            f"`mountkit mount {source} DIRECTORY`; without one, `{source}` is a mount of mountkit.yaml, and there is "
            "none here (see `mountkit mount --help`)",
        )
    if every and foreground:
        raise UsageError("one process cannot be the keeper of every mount", "leave out --foreground or --all")
    named = project.chosen_mounts(source, every=every)
    _each(named, lambda one: mount_one(one.source, one.directory, {**one.options, **given}, foreground))


def _each(named: Iterable[Any], action: Callable[[Any], None]) -> None:
    """Does it for every one; what fails is said, and the last failure is raised."""
    failed: list[MountkitError] = []
    for one in named:
        try:
            action(one)
        except MountkitError as exc:
            if failed:
                click.echo(errors.two_lines(failed[-1]), err=True)
            failed.append(exc)
    if failed:
        raise failed[-1]


def mount_one(source: str, directory: str, given: dict[str, Any], foreground: bool = False) -> None:
    """Mounts with options as they were given; says so where it is there already. Raises MountkitError."""
    from mountkit import mounting

    settings = mount_settings(source, directory, **given)
    credentials = _passwd_credentials(given.get("passwd_file"), settings)
    try:
        if foreground:
            mounting.mount_in_foreground(settings, passwd_credentials=credentials)
        if not mounting.mount(settings, passwd_credentials=credentials):
            notes.say(f"{settings.source} is mounted at {settings.directory} already")
    except MountkitError as exc:
        prefix = f"cannot mount `{settings.source}` at `{settings.directory}`: "
        if not exc.sentence.startswith("cannot mount"):
            exc.sentence = prefix + exc.sentence
        raise


def _passwd_credentials(path: str | None, settings: MountSettings) -> tuple[str, str] | None:
    if not path:
        return None
    from mountkit.store.passwd import read_passwd_file

    return read_passwd_file(handed_credential(PASSWD_CREDENTIAL) or path, settings.source.bucket)


@click.command()
@click.argument("directory", required=False)
@click.option("--force", is_flag=True, help="Cut off whoever still works in it.")
@click.option("--all", "every", is_flag=True, help="Every mount of mountkit.yaml that is mounted.")
def unmount(directory: str | None, force: bool, every: bool) -> None:
    """Unmount DIRECTORY (or the mount of mountkit.yaml that has this name) and end its processes.

    What was written there is brought to the bucket first; if that takes longer than the mount's drain-timeout, it stays
    mounted and goes on uploading. --force does not wait: what is left goes on with the next mount.
    """
    from mountkit import mountinfo, project

    mounted = {point.directory for point in mountinfo.ours()}
    if directory is None and not every:
        raise missing("DIRECTORY")
    if directory is not None and not every:
        named = None if mountinfo.resolve(directory) in mounted else project.find_mount(directory)
        _unmount_one(named.directory if named else directory, force)
        return
    chosen = project.chosen_mounts(directory, every=every)
    found = [one for one in chosen if mountinfo.resolve(one.directory) in mounted]
    _each(found, lambda one: _unmount_one(one.directory, force))


def _unmount_one(directory: str, force: bool) -> None:
    from mountkit import outputs, report, unmounting

    if not force:
        outputs.drain_for_unmount(directory, show=report.show_drain)
    unmounting.unmount(directory, force=force)


@click.command()
@click.argument("directory", required=False)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: a list of objects.")
@click.option("--repair", "mend", is_flag=True, help="Mount again what has died, and clear away what it left.")
def status(directory: str | None, as_json: bool, mend: bool) -> None:
    """Show every mount of this host, or the one DIRECTORY lies in."""
    from mountkit import mounts, report

    if mend:
        _repair(directory or "")
        return
    if directory is None:
        found = mounts.list_all()
    else:
        one = mounts.find(directory)
        if one is None:
            raise UsageError(f"{directory} is not in a mount of mountkit", "`mountkit status` lists the mounts")
        found = [one]
    if as_json:
        click.echo(json.dumps([report.as_json(info) for info in found], indent=2))
    elif not found:
        click.echo("no mounts")
    else:
        click.echo("\n\n".join(report.as_text(info) for info in found))


def _repair(directory: str) -> None:
    from mountkit import repair

    done = list(repair.repair(directory))
    for good, sentence in done:
        click.echo(sentence, err=not good)
    if not done:
        click.echo("nothing needs to be repaired")
    if not all(good for good, _ in done):
        sys.exit(MountError.exit_code)


@click.command()
@click.argument("directory")
def upgrade(directory: str) -> None:
    """Replace the processes of a live mount by the installed version of mountkit. Readers go on meanwhile."""
    from mountkit import mounts

    info = mounts.upgrade(directory)
    click.echo(f"{info.directory} is served by mountkit {info.details['version']}")


@click.command()
@click.argument("directory")
def refresh(directory: str) -> None:
    """Ask the bucket anew for everything known below DIRECTORY, and have the kernel forget what changed."""
    from mountkit import mounts

    keeper, info = mounts.client(directory)
    with keeper:
        answer = keeper.call("refresh", path=relative(directory, info.directory))
    click.echo(f"{answer['changed']} names changed")


@click.command()
@click.argument("directory")
@click.option("--order", metavar="FILE", type=click.File(), help="Fetch the files this list names, a path a line.")
@click.option("--trace", metavar="FILE", type=click.File(), help="Fetch in the order that `mountkit trace` recorded.")
@click.option("--ahead", metavar="N", type=click.IntRange(1), help="With a list: stay N files ahead of the reader.")
def warm(directory: str, order: TextIO | None, trace: TextIO | None, ahead: int | None) -> None:
    """Fetch everything below DIRECTORY into the cache. Ctrl-C stops it; what has arrived stays."""
    from mountkit import mounts, report, traces
    from mountkit.order import below_mount

    if order is not None and trace is not None:
        raise UsageError("--order and --trace are both lists to fetch in", "give one of them")
    listed = order or trace
    if ahead is not None and listed is None:
        raise UsageError("--ahead needs a list to be ahead in", "give it with `--order FILE` or `--trace FILE`")
    mover, info = mounts.mover_client(directory)
    with mover:
        if listed is not None:
            lines = [line.rstrip("\n") for line in listed if line.strip()]
            if lines[:1] == [traces.INCOMPLETE]:
                del lines[0]
                rest = "files that are not in it are fetched when they are opened"
                click.echo(f"warning: {listed.name} is an incomplete trace: {rest}", err=True)
            # a trace is of a whole mount, whatever directory of it is named
            paths = below_mount(info.directory if trace else directory, info.directory, lines)
            if len(paths) < len(lines):
                raise UsageError(f"{listed.name} names files outside of {info.directory}")
            updates = mover.stream("warm_order", paths=paths, ahead=ahead)
        else:
            fresh = report.oldest_fresh(info.details["ttl_s"])
            updates = mover.stream("warm", path=relative(directory, info.directory), fresh=fresh)
        result = report.show_warm(updates)
    if result["failed"]:
        raise MountkitError(
            f"{result['failed']} files could not be fetched: {result['failures'][0]}",
            f"the log {info.details['log']} names all",
        )
