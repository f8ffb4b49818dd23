"""The buckets of the contract suite."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.store.contract import Bench, MemoryBench, ServerBench

_number = itertools.count()


@pytest.fixture(params=["memory", "moto", "seaweed"])
def bench(request: pytest.FixtureRequest, no_aws: None) -> Iterator[Bench]:
    """A bucket of one's own in memory, in moto and in SeaweedFS."""
    if request.param == "memory":
        yield MemoryBench()
        return
    made = ServerBench(request.getfixturevalue(request.param), f"contract-{next(_number)}")
    yield made
    made.store.close()
