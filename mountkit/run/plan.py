"""What a container gets, as pure data: words in, a frozen `ContainerPlan` out.

Nothing here touches a file, a bucket or an engine. `SRC:DEST` is split at its last `:/`, so that a source may hold
colons, slashes and a query of its own; DEST is always an absolute path inside the container.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mountkit.errors import UsageError
from mountkit.sources import parse_source

DEFAULT_INPUT = "/data/input"
DEFAULT_OUTPUT = "/data/output"
RUN_LABEL = "mountkit.run"
"""The label every container of ours carries; its value is the run's id."""
DEFAULT_SHM_BYTES = 1 << 30
"""Docker's own 64 MB break every DataLoader with worker processes."""

_SYSTEM_TARGETS = ("/", "/proc", "/sys", "/dev")
_REFUSED_TREES = ("/etc", "/proc", "/sys", "/boot", "/run/docker", "/run/containerd")
_REFUSED_PLACES = ("/", "/dev", "/run", "/var", "/var/run", "/usr", "/lib", "/bin", "/sbin")
_SOCKETS = ("docker.sock", "containerd.sock", "podman.sock")


@dataclass(frozen=True, slots=True)
class Input:
    """What a container reads: a bucket to be mounted, or a directory of this host."""

    source: str
    target: str
    is_directory: bool
    """`source` is an absolute path on this host, not a bucket."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where a container writes: a directory of this host."""

    directory: str
    target: str


@dataclass(frozen=True, slots=True)
class Bind:
    """A host directory shown inside a container."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Everything the engine is told about one container."""

    image: str
    arguments: tuple[str, ...]
    """Follow the image's entrypoint; empty: the image's own command."""
    binds: tuple[Bind, ...]
    name: str
    labels: Mapping[str, str]
    environment: Mapping[str, str]
    tty: bool = False
    """Gives the container a terminal for its output (colours, progress bars); it never reads ours."""
    init: bool = True
    """A small init as PID 1 passes signals on and reaps orphans."""
    shm_size_bytes: int = DEFAULT_SHM_BYTES
    nofile: int = 1 << 16
    memory_bytes: int = 0
    """0: no limit."""


def parse_input(text: str) -> Input:
    """What `SRC[:DEST]` means. Raises UsageError.

    SRC is a directory if it starts with `/`, `.` or `~`; everything else is a bucket, as for `mountkit mount`.
    """
    source, target = _split(text, "--input", DEFAULT_INPUT)
    if _names_directory(source):
        return Input(_host_directory(source, "--input"), target, is_directory=True)
    parse_source(source)
    return Input(source, target, is_directory=False)


def parse_output(text: str) -> Output:
    """What `DIR[:DEST]` means. Raises UsageError."""
    directory, target = _split(text, "--output", DEFAULT_OUTPUT)
    if "://" in directory:
        raise UsageError(
            f"--output: `{directory}` is a bucket, and outputs go to plain directories for now",
            "write to a directory and upload it afterwards",
        )
    return Output(_host_directory(directory, "--output"), target)


def parse_environment(texts: Iterable[str], surroundings: Mapping[str, str]) -> dict[str, str]:
    """The variables that `NAME=VALUE` and `NAME` (its value in `surroundings`) mean. Raises UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name or "\0" in text:
            raise UsageError(f"--env: `{text}` is no variable", "write NAME=VALUE, or NAME to pass on your own")
        if separator:
            found[name] = value
        elif name in surroundings:
            found[name] = surroundings[name]
        else:
            raise UsageError(f"--env: the variable {name} is not set here", f"write {name}=VALUE")
    return found


def check_image(image: str) -> None:
    """Raises UsageError if `image` cannot be an image's name."""
    if not image or any(c.isspace() for c in image) or image.startswith("-"):
        raise UsageError(f"`{image}` is no image name", "write it like name:tag or registry/name:tag")


