"""Putting units and helpers in place, and taking them away: changes are shown first, what is right is left alone."""

from __future__ import annotations

import configparser
import difflib
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mountkit.errors import HostError, UsageError
from mountkit.project import NamedMount, Project
from mountkit.systemd import units
from mountkit.systemd.units import File, Scope
from mountkit.updatedb import CONFIGURATION, with_ours

HELPERS = ("mount.fuse.mountkit", "mount.mountkit", "umount.fuse.mountkit", "umount.mountkit")
_SYSTEMCTL_S = 180.0
_KEYS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}


@dataclass(frozen=True, slots=True)
class Voice:
    """How an installation speaks: `say` a line, `ask` whether to go on."""

    say: Callable[[str], None]
    ask: Callable[[str], bool]


# ---- files ---------------------------------------------------------------------------------------------------
def changes(files: Sequence[File]) -> list[File]:
    """Those that are not there as they shall be."""
    return [file for file in files if _read(file.path) != file.text or _mode(file.path) != file.mode]


def difference(file: File) -> str:
    """What would change in a file that is there, as `diff -u` shows it; "" for a new one."""
    old = _read(file.path)
    if old is None or file.secret:
        return ""
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), file.text.splitlines(keepends=True), file.path, f"{file.path} (new)"
    )
    return "".join(lines).encode("utf-8", "backslashreplace").decode()  # a file of somebody else's may hold any byte


def write(files: Sequence[File], voice: Voice) -> bool:
    """Has every file as it shall be; False if all were. Raises HostError, UsageError where somebody says no."""
    wanted = changes(files)
    differences = [text for text in map(difference, wanted) if text]
    for text in differences:
        voice.say(text.rstrip("\n"))
    if differences and not voice.ask("change them so?"):
        raise UsageError("nothing was changed", "say --yes to change without a question")
    for file in wanted:
        voice.say(f"{'changing' if os.path.exists(file.path) else 'writing'} {file.path}")
        _write(file)
    return bool(wanted)


