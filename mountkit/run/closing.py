"""The end of a run, from nothing but its record: take everything away, then write the receipt.

The process of a run ends it so, and whoever collects a run that lost its process does the very same. Each step may be
repeated: if this is cut short too, the next one begins anew, because the receipt comes last.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Sequence
from typing import Any

from mountkit import __version__, names
from mountkit.errors import MountkitError
from mountkit.run import read, records, secret_files
from mountkit.run.engine import ContainerExit
from mountkit.run.shared_mounts import Mounter, SharedMounts

_COPIES = os.fsdecode(names.RUNS)


def close_run(
    run: records.Run,
    ended: ContainerExit | None,
    *,
    mounter: Mounter,
    mounts: SharedMounts,
    failure: str = "",
    collected: bool = False,
) -> list[str]:
    """Ends `run`, whose lock the caller holds and whose container is gone; what went wrong on the way, as sentences.

    `ended` is None where nobody knows how the container ended, or it never was; a run that started nothing is
    forgotten.
    """
    record = run.record
    secret_files.remove(record.get("secrets_directory") or secret_files.place(run.id))
    said: list[str] = []
    inputs: list[dict[str, Any]] = []
    ran = ended is not None or bool((record.get("times") or {}).get("started"))
    for number, one in enumerate(record.get("inputs") or (), 1):
        shown = {name: one[name] for name in ("source", "target")}
        if "before" in one and ran:
            shown |= {**_used(one, mounter), "shared_with": read.shared_with(run, one)}
            shown |= read.what_was_read(mounter.traces, run, number, one)
        inputs.append(shown)
    outputs, left = _outputs(run, mounter, said, ran=ran)
    mounted = dict.fromkeys(one["directory"] for one in record.get("inputs") or () if one.get("mounted"))
    mounted |= dict.fromkeys(one["directory"] for one in record.get("outputs") or () if one.get("mounted"))
    receipt: dict[str, Any] = {}
    if ran or failure:
        receipt = _receipt(record, ended, inputs, failure=failure, collected=collected)
        receipt |= {"outputs": outputs, "outputs_left": bool(left)}
    if ran:
        said += _copy_to_outputs(run, {**receipt, "notes": said}, mounter, left)
    for directory in reversed(mounted):
        said += mounts.release(directory, run, force=directory in left)
    if receipt:
        run.write_receipt({**receipt, "notes": said})
    said = said + read.end_traces(mounter.traces, record)
    if not receipt:
        run.forget()
    return said


def _used(one: dict[str, Any], mounter: Mounter) -> dict[str, Any]:
    details: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        details = mounter.details(one["directory"])
    if not details:
        return {"counters": "unknown: the mount did not answer at the end"}
    used = records.input_of_receipt(one["before"], records.mount_counters(details))
    return {**used, "mounted_before": not one.get("mounted")}


def _outputs(
    run: records.Run, mounter: Mounter, said: list[str], *, ran: bool
) -> tuple[list[dict[str, Any]], set[str]]:
    """The outputs as a receipt shows them, and the mounts of which not everything has reached the bucket.

    Of a run that never `ran` there are none, and perhaps not even the mounts.
    """
    record = run.record
    found: list[dict[str, Any]] = []
    left: set[str] = set()
    for one in record.get("outputs") or ():
        if not one.get("mounted") or not ran:
            found.append(one)
            continue
        shown = {name: one[name] for name in ("source", "target")}
        since = (record.get("times") or {}).get("created", 0.0)
        try:
            objects, problem = mounter.uploaded(one["directory"], since, record.get("drain_timeout_s", 0.0))
        except (MountkitError, OSError) as exc:
            objects, problem = [], f"the output {one['source']} cannot be asked: {exc}"
        if problem:
            left.add(one["directory"])
            said.append(f"error: {problem}")
        found.append({**shown, "objects": objects, **({"left": problem} if problem else {})})
    return found, left


def _copy_to_outputs(run: records.Run, receipt: dict[str, Any], mounter: Mounter, left: set[str]) -> list[str]:
    """Puts receipt and lists beside what the run wrote, in each bucket that has all of that; what went wrong."""
    said = []
    record = run.record
    for one in record.get("outputs") or ():
        if not one.get("mounted") or one["directory"] in left:
            continue
        try:
            _copy(run, receipt, mounter, one["directory"])
            _, problem = mounter.uploaded(one["directory"], time.time(), record.get("drain_timeout_s", 0.0))
        except (MountkitError, OSError) as exc:
            problem = str(exc)
        if problem:
            left.add(one["directory"])
            said.append(f"warning: {one['source']} has no copy of the receipt: {problem}")
    return said


def _copy(run: records.Run, receipt: dict[str, Any], mounter: Mounter, directory: str) -> None:
    for shown in receipt["inputs"]:
        if name := shown.get("objects", {}).get("list"):
            with open(os.path.join(run.path, name), "rb") as file:
                mounter.put(directory, f"{_COPIES}/{run.id}/{name}", file)
    mounter.put(directory, f"{_COPIES}/{run.id}/receipt.json", io.BytesIO(records.receipt_text(receipt).encode()))


def _receipt(
    record: dict[str, Any],
    ended: ContainerExit | None,
    inputs: Sequence[dict[str, Any]],
    *,
    failure: str,
    collected: bool,
) -> dict[str, Any]:
    times = dict(record.get("times") or {})
    times["ended"] = time.time()
    started = times.get("started")
    kept = ("id", "name", "image", "image_id", "image_digest", "command", "request", "detached", "rerun_of")
    return {
        "mountkit": __version__,
        **{name: record[name] for name in kept if record.get(name) not in (None, "")},
        "inputs": list(inputs),
        "secrets": record.get("secrets") or [],
        "times": times,
        "seconds": round(times["ended"] - started, 3) if started else 0.0,
        "exit_code": ended.code if ended else None,
        "out_of_memory": bool(ended and ended.out_of_memory),
        "memory_limit_bytes": record.get("memory_bytes") or None,
        "stopped_by": ended.stopped_by if ended else "",
        "failure": failure,
        "collected": collected,
    }
