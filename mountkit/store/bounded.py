"""Calls that may not take longer than agreed, whatever a resolver or a proxy does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from mountkit.errors import StoreUnavailable
from mountkit.store.answers import Asked

T = TypeVar("T")


def within(seconds: float, asked: Asked, call: Callable[[], T]) -> T:
    """What `call` returns or raises. Raises StoreUnavailable after `seconds`, leaving the call to a daemon thread: a
    name lookup cannot be cut short in any other way."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as exc:  # carried over to the caller
            failure.append(exc)

    thread = threading.Thread(target=run, name="store-check", daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise StoreUnavailable(
            f"{asked.endpoint} gave no answer within {seconds:g} s", "check the endpoint, the network and the DNS"
        )
    return outcome[0]
