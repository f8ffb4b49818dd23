"""What a run wants and what its container gets, as pure data: `RunDefaults`, merged, become a frozen `ContainerPlan`.

Flags, a run of mountkit.yaml and a preset are all `RunDefaults`; `merge` lets the first that says something win.
Nothing here touches a file, a bucket or an engine, and no value of a secret is ever in it: only where it comes from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from mountkit.errors import UsageError

DEFAULT_INPUT = "/data/input"
DEFAULT_OUTPUT = "/data/output"
RUN_LABEL = "mountkit.run"
"""The label every container of ours carries; its value is the run's id."""
DEFAULT_SHM_BYTES = 1 << 30
"""Docker's own 64 MB break every DataLoader with worker processes."""
DEFAULT_NOFILE = 1 << 16
DEFAULT_STOP_TIMEOUT_S = 120.0
DEFAULT_DRAIN_TIMEOUT_S = 600.0
SECRETS_DIRECTORY = "/run/secrets"
SHIM_TARGET = "/run/mountkit/entry"

_REFUSED_TREES = ("/etc", "/proc", "/sys", "/boot", "/run/docker", "/run/containerd")
_REFUSED_PLACES = ("/", "/dev", "/run", "/var", "/var/run", "/usr", "/lib", "/bin", "/sbin")
_SOCKETS = ("docker.sock", "containerd.sock", "podman.sock")

Pull = Literal["always", "missing", "never"]


# ---- what is wanted ------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Input:
    """What a container reads: a bucket to be mounted, or a directory of this host."""

    source: str
    target: str
    """Where the container sees it; "" until `merge` gives it the run's place for inputs."""
    is_directory: bool
    """`source` is an absolute path on this host, not a bucket."""
    options: Mapping[str, str | bool] = field(default_factory=dict)
    """Options of its mount, by the names of `mountkit mount`; those of the command line win."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where a container writes: a directory of this host, or a bucket that is mounted for it."""

    directory: str
    """An absolute path on this host; of a bucket its URL."""
    target: str
    is_bucket: bool = False


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory or file of this host, shown to a container as it is."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that reaches the container as the file /run/secrets/`name`."""

    name: str
    source: str
    """Where the value is: an absolute path, `env:NAME`, or `fd:N` (an inherited descriptor)."""
    variable: str = ""
    """The environment variable the program expects it in; "": the file is enough."""


@dataclass(frozen=True, slots=True)
class Ulimit:
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDefaults:
    """What somebody says about a run: the flags, an entry of mountkit.yaml, a preset. None and empty: nothing said."""

    image: str | None = None
    arguments: tuple[str, ...] | None = None
    preset: str | None = None
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    volumes: tuple[Volume, ...] = ()
    input_target: str | None = None
    """Where an input goes that names no place of its own."""
    output_target: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[Secret, ...] = ()
    mount_options: Mapping[str, str | bool] = field(default_factory=dict)
    """Options of the mounts this run makes, by the names of `mountkit mount`."""
    gpus: str | None = None
    gpus_optional: bool | None = None
    """Without a GPU runtime: a note instead of a failure."""
    cpus: float | None = None
    memory_bytes: int | None = None
    shm_size_bytes: int | None = None
    ipc: str | None = None
    ulimits: Mapping[str, Ulimit] = field(default_factory=dict)
    user: str | None = None
    workdir: str | None = None
    entrypoint: str | None = None
    network: str | None = None
    platform: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    """Name of the container."""
    run_name: str | None = None
    """Name of the run in `mountkit runs`."""
    tty: bool | None = None
    detach: bool | None = None
    stop_timeout_s: float | None = None
    drain_timeout_s: float | None = None
    pull: Pull | None = None
    allow_host_paths: bool | None = None
    rewrite: Callable[[tuple[str, ...]], tuple[str, ...]] | None = None
    """Turns the words after the image into the program's; a preset's affair."""


def merge(flags: RunDefaults, named_run: RunDefaults | None = None, preset: RunDefaults | None = None) -> RunDefaults:
    """What holds: per field the first that says something. Raises UsageError where two want one place.

    Variables, labels and limits are united by name, secrets by name, inputs, outputs and volumes by their place in the
    container, which is settled here; so are the words after the image, by a preset's `rewrite`.
    """
    layers = [layer for layer in (flags, named_run, preset) if layer is not None]
    first: dict[str, Any] = {}
    for each in fields(RunDefaults):
        said = [value for layer in layers if (value := getattr(layer, each.name)) not in (None, (), {})]
        if said and isinstance(said[0], Mapping):
            first[each.name] = {name: value for one in reversed(said) for name, value in one.items()}
        elif said:
            first[each.name] = said[0]
    if first.get("gpus"):  # whether they may be missing is for him to say who asked for them
        first["gpus_optional"] = next(layer.gpus_optional for layer in layers if layer.gpus)
    if rewrite := first.pop("rewrite", None):
        first["arguments"] = rewrite(first.get("arguments", ()))
    read, written = first.get("input_target", DEFAULT_INPUT), first.get("output_target", DEFAULT_OUTPUT)
    settled = [
        replace(
            layer,
            inputs=tuple(replace(i, target=i.target or read) for i in layer.inputs),
            outputs=tuple(replace(o, target=o.target or written) for o in layer.outputs),
        )
        for layer in layers
    ]
    for layer in settled:
        check_targets(layer)
    first["secrets"] = _united([layer.secrets for layer in settled], lambda secret: secret.name)
    for kind in ("inputs", "outputs", "volumes"):
        first[kind] = _united([getattr(layer, kind) for layer in settled], lambda one: one.target)
    merged = RunDefaults(**first)
    check_targets(merged)
    return merged


