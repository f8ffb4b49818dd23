from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountkit.catalog.tree import Catalog
from mountkit.catalog.view import CatalogView
from tests.unit.catalog.bucket import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def catalog(directory_fd: int, clock: Clock) -> Iterator[Catalog]:
    catalog = Catalog.open(directory_fd, b"", clock=clock)
    yield catalog
    catalog.close()


@pytest.fixture
def view(directory_fd: int, catalog: Catalog, clock: Clock) -> Iterator[CatalogView]:
    view = CatalogView.open(directory_fd, clock=clock)
    yield view
    view.close()
