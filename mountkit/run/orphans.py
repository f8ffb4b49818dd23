"""Runs that lost their process, to kill -9 or the out-of-memory killer: found by their free lock, brought to their end.

A container of a detached run goes on: a new process takes the old one's place. One whose run sat at a terminal is
stopped as Ctrl-C would have stopped it, because nobody watches it any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from mountkit.errors import EngineError, MountkitError
from mountkit.run import closing, detach, plan, records
from mountkit.run.engine import ContainerExit, Engine, Found
from mountkit.run.output import Tee
from mountkit.run.shared_mounts import Mounter, SharedMounts

Say = Callable[[str], None]


def collect(engine: Callable[[], Engine], mounter: Mounter, mounts: SharedMounts, say: Say, *, stop: str = "") -> None:
    """Brings every run without a process to its end, or gives it a new process; says what it found and did.

    The run with the id `stop` is stopped even if it was detached. `engine` is asked for only if there is one to
    collect. What cannot be done now is said and left for the next time.
    """
    for run in records.all_runs():
        if run.ended or (lock := run.take()) is None:
            continue
        try:
            if not run.ended:
                _collect(run, engine(), mounter, mounts, say, go_on=run.id != stop)
        except MountkitError as exc:
            say(f"run {run.id} lost its process and cannot be collected now: {exc.sentence}")
        finally:
            os.close(lock)


def _collect(
    run: records.Run, engine: Engine, mounter: Mounter, mounts: SharedMounts, say: Say, *, go_on: bool
) -> None:
    containers = engine.find(run.id)
    running = any(one.running for one in containers)
    if running and go_on and run.record.get("detached"):
        pid = detach.go_on(lambda: _finish(run, containers, engine, mounter, mounts, lambda _: None, go_on=True))
        say(f"run {run.id} lost its process; its container goes on, and process {pid} sees to it now")
        return
    if running:
        say(f"run {run.id} lost its process; stopping its container")
    _finish(run, containers, engine, mounter, mounts, say, go_on=False)


def _finish(
    run: records.Run,
    containers: list[Found],
    engine: Engine,
    mounter: Mounter,
    mounts: SharedMounts,
    say: Say,
    *,
    go_on: bool,
) -> None:
    record = run.record
    if go_on:
        from mountkit.run.job import process_started

        run.write_record({**record, "pid": os.getpid(), "pid_started": process_started(os.getpid())})
    ended: ContainerExit | None = None
    for one in containers:
        values = _secret_values(record.get("secrets_directory") or "")
        try:
            with Tee.to_log(run.log, secrets=values) as log:
                found = engine.adopt(
                    one.id,
                    stop_first=not go_on,
                    stop_timeout_s=record.get("stop_timeout_s", plan.DEFAULT_STOP_TIMEOUT_S),
                    output=log,
                )
        except EngineError:
            if engine.find(run.id):
                raise
            found = None  # somebody else removed it meanwhile
        ended = found or ended
    for sentence in closing.close_run(run, ended, mounter=mounter, mounts=mounts, collected=True):
        say(sentence)
    how = f"its container ended with {ended.code}" if ended else "no container of it was left"
    say(f"run {run.id} had lost its process: collected ({how}), its mounts are gone")


def _secret_values(directory: str) -> list[bytes]:
    values: list[bytes] = []
    try:
        with os.scandir(os.path.join(directory, "secrets")) as entries:
            for entry in entries:
                with open(entry.path, "rb") as file:
                    values.append(file.read())
    except OSError:
        return values
    return values
