"""From a fresh clone on a bare machine to a working demo or test run, in one command.

    python3 -m mountkit.quickstart demo [--yes] [--keep] [--venv DIR]
    python3 -m mountkit.quickstart test [--yes] [--venv DIR] [-- PYTEST-ARGUMENTS…]

It installs the system packages that are missing (it says which and why, and asks), starts a container engine where
none answers, makes a virtual environment, and only then starts what needs other people's packages. So this module
knows nothing but the standard library, and parses on Python 3.7 too, to be able to say which one is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from mountkit.prerequisites import (
    ENGINE_SOCKET,
    TEST_PROGRAMS,
    Failed,
    Host,
    Need,
    install_commands,
    missing_packages,
    unmet,
)

OLDEST_PYTHON = (3, 11)
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FUSE_CONF = "/etc/fuse.conf"
ENGINE_LOG = "/var/log/mountkit-dockerd.log"
_STAMP = "mountkit-quickstart.json"
_ENGINE_START_S = 60
_OTHER_ENGINE_S = 10
_LOG_LINES = 15
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def look() -> Host:
    """What this machine has."""
    return Host(
        python="{}.{}".format(*sys.version_info[:2]) if sys.base_prefix == "/usr" else "",
        has_apt=_has("apt-get"),
        is_root=os.geteuid() == 0,
        has_sudo=_has("sudo"),
        has_venv=importlib.util.find_spec("ensurepip") is not None and importlib.util.find_spec("venv") is not None,
        has_python_headers=os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
        has_compiler=_has("gcc") or _has("cc"),
        has_libc_headers=os.path.exists("/usr/include/stdio.h"),
        has_pkg_config=_has("pkg-config"),
        has_fuse_headers=_has_library("fuse3") or os.path.exists("/usr/include/fuse3/fuse.h"),
        has_fusermount=_has("fusermount3"),
        has_certificates=os.path.exists("/etc/ssl/certs/ca-certificates.crt") or os.path.isdir("/etc/pki/tls/certs"),
        engine=engine_state(),
        has_dockerd=_has("dockerd"),
        has_fuse_device=os.path.exists("/dev/fuse"),
        test_programs=frozenset(filter(_has, TEST_PROGRAMS)),
    )


def engine_state() -> str:
    """What a container engine says at the local socket, or the one DOCKER_HOST names: answers, denied, silent."""
    url = os.environ.get("DOCKER_HOST", "")
    if url and not url.startswith("unix://"):
        return "answers"  # somebody's own arrangement: the runner will say what is wrong with it
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(url[len("unix://") :] or ENGINE_SOCKET)
            probe.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return "answers" if b" 200 " in probe.recv(1024) else "silent"
    except PermissionError:
        return "denied"
    except OSError:
        return "silent"


# ---- steps ---------------------------------------------------------------------------------------------------
def set_up(extra: str, venv: str, ask: Callable[[str], bool]) -> str:
    """The Python of a virtual environment in which mountkit works, on a machine where it can. Raises Failed."""
    host = look()
    problem = unmet(host)
    if problem:
        raise problem
    needs = missing_packages(host, tests=extra == "dev")
    if needs:
        _install(needs, host, ask)
    _ensure_fuse_device(host)
    _ensure_allow_other(host, ask)
    if engine_state() != "answers":
        _start_engine(host, ask)
    python = _ensure_venv(venv, extra)
    if _logs:
        shutil.rmtree(_logs.pop(), ignore_errors=True)  # nothing failed: nobody needs them
    return python


def _install(needs: Sequence[Need], host: Host, ask: Callable[[str], bool]) -> None:
    _say("these system packages are missing:")
    width = max(len(need.package) for need in needs)
    for need in needs:
        _say(f"  {need.package:<{width}}  {need.why}")
    names = " ".join(need.package for need in needs)
    if not host.has_apt:
        raise Failed("this is no Debian or Ubuntu, so they cannot be installed here", f"install what matches: {names}")
    commands = install_commands(needs, host)
    by_hand = " && ".join(" ".join(map(shlex.quote, command)) for command in commands)
    if not host.is_root and not host.has_sudo:
        raise Failed("installing them needs root, and there is no sudo", f"as root: {by_hand.replace('sudo ', '')}")
    if not ask("install them?"):
        raise Failed("nothing was installed", f"install them yourself: {by_hand}")
    update, install = commands
    _run(update, "updating the package lists", "apt-update.log", may_fail=True)  # an old list often does
    _run(
        install,
        "installing them",
        "apt-install.log",
        hint=f"check the network and the sources of apt, then try by hand: {by_hand}",
    )


def _ensure_fuse_device(host: Host) -> None:
    if os.path.exists("/dev/fuse"):
        return
    prefix = [] if host.is_root else ["sudo"]
    if _has("modprobe"):
        subprocess.run([*prefix, _which("modprobe"), "fuse"], capture_output=True, check=False)
    if not os.path.exists("/dev/fuse"):
        raise Failed(
            "there is no /dev/fuse, and the kernel module cannot be loaded",
            "in a container, start it with `--device /dev/fuse --cap-add SYS_ADMIN`",
        )
    _say("loaded the kernel module fuse")


def _ensure_allow_other(host: Host, ask: Callable[[str], bool]) -> None:
    """An engine runs as root: it reaches an ordinary user's mounts only if /etc/fuse.conf lets users allow that."""
    if host.is_root:
        return
    try:
        with open(FUSE_CONF, encoding="utf-8") as file:
            if "user_allow_other" in (line.strip() for line in file):
                return
    except OSError:
        pass
    by_hand = f"echo user_allow_other | sudo tee -a {FUSE_CONF}"
    if not host.has_sudo or not ask(f"containers cannot read your mounts; add user_allow_other to {FUSE_CONF}?"):
        raise Failed("containers cannot read the mounts of an ordinary user here", f"allow it: {by_hand}")
    _run(["sudo", "sh", "-c", f"echo user_allow_other >>{FUSE_CONF}"], f"changing {FUSE_CONF}", "fuse-conf.log")


