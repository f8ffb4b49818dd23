from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mountkit.cache.reader import CacheReader
from mountkit.cache.writer import CacheWriter
from tests.unit.cache.harness import Box, opened


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with opened(tmp_path) as box:
        yield box


@pytest.fixture
def writer(box: Box) -> Iterator[CacheWriter]:
    writer = box.writer()
    yield writer
    writer.close()


@pytest.fixture
def reader(box: Box, writer: CacheWriter) -> Iterator[CacheReader]:
    reader = box.reader()
    yield reader
    reader.close()
