"""`mountkit run`: mount what is not mounted, run the container over it, take away what was mounted.

Everything that can be found wrong is found before anything is started: words, directories, secrets, engine, image.
The mounts of runs lie below the runtime directory, which only its user may enter; the engine is root. Whatever
happens between the first mount and the last line, also Ctrl-C, SIGTERM and SIGHUP, the run is undone; what `kill -9`
leaves, the next command of the run family collects.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import FrameType
from typing import Any, BinaryIO

from mountkit import mountinfo, notes
from mountkit.errors import EngineError, HostError, MountError, UploadsLeft, UsageError
from mountkit.run import detach, orphans, pulling, secret_files
from mountkit.run import plan as plans
from mountkit.run.answering import must_answer
from mountkit.run.docker_spec import docker_run
from mountkit.run.engine import ContainerExit, Engine, Image
from mountkit.run.job import Job, program_of, with_entrypoint
from mountkit.run.output import Tee
from mountkit.run.plan import Bind, Output, RunDefaults
from mountkit.run.read import Tracer
from mountkit.run.shared_mounts import Mounter, Options, SharedMounts

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Mounts:
    """The Mounter of real life: `mountkit.mounting` and `unmounting`."""

    @property
    def traces(self) -> Tracer:
        from mountkit import traces

        return traces

    def key(self, source: str, options: Options) -> str:
        import hashlib

        # The directory is no part of what makes a mount the same.
        words = replace(self._settings(source, "/", options), directory="").to_json()
        return hashlib.blake2b(words.encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()

    def mount(self, source: str, directory: str, options: Options) -> None:
        from mountkit import mounting

        settings = self._settings(source, directory, options)
        credentials = None
        if passwd_file := options.get("passwd_file"):
            from mountkit.store.passwd import read_passwd_file

            credentials = read_passwd_file(str(passwd_file), settings.source.bucket)
        mounting.mount(settings, passwd_credentials=credentials)

    def unmount(self, directory: str, *, force: bool = False) -> None:
        from mountkit import unmounting

        unmounting.unmount(directory, force=force)

    def uploaded(self, directory: str, since: float, timeout_s: float) -> tuple[list[dict[str, Any]], str]:
        from mountkit import outputs, report

        place = outputs.find(directory, "")
        try:
            outputs.drain(place, timeout_s=timeout_s, show=report.show_drain)
        except UploadsLeft as exc:
            return outputs.uploaded(place, since), f"{exc.sentence}; {exc.hint}"
        return outputs.uploaded(place, since), ""

    def put(self, directory: str, path: str, content: BinaryIO) -> None:
        must_answer(directory, f"the mount {directory}")
        target = os.path.join(directory, path)
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as file:
                shutil.copyfileobj(content, file)
        except OSError as exc:
            raise MountError(f"cannot write into {directory}: {os.strerror(exc.errno or 0)}") from exc

    def state(self, path: str) -> str:
        from mountkit import mounts

        info = mounts.find(path)
        return info.state if info else ""

    def details(self, path: str) -> dict[str, Any]:
        from mountkit import mounts

        info = mounts.find(path)
        return info.details if info else {}

    @staticmethod
    def _settings(source: str, directory: str, options: Options) -> Any:
        from mountkit.config import mount_settings

        # Processes in a container are seldom the user who mounted.
        return mount_settings(source, directory, **{**options, "allow_other": True})


def run(
    wanted: RunDefaults,
    *,
    mounter: Mounter | None = None,
    engine: Engine | None = None,
    base_directory: str = "",
    rerun_of: str = "",
) -> int:
    """Runs what a merged `wanted` says; the container's exit code, once it has ended and its mounts are gone.

    Detached: 0 once it runs. Call it from the main thread. A signal before the container starts ends with 128 + its
    number; later ones stop the container (see `Engine.run`). Raises MountkitError.
    """
    plans.check_image(wanted.image or "")
    mounter = mounter or Mounts()
    mounts = SharedMounts(mounter, base_directory)
    runner = _Runner(wanted, mounter, mounts, engine, rerun_of)
    if not wanted.detach:
        return runner.run(lambda _: None, show=True)
    run_id, code = detach.start(lambda started: runner.run(started, show=False))
    if run_id:
        print(run_id)  # noqa: T201
    return code


def dry_run(wanted: RunDefaults, *, mounter: Mounter | None = None, engine: Engine | None = None) -> str:
    """The `docker run` that `run` would be, as one line for a shell; starts nothing and asks no bucket.

    An engine that does not answer is passed over. Raises UsageError.
    """
    plans.check_image(wanted.image or "")
    mounts = SharedMounts(mounter or Mounts())
    if wanted.gpus_optional:
        with contextlib.suppress(EngineError):
            wanted = settle_gpus(wanted, engine or docker())
    places: dict[str, str] = {}
    for one in wanted.inputs:
        options = {**one.options, **wanted.mount_options}
        places[one.source] = one.source if one.is_directory else mounts.directory(one.source, options)
    binds: list[Bind] = []
    if wanted.secrets:
        hidden = secret_files.place("ID")
        binds.append(Bind(f"{hidden}/secrets", plans.SECRETS_DIRECTORY, read_only=True))
    made = plans.plan(
        wanted,
        run_id="ID",
        inputs=[(places[i.source], i.target) for i in wanted.inputs],
        outputs=[
            (mounts.directory(o.directory, {**wanted.mount_options, "writable": True}), o.target)
            if o.is_bucket
            else (o.directory, o.target)
            for o in wanted.outputs
        ],
        binds=binds,
    )
    exported = [secret for secret in wanted.secrets if secret.variable]
    if exported:
        image = Image("")
        with contextlib.suppress(EngineError):
            image = (engine or docker()).image(made.image) or image
        shim = Bind(f"{secret_files.place('ID')}/entry", plans.SHIM_TARGET, read_only=True)
        made = replace(made, binds=(*made.binds, shim))
        made = with_entrypoint(made, secret_files.shim_command(exported, program_of(wanted, image)), image)
    return docker_run(made, mountinfo.mount_points())


def docker() -> Engine:
    """The engine of this host. Raises EngineError where its package cannot be used."""
    try:
        from mountkit.run.docker_engine import DockerEngine
    except ImportError as exc:
        raise EngineError(f"the Python package docker cannot be used: {exc}", "pip install docker") from exc
    return DockerEngine()


def note(text: str) -> None:
    """Says something that is neither the container's output nor a failure."""
    notes.say(f"mountkit: {text}")