def _write(file: File) -> None:
    directory = os.path.dirname(file.path)
    temporary = f"{file.path}.new"
    try:
        os.makedirs(directory, mode=0o700 if file.secret else 0o755, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(fd, "w", encoding="utf-8", errors="surrogateescape") as out:
            out.write(file.text)
            os.fchmod(out.fileno(), file.mode)
        os.replace(temporary, file.path)
    except OSError as exc:
        raise HostError(f"{file.path} cannot be written: {os.strerror(exc.errno or 0)}", "are you root?") from exc


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return None


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode & 0o7777
    except OSError:
        return -1


def remove(paths: Sequence[str], voice: Voice) -> None:
    """Has none of these files, nor the directory of a drop-in that is empty then. Raises HostError."""
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise HostError(f"{path} cannot be removed: {os.strerror(exc.errno or 0)}", "are you root?") from exc
        voice.say(f"removed {path}")
        if os.path.dirname(path).endswith(".service.d") and not os.listdir(os.path.dirname(path)):
            os.rmdir(os.path.dirname(path))


def pruning(path: str = "") -> list[File]:
    """updatedb's configuration as our mounts want it, where this machine has one.

    It stays so when units and helpers go: mounts made by hand want it, too, and elsewhere it means nothing.
    """
    path = os.path.realpath(path or CONFIGURATION)
    text = _read(path)
    return [] if text is None else [File(path, with_ours(text), _mode(path))]


# ---- units ---------------------------------------------------------------------------------------------------
def install(
    project: Project, names: Sequence[str], scope: Scope, voice: Voice, *, credentials: str = "", now: bool = False
) -> None:
    """Has a unit for each of these mounts, enabled, and with `now` started. Raises MountkitError."""
    check_rights(scope)
    mounts = [project.mount(name) for name in names]
    files = units.shared_files(scope)
    for mount in mounts:
        secret = credentials_file(mount, credentials, scope, os.environ)
        files += [secret] if secret and secret.text else []
        files.append(units.drop_in(mount, project.path, secret.path if secret else "", scope))
    _tell_what_units_do_not_see(credentials, voice)
    changed = bool(changes(files))
    write([*files, *([] if scope.user else pruning())], voice)
    for mount in mounts:
        if not os.path.lexists(mount.directory):
            os.makedirs(mount.directory, exist_ok=True)
            voice.say(f"made the directory {mount.directory}")
    if changed:
        ask_systemd(scope, "daemon-reload")
    ask_systemd(scope, "enable", "--quiet", units.TARGET, *(units.unit(name) for name in names))
    for name in names:
        if now:
            _start(name, scope, voice, changed=changed)
        else:
            voice.say(f"{units.unit(name)} starts at the next boot; now: {_words(scope, 'start', units.unit(name))}")
    if scope.user and not _lingers():
        voice.say("it ends when you log out; to have it from boot on: loginctl enable-linger")


def _start(name: str, scope: Scope, voice: Voice, *, changed: bool) -> None:
    """Starts it; one that runs is restarted if its unit changed, which its readers do not notice."""
    unit = units.unit(name)
    before = show(scope, unit)["ActiveState"]
    ask_systemd(scope, "restart" if changed else "start", unit, may_fail=True)
    state = show(scope, unit)
    if state["ActiveState"] != "active":
        text = state["StatusText"].removeprefix("error: ") or f"systemd says {state['Result']}"
        sentence, _, hint = text.partition("; hint: ")
        raise HostError(f"{unit} does not start: {sentence}", hint or _words(scope, "status", unit))
    if not changed and before == "active":
        voice.say(f"{unit} runs already")
    else:
        voice.say(f"{unit}: {state['StatusText']}")


def uninstall(names: Sequence[str], scope: Scope, voice: Voice) -> None:
    """Stops and takes away the units of these mounts; the template goes with the last. Raises MountkitError."""
    check_rights(scope)
    there = units.installed(scope)
    for name in names:
        if name not in there:
            known = f"there are units for: {', '.join(there)}" if there else "there are none"
            raise UsageError(f"there is no unit for a mount `{name}`", known)
    for name in names:
        ask_systemd(scope, "disable", "--quiet", "--now", units.unit(name))
        ask_systemd(scope, "reset-failed", units.unit(name), may_fail=True)
        remove([units.drop_in_path(name, scope), os.path.join(scope.credentials_directory, name)], voice)
    if not units.installed(scope):
        ask_systemd(scope, "disable", "--quiet", "--now", units.TARGET)
        remove([os.path.join(scope.directory, each) for each in (units.TEMPLATE, units.TARGET)], voice)
    ask_systemd(scope, "daemon-reload")


def credentials_file(mount: NamedMount, wanted: str, scope: Scope, environment: Mapping[str, str]) -> File | None:
    """The file systemd reads the credentials from: the one named, or one that holds those of this shell (`env`).

    Its text is empty where it is somebody else's and only read. Raises UsageError.
    """
    if not wanted:
        return None
    if wanted != "env":
        path = os.path.abspath(wanted)
        _check_credentials_file(path)
        return File(path, "")
    if not (environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY")):
        raise UsageError(
            "there are no credentials in this shell: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set",
            "set them (under sudo: `sudo -E`), or name a file: --credentials FILE",
        )
    profile = str(mount.options.get("profile", "")) or "default"
    lines = [f"{key} = {environment[name]}" for name, key in _KEYS.items() if environment.get(name)]
    text = "\n".join([f"[{profile}]", *lines]) + "\n"
    return File(os.path.join(scope.credentials_directory, mount.name), text, 0o600, secret=True)


def _check_credentials_file(path: str) -> None:
    parser = configparser.RawConfigParser()
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {os.strerror(exc.errno or 0)}", "name a file you may read") from exc
    except (configparser.Error, UnicodeDecodeError):
        raise UsageError(
            f"{path} holds no credentials as ~/.aws/credentials does",
            "it begins with [default]; s3fs files: passwd-file",
        ) from None


def _tell_what_units_do_not_see(credentials: str, voice: Voice) -> None:
    seen = [name for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ENDPOINT_URL") if os.environ.get(name)]
    if credentials == "env":
        seen = [name for name in seen if name != "AWS_ACCESS_KEY_ID"]
    if seen:
        voice.say(
            f"note: {', '.join(seen)} of this shell mean nothing to a unit; what it needs stands in mountkit.yaml "
            "(profile, endpoint) or comes by --credentials"
        )


# ---- systemd -------------------------------------------------------------------------------------------------
def check_rights(scope: Scope) -> None:
    """Raises HostError if this user cannot change these units, or if no systemd is there."""
    if not scope.user and os.geteuid() != 0:
        raise HostError("units of the system are root's", "use sudo, or say --user for units of your own")
    if not scope.user and not os.path.isdir("/run/systemd/system"):
        raise HostError("this machine was not booted by systemd", "mount by hand: `mountkit mount NAME`")
    if scope.user and not os.path.exists(f"/run/user/{os.getuid()}/systemd"):
        raise HostError(
            "no systemd of yours runs here",
            f"log in at this machine (not by su), or start it: `sudo systemctl start user@{os.getuid()}`",
        )


def ask_systemd(scope: Scope, *words: str, may_fail: bool = False) -> str:
    """What systemctl prints. Raises HostError with its last words."""
    environment = dict(os.environ)
    if scope.user:
        environment.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    try:
        done = subprocess.run(
            scope.systemctl(*words),
            capture_output=True,
            text=True,
            check=False,
            timeout=_SYSTEMCTL_S,
            env=environment,
        )
    except FileNotFoundError:
        raise HostError("this machine has no systemctl", "mount by hand: `mountkit mount NAME`") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"`{_words(scope, *words)}` takes too long", "systemctl status says more") from None
    if done.returncode and not may_fail:
        last = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
        raise HostError(f"`{_words(scope, *words)}` failed: {last}")
    return done.stdout


def show(scope: Scope, unit: str) -> dict[str, str]:
    """What systemd knows of a unit."""
    wanted = ("ActiveState", "SubState", "UnitFileState", "StatusText", "Result", "NRestarts", "MainPID")
    lines = ask_systemd(scope, "show", "--property", ",".join(wanted), unit).splitlines()
    return {**dict.fromkeys(wanted, ""), **dict(line.split("=", 1) for line in lines if "=" in line)}


def _words(scope: Scope, *words: str) -> str:
    return " ".join(scope.systemctl(*words))


def _lingers() -> bool:
    return os.path.exists(f"/var/lib/systemd/linger/{pwd.getpwuid(os.getuid()).pw_name}")


# ---- helpers of mount(8) -------------------------------------------------------------------------------------
HELPER_DIRECTORY = "/sbin"
"""Where mount(8) and umount(8) look."""


def install_helpers(directory: str, voice: Voice) -> bool:
    """Has the helpers there; False if all was as it shall be. Another directory than mount(8)'s is a package's to be.

    Raises HostError, UsageError where somebody says no.
    """
    host = pruning() if os.path.realpath(directory) == os.path.realpath(HELPER_DIRECTORY) else []
    return write([*helper_files(directory), *host], voice)


def helper_files(directory: str) -> list[File]:
    """The scripts mount(8) and umount(8) look for, by the type of a file system."""
    return [_helper(os.path.join(directory, name), name.partition(".")[0]) for name in HELPERS]


def _helper(path: str, action: str) -> File:
    lines = [
        "#!/bin/sh",
        f"# Called by {action}(8). Written by `mountkit systemd install-helpers`.",
        f'exec {sys.executable} -I -m mountkit.commands.mount_helper {action} "$@"',
    ]
    return File(path, "\n".join(lines) + "\n", 0o755)
