"""The Docker engine: create, attach, start, follow, remove. The only module that knows the docker package.

A container's output is attached before it starts, so its first byte is never lost, and copied byte for byte to ours.
No container outlives `run`, unless this process is killed with -9 (its label then tells whose it was).

Three threads take part: the main one waits for events, because only it meets signals; one copies the output; one
waits for the container's end. Each has a client of its own, since a requests session is not made for sharing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import queue
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, BinaryIO

import docker.errors
import docker.types
import requests.exceptions
from docker.api import APIClient
from docker.utils.socket import STDERR, frames_iter

from mountkit import mountinfo
from mountkit.errors import EngineError
from mountkit.run.engine import ContainerExit
from mountkit.run.plan import Bind, ContainerPlan

DEFAULT_URL = "unix:///var/run/docker.sock"
_ANSWER_TIMEOUT_S = 60
_LAST_OUTPUT_TIMEOUT_S = 10.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_START_HINT = "install Docker and start it (`apt-get install docker.io`, `systemctl start docker`), or set DOCKER_HOST"


class DockerEngine:
    """The engine at `url` (default: DOCKER_HOST, else the local socket). Making one opens no connection."""

    def __init__(self, url: str = "", *, stdout: BinaryIO | None = None, stderr: BinaryIO | None = None) -> None:
        self.url = url or os.environ.get("DOCKER_HOST") or DEFAULT_URL
        self._stdout = stdout or sys.stdout.buffer
        self._stderr = stderr or sys.stderr.buffer

    def __repr__(self) -> str:
        return f"<DockerEngine {self.url}>"

    def check(self) -> None:
        """Returns if the engine answers and runs on this host. Raises EngineError."""
        _refuse_remote(self.url)
        if self.url.startswith("unix://"):
            _try_socket(self.url)
        with self._client() as client, self._translated("does not answer as a container engine does"):
            client.ping()

    def require_image(self, image: str) -> None:
        """Returns if the engine has `image`. Raises EngineError."""
        with self._client() as client, self._translated(f"cannot tell whether it has the image `{image}`"):
            try:
                client.inspect_image(image)  # type: ignore[no-untyped-call]
            except docker.errors.ImageNotFound:
                raise EngineError(
                    f"the image `{image}` is not on this machine", f"fetch it first: docker pull {image}"
                ) from None

    def image_labels(self, image: str) -> dict[str, str] | None:
        """The labels of `image`, or None if the engine does not have it. Raises EngineError."""
        with self._client() as client, self._translated(f"cannot tell whether it has the image `{image}`"):
            try:
                found: dict[str, Any] = client.inspect_image(image)  # type: ignore[no-untyped-call]
                return dict(found["Config"].get("Labels") or {})
            except docker.errors.ImageNotFound:
                return None

    def import_image(self, archive: str, image: str, changes: Iterable[str] = ()) -> None:
        """Makes `image` (name:tag) of the root file system in the tar file `archive`, with Dockerfile instructions.

        Raises EngineError.
        """
        name, _, tag = image.rpartition(":")
        what = f"cannot import the image `{image}`"
        with self._client(timeout_s=None) as client, self._translated(what):
            answer = str(client.import_image_from_file(archive, repository=name, tag=tag, changes=list(changes)))
        for line in filter(None, answer.splitlines()):
            if error := json.loads(line).get("error"):
                raise EngineError(f"the engine {what}: {error}")

    def run(self, plan: ContainerPlan, *, stop_timeout_s: float) -> ContainerExit:
        """See `Engine.run`."""
        with _Signals() as events, self._client() as client:
            with self._translated(f"cannot create a container of `{plan.image}`"):
                container = client.create_container(**_creation(client, plan))["Id"]
            try:
                return self._start_and_follow(client, container, plan, events, stop_timeout_s)
            finally:
                _remove(client, container)

    def _start_and_follow(
        self, client: APIClient, container: str, plan: ContainerPlan, events: _Signals, stop_timeout_s: float
    ) -> ContainerExit:
        with self._client(timeout_s=None) as stream_client:
            with self._translated("cannot attach to the container"):
                stream = stream_client.attach_socket(container, {"stdout": 1, "stderr": 1, "stream": 1, "logs": 0})
            output = threading.Thread(target=self._copy_output, args=(stream, plan.tty), daemon=True)
            output.start()
            try:
                if events.pending():
                    return ContainerExit(128 + events.first())
                self._start(client, container)
                code = self._follow(client, container, events, stop_timeout_s)
                output.join(_LAST_OUTPUT_TIMEOUT_S)
            finally:
                _close(stream, output)
            with self._translated("does not say how the container ended"):
                state = client.inspect_container(container)["State"]
            return ContainerExit(code, out_of_memory=bool(state.get("OOMKilled")))

    def _start(self, client: APIClient, container: str) -> None:
        try:
            client.start(container)
        except docker.errors.APIError as exc:
            raise EngineError(f"the container cannot start: {_reason(exc)}", _start_hint(_reason(exc))) from exc
        except (docker.errors.DockerException, requests.exceptions.RequestException) as exc:
            raise self._gone(exc) from exc

    def _follow(self, client: APIClient, container: str, events: _Signals, stop_timeout_s: float) -> int:
        """The exit code, once the container has ended; meanwhile a first signal stops it, a second kills it."""

        def wait() -> None:
            with self._client(timeout_s=None) as waiter:
                try:
                    events.put(int(waiter.wait(container, timeout=None)["StatusCode"]))
                except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as exc:
                    events.put(exc)

        def stop() -> None:
            with self._client(timeout_s=None) as stopper:
                with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException):
                    stopper.stop(container, timeout=max(0, round(stop_timeout_s)))

        threading.Thread(target=wait, daemon=True).start()
        stopping = False
        while True:
            event = events.get()
            if isinstance(event, signal.Signals):
                if not stopping:
                    stopping = True
                    threading.Thread(target=stop, daemon=True).start()
                    continue
                with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException):
                    client.kill(container)
            elif isinstance(event, int):
                return event
            else:
                raise self._gone(event) from event

    def _copy_output(self, stream: Any, tty: bool) -> None:
        """Copies until the container's end; an output of ours that nobody reads any more is passed over."""
        targets: dict[bool, BinaryIO | None] = {False: self._stdout, True: self._stderr}
        with contextlib.suppress(OSError, ValueError):
            for kind, chunk in frames_iter(stream, tty):  # type: ignore[no-untyped-call]
                target = targets[kind == STDERR]
                if target is None:
                    continue
                try:
                    target.write(chunk)
                    target.flush()
                except (OSError, ValueError):
                    targets[kind == STDERR] = None

    @contextlib.contextmanager
    def _client(self, timeout_s: int | None = _ANSWER_TIMEOUT_S) -> Iterator[APIClient]:
        timeout: Any = timeout_s  # the stubs do not know that None means for ever
        with self._translated("does not answer as a container engine does"):
            client = APIClient(base_url=self.url, version="auto", timeout=timeout)
        try:
            yield client
        finally:
            client.close()

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Every exception of docker and requests becomes an EngineError that says `what` failed and why."""
        try:
            yield
        except docker.errors.APIError as exc:
            raise EngineError(f"the engine {what}: {_reason(exc)}") from exc
        except (requests.exceptions.RequestException, docker.errors.DockerException) as exc:
            raise EngineError(f"the engine at {self.url} {what}: {_last_words(exc)}", _START_HINT) from exc

    def _gone(self, exc: BaseException) -> EngineError:
        return EngineError(
            f"the engine at {self.url} went away while the container ran: {_last_words(exc)}",
            "look at its log (journalctl -u docker), start it again and repeat the run",
        )


class _Signals:
    """A queue of what happens to a run; while it is open, SIGINT, SIGTERM and SIGHUP are events in it.

    The queue is a SimpleQueue because its `put` may be called in a signal handler that interrupts its own `get`.
    """

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[int | signal.Signals | BaseException] = queue.SimpleQueue()
        self._previous: dict[signal.Signals, Any] = {}
        self._seen: list[signal.Signals] = []
        self.put = self._events.put
        self.get = self._events.get

    def pending(self) -> bool:
        return bool(self._seen)

    def first(self) -> signal.Signals:
        return self._seen[0]

    def __enter__(self) -> _Signals:
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._seen.append(signal.Signals(number))
        self._events.put(signal.Signals(number))


def _creation(client: APIClient, plan: ContainerPlan) -> dict[str, Any]:
    points = mountinfo.mount_points()
    # An engine may not raise a limit above its own; ours is the best guess at it.
    nofile = min(plan.ulimits["nofile"].soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    limits: dict[str, Any] = {"shm_size": plan.shm_size_bytes}
    if plan.memory_bytes:
        limits |= {"mem_limit": plan.memory_bytes, "memswap_limit": plan.memory_bytes}
    host = client.create_host_config(
        mounts=[_mount(bind, points) for bind in plan.binds],
        init=plan.init,
        ulimits=[docker.types.Ulimit(name="nofile", soft=nofile, hard=nofile)],
        **limits,
    )
    return {
        "image": plan.image,
        "command": list(plan.arguments) or None,
        "name": plan.name,
        "labels": dict(plan.labels),
        "environment": dict(plan.environment),
        "tty": plan.tty,
        "host_config": host,
    }


def _mount(bind: Bind, points: list[mountinfo.MountPoint]) -> docker.types.Mount:
    """A Mount API bind: a missing source is an error, never a silent mkdir.

    With `rslave` the container sees a remount of its source; Docker refuses it where the source mount is private.
    """
    point = mountinfo.covering(bind.source, points)
    shared = point is not None and any(word.startswith(("shared:", "master:")) for word in point.propagation)
    return docker.types.Mount(
        target=bind.target,
        source=bind.source,
        type="bind",
        read_only=bind.read_only,
        propagation="rslave" if shared else None,
    )


def _refuse_remote(url: str) -> None:
    scheme, _, rest = url.partition("://")
    if scheme in ("unix", "http+unix") and rest:
        return
    if scheme == "tcp" and _is_loopback(rest.partition("/")[0].rpartition(":")[0] or rest):
        return
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


def _close(stream: Any, output: threading.Thread) -> None:
    """Ends the attached connection and whoever still reads it. The package offers no way to close what it attached."""
    with contextlib.suppress(OSError):
        stream._sock.shutdown(socket.SHUT_RDWR)
    output.join(_LAST_OUTPUT_TIMEOUT_S)
    with contextlib.suppress(OSError):
        stream._response.close()


def _remove(client: APIClient, container: str) -> None:
    """Removes the container, running or not; an engine that is gone has nothing to remove."""
    with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException):
        client.remove_container(container, force=True, v=True)


def _reason(exc: docker.errors.APIError) -> str:
    """What the engine said, without the names of its layers."""
    text = str(exc.explanation or exc).strip().rstrip(".")
    for marker in ("OCI runtime create failed: ", "runc create failed: ", "starting container process caused: "):
        text = text.rpartition(marker)[2] or text
    return text.removesuffix(": unknown")


def _start_hint(reason: str) -> str:
    if "executable file not found" in reason or "no such file or directory" in reason:
        return "the words after the image are the program it runs: check them"
    if "permission denied" in reason:
        return "the program in the image is not executable"
    return "the engine's log says more (journalctl -u docker)"


def _last_words(exc: BaseException) -> str:
    """The innermost reason of a chain of wrapped exceptions."""
    while exc.__cause__ or exc.__context__:
        exc = exc.__cause__ or exc.__context__ or exc
    return str(exc).strip() or type(exc).__name__
