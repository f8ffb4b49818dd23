"""The seam between a run and the engine that executes it: what the command asks, what it gets back.

`docker_engine` implements it; tests put a fake in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mountkit.run.plan import ContainerPlan


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """How a container ended."""

    code: int
    """Its own exit code; 128 + the signal's number where one killed it."""
    out_of_memory: bool = False
    """The kernel killed a process of it at the container's memory limit."""


class Engine(Protocol):
    """One container engine of this host."""

    def check(self) -> None:
        """Returns if the engine answers and runs here. Raises EngineError."""
        ...

    def require_image(self, image: str) -> None:
        """Returns if the engine has `image`. Raises EngineError."""
        ...

    def run(self, plan: ContainerPlan, *, stop_timeout_s: float) -> ContainerExit:
        """Runs one container to its end, its output on our stdout and stderr, and removes it whatever happens.

        Call it from the main thread. SIGINT, SIGTERM or SIGHUP stops the container, which gets `stop_timeout_s` to
        end by itself; a second one kills it. Either way its exit code is returned. Raises EngineError.
        """
        ...
