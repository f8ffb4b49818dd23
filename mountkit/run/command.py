"""`mountkit run`: mount what is not mounted, run the container over it, take away what was mounted.

Everything that can be found wrong is found before anything is started: words, directories, engine, image. The mounts
of a run lie in a directory of its own below the runtime directory, which only its user may enter; the engine is root.
Whatever happens between the first mount and the last line, also Ctrl-C, SIGTERM and SIGHUP, the mounts are undone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from mountkit import places
from mountkit.config import parse_duration, parse_size
from mountkit.errors import EngineError, HostError, MountBusy, MountError, MountkitError, StoreError, UsageError
from mountkit.run import plan as plans
from mountkit.run import words
from mountkit.run.engine import ContainerExit, Engine
from mountkit.run.plan import Output

DEFAULT_STOP_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 15.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Mounter(Protocol):
    """What a run asks of mountkit's mounts."""

    def mount(self, source: str, directory: str) -> None:
        """Mounts and returns once the mount answers. Raises MountkitError; then nothing is left behind."""
        ...

    def unmount(self, directory: str, *, force: bool = False) -> None:
        """Unmounts. Raises MountBusy, MountkitError."""
        ...

    def state(self, path: str) -> str:
        """The state of the mount of ours that `path` lies in; "" if it lies in none."""
        ...


@dataclass(frozen=True, slots=True)
class Mounts:
    """The Mounter of real life: `mountkit.mounts`, with the mount flags of the command line."""

    flags: Mapping[str, str | bool | None] = field(default_factory=dict)

    def mount(self, source: str, directory: str) -> None:
        from mountkit import mounts
        from mountkit.config import mount_settings

        # Processes in a container are seldom the user who mounted.
        settings = mount_settings(source, directory, **{**self.flags, "allow_other": True})
        credentials = None
        if passwd_file := self.flags.get("passwd_file"):
            from mountkit.store.passwd import read_passwd_file

            credentials = read_passwd_file(str(passwd_file), settings.source.bucket)
        mounts.mount(settings, passwd_credentials=credentials)

    def unmount(self, directory: str, *, force: bool = False) -> None:
        from mountkit import mounts

        mounts.unmount(directory, force=force)

    def state(self, path: str) -> str:
        from mountkit import mounts

        info = mounts.find(path)
        return info.state if info else ""


def run_from_flags(image: str, arguments: Sequence[str], options: Mapping[str, Any]) -> int:
    """`run` with the options as the command line has them: text, or None where not given. Raises MountkitError."""
    own = {"inputs", "outputs", "environment", "name", "shm_size", "stop_timeout"}
    flags = {name: value for name, value in options.items() if name not in own and value is not None}
    timeout = options.get("stop_timeout")
    return run(
        image,
        arguments,
        inputs=options.get("inputs") or (),
        outputs=options.get("outputs") or (),
        environment=options.get("environment") or (),
        name=options.get("name") or "",
        shm_size_bytes=parse_size(options["shm_size"]) if options.get("shm_size") else 0,
        stop_timeout_s=parse_duration(timeout) if timeout else DEFAULT_STOP_TIMEOUT_S,
        mounter=Mounts(flags),
    )


def run(
    image: str,
    arguments: Sequence[str] = (),
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    environment: Sequence[str] = (),
    name: str = "",
    shm_size_bytes: int = 0,
    stop_timeout_s: float = DEFAULT_STOP_TIMEOUT_S,
    tty: bool = False,
    mounter: Mounter | None = None,
    engine: Engine | None = None,
    base_directory: str = "",
) -> int:
    """The container's exit code, once it has ended and its mounts are gone. Raises MountkitError.

    Call it from the main thread. A signal before the container starts ends with 128 + its number; later ones stop the
    container (see `Engine.run`).
    """
    plans.check_image(image)
    merged = plans.merge(
        plans.RunDefaults(
            image=image,
            arguments=tuple(arguments),
            inputs=tuple(words.parse_input(text) for text in inputs),
            outputs=tuple(words.parse_output(text) for text in outputs),
            environment=words.parse_environment(environment, os.environ),
            tty=tty,
            name=name or None,
            shm_size_bytes=shm_size_bytes or None,
        )
    )
    wanted, results = merged.inputs, merged.outputs
    mounter, engine = mounter or Mounts(), engine or _docker()
    engine.check()
    engine.require_image(image)
    there = {i.source: _answering_directory(i.source, mounter) for i in wanted if i.is_directory}
    written = [(_writable_directory(output), output.target) for output in results]
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    buckets = [i.source for i in wanted if not i.is_directory]
    try:
        with _signals_raise() as signals, _mounted(buckets, mounter, base_directory, run_id, signals) as mounted:
            there |= mounted
            plan = plans.plan(
                merged, run_id=run_id, inputs=[(there[i.source], i.target) for i in wanted], outputs=written
            )
            ended = engine.run(plan, stop_timeout_s=stop_timeout_s)
    except _Stopped as exc:
        return 128 + exc.number
    _tell(ended, plan)
    return ended.code


