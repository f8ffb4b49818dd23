"""The command line: words in, words out, exit codes. Each command is a few lines over the modules that do the work."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TextIO

import click

from mountkit import __version__, errors
from mountkit.cli_config import config
from mountkit.config import OPTIONS, MountSettings, mount_settings, parse_mount_options
from mountkit.errors import MountkitError, UsageError
from mountkit.run import hidden
from mountkit.run import options as run_options
from mountkit.run.options import RUN_OPTIONS

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
INTERRUPTED = 130


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, "-V", "--version", prog_name="mountkit")
def cli() -> None:
    """Mount buckets as directories and run training containers on them.

    \b
    mountkit mount bucket /s3-mount --cache /tmp
    mountkit run --input s3://data/train:/data/input my/image:latest
    """


cli.add_command(config)


def _mount_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        if option.parse is None:
            decorate = click.option(f"--{option.name}", is_flag=True, default=None, help=option.words)
        else:
            decorate = click.option(f"--{option.name}", metavar=option.metavar, help=option.words)
        command = decorate(command)
    return command


@cli.command()
@click.argument("source", required=False)
@click.argument("directory", required=False)
@_mount_flags
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
        _mount_one(source, directory, given, foreground)
        return
    from mountkit import project

    if not every and (source is None or not project.find_file()):
        raise _missing("DIRECTORY" if source else "SOURCE")
    if every and foreground:
        raise UsageError("one process cannot be the keeper of every mount", "leave out --foreground or --all")
    named = project.chosen_mounts(source, every=every)
    _each(named, lambda one: _mount_one(one.source, one.directory, {**one.options, **given}, foreground))


def _missing(name: str) -> click.MissingParameter:
    return click.MissingParameter(ctx=click.get_current_context(), param_hint=f"'{name}'", param_type="argument")


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


def _mount_one(source: str, directory: str, given: dict[str, Any], foreground: bool) -> None:
    from mountkit import mounts

    settings = mount_settings(source, directory, **given)
    credentials = _passwd_credentials(given.get("passwd_file"), settings)
    try:
        if foreground:
            mounts.mount_in_foreground(settings, passwd_credentials=credentials)
        if not mounts.mount(settings, passwd_credentials=credentials):
            click.echo(f"{settings.source} is mounted at {settings.directory} already", err=True)
    except MountkitError as exc:
        prefix = f"cannot mount `{settings.source}` at `{settings.directory}`: "
        if not exc.sentence.startswith("cannot mount"):
            exc.sentence = prefix + exc.sentence
        raise


def _passwd_credentials(path: str | None, settings: MountSettings) -> tuple[str, str] | None:
    if not path:
        return None
    from mountkit.store.passwd import read_passwd_file

    return read_passwd_file(path, settings.source.bucket)


@cli.command()
@click.argument("directory", required=False)
@click.option("--force", is_flag=True, help="Cut off whoever still works in it.")
@click.option("--all", "every", is_flag=True, help="Every mount of mountkit.yaml that is mounted.")
def unmount(directory: str | None, force: bool, every: bool) -> None:
    """Unmount DIRECTORY (or the mount of mountkit.yaml that has this name) and end its processes."""
    from mountkit import mountinfo, mounts, project

    mounted = {point.directory for point in mountinfo.ours()}
    if directory is None and not every:
        raise _missing("DIRECTORY")
    if directory is not None and not every:
        named = None if mountinfo.resolve(directory) in mounted else project.find_mount(directory)
        mounts.unmount(named.directory if named else directory, force=force)
        return
    chosen = project.chosen_mounts(directory, every=every)
    found = [one for one in chosen if mountinfo.resolve(one.directory) in mounted]
    _each(found, lambda one: mounts.unmount(one.directory, force=force))


@cli.command()
@click.argument("directory", required=False)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: a list of objects.")
def status(directory: str | None, as_json: bool) -> None:
    """Show every mount of this host, or the one DIRECTORY lies in."""
    from mountkit import mounts, report

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


@cli.command()
@click.argument("directory")
def upgrade(directory: str) -> None:
    """Replace the processes of a live mount by the installed version of mountkit. Readers go on meanwhile."""
    from mountkit import mounts

    info = mounts.upgrade(directory)
    click.echo(f"{info.directory} is served by mountkit {info.details['version']}")


@cli.command()
@click.argument("directory")
def refresh(directory: str) -> None:
    """Ask the bucket anew for everything known below DIRECTORY, and have the kernel forget what changed."""
    from mountkit import mounts

    keeper, info = mounts.client(directory)
    with keeper:
        answer = keeper.call("refresh", path=_relative(directory, info.directory))
    click.echo(f"{answer['changed']} names changed")


@cli.command()
@click.argument("directory")
@click.option("--order", metavar="FILE", type=click.File(), help="Fetch the files this list names, a path a line.")
@click.option("--ahead", metavar="N", type=click.IntRange(1), help="With --order: stay N files ahead of the reader.")
def warm(directory: str, order: TextIO | None, ahead: int | None) -> None:
    """Fetch everything below DIRECTORY into the cache. Ctrl-C stops it; what has arrived stays."""
    from mountkit import mounts, report
    from mountkit.order import below_mount

    if ahead is not None and order is None:
        raise UsageError("--ahead needs a list to be ahead in", "give it with `--order FILE`")
    mover, info = mounts.mover_client(directory)
    with mover:
        if order is not None:
            lines = [line.rstrip("\n") for line in order if line.strip()]
            paths = below_mount(directory, info.directory, lines)
            if len(paths) < len(lines):
                raise UsageError(f"{order.name} names files outside of {info.directory}")
            updates = mover.stream("warm_order", paths=paths, ahead=ahead)
        else:
            fresh = report.oldest_fresh(info.details["ttl_s"])
            updates = mover.stream("warm", path=_relative(directory, info.directory), fresh=fresh)
        result = report.show_warm(updates)
    if result["failed"]:
        raise MountkitError(
            f"{result['failed']} files could not be fetched: {result['failures'][0]}",
            f"the log {info.details['log']} names all",
        )


def _relative(path: str, mount_point: str) -> str:
    from mountkit import mountinfo

    return os.path.relpath(mountinfo.resolve(path), mount_point).removeprefix(".")


def _run_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(RUN_OPTIONS):
        names = (f"--{option.name}", option.short) if option.short else (f"--{option.name}",)
        if option.parse is None:
            decorate = click.option(*names, is_flag=True, default=None, help=option.words)
        else:
            decorate = click.option(*names, multiple=option.multiple, metavar=option.metavar, help=option.words)
        command = decorate(command)
    return command


@cli.command(context_settings={"allow_interspersed_args": False})
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


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: a list of objects.")
def runs(as_json: bool) -> None:
    """Show the runs of this user, those that go on and those that have ended."""
    from mountkit.run import history, records

    history.collect_orphans()
    summaries = [history.summary(one) for one in records.all_runs()]
    click.echo(history.as_json(summaries) if as_json else history.as_table(summaries))


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
def logs(run: str, follow: bool) -> None:
    """Show what the container of RUN (id, its beginning or end, or name) wrote."""
    from mountkit.run import history

    history.show_log(run, follow=follow)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--kill", is_flag=True, help="Give the container no time to end by itself.")
def stop(run: str, kill: bool) -> None:
    """Stop RUN as Ctrl-C would, and wait until nothing of it is left."""
    from mountkit.run import history

    sys.exit(history.stop(run, kill=kill))


@cli.command()
@click.argument("run", metavar="RUN")
def wait(run: str) -> None:
    """Wait for the end of RUN; ends with its container's exit code."""
    from mountkit.run import history

    sys.exit(history.wait(run))


@cli.command()
@click.argument("run", metavar="RUN")
def rerun(run: str) -> None:
    """Run again what RUN ran."""
    from mountkit.run import history

    sys.exit(history.rerun(run))


def main() -> None:
    """Entry point of the console script."""
    hidden.hide()
    try:
        cli.main(standalone_mode=False)
    except MountkitError as exc:
        click.echo(errors.two_lines(exc), err=True)
        sys.exit(exc.exit_code)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(INTERRUPTED)
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.ClickException as exc:
        context = exc.ctx if isinstance(exc, click.UsageError) else None  # none for an option without its value
        hint = f"see `{context.command_path if context else 'mountkit COMMAND'} --help`"
        click.echo(errors.two_lines(UsageError(exc.format_message().rstrip("."), hint)), err=True)
        sys.exit(UsageError.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(INTERRUPTED)
    except Exception as exc:  # the one place where what nobody foresaw becomes words
        if os.environ.get("MOUNTKIT_DEBUG"):
            raise
        click.echo(
            f"error: mountkit failed in a way nobody foresaw: {exc!r}\nhint: set MOUNTKIT_DEBUG=1 and report it",
            err=True,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
