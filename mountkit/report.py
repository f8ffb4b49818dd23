"""How mounts look to people: the text and JSON of `status`, the progress of `warm`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mountkit import notes
from mountkit.mounts import MountInfo

if TYPE_CHECKING:
    from mountkit.outputs import Output


def size(count: float) -> str:
    """Bytes in the unit that gives three digits."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if abs(count) < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def as_json(info: MountInfo) -> dict[str, Any]:
    """One mount as data; a dead one has the same keys, empty."""
    blank: dict[str, Any] = {
        "driver": "fuse",
        "keeper_pid": None,
        "server_pids": [],
        "mover_pid": None,
        "cache_directory": None,
        "reasons": ["its processes are gone"] if info.state == "dead" else [info.trouble] if info.trouble else [],
    }
    head = {"source": info.source, "directory": info.directory, "state": info.state, "owner_uid": info.owner_uid}
    return {**blank, **info.details, **head}


def as_text(info: MountInfo) -> str:
    """One mount as a few lines."""
    d = info.details
    lines = [f"{info.source} at {info.directory}: {info.state}"]
    if info.state == "dead":
        lines.append("  its processes are gone; `mountkit status --repair` mounts it again")
    if info.state == "unwatched":
        lines.append("  s3fs serves it, but the process that would start it again is gone: `mountkit status --repair`")
    if info.trouble:
        lines.append(f"  its keeper answers with an error: {info.trouble}")
    if not d:
        return "\n".join(lines)
    lines += [f"  because: {reason}" for reason in d["reasons"]]
    if d["driver"] == "s3fs":
        return "\n".join([*lines, *_s3fs_lines(d)])
    reads, cache, requests, restarts = d["reads"], d["cache"], d["requests"], d["restarts"]
    servers = " ".join(map(str, d["server_pids"]))
    memory = f"; {size(d['memory_bytes'])} of memory" if d.get("memory_bytes") else ""
    lines.append(f"  processes  keeper {d['keeper_pid']}, servers {servers or 'none'}, mover {d['mover_pid']}{memory}")
    if any(restarts.values()):
        lines.append(f"  restarts   servers {restarts['server']}, mover {restarts['mover']}")
    native = "on" if d["passthrough"] else f"off: {d['passthrough_reason']}"
    lines.append(f"  passthrough {native}")
    lines.append(
        f"  opens      {reads['opens']}: {reads['passthrough_opens']} native, {reads['fetched_opens']} fetched first"
    )
    waited = f", {reads['misses']} waited for the bucket" if reads["misses"] else ""
    lines.append(
        f"  reads      {reads['reads']} through us, {size(reads['read_bytes'])}{waited}; {reads['errors']} errors"
    )
    if cache:
        full = ", full" if cache["full"] else ""
        lines.append(
            f"  cache      {size(cache['bytes_used'])} of {size(cache['limit_bytes'])}{full} in {d['state_directory']}"
        )
    if d.get("writable"):
        o = d["outputs"]
        failed = f"; {o['failed']} failed" if o.get("failed") else ""
        lines.append(f"  outputs    {o.get('pending', 0)} to upload, {size(o.get('pending_bytes', 0))}{failed}")
    if requests:
        kinds = ", ".join(f"{requests[kind]} {kind.upper()}" for kind in ("get", "head", "list") if kind in requests)
        lines.append(f"  requests   {kinds}; {size(requests['bytes_received'])} received, {requests['errors']} failed")
    lines.append(f"  log        {d['log']}")
    return "\n".join(lines)


def _s3fs_lines(d: dict[str, Any]) -> list[str]:
    """What there is to say of a mount that s3fs serves: it counts nothing."""
    restarts = d["restarts"]["server"]
    return [
        f"  processes  s3fs {d['server_pids'][0]}, watched by {d['keeper_pid']}",
        *([f"  restarts   s3fs {restarts}"] if restarts else []),
        f"  cache      {d['state_directory']}",
        f"  log        {d['log']}",
    ]


def oldest_fresh(ttl_s: float | None) -> float:
    """The time after which a listing must have been made to count as fresh now."""
    return 0.0 if ttl_s is None else time.time() - ttl_s


def show_warm(updates: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Shows progress with rate and time left where stderr is a terminal; the last update is the result."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = notes.console()
    started = time.monotonic()
    last: dict[str, Any] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("listing", total=None)
        for last in updates:
            words = f"{last['files_done']} of {last['files']}{'+' if last['listing'] else ''} files"
            progress.update(bar, total=last["bytes"], completed=last["bytes_done"], description=words)
    seconds = max(1e-3, time.monotonic() - started)
    console.print(
        f"{last['files_done']} files, {size(last['bytes_done'])} are in the cache ({seconds:.1f} s, "
        f"{size(last['bytes_done'] / seconds)}/s)",
        highlight=False,
    )
    if last["files_left"]:
        console.print(
            f"{last['files_left']} files, {size(last['bytes_left'])} did not fit: the cache is full; they are fetched "
            "when they are read (`--cache-size` gives it more room)",
            highlight=False,
        )
    return last


_SHOWN_DONE = 20


def output_json(output: Output) -> dict[str, Any]:
    """One line of `mountkit outputs --json`."""
    names = ("state", "kind", "size", "sent_bytes", "reason", "etag", "checksum", "finished_at")
    found = {name: getattr(output, name) for name in names}
    return {"path": _text(output.path), "key": _text(output.key), **found}


def outputs_text(found: list[Output]) -> str:
    """What was written, a line each: what needs attention first, of what is done the newest."""
    if not found:
        return "nothing is staged"
    ranks = {"abandoned": 0, "failed": 1, "uploading": 2, "staged": 3}
    open_ones = sorted((o for o in found if o.state in ranks), key=lambda o: ranks[o.state])
    done = [o for o in found if o.state not in ranks]
    lines = [_output_line(output) for output in [*open_ones, *done[-_SHOWN_DONE:]]]
    if len(done) > _SHOWN_DONE:
        lines.append(f"… and {len(done) - _SHOWN_DONE} more that are done")
    return "\n".join(lines)


def _output_line(output: Output) -> str:
    state = output.state
    if state == "uploading" and output.size:
        state += f" {100 * output.sent_bytes // output.size}%"
    what = f" ({output.kind})" if output.kind != "put" else ""
    reason = f": {output.reason}" if output.reason else ""
    return f"{state:<14} {size(output.size):>9}  {_text(output.path)}{what}{reason}"


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def show_drain(updates: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Shows what is still to be uploaded where stderr is a terminal; the last update is the result."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = notes.console()
    last: dict[str, Any] = {}
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn()),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("uploading", total=None)
        for update in updates:
            last = update
            if "pending" in update:
                words = f"{update['pending']} left" + (f", {update['failed']} failed" if update["failed"] else "")
                if update.get("trouble"):
                    words += f" ({update['trouble']})"
                progress.update(bar, total=update["bytes"], completed=update["bytes_done"], description=words)
    return last


def show_pull(updates: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Shows how far a pull is where stderr is a terminal; the last update is the result."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = notes.console()
    last: dict[str, Any] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("listing", total=None)
        for last in updates:
            words = f"{last['files_done']} of {last['files']}{'+' if last['listing'] else ''} files"
            progress.update(bar, total=last["bytes"], completed=last["bytes_done"], description=words)
    return last
