"""The demo, told step by step: `python -m mountkit.demo [--keep]`, started by the quickstart.

It uses mountkit as a user does, through its command line, and takes away all it made, also when it is interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mountkit import mountinfo, report
from mountkit.demo import bucket
from mountkit.demo.readers import Epoch, read_epoch
from mountkit.errors import HostError, MountkitError

IMAGE = "lightly/sampling:latest"
SAMPLES = 60
READERS = 4
_ENDING_S = 60.0
_BUILD = Path(__file__).parents[2] / "containers" / "sampling" / "build.py"
console = Console(highlight=False)


@dataclass
class Stage:
    """What the demo has made so far and must take away."""

    base: str
    server: bucket.Server | None = None
    mounted: bool = False
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def directory(self) -> str:
        return os.path.join(self.base, "mnt")

    @property
    def cache(self) -> str:
        return os.path.join(self.base, "cache")

    @property
    def output(self) -> str:
        return os.path.join(self.base, "output")

    @property
    def source(self) -> str:
        assert self.server
        return f"s3://{bucket.BUCKET}?endpoint={self.server.endpoint}"

    @property
    def reports(self) -> str:
        assert self.server
        return f"s3://{bucket.REPORTS}/sampling?endpoint={self.server.endpoint}"

    def environment(self) -> dict[str, str]:
        """The server's; and the demo's runs are not in the user's history."""
        assert self.server
        return {**self.server.environment(), "XDG_STATE_HOME": os.path.join(self.base, "state")}


def main() -> int:
    keep = "--keep" in sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    stage = Stage(tempfile.mkdtemp(prefix="mountkit-story-"))
    try:
        _tell(stage)
    except MountkitError as exc:
        console.print(f"[red]error:[/] {exc.sentence}" + (f"\nhint: {exc.hint}" if exc.hint else ""), soft_wrap=True)
        return exc.exit_code
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130
    else:
        seconds = time.monotonic() - stage.started
        console.print(f"\n[bold green]Done in {seconds:.0f} s.[/] Every byte was right.")
        if keep:
            _how_to_explore(stage)
            stage.base = ""
        return 0
    finally:
        _clean_up(stage)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# ---- the story -----------------------------------------------------------------------------------------------
def _tell(stage: Stage) -> None:
    with _step(stage, "Start an S3 server (SeaweedFS) on this machine"):
        stage.server = bucket.start_server(stage.base)
        console.print(f"   {stage.server.endpoint}, with credentials of its own")
    sums = _make_pictures(stage, stage.server)
    _mount(stage)
    first = _epoch(stage, sums, "Read everything once, shuffled, from the bucket; a server dies on the way", kill=True)
    second = _epoch(stage, sums, "Read everything again: now it comes from the disk cache", kill=False)
    console.print(f"   the second epoch was {first.seconds / second.seconds:.1f} times as fast as the first")
    _run_container(stage, sums)
    with _step(stage, "Ask how the mount is"):
        _mountkit(stage, "status", stage.directory)


def _make_pictures(stage: Stage, server: bucket.Server) -> dict[str, str]:
    number = bucket.CLASSES * bucket.PICTURES_PER_CLASS + 2
    with _step(stage, f"Fill the bucket `{bucket.BUCKET}` with {number:,} pictures in {bucket.CLASSES} class folders"):
        with _progress() as progress:
            bar = progress.add_task("uploading", total=number)
            sizes: list[int] = []

            def advance(size: int) -> None:
                sizes.append(size)
                progress.advance(bar)

            sums = bucket.fill(server, advance)
        console.print(f"   {len(sums):,} objects, {sum(sizes) / 1e6:,.0f} MB")
    return sums


def _mount(stage: Stage) -> None:
    with _step(stage, "Mount it"):
        os.mkdir(stage.directory)
        stage.mounted = True
        flags = [] if os.geteuid() == 0 else ["--allow-other"]
        _mountkit(stage, "mount", stage.source, stage.directory, "--cache", stage.cache, *flags)
        classes = sorted(os.listdir(os.path.join(stage.directory, "train")))
        console.print(f"   ls {stage.directory}/train: {' '.join(classes[:4])} … {classes[-1]}", soft_wrap=True)