def _start_engine(host: Host, ask: Callable[[str], bool]) -> None:
    """Starts the installed engine and returns once it answers. A package's own script may be at it already."""
    if os.path.isdir("/run/systemd/system"):
        if not ask("no container engine answers; start docker?"):
            raise Failed("no container engine answers", "start it: systemctl start docker")
        prefix = [] if host.is_root else ["sudo"]
        _run([*prefix, "systemctl", "start", "docker"], "starting docker", "engine.log")
        _wait_for_engine(None, "journalctl -u docker")
        return
    if not host.is_root and not host.has_sudo:
        raise Failed("no container engine answers, and starting one needs root", "as root: dockerd &")
    if not ask("no container engine answers; start dockerd?"):
        raise Failed("no container engine answers", "start it: dockerd &")
    prefix = [] if host.is_root else ["sudo"]
    shell = f"exec setsid {shlex.quote(_which('dockerd'))} >{ENGINE_LOG} 2>&1 </dev/null"
    _say(f"starting dockerd (it stays; its log is {ENGINE_LOG})")
    process = subprocess.Popen([*prefix, "sh", "-c", shell], start_new_session=True)
    _wait_for_engine(process, ENGINE_LOG)


def _wait_for_engine(process: subprocess.Popen[bytes] | None, log: str) -> None:
    deadline = time.monotonic() + _ENGINE_START_S
    while True:
        state = engine_state()
        if state == "answers":
            return
        if state == "denied" and os.geteuid() != 0:
            raise Failed(
                f"the container engine runs, but you may not talk to it at {ENGINE_SOCKET}",
                "join its group (`sudo usermod -aG docker $USER`, then log in again), or run this as root",
            )
        ended = process is not None and process.poll() is not None
        if ended:  # perhaps because the package's own script has started another one, which needs its time
            deadline = min(deadline, time.monotonic() + _OTHER_ENGINE_S)
            process = None
        if time.monotonic() > deadline:
            raise Failed(
                f"dockerd does not answer at {ENGINE_SOCKET}",
                "in a container it needs CAP_SYS_ADMIN and CAP_NET_ADMIN; see its log",
                log,
            )
        time.sleep(0.2)


