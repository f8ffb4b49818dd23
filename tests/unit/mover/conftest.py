from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from mountkit.cache.writer import CacheWriter
from mountkit.catalog.tree import Catalog
from tests.unit.cache.harness import LIFE, PLENTY


@pytest.fixture
def directory_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


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