def _epoch(stage: Stage, sums: dict[str, str], title: str, *, kill: bool) -> Epoch:
    with _step(stage, title):
        before = _status(stage)
        with _progress() as progress:
            bar = progress.add_task(f"{READERS} processes", total=len(sums))
            killed: list[int] = []
            read = 0

            def advance(number: int) -> None:
                nonlocal read
                read += number
                progress.advance(bar, number)
                if kill and not killed and read > len(sums) // 3:
                    victim = int(before["server_pids"][0])
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)
                    progress.console.print(f"   kill -9 {victim}, one of the servers {before['server_pids']}")

            epoch = read_epoch(stage.directory, sums, processes=READERS, seed=int(kill), advance=advance)
        if epoch.failures:
            raise HostError(
                f"{len(epoch.failures)} of {epoch.files} files were not read right, the first: {epoch.failures[0]}"
            )
        console.print(f"   {epoch.files:,} files in {epoch.seconds:.1f} s: {epoch.rate}; every checksum is right")
        _show_requests(before, _status(stage))
        if kill:
            console.print(f"   servers now: {_status(stage)['server_pids']}; no reader noticed")
    return epoch


def _show_requests(before: dict[str, Any], after: dict[str, Any]) -> None:
    gets = _figure(after, "requests", "get") - _figure(before, "requests", "get")
    received = _figure(after, "requests", "bytes_received") - _figure(before, "requests", "bytes_received")
    opens = _figure(after, "reads", "opens") - _figure(before, "reads", "opens")
    native = _figure(after, "reads", "passthrough_opens") - _figure(before, "reads", "passthrough_opens")
    hits = max(0, opens - gets)
    share = f", {100 * hits / opens:.0f} % of the opens from the cache" if opens else ""
    kernel = f" ({native:,} of them served by the kernel alone)" if native else ""
    console.print(f"   asked the bucket for {gets:,} objects, {received / 1e6:,.0f} MB{share}{kernel}", soft_wrap=True)


def _run_container(stage: Stage, sums: dict[str, str]) -> None:
    with _step(stage, f"Run a container over it that chooses the {SAMPLES} most different pictures"):
        _command([sys.executable, str(_BUILD)], stage)
        # As a bucket, not as the directory: the run mounts it itself, with the same cache, and its receipt tells more.
        # The output is a bucket, too: the run ends once all of it is there.
        places = ["--input", stage.source, "--cache", stage.cache, "--output", stage.reports]
        _mountkit(stage, "run", *places, IMAGE, "token=demo", f"n_samples={SAMPLES}")
    with _step(stage, "Fetch what it left in the bucket, and look at the receipt of the run"):
        _mountkit(stage, "pull", stage.reports, stage.output)
        results = next(Path(stage.output).glob("*/*"))
        for path in sorted(path for path in results.rglob("*") if path.is_file()):
            size = report.size(path.stat().st_size)
            console.print(f"   {path.relative_to(results).as_posix():<38}{size:>10}", highlight=False)
        _check_results(results, sums)
        _mountkit(stage, "runs")
        receipt = next(Path(stage.environment()["XDG_STATE_HOME"]).glob("mountkit/runs/*/receipt.json"))
        _show_receipt(json.loads(receipt.read_text(encoding="utf-8")))


def _check_results(results: Path, sums: dict[str, str]) -> None:
    """Raises HostError unless every picture is in exactly the list it belongs to."""
    lists = {
        name: (results / "filenames" / f"{name}_filenames.txt").read_text(encoding="utf-8").splitlines()
        for name in ("sampled", "removed", "corrupt", "duplicate")
    }
    everything = sorted(name for names in lists.values() for name in names)
    if everything != sorted(sums) or len(lists["sampled"]) != SAMPLES or lists["corrupt"] != [bucket.TORN]:
        raise HostError("the container saw other pictures than were uploaded")
    words = ", ".join(f"{len(names):,} {name}" for name, names in lists.items())
    console.print(f"   {words}: every picture is in its list", soft_wrap=True)