class _Runner:
    """One call of `run`: checks, then a Job."""

    def __init__(
        self, wanted: RunDefaults, mounter: Mounter, mounts: SharedMounts, engine: Engine | None, rerun_of: str
    ) -> None:
        self._wanted, self._mounter, self._mounts = wanted, mounter, mounts
        self._given_engine, self._rerun_of = engine, rerun_of

    def run(self, started: Callable[[str], None], *, show: bool) -> int:
        engine = self._given_engine or docker()
        engine.check()
        orphans.collect(lambda: engine, self._mounter, self._mounts, note)
        wanted = settle_gpus(self._wanted, engine)
        directories = {i.source: self._answering(i.source) for i in wanted.inputs if i.is_directory}
        for volume in wanted.volumes:
            must_answer(volume.source, f"the volume {volume.source}")
        outputs = [(_writable_directory(one), one.target) for one in wanted.outputs if not one.is_bucket]
        secrets = {secret.name: secret_files.read(secret) for secret in wanted.secrets}
        try:
            with _signals_raise() as signals:
                image = pulling.required_image(
                    engine, wanted.image or "", pull=wanted.pull or "missing", platform=wanted.platform or "", say=note
                )
                job = Job(
                    wanted,
                    image,
                    engine=engine,
                    mounter=self._mounter,
                    mounts=self._mounts,
                    directories=directories,
                    outputs=outputs,
                    secret_values=secrets,
                    rerun_of=self._rerun_of,
                )
                with _undone(job, signals):
                    ended = self._execute(job, secrets, started, show=show)
        except _Stopped as exc:
            return 128 + exc.number
        _tell(ended, wanted)
        return ended.code or outputs_code(job.run.receipt)

    def _execute(
        self, job: Job, secrets: Mapping[str, bytes], started: Callable[[str], None], *, show: bool
    ) -> ContainerExit:
        made = job.prepare()
        stdout, stderr = (sys.stdout.buffer, sys.stderr.buffer) if show else (None, None)
        with Tee.to_log(job.run.log, stdout, stderr, secrets=secrets.values()) as output:
            return job.execute(made, output, started)

    def _answering(self, directory: str) -> str:
        if self._mounter.state(directory) == "dead":
            raise MountError(
                f"the mount {directory} is dead",
                f"clear it away with `mountkit unmount {directory}` and mount it again",
            )
        must_answer(directory, f"the input {directory}")
        if not os.path.isdir(directory):
            raise UsageError(f"the input {directory} is not a directory", "name the directory it lies in")
        return os.path.realpath(directory)


