"""`mountkit doctor`, `policy`, `explain` and `self-test`: what is wrong, what is allowed, what a path is."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from mountkit import notes
from mountkit.commands.flags import mount_flags, wrapped


@click.command()
@click.argument("subject", required=False, metavar="[SOURCE|NAME|DIR]")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: one object with a list of lines.")
@mount_flags
def doctor(subject: str | None, as_json: bool, **flags: Any) -> None:
    """Check this machine and, step by step, a source, a mount of mountkit.yaml or a mounted directory.

    Each line is ✓ fine, ! worth knowing, or ✗ in the way of a mount, with the reason and the way out.
    """
    from mountkit.doctor import examine
    from mountkit.doctor.line import Verdict, as_text

    given = {name: value for name, value in flags.items() if value is not None}
    word = subject or ""
    found, section = [], ""
    for line in examine.lines(examine.subject(word, given), word, str(given.get("driver", "auto"))):
        found.append(line)
        if as_json:
            continue
        if line.section != section:
            click.echo(("\n" if section else "") + click.style(line.section, bold=True))
            section = line.section
        for text in as_text(line):
            click.echo(text)
    faults = [line for line in found if line.verdict is Verdict.FAULT]
    if as_json:
        click.echo(json.dumps({"would_mount": not faults, "lines": [line.to_json() for line in found]}, indent=2))
    if faults:
        sys.exit(faults[0].exit_code)


@click.command()
@click.argument("source")
@click.option("--writable", is_flag=True, help="For a mount that may write, too.")
def policy(source: str, writable: bool) -> None:
    """Print the least IAM policy that a mount of SOURCE (or of that name in mountkit.yaml) needs."""
    from mountkit import policy as policies
    from mountkit import project
    from mountkit.sources import parse_source

    named = project.find_mount(source)
    url = parse_source(named.source if named else source)
    click.echo(policies.as_text(url, writable=writable))
    encrypted = "kms:Decrypt and kms:GenerateDataKey" if writable else "kms:Decrypt"
    notes.say(f"note: where objects are encrypted with a KMS key, the key must allow {encrypted}, too")


@click.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: an object of sentences.")
def explain(path: str, as_json: bool) -> None:
    """Say which object PATH in a mount is, what of it is cached, and why it may not be there."""
    from mountkit import explain as explaining

    found = explaining.explain(path)
    if as_json:
        click.echo(json.dumps(dict(found), indent=2, ensure_ascii=False))
        return
    width = max(len(name) for name, _ in found)
    for name, text in found:
        lines = wrapped(text, indent=width + 2)
        for number, line in enumerate(lines):
            click.echo(f"{'' if number else name:<{width}}  {line}")


@click.command("self-test")
@click.option("--driver", default="auto", type=click.Choice(["auto", "fuse", "s3fs"]), help="Who serves the mount.")
def self_test(driver: str) -> None:
    """Mount a bucket of an embedded S3 server on this host, read it, kill a server, mount again: under a minute.

    Needs the server: pip install 'mountkit[demo]'. It takes away all it made.
    """
    import subprocess

    process = subprocess.Popen([sys.executable, "-I", "-m", "mountkit.selftest", driver])
    while True:
        try:
            sys.exit(process.wait())
        except KeyboardInterrupt:  # the terminal sent it to both: it cleans up
            continue
