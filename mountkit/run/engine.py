"""The seam between a run and the engine that executes it: what the command asks, what it gets back.

`docker_engine` implements it; tests put a fake in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from mountkit.run.plan import ContainerPlan

Output = Callable[[bytes, bool], None]
"""Takes what a container wrote, and whether it is error output. Never raises."""


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """How a container ended."""

    code: int
    """Its own exit code; 128 + the signal's number where one killed it."""
    out_of_memory: bool = False
    """The kernel killed a process of it at the container's memory limit."""
    stopped_by: str = ""
    """The signal that made us stop it, like SIGINT; "" if it ended by itself."""


@dataclass(frozen=True, slots=True)
class Image:
    """What an engine knows of an image."""

    id: str
    digest: str = ""
    """`name@sha256:…` in its registry; "" for one that was made here."""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""
    platform: str = ""
    """Like linux/arm64, without a variant; "" if the engine does not say."""


@dataclass(frozen=True, slots=True)
class ImageInside:
    """What must be known of an image's files before secrets are laid into a container of it."""

    has_shell: bool
    uid: int | None
    """The number of the user its program runs as; None if it cannot be told."""
    gid: int | None


@dataclass(frozen=True, slots=True)
class PullProgress:
    """Of one layer, or of the whole where `layer` is ""."""

    layer: str
    status: str
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """A container that carries a run's label."""

    id: str
    running: bool
    started: bool


class Engine(Protocol):
    """One container engine of this host."""

    def check(self) -> None:
        """Returns if the engine answers and runs here. Raises EngineError."""
        ...

    def image(self, name: str) -> Image | None:
        """The image if the engine has it. Raises EngineError."""
        ...

    def pull(self, name: str, platform: str = "") -> Iterator[PullProgress]:
        """Fetches the image, telling how far it is; it is there when this ends. Raises ImageMissing, EngineError."""
        ...

    def look_inside(self, name: str, user: str, run_id: str) -> ImageInside:
        """Looks into a container of the image that is never started and removed again. Raises EngineError."""
        ...

    def has_gpus(self) -> bool:
        """Whether containers can be given GPUs. Raises EngineError."""
        ...

    def run(
        self,
        plan: ContainerPlan,
        *,
        stop_timeout_s: float,
        output: Output | None = None,
        started: Callable[[str], None] | None = None,
    ) -> ContainerExit:
        """Runs one container to its end, its output to `output` (None: our own), and removes it whatever happens.

        `started` gets its id once it runs. Call it from the main thread. SIGINT, SIGTERM or SIGHUP stops the container,
        which gets `stop_timeout_s` to end by itself; a second one kills it. Either way its exit code is returned.
        Raises EngineError.
        """
        ...

    def find(self, run_id: str) -> list[Found]:
        """The containers of a run. Raises EngineError."""
        ...

    def adopt(self, container: str, *, stop_first: bool, stop_timeout_s: float, output: Output) -> ContainerExit | None:
        """As `run` for a container that somebody else started: all its output from the beginning, its end, its removal.

        None if it never started. Raises EngineError.
        """
        ...
