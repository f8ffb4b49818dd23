"""A ContainerPlan in the engine's own words: the JSON of `POST /containers/create`, and the same as `docker run`.

Pure: both are made of the same plan, so `--dry-run` prints what really happens.
"""

from __future__ import annotations

import re
import resource
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mountkit import mountinfo
from mountkit.mountinfo import MountPoint
from mountkit.run import gpus
from mountkit.run.plan import Bind, ContainerPlan

HIDDEN = "***"
_TELLING = re.compile(
    r"(.*[_.-])?(token|secret|passw(or)?d|credentials?|(api|access|private|secret|license)[_-]?key)", re.IGNORECASE
)
"""Whole names: `max_tokens`, `tokenizer` and TOKENIZERS_PARALLELISM are no secrets."""


def creation(plan: ContainerPlan, points: Sequence[MountPoint], *, gpu_kind: str = gpus.RUNTIME) -> dict[str, Any]:
    """The body of the request that creates the container; `points` are the host's mounts, `gpu_kind` is of `gpus`."""
    host: dict[str, Any] = {
        "Mounts": [_mount(bind, points) for bind in plan.binds],
        "Init": plan.init,
        "ShmSize": plan.shm_size_bytes,
        "Ulimits": [{"Name": name, "Soft": soft, "Hard": hard} for name, soft, hard in _ulimits(plan)],
    }
    if plan.memory_bytes:
        host |= {"Memory": plan.memory_bytes, "MemorySwap": plan.memory_bytes}
    if plan.cpus:
        host["NanoCpus"] = round(plan.cpus * 1e9)
    if plan.gpus:
        host["DeviceRequests"] = [gpus.request(plan.gpus, gpu_kind)]
    if plan.ipc:
        host["IpcMode"] = plan.ipc
    if plan.network:
        host["NetworkMode"] = plan.network
    body: dict[str, Any] = {
        "Image": plan.image,
        "Cmd": list(plan.arguments) or None,
        "Labels": dict(plan.labels),
        "Env": [f"{name}={value}" for name, value in plan.environment.items()],
        "Tty": plan.tty,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": host,
    }
    if plan.entrypoint:
        body["Entrypoint"] = list(plan.entrypoint)
    if plan.user:
        body["User"] = plan.user
    if plan.workdir:
        body["WorkingDir"] = plan.workdir
    return body


def docker_run(plan: ContainerPlan, points: Sequence[MountPoint] = ()) -> str:
    """The `docker run` that does the same, quoted for a shell; values of telling variables and arguments hidden."""
    words = ["docker", "run", "--rm", "--name", plan.name]
    words += _joined("--label", [f"{name}={value}" for name, value in plan.labels.items()])
    words += ["--init"] if plan.init else []
    words += ["--tty"] if plan.tty else []
    for bind in plan.binds:
        words += ["--mount", _mount_words(bind, points)]
    words += _joined("--env", [f"{name}={value}" for name, value in redacted(plan.environment).items()])
    words += ["--shm-size", f"{plan.shm_size_bytes}"]
    words += _joined("--ulimit", [f"{name}={soft}:{hard}" for name, soft, hard in _ulimits(plan)])
    if plan.memory_bytes:
        words += ["--memory", f"{plan.memory_bytes}", "--memory-swap", f"{plan.memory_bytes}"]
    if plan.cpus:
        words += ["--cpus", f"{plan.cpus:g}"]
    if plan.gpus:
        ids = not (plan.gpus == "all" or gpus.is_count(plan.gpus))
        words += ["--gpus", f'"device={plan.gpus.removeprefix("device=")}"' if ids else plan.gpus]
    named = (("ipc", plan.ipc), ("network", plan.network), ("user", plan.user), ("workdir", plan.workdir))
    for flag, value in (*named, ("platform", plan.platform)):
        words += [f"--{flag}", value] if value else []
    words += ["--entrypoint", plan.entrypoint[0]] if plan.entrypoint else []
    words += [plan.image, *plan.entrypoint[1:], *redacted_arguments(plan.arguments)]
    return shlex.join(words)


def redacted(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with the values of variables hidden whose names promise a secret."""
    return {name: HIDDEN if _TELLING.fullmatch(name) else value for name, value in environment.items()}


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """`arguments` with the values hidden of `token=…`, `--api-key=…`, `--password …` and their like."""
    found: list[str] = []
    for argument in arguments:
        name, separator, _ = argument.partition("=")
        before = found[-1] if found else ""
        if separator and _TELLING.fullmatch(name.lstrip("-")):
            found.append(f"{name}={HIDDEN}")
        elif before.startswith("-") and _TELLING.fullmatch(before.lstrip("-")) and not argument.startswith("-"):
            found.append(HIDDEN)
        else:
            found.append(argument)
    return found


def _joined(flag: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (flag, value)]


def _ulimits(plan: ContainerPlan) -> list[tuple[str, int, int]]:
    # An engine may not raise the number of files above its own limit; ours is the best guess at it.
    ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def bounded(name: str, value: int) -> int:
        return min(value, ceiling) if name == "nofile" and ceiling != resource.RLIM_INFINITY else value

    return [(name, bounded(name, u.soft), bounded(name, u.hard)) for name, u in plan.ulimits.items()]


def _slave(bind: Bind, points: Sequence[MountPoint]) -> bool:
    """With `rslave` the container sees a remount of its source; Docker refuses it where the source mount is private."""
    point = mountinfo.covering(bind.source, list(points))
    return point is not None and any(word.startswith(("shared:", "master:")) for word in point.propagation)


def _mount(bind: Bind, points: Sequence[MountPoint]) -> dict[str, Any]:
    """A Mount API bind: a missing source is an error, never a silent mkdir."""
    made: dict[str, Any] = {"Type": "bind", "Source": bind.source, "Target": bind.target, "ReadOnly": bind.read_only}
    if _slave(bind, points):
        made["BindOptions"] = {"Propagation": "rslave"}
    return made


def _mount_words(bind: Bind, points: Sequence[MountPoint]) -> str:
    words = ["type=bind", f"source={bind.source}", f"target={bind.target}"]
    words += ["readonly"] if bind.read_only else []
    words += ["bind-propagation=rslave"] if _slave(bind, points) else []
    return ",".join(f'"{word}"' if "," in word or '"' in word else word for word in words)