def _show_receipt(receipt: dict[str, Any]) -> None:
    console.print(f"   [green]$ cat …/runs/{receipt['id']}/receipt.json[/]")
    console.print(f"   │ {receipt['command']}", soft_wrap=True, markup=False, style="dim")
    for name in ("exit_code", "seconds", "image_id", "inputs", "outputs", "secrets"):
        text = json.dumps(receipt.get(name))
        console.print(
            f"   │ {name}: {text[:300]}{'…' if len(text) > 300 else ''}", soft_wrap=True, markup=False, style="dim"
        )


# ---- tools ---------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _step(stage: Stage, title: str) -> Iterator[None]:
    stage.step += 1
    console.print(f"\n[bold cyan]{stage.step}[/] [bold]{title}[/]")
    started = time.monotonic()
    yield
    console.print(f"   [dim]{time.monotonic() - started:.1f} s[/]")


def _progress() -> Progress:
    columns = ("  ", TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _mountkit(stage: Stage, *words: str) -> None:
    """Runs `mountkit` as a user would, shown with its output. Raises HostError if it fails."""
    shown = shlex.join(words) if len(shlex.join(words)) < 200 else f"{shlex.join(words[:-1])} '…'"
    console.print(f"   [green]$ mountkit {shown}[/]", soft_wrap=True)
    _command([sys.executable, "-m", "mountkit", *words], stage)


def _command(command: list[str], stage: Stage) -> None:
    process = subprocess.Popen(
        command,
        env=stage.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C is for the demo, which ends what it has started
    )
    try:
        out, err = process.communicate()
    except BaseException:
        process.terminate()  # never -9: a run takes its container and its mount away first
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_ENDING_S)
        raise
    for line in (out + err).rstrip().splitlines():
        console.print(f"   │ {line}", soft_wrap=True, markup=False, style="dim")
    if process.returncode:
        raise HostError(
            f"`{shlex.join(command[2:5])} …` ended with exit code {process.returncode}", "see the lines above"
        )


def _status(stage: Stage) -> dict[str, Any]:
    command = [sys.executable, "-m", "mountkit", "status", "--json", stage.directory]
    done = subprocess.run(command, env=stage.environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"`mountkit status` ended with exit code {done.returncode}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


def _figure(status: dict[str, Any], group: str, name: str) -> int:
    return int((status.get(group) or {}).get(name, 0))


# ---- the end -------------------------------------------------------------------------------------------------
def _how_to_explore(stage: Stage) -> None:
    assert stage.server
    commands = [
        f"export AWS_ACCESS_KEY_ID={stage.server.access_key} AWS_SECRET_ACCESS_KEY={stage.server.secret_key}",
        f"export AWS_ENDPOINT_URL={stage.server.endpoint} PATH={os.path.dirname(sys.executable)}:$PATH",
        f"ls {stage.directory}/train",
        "mountkit status",
        f"mountkit run --input {stage.directory} --output '{stage.reports}' {IMAGE} token=demo n_samples=0.1",
    ]
    console.print("\nEverything is left as it is. To explore:")
    for command in commands:
        console.print(f"   {command}", soft_wrap=True)
    python = shlex.quote(sys.executable)
    console.print("To clean up:")
    end = f"kill -9 {stage.server.process.pid}; rm -rf --one-file-system {stage.base}"
    console.print(f"   {python} -m mountkit unmount {stage.directory}; {end}", soft_wrap=True)


def _clean_up(stage: Stage) -> None:
    """Takes away what is there. Signals are ignored meanwhile: each part has its own time limit."""
    if not stage.base:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    console.print("[dim]cleaning up[/]")
    still_mounted = False
    if stage.mounted:
        still_mounted = not _unmounted(stage)
    if stage.server:
        stage.server.stop()
    if not still_mounted:
        shutil.rmtree(stage.base, ignore_errors=True)


def _unmounted(stage: Stage) -> bool:
    command = [sys.executable, "-m", "mountkit", "unmount"]
    for flags in ([], ["--force"]):
        if not _is_mounted(stage):
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([*command, *flags, stage.directory], capture_output=True, timeout=60, check=False)
    if not _is_mounted(stage):
        return True
    console.print(f"[red]warning:[/] {stage.directory} is still mounted: `mountkit unmount --force {stage.directory}`")
    return False


def _is_mounted(stage: Stage) -> bool:
    return any(point.directory == os.path.realpath(stage.base) + "/mnt" for point in mountinfo.mount_points())


if __name__ == "__main__":
    sys.exit(main())
