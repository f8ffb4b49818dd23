"""Retries, with a clock that moves only when a retry sleeps."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from mountkit.errors import AccessDenied, BadAnswer, CredentialsError, ObjectChanged, StoreUnavailable
from mountkit.store.api import ObjectInfo
from mountkit.store.retry import LONGEST_WAIT_S, RetryingStore
from tests.fakes.memory_store import MemoryStore, content


@dataclass
class Clock:
    now: float = 100.0
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


class Fixture:
    def __init__(self, inner: MemoryStore | None = None) -> None:
        self.clock, self.inner, self.slow_downs = Clock(), inner or MemoryStore(), 0
        self.store = RetryingStore(
            self.inner, clock=self.clock, sleep=self.clock.sleep, random=lambda: 1.0, on_slow_down=self._slow
        )

    def _slow(self) -> None:
        self.slow_downs += 1


def test_a_failure_that_passes_is_never_seen() -> None:
    f = Fixture()
    info = f.inner.put(b"a", content(100))
    f.inner.fail_next(StoreUnavailable("down"), times=3)
    assert f.store.head(b"a") == info
    f.inner.fail_next(BadAnswer("cut"), times=2)
    assert f.store.list_page(b"").objects[0].key == b"a"
    assert f.store.statistics().retries == 5


def test_waits_grow_to_a_limit_and_are_jittered_from_zero() -> None:
    f = Fixture()
    f.inner.put(b"a", b"x")
    f.inner.fail_next(StoreUnavailable("down"), times=10)
    f.store.get(f.inner.put(b"a", b"x"), 0, 1)
    assert f.clock.waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(f.clock.waits) == LONGEST_WAIT_S
    f.clock.waits.clear()
    f.store.random = lambda: 0.0
    f.inner.fail_next(StoreUnavailable("down"), times=5)
    f.store.head(b"a")
    assert f.clock.waits == [0.0] * 5


def test_a_spent_budget_ends_with_the_last_error_and_names_the_budget() -> None:
    f = Fixture()
    f.inner.fail_next(StoreUnavailable("down", "wait", slow_down=True), times=1000)
    with pytest.raises(StoreUnavailable, match=r"down \(tried for 10 s\)") as caught:
        f.store.head(b"a")
    assert f.clock.now - 100 <= 10.0
    assert caught.value.hint == "wait" and caught.value.slow_down
    with pytest.raises(StoreUnavailable, match=r"tried for 60 s"):
        f.store.get(f.inner.put(b"a", b"x"), 0, 1)


def test_the_budget_runs_from_the_start_so_a_black_hole_costs_no_more() -> None:
    """An attempt that cannot end in time is not begun; the last one that can ends at the budget."""
    f = Fixture()

    def hangs(key: bytes) -> ObjectInfo:
        f.clock.now += 4.0
        raise StoreUnavailable("said nothing")

    f.inner.head = hangs  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable, match=r"said nothing \(tried for 10 s\)"):
        f.store.head(b"a")
    assert 8.0 <= f.clock.now - 100 <= 10.0
    f.clock.now = 100.0
    f.inner.fail_next(StoreUnavailable("refused"), times=10**6)
    with pytest.raises(StoreUnavailable):
        f.store.list_page(b"")
    assert f.clock.now - 100 == 10.0, "what fails at once is tried to the end"


def test_what_was_spent_on_a_get_before_counts() -> None:
    f = Fixture()
    info = f.inner.put(b"a", b"x")
    f.inner.fail_next(StoreUnavailable("refused"), times=10**6)
    with pytest.raises(StoreUnavailable, match="tried for 60 s"):
        f.store.get(info, 0, 1, spent_s=45.0)
    assert f.clock.now - 100 == 15.0


def test_trouble_names_what_keeps_bytes_from_coming_until_they_come() -> None:
    f = Fixture()
    info = f.inner.put(b"a", b"x")
    f.inner.fail_next(StoreUnavailable("down"), times=1000)
    with pytest.raises(StoreUnavailable):
        f.store.get(info, 0, 1)
    assert f.store.trouble == "down (tried for 60 s)"
    f.clock.now += 61
    assert f.store.trouble == ""
    f.clock.now -= 61
    f.inner.heal()
    assert b"".join(f.store.get(info, 0, 1).chunks()) == b"x"
    assert f.store.trouble == ""
    f.inner.fail_next(AccessDenied("no"))
    with pytest.raises(AccessDenied):
        f.store.get(info, 0, 1)
    assert f.store.trouble == "", "one object's rights say nothing about the bucket"


def test_a_failure_that_cannot_pass_is_raised_at_once() -> None:
    f = Fixture()
    f.inner.fail_next(AccessDenied("no"))
    with pytest.raises(AccessDenied):
        f.store.head(b"a")
    assert f.clock.waits == [] and len(f.inner.calls) == 1


def test_a_torn_body_goes_on_where_it_broke() -> None:
    f = Fixture(MemoryStore(chunk_bytes=100))
    info = f.inner.put(b"a", content(1000))
    f.inner.truncate_next(350)
    f.inner.truncate_next(0)
    f.inner.truncate_next(1)
    assert b"".join(f.store.get(info, 10, 900).chunks()) == content(1000)[10:910]
    assert f.store.statistics().retries == 3


def test_a_torn_body_of_a_changed_object_does_not_go_on() -> None:
    f = Fixture(MemoryStore(chunk_bytes=100))
    info = f.inner.put(b"a", content(1000, 1))
    f.inner.truncate_next(300)
    body = f.store.get(info, 0, 1000)
    f.inner.put(b"a", content(1000, 2))
    came = bytearray()
    with pytest.raises(ObjectChanged):
        for chunk in body.chunks():
            came += chunk
    assert came == content(300, 1)


def test_every_byte_renews_the_budget_and_silence_spends_it() -> None:
    f = Fixture(MemoryStore(chunk_bytes=10))
    info = f.inner.put(b"a", content(1000))
    for _ in range(95):
        f.inner.truncate_next(10)
        f.inner.truncate_next(0)
        f.inner.truncate_next(0)
        f.inner.truncate_next(0)
        f.inner.truncate_next(0)
        f.inner.truncate_next(0)
    assert b"".join(f.store.get(info, 0, 1000).chunks()) == content(1000)
    assert f.clock.now - 100 > 60
    for _ in range(1000):
        f.inner.truncate_next(0)
    with pytest.raises(StoreUnavailable, match="tried for 60 s"):
        list(f.store.get(info, 0, 1000).chunks())


def test_slow_down_is_told_each_time() -> None:
    f = Fixture()
    f.inner.put(b"a", b"x")
    f.inner.fail_next(StoreUnavailable("slow", slow_down=True), times=2)
    f.inner.fail_next(StoreUnavailable("down"))
    f.store.head(b"a")
    assert f.slow_downs == 2


class RefreshingStore(MemoryStore):
    helps = True
    refreshed = 0

    def refresh_credentials(self) -> bool:
        self.refreshed += 1
        return self.helps


def test_expired_credentials_are_looked_up_anew_once() -> None:
    inner = RefreshingStore()
    f = Fixture(inner)
    inner.put(b"a", b"x")
    inner.fail_next(CredentialsError("expired"))
    assert f.store.head(b"a").size == 1
    inner.fail_next(CredentialsError("expired"), times=2)
    with pytest.raises(CredentialsError):
        f.store.head(b"a")
    assert inner.refreshed == 2


def test_the_same_credentials_again_are_not_tried_again() -> None:
    inner = RefreshingStore()
    inner.helps = False
    f = Fixture(inner)
    inner.fail_next(CredentialsError("unknown key"))
    with pytest.raises(CredentialsError):
        f.store.head(b"a")
    assert len(inner.calls) == 1


def test_its_repr_names_the_budget_and_the_inner_store() -> None:
    assert repr(Fixture().store).startswith("<RetryingStore 60 s of MemoryStore(")
