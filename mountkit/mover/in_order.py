"""Directory order: files opened one after the other as the listing has them, and which to fetch before they are opened.

Plain rules, no clock, no I/O: what follows a file in the tree is asked of the function given. A file that had to be
fetched makes its next eight a guess; two opens among them make it a run, which keeps a window of files ahead that
doubles with each open, from four files to 128 or about 16 MiB. Several runs may lie in one directory, as several
workers each read a stretch of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

_GUESSED, _CONFIRMED = 8, 2
_START, _MAX_FILES, _MAX_BYTES = 4, 128, 16 << 20
_EXPECTED = 4096


class Item(Protocol):
    """A file as far as the order is concerned."""

    @property
    def id(self) -> int: ...
    @property
    def size(self) -> int: ...


T = TypeVar("T", bound=Item)


@dataclass(eq=False, slots=True)
class _Run(Generic[T]):
    cursor: T
    hits: int = 0
    window: int = _START // 2
    ahead: int = 0
    """Files planned and not opened yet."""


class InOrder(Generic[T]):
    """`following(file, n)`: at most `n` files that come after the file in the tree, as far as it is known."""

    def __init__(self, following: Callable[[T, int], list[T]]) -> None:
        self._following = following
        self._expected: OrderedDict[int, _Run[T]] = OrderedDict()

    def opened(self, file: T, *, cold: bool) -> list[T]:
        """Notes an open, `cold` if the file had to be fetched: the files to fetch now."""
        run = self._expected.pop(file.id, None)
        if run is None:
            if cold:
                self._guess(file)
            return []
        run.hits += 1
        if run.hits < _CONFIRMED:
            return []
        if run.hits == _CONFIRMED:
            run.cursor, run.ahead = file, 0
        else:
            run.ahead = max(0, run.ahead - 1)
        run.window = min(_MAX_FILES, 2 * run.window, max(_START, _MAX_BYTES // max(1, file.size)))
        return self._plan(run)

    def _guess(self, file: T) -> None:
        run = _Run(file)
        for guess in self._following(file, _GUESSED):
            self._expected.setdefault(guess.id, run)
        self._trim()

    def _plan(self, run: _Run[T]) -> list[T]:
        if run.ahead > run.window // 2:
            return []
        plan: list[T] = []
        for file in self._following(run.cursor, run.window - run.ahead):
            plan.append(file)
            run.cursor = file
            self._expected[file.id] = run
        run.ahead += len(plan)
        self._trim()
        return plan

    def _trim(self) -> None:
        while len(self._expected) > _EXPECTED:
            _, run = self._expected.popitem(last=False)
            run.ahead = max(0, run.ahead - 1)
