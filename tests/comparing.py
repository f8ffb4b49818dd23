"""What a failed `==` says of values too large for pytest's own words.

With `-vv`, and always on a CI machine, pytest aligns the lines of both values. For megabytes of an object's content
that takes hours: a failing test would look like one that hangs, and its reason would be lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from _pytest.assertion import util

_LARGE = 20_000
"""Characters of both values' `repr`; pytest needs a second or two for as much."""
_SHOWN = 20


def install() -> None:
    """Has pytest use `difference` where it applies. There is no hook that could keep pytest's own from being called."""
    own = util.assertrepr_compare

    def assertrepr_compare(*, op: str, left: Any, right: Any, **more: Any) -> Any:
        return (difference(left, right) if op == "==" else None) or own(op=op, left=left, right=right, **more)

    util.assertrepr_compare = assertrepr_compare


def difference(left: Any, right: Any) -> list[str] | None:
    """Where two large values differ; None if pytest may say it."""
    if isinstance(left, str) or len(repr(left)) + len(repr(right)) <= _LARGE:
        return None
    head = f"a {type(left).__name__} is not the {type(right).__name__} it should be"
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        keys = [key for key in {**left, **right} if key not in left or key not in right or left[key] != right[key]]
        return [head, f"{len(keys)} keys differ: {_short(keys)}"]
    if isinstance(left, Set) and isinstance(right, Set):
        return [head, f"only in the first: {_short(list(left - right))}", f"only in it: {_short(list(right - left))}"]
    if isinstance(left, Sequence | bytearray) and isinstance(right, Sequence | bytearray):
        pairs = enumerate(zip(left, right, strict=False))
        first = next((n for n, (one, other) in pairs if one != other), min(len(left), len(right)))
        around = slice(first, first + _SHOWN)
        where = f"{len(left):,} items and {len(right):,}; from item {first:,} on:"
        return [head, where, _short(left[around]), _short(right[around])]
    return [head, _short(left), _short(right)]


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 400 else f"{shown[:400]}…"
