"""What a word on doctor's command line means, and all lines about it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mountkit import ipc, mountinfo, mounting, mounts, processes, project
from mountkit.config import MountSettings, mount_settings
from mountkit.doctor import host
from mountkit.doctor.line import Line, Section
from mountkit.errors import MountkitError, UsageError
from mountkit.mounts import MountInfo

_STEP_S = 90.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined beside the host. Without settings: nothing."""

    settings: MountSettings | None = None
    mounted: MountInfo | None = None
    check_point: bool = False
    """Whether the directory is where it would be mounted, rather than a word of ours."""
    passwd_file: str = ""
    writable: bool = False
    """Whether the source is tried for writing, too, with an object that is removed again."""


def subject(word: str, options: Mapping[str, Any]) -> Subject:
    """What `word` (a source, a mount's name, a directory) means. Raises UsageError."""
    found, known = _subject(word, options)
    return replace(found, writable=bool(known.get("writable")))


def _subject(word: str, options: Mapping[str, Any]) -> tuple[Subject, Mapping[str, Any]]:
    passwd = str(options.get("passwd_file") or "")
    if not word:
        return Subject(mount_settings("bucket", "/", **options)), options
    info = mounts.find(word) if os.path.lexists(word) or word.startswith(("/", ".")) else None
    named = project.find_mount(word) or (_mount_at(info.directory if info else word))
    if named is not None:
        known = {**named.options, **options}
        settings = mount_settings(named.source, named.directory, **known)
        mounted = info or mounts.find(named.directory)
        return Subject(settings, mounted, mounted is None, str(known.get("passwd_file") or "")), known
    if info is not None:
        details = info.details
        given = {"cache": details.get("cache_directory"), "endpoint": details.get("endpoint") or None}
        known = {**given, "writable": details.get("writable"), **options}
        return Subject(mount_settings(info.source, info.directory, **known), info, False, passwd), known
    if word.startswith(("/", "./", "../")) or word in (".", ".."):
        raise UsageError(
            f"{word} is not in a mount of mountkit, and no mount of mountkit.yaml lies there",
            "name a source (s3://bucket), a mount of mountkit.yaml, or a mounted directory",
        )
    return Subject(mount_settings(word, "/", **options), passwd_file=passwd), options


def _mount_at(directory: str) -> project.NamedMount | None:
    """The mount of mountkit.yaml at this directory, if a project holds here and has it."""
    found = project.find() if os.path.isabs(directory) or directory.startswith(".") else None
    resolved = mountinfo.resolve(directory)
    for one in found.all_mounts() if found else []:
        if mountinfo.resolve(one.directory) == resolved:
            return one
    return None


def lines(examined: Subject, word: str, driver: str) -> Iterator[Line]:
    """Every line, as it is found."""
    yield from host.check(examined.settings, driver)
    if examined.mounted is not None:
        yield from _mount(examined.mounted)
    if not word or examined.settings is None:
        return
    if examined.check_point:
        yield _point(examined.settings.directory)
    yield from _source(examined)


def _mount(info: MountInfo) -> Iterator[Line]:
    section = Section(f"mount {info.directory}")
    if info.state == "ok":
        yield section.fine("state", f"ok, of {info.source}, served by {info.details['driver']}")
    else:
        reasons = "; ".join(info.details.get("reasons", [])) or "it does not say why"
        way_out = "`mountkit status --repair`" if info.state in ("dead", "unwatched") else "`mountkit status` says more"
        yield section.note("state", f"{info.state}: {reasons}", way_out)
    if not info.details or info.details["driver"] != "fuse":
        return
    if info.details["passthrough"]:
        yield section.fine("passthrough", "cached files are read natively")
    else:
        yield section.fine("passthrough", f"off: {info.details['passthrough_reason']}")
    if any(info.details["restarts"].values()):
        counts = info.details["restarts"]
        words = f"servers {counts['server']}, mover {counts['mover']}"
        yield section.note("restarts", words, f"its log says why: {info.details['log']}")


def _point(directory: str) -> Line:
    section = Section(f"mount point {directory}")
    try:
        mounting.check_mount_point(directory)
    except MountkitError as exc:
        return section.fault("directory", exc)
    return section.fine("directory", "is there and empty")


def _source(examined: Subject) -> Iterator[Line]:
    """The lines of a process that may meet credentials; see `source`."""
    settings, passwd_file = examined.settings, examined.passwd_file
    assert settings is not None
    section = Section(f"source {settings.source}")
    credentials = None
    if passwd_file:
        from mountkit.store.passwd import read_passwd_file

        try:
            credentials = read_passwd_file(passwd_file, settings.source.bucket)
        except MountkitError as exc:
            yield section.fault("credentials", exc)
            return
    process, fd = processes.spawn("mountkit.doctor.source")
    try:
        with socket.socket(fileno=fd) as channel:
            channel.settimeout(_STEP_S)
            sealed = processes.sealed_environment(credentials)
            try:
                body = {
                    "settings": settings.to_json(),
                    "passwd_file": passwd_file,
                    "fds": 1,
                    "writable": examined.writable,
                }
                socket.send_fds(channel, [b"".join(ipc.encode(body))], [sealed])
            finally:
                os.close(sealed)
            with channel.makefile("r", encoding="utf-8") as answers:
                for text in answers:
                    yield Line.from_json(json.loads(text))
        if process.wait():
            failed = MountkitError("the examination ended in the middle", "report it: this is a fault of mountkit")
            yield section.fault("doctor", failed)
    except TimeoutError:
        yield section.fault("doctor", MountkitError(f"no answer within {_STEP_S:g} s", "ask again"))
    finally:
        process.kill()
        process.wait()