def _ensure_venv(venv: str, extra: str) -> str:
    """The Python of the virtual environment at `venv`, with mountkit and its `extra` in it."""
    python = os.path.join(venv, "bin", "python")
    stamp = _stamp()
    known = _read_stamp(venv)
    extras: set[str] = set(known["extras"]) if known.get("of") == stamp else set()
    if os.path.exists(python) and extras & {extra, "dev"}:
        return python
    if not extras:
        if os.path.isdir(venv) and os.listdir(venv) and not os.path.exists(os.path.join(venv, "pyvenv.cfg")):
            raise Failed(f"{venv} holds something else than a virtual environment", "name another place with --venv")
        _run([sys.executable, "-m", "venv", "--clear", venv], f"making the virtual environment {venv}", "venv.log")
    _run(
        [python, "-m", "pip", "install", "--disable-pip-version-check", "-e", f"{REPOSITORY}[{extra}]"],
        "installing mountkit and the packages it needs",
        "pip.log",
        hint="check the network and pip's settings (`pip config list`), then run this again",
    )
    with open(os.path.join(venv, _STAMP), "w", encoding="utf-8") as file:
        json.dump({"of": stamp, "extras": sorted(extras | {extra})}, file)
    return python


def _stamp() -> dict[str, str]:
    """What an installed environment depends on: it is up to date as long as this has not changed."""
    with open(os.path.join(REPOSITORY, "pyproject.toml"), "rb") as file:
        project = hashlib.sha256(file.read()).hexdigest()
    return {"project": project, "python": sys.version, "repository": REPOSITORY}


def _read_stamp(venv: str) -> dict[str, Any]:
    try:
        with open(os.path.join(venv, _STAMP), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# ---- running and telling -------------------------------------------------------------------------------------
def _run(
    command: Sequence[str], words: str, log_name: str, *, hint: str = "its log says why", may_fail: bool = False
) -> None:
    """Runs `command`, its output in a log. Raises Failed with the log's last lines."""
    log = os.path.join(_log_directory(), log_name)
    started = time.monotonic()
    print(f"   {words} … ", end="", flush=True)
    with open(log, "ab") as output:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False).returncode
    print(f"{time.monotonic() - started:.1f} s" if code == 0 else f"failed (exit code {code})", flush=True)
    if code != 0 and not may_fail:
        raise Failed(f"{words} failed: `{shlex.join(command[:6])} …` ended with {code}", hint, log)


_logs: list[str] = []


def _log_directory() -> str:
    """A private directory for the logs of the set-up; it stays if a step fails, for reading."""
    if not _logs:
        _logs.append(tempfile.mkdtemp(prefix="mountkit-quickstart-"))
    return _logs[0]


def _say(text: str) -> None:
    print(f"   {text}", flush=True)


def _which(name: str) -> str:
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN))) or ""


def _has(name: str) -> bool:
    return bool(_which(name))


def _has_library(name: str) -> bool:
    return _has("pkg-config") and subprocess.run(["pkg-config", "--exists", name], check=False).returncode == 0


def _asker(yes: bool) -> Callable[[str], bool]:
    """Asks at the terminal; agrees by itself with --yes, or where nobody could answer."""

    def ask(question: str) -> bool:
        if yes or not sys.stdin.isatty():
            return True
        return input(f"   {question} [Y/n] ").strip().lower() in ("", "y", "yes")

    return ask


