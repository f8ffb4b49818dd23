"""What a bare machine lacks for mountkit, and which commands install it: facts in, a list out, nothing done.

Standard library only, like the quickstart that asks it, and parses on Python 3.7 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ENGINE_SOCKET = "/var/run/docker.sock"


class Failed(Exception):
    """A step of the set-up went wrong: one sentence, a hint, and the last lines of its log."""

    def __init__(self, sentence: str, hint: str, log: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.hint = hint
        self.log = log


class Host(NamedTuple):
    """What this machine has, as far as it matters here."""

    python: str
    """`3.11`, if it is the distribution's own Python; empty for one somebody built."""
    has_apt: bool
    is_root: bool
    has_sudo: bool
    has_venv: bool
    has_python_headers: bool
    has_compiler: bool
    has_libc_headers: bool
    has_pkg_config: bool
    has_fuse_headers: bool
    has_fusermount: bool
    has_certificates: bool
    engine: str
    """What its socket says: answers, denied, silent."""
    has_dockerd: bool
    has_fuse_device: bool
    test_programs: frozenset[str]
    """Which of TEST_PROGRAMS are there."""


class Need(NamedTuple):
    """A system package that is missing, and why it is needed."""

    package: str
    why: str


TEST_PROGRAMS = {
    "podman": Need("podman", "the tests run containers with it, too"),
    "catatonit": Need("catatonit", "the init process of Podman's containers"),
    "runc": Need("runc", "starts Podman's containers"),
    "rootlesskit": Need("rootlesskit", "the tests run containers of an ordinary user's own Docker"),
    "newuidmap": Need("uidmap", "gives that user numbers for his containers"),
    "s3fs": Need("s3fs", "the other driver, which the tests run"),
    "systemd-analyze": Need("systemd", "the tests boot it in a container"),
    "strace": Need("strace", "the tests kill a server in the moment before its answer with it"),
    "faketime": Need("faketime", "the tests have clocks jump with it"),
    "rsync": Need("rsync", "the tests write into mounts with it"),
    "git": Need("git", "the tests write into mounts with it"),
    "zip": Need("zip", "the tests write into mounts with it"),
    "unzip": Need("unzip", "the tests write into mounts with it"),
    "docker-registry": Need("docker-registry", "the tests fetch images from it"),
    "mkfs.ext4": Need("e2fsprogs", "makes the disk whose power the tests cut"),
    "dbus-daemon": Need("dbus", "through which an ordinary user gets a systemd there"),
}
"""What only the tests need: a program, and the package that has it."""


def missing_packages(host: Host, *, tests: bool = False) -> list[Need]:
    """What must be installed on `host`, in the order it is told; with `tests` also what only they need."""
    needs = [
        (not host.has_venv and host.python, f"python{host.python}-venv", "makes the virtual environment"),
        (
            not host.has_python_headers and host.python,
            f"python{host.python}-dev",
            "headers, to build pyfuse3 (it has no wheel)",
        ),
        (not host.has_compiler, "gcc", "compiles pyfuse3"),
        (not host.has_libc_headers, "libc6-dev", "headers of the C library, to build pyfuse3"),
        (not host.has_pkg_config, "pkg-config", "tells the compiler where libfuse is"),
        (not host.has_fuse_headers, "libfuse3-dev", "the library pyfuse3 binds to"),
        (not host.has_fusermount, "fuse3", "fusermount3 mounts and unmounts"),
        (not host.has_certificates, "ca-certificates", "checks who a server is"),
        (host.engine == "silent" and not host.has_dockerd, "docker.io", "runs the containers; no engine answers here"),
    ]
    missing = [Need(package, why) for wanted, package, why in needs if wanted]
    if tests:
        missing += [need for program, need in TEST_PROGRAMS.items() if program not in host.test_programs]
    return missing


def unmet(host: Host) -> Failed | None:
    """What no package can mend, or None."""
    if not host.python and not host.has_venv:
        return Failed(
            "this Python cannot make virtual environments",
            "use the one of your distribution: /usr/bin/python3",
        )
    if not host.python and not host.has_python_headers:
        return Failed("this Python came without its C headers", "use the one of your distribution: /usr/bin/python3")
    if host.engine == "denied":
        return Failed(
            f"you may not talk to the container engine at {ENGINE_SOCKET}",
            "join its group (`sudo usermod -aG docker $USER`, then log in again), or run this as root",
        )
    return None


def install_commands(needs: Sequence[Need], host: Host) -> list[list[str]]:
    """The commands that install `needs` on `host`."""
    prefix = [] if host.is_root else ["sudo"]
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    packages = [need.package for need in needs]
    return [
        [*prefix, "apt-get", "update", "-q"],
        [*prefix, *environment, "apt-get", "install", "-q", "-y", "--no-install-recommends", *packages],
    ]
