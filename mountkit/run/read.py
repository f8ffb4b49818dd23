"""What a run read of its inputs: traced while it runs, written into its receipt when it has ended.

Beside the receipt lies `input-N.jsonl` for the Nth input in a mount: a line for each version of an object that was
opened below it, {"key", "size", "etag", "version"}, sorted by key. The same versions make the same list, so its SHA-256
in the receipt says whether two runs read the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from mountkit.errors import MountkitError
from mountkit.run import records
from mountkit.traces import Opened, TracePlace

_SHOWN = 100
"""So many objects stand in the receipt itself, if that is all of them."""


class Tracer(Protocol):
    """What a run asks of `mountkit.traces`."""

    def place(self, path: str, name: str) -> TracePlace: ...

    def begin(self, where: TracePlace) -> None: ...

    def reading(self, where: TracePlace) -> contextlib.AbstractContextManager[Opened]: ...

    def end(self, where: TracePlace) -> None: ...


def plan_trace(tracer: Tracer, directory: str, run_id: str) -> dict[str, Any]:
    """What a record says of the trace before it is begun; why there will be none, where that is so."""
    try:
        return {"trace": asdict(tracer.place(directory, run_id))}
    except MountkitError as exc:
        return {"no_trace": exc.sentence}


def begin_traces(tracer: Tracer, inputs: list[dict[str, Any]]) -> None:
    """Begins the traces that the records of inputs name: one for those that lie in one mount."""
    tried: dict[str, str] = {}
    for one in inputs:
        if "trace" not in one:
            continue
        where = TracePlace(**one["trace"])
        if where.state_directory not in tried:
            tried[where.state_directory] = ""
            try:
                tracer.begin(where)
            except MountkitError as exc:
                tried[where.state_directory] = exc.sentence
        if problem := tried[where.state_directory]:
            del one["trace"]
            one["no_trace"] = problem


def what_was_read(tracer: Tracer, run: records.Run, number: int, one: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a receipt about the objects of one input; writes the list. May be repeated until `end_traces`."""
    if "trace" not in one:
        return {"objects": {"unknown": one["no_trace"]}} if "no_trace" in one else {}
    where, name = TracePlace(**one["trace"]), f"input-{number}.jsonl"
    try:
        with tracer.reading(where) as opened, records.replaced(os.path.join(run.path, name)) as file:
            summary = _write_list(opened, file)
    except MountkitError as exc:
        return {"objects": {"unknown": exc.sentence}}
    listed = {"oldest": opened.oldest_listing, "newest": opened.newest_listing}
    return {"listed": listed, "objects": {**summary, "list": name}}


def shared_with(run: records.Run, one: Mapping[str, Any]) -> list[str]:
    """The runs at the same time whose reading cannot be told from this run's in that input: they use its mount, too.

    A mount tells what is opened in it, not for whom: the process that opens is known by a number at most, which another
    one may have by then, and which a container's network or process settings may hide.
    """
    began = (run.record.get("times") or {}).get("created", 0.0)
    others = [other for other in records.all_runs() if other.id != run.id and other.went_on_at(began)]
    return [other.id for other in others if any(_same_mount(one, each) for each in other.mounts())]


def _same_mount(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one["directory"] == other.get("directory"):
        return True
    state = (one.get("trace") or {}).get("state_directory")
    return state is not None and state == (other.get("trace") or {}).get("state_directory")


def end_traces(tracer: Tracer, record: Mapping[str, Any]) -> list[str]:
    """Takes the traces of a run away; what went wrong, as sentences."""
    said = []
    for one in record.get("inputs") or ():
        if "trace" in one:
            try:
                tracer.end(TracePlace(**one["trace"]))
            except MountkitError as exc:
                said.append(f"warning: {exc.sentence}")
    return said


def _write_list(opened: Opened, file: Any) -> dict[str, Any]:
    digest = hashlib.sha256()
    count = keys = size = 0
    last = None
    shown: list[dict[str, Any]] = []
    for row in opened.objects:
        count += 1
        size += row.size
        keys += row.key != last
        last = row.key
        line = {"key": row.key.decode("utf-8", "backslashreplace"), "size": row.size, "etag": row.etag}
        if row.version_id:
            line["version"] = row.version_id
        if count <= _SHOWN:
            shown.append(line)
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"
        digest.update(text.encode())
        file.write(text)
    summary: dict[str, Any] = {"count": count, "bytes": size, "sha256": digest.hexdigest()}
    if changed := count - keys:
        summary["changed_meanwhile"] = changed
    if opened.unknown:
        summary["forgotten"] = opened.unknown
    if not opened.is_complete:
        summary["incomplete"] = "not every open could be written down: the disk was full, or they were too many"
    if count <= _SHOWN:
        summary["all"] = shown
    return summary
