"""The runs of this user, afterwards and meanwhile: the table of `mountkit runs`, `logs`, `stop`, `wait`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from mountkit.errors import MountError, UsageError
from mountkit.run import command, orphans, records, requests
from mountkit.run.job import process_started
from mountkit.run.records import Run
from mountkit.run.shared_mounts import SharedMounts

_CHUNK = 1 << 16
_POLL_S = 0.2


def collect_orphans(*, stop: str = "") -> None:
    """Brings to an end what runs that were killed left behind, and says so. See `orphans.collect`."""
    mounter = command.Mounts()
    orphans.collect(_checked_engine, mounter, SharedMounts(mounter), command.note, stop=stop)


def _checked_engine() -> Any:
    engine = command.docker()
    engine.check()
    return engine


def summary(run: Run) -> dict[str, Any]:
    """One line of the history as data."""
    record, receipt = run.record, run.receipt
    times = receipt.get("times") or record.get("times") or {}
    inputs = receipt.get("inputs") or []
    started = times.get("started") or times.get("created") or 0.0
    state = "ended" if receipt else ("running" if times.get("started") else "preparing")
    put = [each for one in receipt.get("outputs") or () for each in one.get("objects") or ()]
    counted = ("objects_opened", "opens_fetched", "native_opens", "bytes_read", "bytes_fetched")
    return {
        "id": run.id,
        "name": record.get("name") or "",
        "image": record.get("image") or "",
        "state": state,
        "started": started,
        "seconds": receipt.get("seconds") if receipt else round(time.time() - started, 1),
        "exit_code": receipt.get("exit_code"),
        "out_of_memory": bool(receipt.get("out_of_memory")),
        "inputs_counted": any("objects_opened" in one for one in inputs),
        **{name: sum(one.get(name, 0) for one in inputs) for name in counted},
        "objects_uploaded": len(put),
        "bytes_uploaded": sum(each.get("size", 0) for each in put),
        "collected": bool(receipt.get("collected")),
        "receipt": os.path.join(run.path, "receipt.json") if receipt else None,
        "log": run.log,
    }


def as_table(summaries: list[dict[str, Any]]) -> str:
    """The history for people, the newest last. HITS: the share of opens whose first bytes were in the cache.

    A column that would be empty in every line is left out.
    """
    from mountkit.report import size

    if not summaries:
        return "no runs"
    rows = [("RUN", "NAME", "STARTED", "IMAGE", "EXIT", "SECONDS", "OPENED", "READ", "FETCHED", "HITS", "UPLOADED")]
    for one in summaries:
        ended = one["state"] == "ended"
        code = "?" if one["exit_code"] is None else str(one["exit_code"])
        opened, native = one["objects_opened"], " + native" if one["native_opens"] else ""
        rows.append(
            (
                one["id"],
                one["name"],
                time.strftime("%Y-%m-%d %H:%M", time.localtime(one["started"])),
                one["image"],
                (f"{code} (memory)" if one["out_of_memory"] else code) if ended else one["state"],
                f"{one['seconds']:.1f}",
                str(opened) if one["inputs_counted"] else "",
                size(one["bytes_read"]) + native if one["inputs_counted"] else "",
                size(one["bytes_fetched"]) if one["inputs_counted"] else "",
                f"{100 * (1 - one['opens_fetched'] / opened):.0f} %" if opened else "",
                f"{put}, {size(one['bytes_uploaded'])}" if (put := one["objects_uploaded"]) else "",
            )
        )
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return "\n".join("  ".join(w.ljust(n) for w, n in zip(line, widths, strict=True)).rstrip() for line in lines)


def as_json(summaries: list[dict[str, Any]]) -> str:
    return json.dumps(summaries, indent=2)


def show_log(word: str, *, follow: bool) -> None:
    """Writes what the container of a run wrote to stdout; with `follow` until the run has ended."""
    run = records.find(word)
    for chunk in _log_chunks(run, follow=follow):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def _log_chunks(run: Run, *, follow: bool) -> Iterator[bytes]:
    position = 0
    while True:
        last = not follow or run.ended or not run.alive
        try:
            with open(run.log, "rb") as file:
                if os.fstat(file.fileno()).st_size < position:
                    position = 0  # another process took over and wrote it anew
                file.seek(position)
                while chunk := file.read(_CHUNK):
                    position += len(chunk)
                    yield chunk
        except FileNotFoundError:
            pass
        if last:
            return
        time.sleep(_POLL_S)


def stop(word: str, *, kill: bool = False) -> int:
    """Asks the process of a run to stop its container as Ctrl-C does and waits for the end; 0 once nothing is left."""
    run = records.find(word)
    if run.ended:
        command.note(f"run {run.id} has ended already")
        return 0
    _signal(run)
    if kill:
        time.sleep(_POLL_S)  # two signals in one breath would be one
        _signal(run)
    run.wait()
    if not run.ended and os.path.isdir(run.path):
        collect_orphans(stop=run.id)
    if not run.ended and os.path.isdir(run.path):
        raise MountError(f"run {run.id} could not be stopped", "`mountkit runs` says more")
    return 0


def wait(word: str) -> int:
    """Waits for the end of a run; its container's exit code."""
    run = records.find(word)
    while not run.ended and os.path.isdir(run.path):
        run.wait()
        if not run.ended and os.path.isdir(run.path):
            collect_orphans()  # a container that goes on has a new process then
            if not run.ended and not run.alive:
                raise MountError(f"run {run.id} lost its process", "`mountkit runs` says more")
    code = run.receipt.get("exit_code")
    if code is None:
        raise MountError(f"nobody knows how the container of run {run.id} ended", f"its receipt lies in {run.path}")
    return int(code) or command.outputs_code(run.receipt)


def rerun(word: str) -> int:
    """Runs again what a run ran; the container's exit code."""
    run = records.find(word)
    request = run.record.get("request")
    if not request:
        raise UsageError(f"what run {run.id} ran is not written down", "start it anew with `mountkit run`")
    return command.run(requests.from_json(request), rerun_of=run.id)


def _signal(run: Run) -> None:
    """Sends SIGTERM to the process of `run`, and to no other that has its number by now."""
    record = run.record
    pid = int(record.get("pid") or 0)
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError, OSError):
        return
    try:
        if process_started(pid) == record.get("pid_started"):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
