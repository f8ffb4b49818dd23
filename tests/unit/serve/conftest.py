from __future__ import annotations

from collections.abc import Iterator

import pytest
from trio.testing import MockClock

from tests.unit.serve.inputs import Bench
from tests.unit.serve.outputs import Outputs


@pytest.fixture
def clock() -> MockClock:
    """Time that jumps to the next deadline whenever all tasks wait."""
    return MockClock(autojump_threshold=0)


@pytest.fixture
def b(directory_fd: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(directory_fd, monkeypatch)
    yield bench
    bench.close()


@pytest.fixture
def out(directory_fd: int) -> Iterator[Outputs]:
    made = Outputs(directory_fd)
    made.holds()
    yield made
