from __future__ import annotations

from collections.abc import Iterator

import pytest

from mountkit.catalog.tree import Catalog
from mountkit.catalog.view import CatalogView
from tests.unit.catalog.bucket import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


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