def settle_gpus(wanted: RunDefaults, engine: Engine) -> RunDefaults:
    """`wanted` without GPUs where there are none and only a preset wishes for them. Raises EngineError."""
    if not wanted.gpus or wanted.gpus == "0":
        return replace(wanted, gpus=None)
    if engine.has_gpus():
        return wanted
    if not wanted.gpus_optional:
        raise EngineError(
            f"--gpus {wanted.gpus}: the container engine has no GPU runtime",
            "install the NVIDIA Container Toolkit on this machine, or drop --gpus",
        )
    note("no GPU runtime here: the container runs without GPUs")
    return replace(wanted, gpus=None)


def outputs_code(receipt: Mapping[str, Any]) -> int:
    """The exit code of a run whose container ended well: another one where its outputs are not in the bucket."""
    return UploadsLeft.exit_code if receipt.get("outputs_left") else 0


def _tell(ended: ContainerExit, wanted: RunDefaults) -> None:
    if ended.out_of_memory:
        limit = f"its limit of {wanted.memory_bytes >> 20} MiB" if wanted.memory_bytes else "this machine's limit"
        note(
            f"the container ran out of memory: the kernel killed it at {limit} (exit code {ended.code}); "
            f"a higher --memory, fewer workers or smaller batches help"
        )


def _writable_directory(output: Output) -> str:
    """The output's directory, made where missing."""
    try:
        os.makedirs(output.directory, exist_ok=True)
    except FileExistsError as exc:
        raise UsageError(f"the output {output.directory} is a file, not a directory", "name a directory") from exc
    except OSError as exc:
        raise HostError(
            f"cannot make the output directory {output.directory}: {os.strerror(exc.errno or 0)}",
            "choose one you may write to",
        ) from exc
    return os.path.realpath(output.directory)


# ---- signals -------------------------------------------------------------------------------------------------
class _Stopped(KeyboardInterrupt):
    """A signal asked this run to end before or after its container ran."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class _Signals:
    """Raises `_Stopped` in the main thread at the first signal; none once held."""

    def __init__(self) -> None:
        self._held = False

    def hold(self) -> None:
        self._held = True

    def handle(self, number: int, _: FrameType | None) -> None:
        if not self._held:
            self._held = True
            raise _Stopped(number)


@contextlib.contextmanager
def _undone(job: Job, signals: _Signals) -> Iterator[None]:
    """Undoes `job` at the end of the block, disturbed by no signal.

    A second `finally` around the first: a signal that arrives just as the first begins raises there and is then spent.
    """
    try:
        try:
            yield
        finally:
            signals.hold()
    finally:
        for sentence in job.undo():
            note(sentence)


@contextlib.contextmanager
def _signals_raise() -> Iterator[_Signals]:
    signals = _Signals()
    previous = {
        number: signal.signal(number, signals.handle)
        for number in _STOP_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup
    }
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
