"""Which unit files there are for a mount, what stands in them, and where they lie. Pure but for reading the templates.

The templates are `systemd/` of the repository; a wheel carries them beside this module.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mountkit.config import AWS_CREDENTIAL, PASSWD_CREDENTIAL
from mountkit.project import FILE_VARIABLE, NamedMount

TEMPLATE, TARGET = "mountkit@.service", "mountkit.target"
_DROP_IN = "50-mountkit.conf"


@dataclass(frozen=True, slots=True)
class Scope:
    """The system's manager, or the one of this user."""

    user: bool

    @property
    def directory(self) -> str:
        """Where the administrator's, or the user's, unit files lie."""
        return os.path.join(_config_home(), "systemd/user") if self.user else "/etc/systemd/system"

    @property
    def credentials_directory(self) -> str:
        return os.path.join(_config_home() if self.user else "/etc", "mountkit/credentials")

    def systemctl(self, *words: str) -> list[str]:
        return ["systemctl", *(["--user"] if self.user else []), *words]


@dataclass(frozen=True, slots=True)
class File:
    """A file that shall be there. A secret's text is never shown."""

    path: str
    text: str = field(repr=False)
    mode: int = 0o644
    secret: bool = False


def unit(name: str) -> str:
    return f"mountkit@{name}.service"


def program() -> str:
    """The command that is this very mountkit, as a unit or a script writes it."""
    return f"{sys.executable} -I -m mountkit"


def shared_files(scope: Scope) -> list[File]:
    """The template of all mounts and their target."""
    source = templates() / "user" if scope.user else templates()
    found = []
    for name in (TEMPLATE, TARGET):
        text = (source / name).read_text(encoding="utf-8").replace("@MOUNTKIT@", _escaped(program()))
        found.append(File(os.path.join(scope.directory, name), text))
    return found


def templates() -> Path:
    """The directory of the templates: beside this module in a wheel, at the top of a checkout."""
    carried = Path(__file__).with_name("templates")
    return carried if carried.is_dir() else Path(__file__).parents[2] / "systemd"


def drop_in_path(name: str, scope: Scope) -> str:
    return os.path.join(scope.directory, f"{unit(name)}.d", _DROP_IN)


def drop_in(mount: NamedMount, project_file: str, credentials_file: str, scope: Scope) -> File:
    """What holds for this mount alone: its words, where mountkit.yaml lies, what must be there first, credentials."""
    places = [os.path.dirname(mount.directory)]
    if mount.options.get("cache"):
        places.append(str(mount.options["cache"]))
    lines = [
        f"# The mount `{mount.name}`. Written by `mountkit systemd install`, taken away by `uninstall`.",
        "[Unit]",
        f"Description=mountkit: {_escaped(mount.source)} at {_escaped(mount.directory)}",
        *(f"RequiresMountsFor={_quoted(place)}" for place in places),
        "",
        "[Service]",
        f"Environment={_quoted(f'{FILE_VARIABLE}={project_file}')}",
    ]
    for name, path in (
        (AWS_CREDENTIAL, credentials_file),
        (PASSWD_CREDENTIAL, str(mount.options.get("passwd_file", ""))),
    ):
        if path:
            lines.append(f"LoadCredential={name}:{_escaped(path)}")
    return File(drop_in_path(mount.name, scope), "\n".join(lines) + "\n")


def installed(scope: Scope) -> list[str]:
    """The names of the mounts that have a unit here."""
    prefix, suffix = "mountkit@", ".service.d"
    try:
        found = os.listdir(scope.directory)
    except OSError:
        return []
    names = (name[len(prefix) : -len(suffix)] for name in found if name.startswith(prefix) and name.endswith(suffix))
    return sorted(name for name in names if os.path.exists(drop_in_path(name, scope)))


def _config_home() -> str:
    return os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