# ---- commands ------------------------------------------------------------------------------------------------
def demo(arguments: argparse.Namespace) -> int:
    """Sets up, then becomes the demo."""
    python = set_up("demo", arguments.venv, _asker(arguments.yes))
    command = [python, "-m", "mountkit.demo", *(["--keep"] if arguments.keep else [])]
    sys.stdout.flush()
    os.chdir(REPOSITORY)
    os.execve(python, command, _environment(arguments.venv))


_XDIST = ("--dist", "worksteal")


def test(arguments: argparse.Namespace) -> int:
    """Sets up, then runs every check; pytest last, so that its summary ends the output."""
    python = set_up("dev", arguments.venv, _asker(arguments.yes))
    binaries = os.path.dirname(python)
    checks = [
        ("ruff check", [python, "-m", "ruff", "check", "."]),
        ("ruff format", [python, "-m", "ruff", "format", "--check", "."]),
        ("mypy", [python, "-m", "mypy"]),
        ("lint-imports", [os.path.join(binaries, "lint-imports")]),
        # Most tests wait for processes, timeouts and servers, so one more at once than there are cores.
        ("pytest", [python, "-m", "pytest", "-n", str(1 + min(7, os.cpu_count() or 1)), *_XDIST, *arguments.rest]),
    ]
    failed: list[str] = []
    for name, command in checks:
        print(f"\n== {name}", flush=True)
        if name == "pytest":
            print("   before it: " + (f"{', '.join(failed)} failed" if failed else "all checks passed"), flush=True)
        environment = _environment(arguments.venv)
        if subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _environment(venv: str) -> dict[str, str]:
    """Ours, with the programs of the virtual environment first."""
    path = os.pathsep.join((os.path.join(venv, "bin"), os.environ.get("PATH", os.defpath), *_SBIN))
    return {**os.environ, "PATH": path, "VIRTUAL_ENV": venv}


def _parse(words: Sequence[str]) -> argparse.Namespace:
    own, rest = list(words), []
    if "--" in own:
        position = own.index("--")
        own, rest = own[:position], own[position + 1 :]
    parser = argparse.ArgumentParser(prog="python3 -m mountkit.quickstart", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo|test")
    for command, words_of_it in (("demo", "show what mountkit does"), ("test", "run every check and test")):
        sub = commands.add_parser(command, help=words_of_it)
        sub.add_argument("--yes", "-y", action="store_true", help="install and start what is missing without asking")
        sub.add_argument("--venv", default=os.path.join(REPOSITORY, ".venv"), help="virtual environment to make or use")
        if command == "demo":
            sub.add_argument("--keep", action="store_true", help="leave everything running, to explore")
    arguments = parser.parse_args(own)
    arguments.rest, arguments.venv = rest, os.path.abspath(arguments.venv)
    if rest and arguments.command != "test":
        parser.error("only `test` passes arguments on (to pytest)")
    return arguments


def _fail(failure: Failed) -> int:
    if failure.log and os.path.exists(failure.log):
        with open(failure.log, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()[-_LOG_LINES:]
        print(f"\nlast lines of {failure.log}:", *lines, sep="\n  ", file=sys.stderr)
    print(f"error: {failure.sentence}\nhint: {failure.hint}", file=sys.stderr, flush=True)
    return 1


def main(words: Sequence[str] | None = None) -> int:
    """The exit code of the command that `words` (default: the command line's) name."""
    arguments = _parse(sys.argv[1:] if words is None else words)
    try:
        if sys.version_info < OLDEST_PYTHON:
            needed = "{}.{}".format(*OLDEST_PYTHON)
            raise Failed(
                "mountkit needs Python {} or newer, and this is {}.{}".format(needed, *sys.version_info[:2]),
                f"install one (`apt-get install python{needed}`) and run: python{needed} -m mountkit.quickstart",
            )
        return demo(arguments) if arguments.command == "demo" else test(arguments)
    except Failed as failure:
        return _fail(failure)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
