"""The options of a run, each defined once: name, how its text becomes a value, its words.

The command line reads them from here, and so may mountkit.yaml: `wanted` takes the same words by the same names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mountkit.config import OPTIONS as MOUNT_OPTIONS
from mountkit.config import parse_duration, parse_size
from mountkit.errors import UsageError
from mountkit.run import words
from mountkit.run.plan import RunDefaults


def _text(text: str) -> str:
    return text


def _pull(text: str) -> str:
    if text not in ("always", "missing", "never"):
        raise UsageError(f"`{text}` is not one of always, missing, never", "write --pull missing")
    return text


def _memory(text: str) -> int:
    """Docker's units: `512m` and `2g` are powers of 1024, as everybody who writes them expects; also `2GiB`."""
    if text[-1:].lower() in "bkmgt" and text[:-1].replace(".", "", 1).isdigit():
        return parse_size(text if text[-1:] in "bB" else f"{text}ib")
    return parse_size(text)


@dataclass(frozen=True, slots=True)
class RunOption:
    """One option of `mountkit run`: `parse` is None for a switch."""

    name: str
    field: str
    """The field of RunDefaults it sets."""
    parse: Callable[[str], Any] | None
    metavar: str
    words: str
    multiple: bool = False
    short: str = ""


RUN_OPTIONS: tuple[RunOption, ...] = (
    RunOption(
        "input", "inputs", words.parse_input, "SRC[:DEST]", "Bucket or directory to read; read-only there.", True
    ),
    RunOption(
        *("output", "outputs", words.parse_output, "DIR[:DEST]"),
        "Directory or s3:// URL the container may write to; a bucket has all of it before the run ends.",
        True,
    ),
    RunOption(
        "volume", "volumes", words.parse_volume, "SRC:DEST[:ro]", "Anything else of this host to show.", True, "-v"
    ),
    RunOption("env", "environment", _text, "K[=V]", "Variable of the container; K alone passes yours on.", True, "-e"),
    RunOption("env-file", "environment", _text, "FILE", "File of K=V lines.", True),
    RunOption(
        "secret",
        "secrets",
        words.parse_secret,
        "NAME[:VAR]=FILE|env:K",
        "File /run/secrets/NAME, and VAR if named; never in `docker inspect`.",
        True,
    ),
    RunOption("preset", "preset", _text, "NAME", "What the image expects: lightly, generic (default: by its name)."),
    RunOption("gpus", "gpus", words.parse_gpus, "all|N|IDS", "GPUs of the container."),
    RunOption("cpus", "cpus", words.parse_cpus, "N", "Cores the container may use."),
    RunOption("memory", "memory_bytes", _memory, "SIZE", "Memory limit, like 8g.", False, "-m"),
    RunOption("shm-size", "shm_size_bytes", _memory, "SIZE", "Size of /dev/shm, for DataLoader workers (default: 1g)."),
    RunOption("ipc", "ipc", words.parse_ipc, "MODE", "IPC namespace: private, shareable, host, none, container:NAME."),
    RunOption("ulimit", "ulimits", words.parse_ulimit, "NAME=SOFT[:HARD]", "Limit (default: nofile=65536).", True),
    RunOption("user", "user", _text, "UID[:GID]", "User of the program (default: the image's).", False, "-u"),
    RunOption("workdir", "workdir", words.parse_workdir, "DIR", "Working directory in the container.", False, "-w"),
    RunOption("entrypoint", "entrypoint", _text, "PROGRAM", "Program to start instead of the image's."),
    RunOption("network", "network", _text, "NAME", "Network of the container: bridge, host, none, NAME."),
    RunOption("name", "name", _text, "NAME", "Name of the container."),
    RunOption("name-run", "run_name", _text, "NAME", "Name of the run in `mountkit runs`."),
    RunOption("label", "labels", words.parse_label, "K[=V]", "Label of the container.", True, "-l"),
    RunOption("platform", "platform", words.parse_platform, "OS/ARCH", "Platform of the image (default: the host's)."),
    RunOption("pull", "pull", _pull, "WHEN", "Fetch the image: always, missing, never (default: missing)."),
    RunOption(
        "stop-timeout", "stop_timeout_s", parse_duration, "TIME", "Grace of a container told to stop (default: 120s)."
    ),
    RunOption(
        "drain-timeout", "drain_timeout_s", parse_duration, "TIME", "How long uploads may take at the end (10m)."
    ),
    RunOption("detach", "detach", None, "", "Return once it runs; `mountkit logs` and `stop` reach it.", False, "-d"),
    RunOption(
        "allow-host-paths", "allow_host_paths", None, "", "Allow `/`, `/etc`, docker.sock and the like to be shown."
    ),
)
_BY_NAME = {option.name: option for option in RUN_OPTIONS}
NO_MOUNT_FLAGS = frozenset({"writable", *_BY_NAME})
"""Options of a mount that a run decides itself: outputs are writable, inputs are not."""
_MOUNT_NAMES = {option.name for option in MOUNT_OPTIONS} - NO_MOUNT_FLAGS


def wanted(
    given: Mapping[str, Any],
    *,
    image: str | None = None,
    arguments: Sequence[str] | None = None,
    surroundings: Mapping[str, str] | None = None,
) -> RunDefaults:
    """What options given by name mean: a text, a sequence of texts where `multiple`, a bool for a switch.

    None, "" and empty sequences are passed over. Names of mount options are allowed too. Raises UsageError.
    """
    around = os.environ if surroundings is None else surroundings
    found: dict[str, Any] = {}
    mounts: dict[str, str | bool] = {}
    for given_name, value in given.items():
        name = given_name.replace("_", "-")
        if value is None or value == "" or value == () or value == []:
            continue
        if name == "tty":
            found["tty"] = bool(value)
        elif name in _MOUNT_NAMES:
            mounts[name.replace("-", "_")] = value
        elif name not in _BY_NAME:
            raise UsageError(f"`{name}` is no option of a run", "see `mountkit run --help`")
        elif name not in ("env", "env-file"):
            found[_BY_NAME[name].field] = _value(_BY_NAME[name], value)
    environment: dict[str, str] = {}
    for path in given.get("env-file") or given.get("env_file") or ():
        environment |= words.parse_env_file(path, around)
    environment |= words.parse_environment(given.get("env") or (), around)
    return RunDefaults(
        image=image,
        arguments=tuple(arguments) if arguments else None,
        environment=environment,
        mount_options=mounts,
        **found,
    )


def _value(option: RunOption, value: Any) -> Any:
    if option.parse is None:
        return bool(value)
    try:
        if not option.multiple:
            return option.parse(str(value))
        values = tuple(option.parse(str(text)) for text in value)
    except UsageError as exc:
        sentence = exc.sentence if exc.sentence.startswith("--") else f"--{option.name}: {exc.sentence}"
        raise UsageError(sentence, exc.hint) from None
    return dict(values) if option.field in ("labels", "ulimits") else values
