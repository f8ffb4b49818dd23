"""One run from its record to its receipt: mounts, secrets, the container, and everything taken away again.

Everything that must be undone is written into the record before it is done, so that whoever finds the record of a run
whose process was killed can undo it (`closing`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mountkit import mountinfo
from mountkit.errors import MountkitError, UsageError
from mountkit.run import closing, plan, read, records, requests, secret_files
from mountkit.run.docker_spec import docker_run
from mountkit.run.engine import ContainerExit, Engine, Image, Output
from mountkit.run.plan import Bind, ContainerPlan, Input, RunDefaults
from mountkit.run.shared_mounts import Mounter, SharedMounts


class Job:
    """A run that is written down. `prepare`, then `execute`; `undo` in any case, once."""

    def __init__(
        self,
        wanted: RunDefaults,
        image: Image,
        *,
        engine: Engine,
        mounter: Mounter,
        mounts: SharedMounts,
        directories: Mapping[str, str],
        outputs: Sequence[tuple[str, str]],
        secret_values: Mapping[str, bytes],
        rerun_of: str = "",
    ) -> None:
        """`directories`: where the inputs that are directories really are. Raises HostError."""
        self._wanted, self._image = wanted, image
        self._engine, self._mounter, self._mounts = engine, mounter, mounts
        self._directories, self._outputs = dict(directories), outputs
        self._secret_values = dict(secret_values)
        self._ended: ContainerExit | None = None
        self._failure = ""
        run_id = records.new_id()
        inputs = [self._input_record(one) for one in wanted.inputs]
        self._record: dict[str, Any] = {
            "id": run_id,
            "name": wanted.run_name or "",
            "image": wanted.image,
            "image_id": image.id,
            "image_digest": image.digest,
            "request": requests.without(requests.to_json(wanted), self._secret_values.values()),
            "rerun_of": rerun_of,
            "pid": os.getpid(),
            "pid_started": process_started(os.getpid()),
            "detached": bool(wanted.detach),
            "stop_timeout_s": stop_timeout(wanted),
            "memory_bytes": wanted.memory_bytes or 0,
            "inputs": inputs,
            "outputs": [*({"directory": path, "target": target} for path, target in outputs), *self._bucket_outputs()],
            "drain_timeout_s": drain_timeout(wanted),
            "secrets": sorted(self._secret_values),
            "secrets_directory": secret_files.place(run_id) if secret_values else "",
            "times": {"created": time.time()},
        }
        self.run, self._lock = records.create(run_id, self._record)

    @property
    def id(self) -> str:
        return self.run.id

    def prepare(self) -> ContainerPlan:
        """Mounts the inputs and lays out the secrets. Raises MountkitError."""
        for one, written in zip(self._wanted.inputs, self._record["inputs"], strict=True):
            if one.source not in self._directories:
                self._directories[one.source] = self._mounts.take(one.source, self._options(one), self.run)
            directory = self._directories[one.source]
            if self._mounter.state(directory):
                written["before"] = records.mount_counters(self._mounter.details(directory))
                written.update(read.plan_trace(self._mounter.traces, directory, self.id))
        self.run.write_record(self._record)
        read.begin_traces(self._mounter.traces, self._record["inputs"])
        outputs = list(self._outputs)
        for output in self._wanted.outputs:
            if output.is_bucket:
                options = self._output_options()
                outputs.append((self._mounts.take(output.directory, options, self.run, "output"), output.target))
        self._record["times"]["mounted"] = time.time()
        binds, entrypoint = self._secrets()
        made = plan.plan(
            self._wanted,
            run_id=self.id,
            inputs=[(self._directories[i.source], i.target) for i in self._wanted.inputs],
            outputs=outputs,
            binds=binds,
        )
        if entrypoint:
            made = with_entrypoint(made, entrypoint, self._image)
        line = docker_run(made, mountinfo.mount_points())
        self._record["command"] = requests.without(line, self._secret_values.values())
        self.run.write_record(self._record)
        return made

    def execute(self, made: ContainerPlan, output: Output, started: Callable[[str], None]) -> ContainerExit:
        """Runs the container to its end; `started` gets the run's id once it runs. Raises EngineError."""

        def note_start(container: str) -> None:
            self._record |= {"container_id": container, "container_name": made.name}
            self._record["times"]["started"] = time.time()
            self.run.write_record(self._record)
            started(self.id)

        try:
            self._ended = self._engine.run(
                made, stop_timeout_s=self._record["stop_timeout_s"], output=output, started=note_start
            )
        except MountkitError as exc:
            if self._record["times"].get("started"):
                self._failure = exc.sentence
            raise
        return self._ended

    def undo(self) -> list[str]:
        """Takes everything away and writes the receipt; what went wrong on the way, as sentences."""
        try:
            return closing.close_run(
                self.run, self._ended, mounter=self._mounter, mounts=self._mounts, failure=self._failure
            )
        except (MountkitError, OSError) as exc:  # the container's exit code is worth more than its receipt
            return [f"warning: run {self.id} has no receipt: {exc}"]
        finally:
            os.close(self._lock)

    def _input_record(self, one: Input) -> dict[str, Any]:
        if one.is_directory:
            return {"source": one.source, "target": one.target, "directory": self._directories[one.source]}
        directory = self._mounts.directory(one.source, self._options(one))
        return {"source": one.source, "target": one.target, "directory": directory, "mounted": True}

    def _bucket_outputs(self) -> list[dict[str, Any]]:
        found = []
        for one in self._wanted.outputs:
            if one.is_bucket:
                directory = self._mounts.directory(one.directory, self._output_options())
                found.append({"source": one.directory, "target": one.target, "directory": directory, "mounted": True})
        return found

    def _output_options(self) -> dict[str, str | bool]:
        return {**self._wanted.mount_options, "writable": True}

    def _options(self, one: Input) -> dict[str, str | bool]:
        return {**one.options, **self._wanted.mount_options}

    def _secrets(self) -> tuple[list[Bind], tuple[str, ...]]:
        """The binds that bring the secrets in, and the entrypoint that makes variables of them, if any."""
        if not self._secret_values:
            return [], ()
        wanted, name = self._wanted, self._wanted.image or ""
        inside = self._engine.look_inside(name, wanted.user or self._image.user, self.id)
        exported = [secret for secret in wanted.secrets if secret.variable]
        if exported and not inside.has_shell:
            raise UsageError(
                f"the image `{name}` has no /bin/sh, so the secret {exported[0].name} cannot become the variable "
                f"{exported[0].variable}",
                f"let the program read /run/secrets/{exported[0].name} and name no variable",
            )
        directory = secret_files.write(self._secret_values, run_id=self.id, uid=inside.uid, gid=inside.gid)
        binds = [Bind(os.path.join(directory, "secrets"), plan.SECRETS_DIRECTORY, read_only=True)]
        if not exported:
            return binds, ()
        binds.append(Bind(os.path.join(directory, "entry"), plan.SHIM_TARGET, read_only=True))
        return binds, secret_files.shim_command(exported, program_of(wanted, self._image))


def program_of(wanted: RunDefaults, image: Image) -> tuple[str, ...]:
    return (wanted.entrypoint,) if wanted.entrypoint else image.entrypoint


def with_entrypoint(made: ContainerPlan, entrypoint: tuple[str, ...], image: Image) -> ContainerPlan:
    """`made` behind another entrypoint, which makes the engine forget the image's own command."""
    arguments = made.arguments or (() if made.entrypoint else image.command)
    return replace(made, entrypoint=entrypoint, arguments=arguments)


def stop_timeout(wanted: RunDefaults) -> float:
    return plan.DEFAULT_STOP_TIMEOUT_S if wanted.stop_timeout_s is None else wanted.stop_timeout_s


def drain_timeout(wanted: RunDefaults) -> float:
    return plan.DEFAULT_DRAIN_TIMEOUT_S if wanted.drain_timeout_s is None else wanted.drain_timeout_s


def process_started(pid: int) -> int:
    """When a process began, in ticks since the host did: with the pid it names one process for ever. 0: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0
