"""What the words of a run mean: `SRC[:DEST]`, variables, secrets, limits. Text in, values of `plan` out.

Nothing here touches a file (but for `--env-file`), a bucket or an engine. `SRC:DEST` is split at its last `:/`, so that
a source may hold colons, slashes and a query of its own; DEST is always an absolute path inside the container.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping

from mountkit.errors import UsageError
from mountkit.run.plan import DEFAULT_INPUT, Input, Output, Secret, Ulimit, Volume, refuse_dangerous
from mountkit.sources import parse_source

_SYSTEM_TARGETS = ("/", "/proc", "/sys", "/dev", "/run/secrets")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio"),
    *("rttime", "sigpending", "stack"),
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse_input(text: str) -> Input:
    """What `SRC[:DEST]` means. Raises UsageError.

    SRC is a directory if it starts with `/`, `.` or `~`; everything else is a bucket, as for `mountkit mount`.
    """
    source, target = _split(text, "--input")
    if _names_directory(source):
        return Input(_host_directory(source, "--input"), target, is_directory=True)
    parse_source(source)
    return Input(source, target, is_directory=False)


def parse_output(text: str) -> Output:
    """What `DIR[:DEST]` or `s3://BUCKET/PREFIX[:DEST]` means; a bucket is always a URL here. Raises UsageError."""
    directory, target = _split(text, "--output")
    if "://" in directory:
        parse_source(directory)
        return Output(directory, target, is_bucket=True)
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


def parse_env_file(path: str, surroundings: Mapping[str, str]) -> dict[str, str]:
    """The variables of a file of `NAME=VALUE` lines, as `docker run --env-file` reads it. Raises UsageError."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except (OSError, UnicodeDecodeError) as exc:
        reason = os.strerror(exc.errno or 0) if isinstance(exc, OSError) else "it is no text"
        raise UsageError(f"--env-file: cannot read {path}: {reason}", "name a file of NAME=VALUE lines") from exc
    wanted = [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    # As Docker does it: a bare name that is not set here is passed over.
    return parse_environment([w for w in wanted if "=" in w or w in surroundings], surroundings)


def parse_secret(text: str) -> Secret:
    """What `NAME[:VARIABLE]=FILE|env:NAME|fd:N` means. Raises UsageError."""
    head, separator, source = text.partition("=")
    name, _, variable = head.partition(":")
    hint = "write NAME=FILE or NAME=env:VARIABLE; NAME:VARIABLE=… also exports it to the program"
    if not separator or not source or not _NAME.fullmatch(name):
        raise UsageError(f"--secret: `{head}` names no secret and where it comes from", hint)
    if ":" in head and not _VARIABLE.fullmatch(variable):
        raise UsageError(f"--secret: `{variable}` is no name of a variable", hint)
    if not source.startswith(("env:", "fd:")):
        source = os.path.abspath(os.path.expanduser(source))
    return Secret(name, source, variable)


def parse_volume(text: str) -> Volume:
    """What `SRC:DEST[:ro]`, Docker's word, means. Raises UsageError."""
    body, read_only = (text[:-3], True) if text.endswith(":ro") else (text.removesuffix(":rw"), False)
    source, target = _split(body, "--volume")
    if not target or not _names_directory(source):
        raise UsageError(f"--volume: `{text}` is no SRC:DEST", "write --volume /on/this/host:/in/the/container[:ro]")
    return Volume(_absolute(source), target, read_only)


def parse_ulimit(text: str) -> tuple[str, Ulimit]:
    """Name and limit of `nofile=1024[:2048]`. Raises UsageError."""
    match = re.fullmatch(r"([a-z]+)=(-?\d+)(?::(-?\d+))?", text)
    if not match:
        raise UsageError(f"--ulimit: `{text}` is no limit", "write NAME=SOFT[:HARD], like nofile=65536")
    if match[1] not in _LIMITS:
        raise UsageError(f"--ulimit: there is no limit `{match[1]}`", f"there are: {', '.join(_LIMITS)}")
    soft, hard = int(match[2]), int(match[3] or match[2])
    if hard >= 0 and not 0 <= soft <= hard:
        raise UsageError(f"--ulimit: in `{text}` the soft limit is above the hard one", "write NAME=SOFT:HARD")
    return match[1], Ulimit(soft, hard)


def parse_ipc(text: str) -> str:
    """A mode of the IPC namespace. Raises UsageError."""
    if text in ("private", "shareable", "host", "none") or text.removeprefix("container:") not in ("", text):
        return text
    raise UsageError(f"--ipc: `{text}` is no mode", "write private, shareable, host, none or container:NAME")


def parse_workdir(text: str) -> str:
    """A directory in the container. Raises UsageError."""
    if text.startswith("/"):
        return text
    raise UsageError(f"--workdir: `{text}` is no absolute path in the container", f"write --workdir /{text}")


def parse_platform(text: str) -> str:
    """A platform of images. Raises UsageError."""
    if re.fullmatch(r"[a-z0-9]+/[a-z0-9_]+(/[a-z0-9.]+)?", text):
        return text
    raise UsageError(f"--platform: `{text}` is no platform", "write it like linux/amd64 or linux/arm64/v8")


def parse_gpus(text: str) -> str:
    """`all`, a number, or GPU ids with commas. Raises UsageError."""
    if text == "all" or re.fullmatch(r"\d+|[A-Za-z0-9-]+(,[A-Za-z0-9-]+)*", text.removeprefix("device=")):
        return text
    raise UsageError(f"--gpus: `{text}` names no GPUs", "write all, a number, or ids like 0,2")


def parse_cpus(text: str) -> float:
    """A number of cores. Raises UsageError."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.01 <= found < 1e5:
        raise UsageError(f"--cpus: `{text}` is no number of cores", "write a number, like 2 or 1.5")
    return found


def parse_label(text: str) -> tuple[str, str]:
    """Name and value of `NAME[=VALUE]`. Raises UsageError."""
    name, _, value = text.partition("=")
    if not name or name.startswith("mountkit."):
        raise UsageError(f"--label: `{text}` is no label of yours", "write NAME=VALUE; mountkit.* is ours")
    return name, value


def _split(text: str, flag: str) -> tuple[str, str]:
    """Source and target ("" if none is named) of `text`: at its last `:/` that is not a scheme's `://`."""
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
    return text, ""


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
    directory = _absolute(text)
    try:
        refuse_dangerous(directory)
    except UsageError as exc:
        raise UsageError(f"{flag}: {exc.sentence}", exc.hint) from None
    return directory


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _inside(path: str, tree: str) -> bool:
    return path == tree or path.startswith(tree + "/")