def check_targets(inputs: Sequence[Input], outputs: Sequence[Output]) -> None:
    """Raises UsageError where two of them would take the same place in the container."""
    taken: dict[str, str] = {}
    named = [(i.source, i.target) for i in inputs] + [(o.directory, o.target) for o in outputs]
    for source, target in named:
        if target in taken:
            raise UsageError(
                f"both `{taken[target]}` and `{source}` would be {target} in the container",
                f"give each its own place, like `{source}:/data/other`",
            )
        taken[target] = source


def refuse_dangerous(directory: str) -> None:
    """Raises UsageError if showing `directory` (absolute, symlinks resolved) to a container would hand it this host."""
    name = os.path.basename(directory)
    if directory in _REFUSED_PLACES or name in _SOCKETS or any(_inside(directory, tree) for tree in _REFUSED_TREES):
        raise UsageError(
            f"`{directory}` would hand this host to the container",
            "bind a directory that holds only the data",
        )


def plan_run(
    image: str,
    arguments: Sequence[str] = (),
    *,
    run_id: str,
    inputs: Sequence[tuple[str, str]] = (),
    outputs: Sequence[tuple[str, str]] = (),
    environment: Mapping[str, str] | None = None,
    tty: bool = False,
    name: str = "",
    shm_size_bytes: int = 0,
    memory_bytes: int = 0,
) -> ContainerPlan:
    """The container that runs `image` over `inputs` and `outputs`, each (host directory, DEST).

    Raises UsageError. Empty names and sizes of 0 mean the default.
    """
    check_image(image)
    binds = [Bind(source, target, read_only=True) for source, target in inputs]
    binds += [Bind(source, target, read_only=False) for source, target in outputs]
    for bind in binds:
        refuse_dangerous(bind.source)
    return ContainerPlan(
        image=image,
        arguments=tuple(arguments),
        binds=tuple(binds),
        name=name or f"mountkit-{run_id}",
        labels={RUN_LABEL: run_id},
        environment=dict(environment or {}),
        tty=tty,
        shm_size_bytes=shm_size_bytes or DEFAULT_SHM_BYTES,
        memory_bytes=memory_bytes,
    )


def _split(text: str, flag: str, default: str) -> tuple[str, str]:
    """Source and target of `text`: at its last `:/` that is not a scheme's `://`."""
    if not text.strip() or "\0" in text:
        raise UsageError(f"{flag}: the source is empty", f"write {flag} SOURCE or {flag} SOURCE:/path/in/container")
    position = text.rfind(":/")
    if position >= 0 and not text.startswith("://", position):
        source, target = text[:position], text[position + 1 :]
        if not source:
            raise UsageError(f"{flag}: `{text}` names no source", f"write {flag} SOURCE{text}")
        return source, _target(target, flag)
    head, colon, tail = text.rpartition(":")
    if colon and "://" not in text:
        raise UsageError(
            f"{flag}: `{tail}` in `{text}` is no absolute path in the container",
            f"write {flag} {head or 'SOURCE'}:/{tail or 'data/input'}",
        )
    return text, default


def _target(text: str, flag: str) -> str:
    normal = posixpath.normpath(text)
    if ".." in text.split("/"):
        raise UsageError(f"{flag}: `{text}` climbs out of its place with `..`", "write the plain absolute path")
    if any(normal == tree or (tree != "/" and _inside(normal, tree)) for tree in _SYSTEM_TARGETS):
        raise UsageError(
            f"{flag}: nothing can be mounted at {normal} in a container", f"choose a place like {DEFAULT_INPUT}"
        )
    return normal


def _names_directory(source: str) -> bool:
    return source[0] in "/~" or source == "." or source == ".." or source.startswith(("./", "../"))


def _host_directory(text: str, flag: str) -> str:
    directory = os.path.abspath(os.path.expanduser(text))
    try:
        refuse_dangerous(directory)
    except UsageError as exc:
        raise UsageError(f"{flag}: {exc.sentence}", exc.hint) from None
    return directory


def _inside(path: str, tree: str) -> bool:
    return path == tree or path.startswith(tree + "/")
