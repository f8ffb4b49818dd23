from __future__ import annotations

from collections.abc import Iterator

import pytest
from trio.testing import MockClock

from mountkit.cache.writer import CacheWriter
from mountkit.catalog.tree import Catalog
from tests.unit.cache.harness import LIFE, PLENTY


@pytest.fixture
def catalog(directory_fd: int) -> Iterator[Catalog]:
    catalog = Catalog.open(directory_fd, b"")
    yield catalog
    catalog.close()


@pytest.fixture
def cache(directory_fd: int) -> Iterator[CacheWriter]:
    cache = CacheWriter.open(directory_fd, PLENTY, LIFE)
    yield cache
    cache.close()


@pytest.fixture
def clock() -> MockClock:
    """Time that stands still until a test moves it."""
    return MockClock()
