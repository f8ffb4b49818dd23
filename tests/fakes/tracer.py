"""A tracer without mounts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mountkit.catalog.values import ObjectRow
from mountkit.errors import HostError
from mountkit.traces import Opened, TracePlace


class FakeTracer:
    """Knows what is opened before it is; `lost` once something took it away."""

    def __init__(self) -> None:
        self.rows: list[ObjectRow] = []
        self.under_way: set[str] = set()
        self.lost = False

    def place(self, path: str, name: str) -> TracePlace:
        return TracePlace("/state", 0, name, "")

    def begin(self, where: TracePlace) -> None:
        self.under_way.add(where.name)

    @contextlib.contextmanager
    def reading(self, where: TracePlace) -> Iterator[Opened]:
        if self.lost or where.name not in self.under_way:
            raise HostError("the trace is gone")
        yield Opened(iter(self.rows))

    def end(self, where: TracePlace) -> None:
        self.under_way.discard(where.name)
