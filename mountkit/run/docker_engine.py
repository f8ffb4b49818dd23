"""The Docker engine: create, attach, start, follow, remove. Only it, docker_link and docker_sight know the package.

A container's output is attached before it starts, so its first byte is never lost, and copied byte for byte to ours.
No container outlives `run`, unless this process is killed with -9 (its label then tells whose it was).

Three threads take part: the main one waits for events, because only it meets signals; one copies the output; one
waits for the container's end. Each has a client of its own, since a requests session is not made for sharing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import shutil
import signal
import socket
import sys
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, BinaryIO

import docker.errors
import requests.exceptions
from docker.utils import parse_repository_tag
from docker.utils.socket import STDERR, frames_iter

from mountkit import mountinfo
from mountkit.errors import EngineError, ImageMissing
from mountkit.run import docker_spec, gpus
from mountkit.run.docker_link import DockerLink, last_words, reason
from mountkit.run.docker_sight import Sight
from mountkit.run.engine import ContainerExit, Found, Image, ImageInside, Output, PullProgress
from mountkit.run.output import give_up
from mountkit.run.plan import RUN_LABEL, ContainerPlan
from mountkit.run.secret_files import user_numbers

if TYPE_CHECKING:
    from docker.api import APIClient

_LAST_OUTPUT_TIMEOUT_S = 10.0
_MOST_READ = 1 << 20
_NAME_TAKEN = "choose another --name, or remove that container"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DockerEngine(DockerLink):
    """The engine at `url` (default: DOCKER_HOST, else the local socket). Making one opens no connection."""

    def __init__(self, url: str = "", *, stdout: BinaryIO | None = None, stderr: BinaryIO | None = None) -> None:
        super().__init__(url)
        self._stdout = stdout or sys.stdout.buffer
        self._stderr = stderr or sys.stderr.buffer

    def image(self, name: str) -> Image | None:
        """See `Engine.image`."""
        with self.client() as client, self.translated(f"cannot tell whether it has the image `{name}`"):
            try:
                found: dict[str, Any] = client.inspect_image(name)  # type: ignore[no-untyped-call]
            except docker.errors.ImageNotFound:
                return None
        config = found.get("Config") or {}
        return Image(
            id=found["Id"],
            digest=next(iter(found.get("RepoDigests") or ()), ""),
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
            user=config.get("User") or "",
            platform="/".join(filter(None, (found.get("Os"), found.get("Architecture")))),
        )

    def pull(self, name: str, platform: str = "") -> Iterator[PullProgress]:
        """See `Engine.pull`."""
        missing = f"the image `{name}` cannot be pulled"
        hint = "check its name and tag; `docker login` if its registry wants to know you, `docker load` if it has none"
        repository, tag = parse_repository_tag(name)
        with self.client(timeout_s=None) as client:
            try:
                lines: Any = client.pull(
                    repository, tag=tag or "latest", stream=True, decode=True, platform=platform or None
                )
                for line in lines:
                    if error := line.get("error"):
                        raise ImageMissing(f"{missing}: {_first_sentence(error)}", hint)
                    detail = line.get("progressDetail") or {}
                    yield PullProgress(
                        line.get("id", "") if "progressDetail" in line else "",
                        line.get("status", ""),
                        int(detail.get("current") or 0),
                        int(detail.get("total") or 0),
                    )
            except docker.errors.APIError as exc:
                raise ImageMissing(f"{missing}: {_first_sentence(reason(exc))}", hint) from exc
            except (docker.errors.DockerException, requests.exceptions.RequestException) as exc:
                raise ImageMissing(f"{missing}: {last_words(exc)}", hint) from exc

    def look_inside(self, name: str, user: str, run_id: str) -> ImageInside:
        """See `Engine.look_inside`."""
        body = {"Image": name, "Cmd": ["never-started"], "Labels": {RUN_LABEL: run_id}}
        with self.client() as client, self.translated(f"cannot look into the image `{name}`"):
            container = client.create_container_from_config(body)["Id"]  # type: ignore[no-untyped-call]
            try:
                shell = _file_in(client, container, "/bin/sh") is not None
                users = _file_in(client, container, "/etc/passwd") or b""
            finally:
                _remove(client, container)
        return ImageInside(shell, *user_numbers(user, users.decode(errors="replace")))

    def has_gpus(self) -> bool:
        """See `Engine.has_gpus`."""
        with self.client() as client:
            return self._gpu_kind(client) is not None

    def image_labels(self, image: str) -> dict[str, str] | None:
        """The labels of `image`, or None if the engine does not have it. Raises EngineError."""
        with self.client() as client, self.translated(f"cannot tell whether it has the image `{image}`"):
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
        with self.client(timeout_s=None) as client, self.translated(what):
            answer = str(client.import_image_from_file(archive, repository=name, tag=tag, changes=list(changes)))
        for line in filter(None, answer.splitlines()):
            if error := json.loads(line).get("error"):
                raise EngineError(f"the engine {what}: {error}")

    def run(
        self,
        plan: ContainerPlan,
        *,
        stop_timeout_s: float,
        output: Output | None = None,
        started: Callable[[str], None] | None = None,
    ) -> ContainerExit:
        """See `Engine.run`."""
        points = mountinfo.mount_points()
        sight = Sight(self.url, plan, points)
        sight.check_engine()
        with _Signals() as events, self.client() as client:
            gpu_kind = (plan.gpus and self._gpu_kind(client)) or gpus.RUNTIME
            with self.translated(f"cannot create a container of `{plan.image}`", on_conflict=_NAME_TAKEN):
                body = docker_spec.creation(plan, points, gpu_kind=gpu_kind)
                made: dict[str, Any] = client.create_container_from_config(  # type: ignore[no-untyped-call]
                    body, plan.name, plan.platform or None
                )
                container = made["Id"]

            def start() -> None:
                self._start(client, container)
                if plan.tty:
                    _fit_terminal(client, container)
                if started:
                    started(container)

            try:
                with self.translated("does not show what the container would see"):
                    sight.check_container(client, container)
                return self._attach_and_follow(
                    client, container, output or self._print, events, stop_timeout_s, tty=plan.tty, start=start
                )
            finally:
                _remove(client, container)

    def find(self, run_id: str) -> list[Found]:
        """See `Engine.find`."""
        with self.client() as client, self.translated("cannot list its containers"):
            found = client.containers(all=True, filters={"label": f"{RUN_LABEL}={run_id}"})
        return [Found(one["Id"], one["State"] in ("running", "paused"), one["State"] != "created") for one in found]

    def adopt(self, container: str, *, stop_first: bool, stop_timeout_s: float, output: Output) -> ContainerExit | None:
        """See `Engine.adopt`."""
        with _Signals() as events, self.client() as client:
            with self.translated("does not know the container any more"):
                found = client.inspect_container(container)
            try:
                if found["State"]["Status"] == "created":
                    return None
                if stop_first and found["State"]["Running"]:
                    events.ask_to_stop()
                with self.client(timeout_s=None) as stream_client:
                    # Not attached: what a container wrote before is only in its log, and one that ended has no streams.
                    copier = threading.Thread(target=_copy_log, args=(stream_client, container, output), daemon=True)
                    copier.start()
                    code = self._follow(client, container, events, stop_timeout_s)
                    copier.join(_LAST_OUTPUT_TIMEOUT_S)
                return self._exit(client, container, code, events)
            finally:
                _remove(client, container)

    def _attach_and_follow(
        self,
        client: APIClient,
        container: str,
        output: Output,
        events: _Signals,
        stop_timeout_s: float,
        *,
        tty: bool,
        start: Callable[[], None],
    ) -> ContainerExit:
        with self.client(timeout_s=None) as stream_client:
            with self.translated("cannot attach to the container"):
                stream = stream_client.attach_socket(container, {"stdout": 1, "stderr": 1, "stream": 1, "logs": 0})
            copier = threading.Thread(target=_copy_output, args=(stream, tty, output), daemon=True)
            copier.start()
            try:
                if events.pending():
                    return ContainerExit(128 + events.first(), stopped_by=events.first().name)
                start()
                code = self._follow(client, container, events, stop_timeout_s)
                copier.join(_LAST_OUTPUT_TIMEOUT_S)
            finally:
                _close(stream, copier)
            return self._exit(client, container, code, events)

    def _gpu_kind(self, client: APIClient) -> str | None:
        with self.translated("cannot tell what it offers"):
            kind = gpus.offered(client.info())
        hooked = shutil.which("nvidia-container-runtime-hook") is not None
        return gpus.RUNTIME if hooked else kind

    def _exit(self, client: APIClient, container: str, code: int, events: _Signals) -> ContainerExit:
        with self.translated("does not say how the container ended"):
            state = client.inspect_container(container)["State"]
        asked = events.first().name if events.pending() else ""
        return ContainerExit(code, out_of_memory=bool(state.get("OOMKilled")), stopped_by=asked)

    def _start(self, client: APIClient, container: str) -> None:
        try:
            client.start(container)
        except docker.errors.APIError as exc:
            raise EngineError(f"the container cannot start: {reason(exc)}", _start_hint(reason(exc))) from exc
        except (docker.errors.DockerException, requests.exceptions.RequestException) as exc:
            raise self.gone(exc) from exc

    def _follow(self, client: APIClient, container: str, events: _Signals, stop_timeout_s: float) -> int:
        """The exit code, once the container has ended; meanwhile a first signal stops it, a second kills it."""

        def wait() -> None:
            with self.client(timeout_s=None) as waiter:
                try:
                    events.put(int(waiter.wait(container, timeout=None)["StatusCode"]))
                except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as exc:
                    events.put(exc)

        def stop() -> None:
            with self.client(timeout_s=None) as stopper:
                with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException):
                    stopper.stop(container, timeout=max(0, round(stop_timeout_s)))

        threading.Thread(target=wait, daemon=True).start()
        stopping = False
        while True:
            event = events.get()
            if isinstance(event, signal.Signals):
                if not stopping:
                    stopping = True
                    grace = f"stopping the container, which has {stop_timeout_s:g} s to end; a second signal kills it"
                    self._print(f"mountkit: {event.name}: {grace}\n".encode(), True)
                    threading.Thread(target=stop, daemon=True).start()
                    continue
                with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException):
                    client.kill(container)
            elif isinstance(event, int):
                return event
            else:
                raise self.gone(event) from event

    def _print(self, chunk: bytes, is_error: bool) -> None:
        """To our own output; one that nobody reads any more is passed over."""
        target = self._stderr if is_error else self._stdout
        try:
            target.write(chunk)
            target.flush()
        except (OSError, ValueError):
            give_up(target)


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

    def ask_to_stop(self) -> None:
        """As if a first SIGTERM had come."""
        self._handle(signal.SIGTERM, None)

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


def _copy_output(stream: Any, tty: bool, output: Output) -> None:
    with contextlib.suppress(OSError, ValueError):
        for kind, chunk in frames_iter(stream, tty):  # type: ignore[no-untyped-call]
            output(chunk, kind == STDERR)


def _copy_log(client: APIClient, container: str, output: Output) -> None:
    with contextlib.suppress(OSError, ValueError, docker.errors.DockerException, requests.exceptions.RequestException):
        chunks: Iterable[bytes] = client.logs(container, stream=True, follow=True)
        for chunk in chunks:
            output(chunk, False)


def _fit_terminal(client: APIClient, container: str) -> None:
    with contextlib.suppress(OSError, docker.errors.DockerException, requests.exceptions.RequestException):
        columns, rows = os.get_terminal_size()
        client.resize(container, rows, columns)


def _file_in(client: APIClient, container: str, path: str) -> bytes | None:
    """The first bytes of a file, also through one link (`/bin` is one in most images); None if it is not there."""
    try:
        chunks, about = client.get_archive(container, path)
    except docker.errors.NotFound:
        return None
    archive = io.BytesIO(b"".join(chunks))
    if about.get("linkTarget"):
        return b""
    with tarfile.open(fileobj=archive) as tar:
        member = tar.next()
        file = tar.extractfile(member) if member is not None and member.isfile() else None
        return file.read(_MOST_READ) if file else b""


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


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def _start_hint(reason: str) -> str:
    if "executable file not found" in reason or "no such file or directory" in reason:
        return "the words after the image are the program it runs: check them"
    if "permission denied" in reason:
        return "the program in the image is not executable"
    if "unable to find user" in reason:
        return "the image does not know that name; --user takes numbers, too"
    if reason.startswith("network ") and "not found" in reason:
        return "`docker network ls` lists the networks there are"
    return "the engine's log says more (journalctl -u docker)"
