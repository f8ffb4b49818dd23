"""The way to the Docker engine: where its socket is, whether it can be talked to, and its failures as our errors."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any

import docker.errors
import requests.exceptions
from docker.api import APIClient

from mountkit.errors import EngineError

_SOCKETS = ("/var/run/docker.sock", "{run}/docker.sock", "/run/podman/podman.sock", "{run}/podman/podman.sock")
"""Docker, rootless Docker, Podman, rootless Podman: the first that we may talk to, else the first that is there."""
_ANSWER_TIMEOUT_S = 60
_CONFLICT = 409
_START_HINT = "install Docker and start it (`apt-get install docker.io`, `systemctl start docker`), or set DOCKER_HOST"


class DockerLink:
    """The engine at `url` (default: DOCKER_HOST, else the first local socket). Making one opens no connection."""

    def __init__(self, url: str = "") -> None:
        self.url = url or os.environ.get("DOCKER_HOST") or _local_url()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def check(self) -> None:
        """Returns if the engine answers and runs on this host. Raises EngineError."""
        _refuse_remote(self.url)
        if self.url.startswith("unix://"):
            _try_socket(self.url)
        with self.client() as client, self.translated("does not answer as a container engine does"):
            client.ping()

    @contextlib.contextmanager
    def client(self, timeout_s: int | None = _ANSWER_TIMEOUT_S) -> Iterator[APIClient]:
        timeout: Any = timeout_s  # the stubs do not know that None means for ever
        with self.translated("does not answer as a container engine does"):
            client = APIClient(base_url=self.url, version="auto", timeout=timeout)
        try:
            yield client
        finally:
            client.close()

    @contextlib.contextmanager
    def translated(self, what: str, *, on_conflict: str = "") -> Iterator[None]:
        """Every exception of docker and requests becomes an EngineError that says `what` failed and why.

        `on_conflict` is the hint for status 409, whose meaning depends on the request.
        """
        try:
            yield
        except docker.errors.APIError as exc:
            hint = on_conflict if exc.status_code == _CONFLICT else ""
            raise EngineError(f"the engine {what}: {reason(exc)}", hint) from exc
        except (requests.exceptions.RequestException, docker.errors.DockerException) as exc:
            raise EngineError(f"the engine at {self.url} {what}: {last_words(exc)}", _START_HINT) from exc

    def gone(self, exc: BaseException) -> EngineError:
        return EngineError(
            f"the engine at {self.url} went away while the container ran: {last_words(exc)}",
            "look at its log (journalctl -u docker), start it again and repeat the run",
        )


def _local_url() -> str:
    run = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    places = [place.format(run=run) for place in _SOCKETS]
    there = [place for place in places if os.path.exists(place)]
    ours = [place for place in there if os.access(place, os.W_OK)]  # the system's may be there, and only root's
    return f"unix://{(ours or there or places)[0]}"


def _refuse_remote(url: str) -> None:
    scheme, _, rest = url.partition("://")
    if scheme in ("unix", "http+unix") and rest:
        return
    if scheme == "tcp" and _is_loopback(rest.partition("/")[0].rpartition(":")[0] or rest):
        return
    if not rest:
        raise EngineError(
            f"DOCKER_HOST is `{url}`, which is no address of a container engine",
            "write it like unix:///var/run/docker.sock, or unset it",
        )
    raise EngineError(
        f"the container engine at {url} is not on this machine, so it cannot see directories mounted here",
        "unset DOCKER_HOST, or run mountkit where the engine is",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _try_socket(url: str) -> None:
    """Connects once, because the errno says more than any exception of the layers above."""
    path = url.partition("://")[2]
    path = path if path.startswith("/") else f"/{path}"
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_TIMEOUT_S)
        try:
            probe.connect(path)
        except PermissionError as exc:
            raise EngineError(
                f"you may not talk to the container engine at {path}",
                "join its group (`sudo usermod -aG docker $USER`, then log in again), or run mountkit as root",
            ) from exc
        except OSError as exc:
            reason = "there is no such socket" if isinstance(exc, FileNotFoundError) else os.strerror(exc.errno or 0)
            raise EngineError(f"no container engine answers at {path}: {reason}", _START_HINT) from exc


def reason(exc: docker.errors.APIError) -> str:
    """What the engine said, without the names of its layers."""
    text = str(exc.explanation or exc).strip().rstrip(".")
    for marker in ("OCI runtime create failed: ", "runc create failed: ", "starting container process caused: "):
        text = text.rpartition(marker)[2] or text
    return text.removesuffix(": unknown")


def last_words(exc: BaseException) -> str:
    """The innermost reason of a chain of wrapped exceptions."""
    while exc.__cause__ or exc.__context__:
        exc = exc.__cause__ or exc.__context__ or exc
    return str(exc).strip() or type(exc).__name__