def _united(layers: Sequence[Iterable[Any]], key: Callable[[Any], str]) -> tuple[Any, ...]:
    found: dict[str, Any] = {}
    for layer in layers:
        taken = set(found)
        found |= {key(one): one for one in layer if key(one) not in taken}
    return tuple(found.values())


def check_targets(wanted: RunDefaults) -> None:
    """Raises UsageError where two things would take the same place in the container."""
    taken: dict[str, str] = {}
    named = [(i.source, i.target) for i in wanted.inputs] + [(o.directory, o.target) for o in wanted.outputs]
    for source, target in named + [(v.source, v.target) for v in wanted.volumes]:
        if target in taken:
            raise UsageError(
                f"both `{taken[target]}` and `{source}` would be {target} in the container",
                f"give each its own place, like `{source}:/data/other`",
            )
        taken[target] = source


def check_image(image: str) -> None:
    """Raises UsageError if `image` cannot be an image's name."""
    if not image or any(c.isspace() for c in image) or image.startswith("-"):
        raise UsageError(f"`{image}` is no image name", "write it like name:tag or registry/name:tag")
    first, _, rest = image.partition("/")
    is_registry = rest and (set(first) & set(".:") or first == "localhost")
    name = (rest if is_registry else image).partition("@")[0]
    name = name[: name.rfind(":")] if name.rfind(":") > name.rfind("/") else name
    if name != name.lower():
        raise UsageError(f"`{image}` is no image name: capitals are for tags", f"write it with `{name.lower()}`")


def refuse_dangerous(directory: str) -> None:
    """Raises UsageError if showing `directory` (absolute, symlinks resolved) to a container would hand it this host."""
    name = os.path.basename(directory)
    if directory in _REFUSED_PLACES or name in _SOCKETS or any(_inside(directory, tree) for tree in _REFUSED_TREES):
        raise UsageError(
            f"`{directory}` would hand this host to the container",
            "bind a directory that holds only the data",
        )


# ---- what the container gets ---------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Bind:
    """A host directory or file shown inside a container."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """Everything the engine is told about one container."""

    image: str
    arguments: tuple[str, ...] = ()
    """Follow the image's entrypoint; empty: the image's own command."""
    binds: tuple[Bind, ...] = ()
    name: str
    labels: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    entrypoint: tuple[str, ...] = ()
    """Empty: the image's own."""
    tty: bool = False
    """Gives the container a terminal for its output (colours, progress bars); it never reads ours."""
    init: bool = True
    """A small init as PID 1 passes signals on and reaps orphans."""
    shm_size_bytes: int = DEFAULT_SHM_BYTES
    ulimits: Mapping[str, Ulimit] = field(default_factory=lambda: {"nofile": Ulimit(DEFAULT_NOFILE, DEFAULT_NOFILE)})
    memory_bytes: int = 0
    """0: no limit."""
    cpus: float = 0.0
    """0: no limit."""
    gpus: str = ""
    ipc: str = ""
    user: str = ""
    workdir: str = ""
    network: str = ""
    platform: str = ""


def plan(
    wanted: RunDefaults,
    *,
    run_id: str,
    inputs: Sequence[tuple[str, str]] = (),
    outputs: Sequence[tuple[str, str]] = (),
    binds: Sequence[Bind] = (),
) -> ContainerPlan:
    """The container of a merged `wanted` whose `inputs` and `outputs` lie at these (host directory, DEST).

    `binds` are mountkit's own (secrets, the shim). Raises UsageError.
    """
    image = wanted.image or ""
    check_image(image)
    shown = [Bind(source, target, read_only=True) for source, target in inputs]
    shown += [Bind(source, target, read_only=False) for source, target in outputs]
    shown += [Bind(volume.source, volume.target, volume.read_only) for volume in wanted.volumes]
    if not wanted.allow_host_paths:
        for bind in shown:
            refuse_dangerous(bind.source)
    return ContainerPlan(
        image=image,
        arguments=wanted.arguments or (),
        binds=(*shown, *binds),
        name=wanted.name or f"mountkit-{run_id}",
        labels={**wanted.labels, RUN_LABEL: run_id},
        environment=dict(wanted.environment),
        entrypoint=(wanted.entrypoint,) if wanted.entrypoint else (),
        tty=bool(wanted.tty),
        shm_size_bytes=wanted.shm_size_bytes or DEFAULT_SHM_BYTES,
        ulimits={"nofile": Ulimit(DEFAULT_NOFILE, DEFAULT_NOFILE), **wanted.ulimits},
        memory_bytes=wanted.memory_bytes or 0,
        cpus=wanted.cpus or 0.0,
        gpus=wanted.gpus or "",
        ipc=wanted.ipc or "",
        user=wanted.user or "",
        workdir=wanted.workdir or "",
        network=wanted.network or "",
        platform=wanted.platform or "",
    )


def _inside(path: str, tree: str) -> bool:
    return path == tree or path.startswith(tree + "/")
