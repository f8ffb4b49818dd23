"""`mountkit push` and `pull`: whole directories to and from a bucket, without a mount."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mountkit import notes
from mountkit.commands.flags import mount_flags
from mountkit.config import OPTIONS, MountSettings, mount_settings
from mountkit.errors import MountkitError, UploadsLeft

_REACH = {"region", "endpoint", "profile", "anonymous", "requester-pays", "passwd-file", "cache", "data-budget"}
_PUT = {"storage-class", "sse", "no-clobber"}


def _flags(names: set[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda command: mount_flags(command, without={option.name for option in OPTIONS} - names)


def _settings(source: str, flags: dict[str, Any]) -> tuple[MountSettings, tuple[str, str] | None]:
    given = {name: value for name, value in flags.items() if value is not None}
    settings = mount_settings(source, "/", **given, writable=True)
    credentials = None
    if flags.get("passwd_file"):
        from mountkit.store.passwd import read_passwd_file

        credentials = read_passwd_file(flags["passwd_file"], settings.source.bucket)
    return settings, credentials


@click.command()
@click.argument("directory")
@click.argument("source")
@_flags(_REACH | _PUT)
def push(directory: str, source: str, **flags: Any) -> None:
    """Upload everything below DIRECTORY to SOURCE (s3://bucket/prefix). Run it again to go on, or to send what is new.

    Links are followed to files, not to directories. Nothing is ever deleted in the bucket.
    """
    from mountkit import report, transfers

    settings, credentials = _settings(source, flags)
    result = transfers.push(directory, settings, credentials=credentials, show=report.show_drain)
    for sentence in result["passed_over"][:10]:
        click.echo(f"passed over: {sentence}", err=True)
    if result["left"] or result["failed"]:
        key, error = next(iter(result["errors"].items()), ("", None))
        why = f": {key}: {error['sentence']}" if error else ""
        count = result["left"] + result["failed"]
        raise UploadsLeft(f"{count} files did not reach {settings.source}{why}", "run it again: it goes on")
    sent = result["files"] - result["unchanged"]
    total = report.size(result["bytes"])
    notes.say(f"{sent} of {result['files']} files sent, {total} are in {settings.source}")


@click.command()
@click.argument("source")
@click.argument("directory")
@_flags(_REACH)
def pull(source: str, directory: str, **flags: Any) -> None:
    """Fetch everything below SOURCE (s3://bucket/prefix) into DIRECTORY. Run it again to go on, or for what is new."""
    from mountkit import report, transfers

    settings, credentials = _settings(source, flags)
    result = transfers.pull(directory, settings, credentials=credentials, show=report.show_pull)
    if result["failed"]:
        raise MountkitError(
            f"{result['failed']} objects could not be fetched: {'; '.join(result['failures'])}", "run it again"
        )
    fetched = result["files_done"] - result["unchanged"]
    notes.say(f"{fetched} of {result['files']} files fetched, {report.size(result['bytes'])} in all")
