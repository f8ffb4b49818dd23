"""The self-test: a real mount on this host, of a bucket on an embedded server, with a death on the way; a line a step.

It uses mountkit through its command line, as a user does, compares every byte by its checksum, and takes away all it
made. `mountkit self-test` starts it as a process of its own: it talks S3, which the command line never does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import click

from mountkit import mountinfo
from mountkit.demo import bucket
from mountkit.doctor.line import Section, as_text
from mountkit.errors import HostError, MountkitError
from mountkit.report import size

_SMALL, _SMALL_BYTES, _LARGE_BYTES = 200, 60_000, 24_000_000
_READERS = 4
_COMMAND_S = 90.0
_SELF_TEST = Section("self-test")


@dataclass
class Bench:
    """What the self-test has made so far."""

    base: str
    driver: str
    server: bucket.Server | None = None
    sums: dict[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        return os.path.join(self.base, "mnt")

    @property
    def cache(self) -> str:
        return os.path.join(self.base, "cache")

    def environment(self) -> dict[str, str]:
        assert self.server
        return self.server.environment()


def main() -> int:
    """Exit code 0 if every step went well."""
    driver = sys.argv[1] if len(sys.argv) > 1 else "auto"
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    bench = Bench(os.path.realpath(tempfile.mkdtemp(prefix="mountkit-self-test-")), driver)
    started = time.monotonic()
    failed = True
    try:
        for name, step in STEPS:
            _do(name, lambda: step(bench))  # noqa: B023 - called at once
        failed = False
    except MountkitError as exc:
        _show(_SELF_TEST.fault(_doing, exc))
    except Exception as exc:  # whatever it is, the machine did not pass
        _show(_SELF_TEST.fault(_doing, HostError(f"failed in a way nobody foresaw: {exc!r}", "report it")))
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        return 130
    finally:
        _clean_up(bench, keep=failed)
    if failed:
        click.echo(f"\nits log, and the server's, stay in {bench.base}")
        return 1
    click.echo(f"\nmountkit works on this machine ({time.monotonic() - started:.0f} s)")
    return 0


class _PassedOver(Exception):
    """What the driver cannot do by its nature."""


_doing = ""


def _do(name: str, step: Callable[[], str]) -> None:
    global _doing
    _doing, started = name, time.monotonic()
    try:
        text = step()
    except _PassedOver as exc:
        _show(_SELF_TEST.note(name, f"passed over: {exc}", ""))
    else:
        _show(_SELF_TEST.fine(name, f"{text} ({time.monotonic() - started:.1f} s)"))


def _show(line: Any) -> None:
    for text in as_text(line):
        click.echo(text)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# ---- steps ---------------------------------------------------------------------------------------------------
def _serve(bench: Bench) -> str:
    bench.server = bucket.start_server(bench.base)
    return f"SeaweedFS at {bench.server.endpoint}"


def _fill(bench: Bench) -> str:
    assert bench.server
    client = bench.server.client(connections=_READERS)
    dice = random.Random(7)  # noqa: S311
    sizes = {f"class{number % 8}/{number:03d}": _SMALL_BYTES for number in range(_SMALL)} | {"large": _LARGE_BYTES}
    contents = {key: dice.randbytes(count) for key, count in sizes.items()}

    def put(item: tuple[str, bytes]) -> None:
        client.put_object(Bucket=bucket.BUCKET, Key=item[0], Body=item[1])

    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(put, contents.items()))
    bench.sums = {key: hashlib.sha256(data).hexdigest() for key, data in contents.items()}
    return f"{len(contents)} objects, {size(sum(sizes.values()))}"


def _mount(bench: Bench) -> str:
    assert bench.server
    os.makedirs(bench.directory, exist_ok=True)
    source = f"s3://{bucket.BUCKET}?endpoint={bench.server.endpoint}"
    said = _mountkit(bench, "mount", source, bench.directory, "--cache", bench.cache, "--driver", bench.driver)
    status = _status(bench)
    native = ", cached files are read natively" if status["passthrough"] else ""
    return f"{source.partition('?')[0]} by {status['driver']}{native}{': ' + said.strip() if said else ''}"


def _read_with_a_death(bench: Bench) -> str:
    victim = _status(bench)["server_pids"][0] if _status(bench)["driver"] == "fuse" else 0

    def kill() -> None:
        if victim:
            os.kill(victim, signal.SIGKILL)

    words = _read(bench, halfway=kill)
    return f"{words}; server {victim} was killed on the way" if victim else words


def _read_again(bench: Bench) -> str:
    before = _gets(bench)
    words = _read(bench)
    asked = _gets(bench) - before
    if asked:
        raise HostError(f"{asked} objects were fetched again, though all were cached", "is the cache's disk full?")
    return words


def _remount(bench: Bench) -> str:
    _mountkit(bench, "unmount", bench.directory)
    _mount(bench)
    return _read_again(bench)


def _read_alone(bench: Bench) -> str:
    assert bench.server
    if _status(bench)["driver"] == "s3fs":
        raise _PassedOver("s3fs asks the bucket at every open")
    bench.server.stop()
    return _read(bench)


def _unmount(bench: Bench) -> str:
    pids = _pids(_status(bench))
    _mountkit(bench, "unmount", bench.directory)
    if _is_mounted(bench):
        raise HostError(f"{bench.directory} is still mounted")
    left = [pid for pid in pids if _runs(pid)]
    if left:
        raise HostError(f"processes are left: {left}")
    return "nothing is left"


STEPS: tuple[tuple[str, Callable[[Bench], str]], ...] = (
    ("server", _serve),
    ("bucket", _fill),
    ("mount", _mount),
    ("read", _read_with_a_death),
    ("read cached", _read_again),
    ("mount again", _remount),
    ("server gone", _read_alone),
    ("unmount", _unmount),
)


# ---- tools ---------------------------------------------------------------------------------------------------
def _read(bench: Bench, *, halfway: Callable[[], None] = lambda: None) -> str:
    """Reads everything in random order and compares checksums. Raises HostError."""
    keys = sorted(bench.sums)
    random.Random(len(keys)).shuffle(keys)  # noqa: S311
    started = time.monotonic()

    def read(item: tuple[int, str]) -> int:
        number, key = item
        if number == len(keys) // 2:
            halfway()
        try:
            with open(os.path.join(bench.directory, key), "rb") as file:
                data = file.read()
        except OSError as exc:
            raise HostError(f"{key} cannot be read: {os.strerror(exc.errno or 0)}") from exc
        if hashlib.sha256(data).hexdigest() != bench.sums[key]:
            raise HostError(f"{key} was read wrong", "report it: this must never happen")
        return len(data)

    with ThreadPoolExecutor(_READERS) as pool:
        total = sum(pool.map(read, enumerate(keys)))
    seconds = max(1e-3, time.monotonic() - started)
    return f"{len(keys)} files, every checksum right, {size(total / seconds)}/s"


def _gets(bench: Bench) -> int:
    return int(_status(bench)["requests"].get("get", 0))


def _pids(status: dict[str, Any]) -> list[int]:
    return [pid for pid in (status["keeper_pid"], *status["server_pids"], status["mover_pid"]) if pid]


def _runs(pid: int) -> bool:
    """Whether the process is there and no zombie, which is what a container without an init makes of it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _status(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_mountkit(bench, "status", "--json", bench.directory, output=True))[0]
    return found


def _mountkit(bench: Bench, *words: str, output: bool = False) -> str:
    """What a command says (on stderr, or with `output` on stdout). Raises HostError with its error."""
    command = [sys.executable, "-I", "-m", "mountkit", *words]
    try:
        done = subprocess.run(
            command, env=bench.environment(), capture_output=True, text=True, timeout=_COMMAND_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"`mountkit {words[0]}` did not end within {_COMMAND_S:g} s") from None
    if done.returncode:
        error, _, hint = done.stderr.strip().partition("\nhint: ")
        raise HostError(error.removeprefix("error: "), hint)
    return done.stdout if output else done.stderr


def _is_mounted(bench: Bench) -> bool:
    return any(point.directory == bench.directory for point in mountinfo.ours())


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _clean_up(bench: Bench, *, keep: bool) -> None:
    with _undisturbed():
        for flags in ([], ["--force"]):
            if bench.server and _is_mounted(bench):
                with contextlib.suppress(MountkitError):
                    _mountkit(bench, "unmount", bench.directory, *flags)
        if bench.server:
            bench.server.stop()
        if not keep and not _is_mounted(bench):
            shutil.rmtree(bench.base, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
