"""The command line: words in, words out, exit codes. The commands are in `commands`."""

from __future__ import annotations

import os
import sys

import click

from mountkit import __version__, errors
from mountkit.commands import (
    cache,
    completing,
    config,
    doctor,
    manual,
    mount,
    outputs,
    run,
    speech,
    systemd,
    trace,
    transfer,
)
from mountkit.errors import MountkitError, UsageError

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


for _command in (
    *(mount.mount, mount.unmount, mount.status, mount.upgrade, mount.refresh, mount.warm),
    *(run.run, run.runs, run.logs, run.stop, run.wait, run.rerun),
    *(outputs.outputs, outputs.drain, transfer.push, transfer.pull),
    *(doctor.doctor, doctor.policy, doctor.explain, doctor.self_test),
    *(cache.cache, config.config, systemd.systemd, trace.trace),
    *(manual.help_, manual.completion),
):
    cli.add_command(_command)
speech.add_to(cli)
completing.add_to(cli)


def main() -> None:
    """Runs the command of this process's command line, and ends with its exit code."""
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