def _docker() -> Engine:
    try:
        from mountkit.run.docker_engine import DockerEngine
    except ImportError as exc:
        raise EngineError(f"the Python package docker cannot be used: {exc}", "pip install docker") from exc
    return DockerEngine()


def _tell(ended: ContainerExit, plan: plans.ContainerPlan) -> None:
    if ended.out_of_memory:
        limit = f"its limit of {plan.memory_bytes >> 20} MiB" if plan.memory_bytes else "its memory limit"
        _note(f"the container ran out of memory: the kernel killed it at {limit} (exit code {ended.code})")


def _note(text: str) -> None:
    print(f"mountkit: {text}", file=sys.stderr, flush=True)  # noqa: T201


# ---- inputs and outputs --------------------------------------------------------------------------------------
@contextlib.contextmanager
def _mounted(
    sources: Sequence[str], mounter: Mounter, base_directory: str, run_id: str, signals: _Signals
) -> Iterator[dict[str, str]]:
    """The directory each of `sources` is mounted at, answering; at the end what was mounted is gone.

    A second `finally` around the first: a signal that arrives just as the first begins raises there and is then spent.
    """
    made: dict[str, str] = {}
    base = ""
    try:
        try:
            for source in dict.fromkeys(sources):
                base = base or _make_base(base_directory, run_id)
                directory = os.path.join(base, f"input-{len(made)}")
                os.mkdir(directory, 0o700)
                made[source] = directory
                _mount(source, directory, mounter)
            yield made
        finally:
            signals.hold()
    finally:
        for directory in reversed(made.values()):
            _unmount(directory, mounter)
        if base:
            with contextlib.suppress(OSError):
                os.rmdir(base)


def _make_base(base_directory: str, run_id: str) -> str:
    parent = base_directory or os.path.join(places.ensure_runtime_directory(), "runs")
    base = os.path.join(parent, run_id)
    try:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        os.mkdir(base, 0o700)
    except OSError as exc:
        raise HostError(f"cannot make the directory {base}: {os.strerror(exc.errno or 0)}") from exc
    return base


def _mount(source: str, directory: str, mounter: Mounter) -> None:
    try:
        mounter.mount(source, directory)
    except MountkitError as exc:
        exc.sentence = f"cannot mount the input `{source}`: {exc.sentence}"
        if isinstance(exc, StoreError) and os.path.isdir(source):
            exc.hint = f"if you mean the directory {source} of this host, write ./{source}"
        raise
    _must_answer(directory, source)


def _unmount(directory: str, mounter: Mounter) -> None:
    """Undoes one mount, busy or not; what cannot be undone is said, and changes no exit code."""
    try:
        if mounter.state(directory):
            try:
                mounter.unmount(directory)
            except MountBusy as exc:
                _note(f"{exc.sentence}; cutting it off, as the run has ended")
                mounter.unmount(directory, force=True)
        os.rmdir(directory)
    except MountkitError as exc:
        _note(f"warning: {directory} is still mounted: {exc.sentence}")
    except OSError as exc:
        _note(f"warning: cannot remove {directory}: {os.strerror(exc.errno or 0)}")


def _answering_directory(directory: str, mounter: Mounter) -> str:
    if mounter.state(directory) == "dead":
        raise MountError(
            f"the mount {directory} is dead", f"clear it away with `mountkit unmount {directory}` and mount it again"
        )
    _must_answer(directory, directory)
    if not os.path.isdir(directory):
        raise UsageError(f"the input {directory} is not a directory", "name the directory it lies in")
    return os.path.realpath(directory)


def _must_answer(directory: str, shown: str) -> None:
    """Raises unless `directory` answers. Asked from another process, so that a dead mount cannot hang this one.

    statfs: the kernel never caches its answer.
    """
    asker = subprocess.Popen(
        ["stat", "--file-system", "--format=%T", "--", directory],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
    )
    hint = "`mountkit status` tells the state of the mounts"
    try:
        _, words = asker.communicate(timeout=_ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        asker.kill()  # not waited for: it may hang in the kernel as long as the mount does
        raise MountError(f"the input `{shown}` does not answer within {_ANSWER_TIMEOUT_S:g} s", hint) from None
    except BaseException:
        asker.kill()
        raise
    if asker.returncode:
        reason = words.strip().rpartition(": ")[2]
        if reason == os.strerror(2):
            raise UsageError(f"the input directory {shown} does not exist", "name an existing one, or a bucket")
        raise MountError(f"the input `{shown}` does not answer: {reason}", hint)


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
