"""Retries: a store that asks again, inside a budget of time, while a failure may pass.

The budget runs from the start of an operation, so that a server which never answers costs no more than one that fails
at once. Waits grow exponentially with full jitter. A body that breaks in the middle goes on where it broke, with a new
GET of the same version, so that its reader sees one body; every byte that comes renews the budget. Refused credentials
are looked up anew once. Whatever cannot pass is raised at once.

A write is sent again like a read: it may then have happened twice, with the same outcome. What a lost answer makes
ambiguous (a condition that our own first attempt has broken, an upload that it completed) is for the caller to look at.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from mountkit.errors import (
    AccessDenied,
    CredentialsError,
    ObjectArchived,
    ObjectChanged,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
)
from mountkit.store.api import Body, Data, ObjectInfo, Page, Part, Properties, Store, UploadInfo
from mountkit.store.statistics import Counters, StoreStatistics

if TYPE_CHECKING:
    from mountkit.store.s3_many import ManyGets

T = TypeVar("T")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 8.0
_TROUBLE_S = 60.0
_ABOUT_ONE_OBJECT = (ObjectMissing, ObjectChanged, ObjectArchived, AccessDenied)


@runtime_checkable
class _Counting(Protocol):
    def statistics(self) -> StoreStatistics: ...


@runtime_checkable
class _GettingMany(Protocol):
    def many(self) -> ManyGets[Any] | None: ...


@runtime_checkable
class _Refreshing(Protocol):
    def refresh_credentials(self) -> bool: ...


class _Attempts:
    """One operation's tries: `after(error)` waits and returns, or raises."""

    def __init__(self, store: RetryingStore, budget_s: float, *, spent_s: float = 0.0) -> None:
        self._store, self._budget_s = store, budget_s
        self._refreshed = False
        self.progress()
        self._deadline -= spent_s

    def progress(self) -> None:
        self._tries = 0
        self._began = self._store.clock()
        self._deadline = self._began + self._budget_s

    def after(self, error: StoreError) -> None:
        store = self._store
        if isinstance(error, CredentialsError) and not self._refreshed and store.refresh_credentials():
            self._refreshed = True
            store.count_retry()
            return
        if not error.transient:
            raise error
        if isinstance(error, StoreUnavailable) and error.slow_down:
            store.slow_down()
        now = store.clock()
        # Another attempt may take as long as this one did; the last one that fits is made at the end of the budget.
        left_s = self._deadline - now - (now - self._began)
        if left_s <= 0:
            raise _spent(error, self._budget_s) from error
        wait_s = store.random() * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self._tries)
        self._tries += 1
        store.count_retry()
        store.sleep(min(wait_s, left_s))
        self._began = store.clock()


def _spent(error: StoreError, budget_s: float) -> StoreError:
    sentence = f"{error.sentence} (tried for {budget_s:g} s)"
    if isinstance(error, StoreUnavailable):
        return StoreUnavailable(sentence, error.hint, slow_down=error.slow_down)
    return type(error)(sentence, error.hint)


class RetryingStore:
    """`store`, asked again; implements `api.Store`.

    `budget_s` bounds how long a get may fail without a new byte, or a write; `metadata_budget_s` a head or a listing.
    `on_slow_down` is called, from any thread, each time the server asks for fewer requests.
    """

    def __init__(
        self,
        store: Store,
        *,
        budget_s: float = 60.0,
        metadata_budget_s: float = 10.0,
        on_slow_down: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.inner = store
        self.budget_s, self.metadata_budget_s = budget_s, metadata_budget_s
        self.on_slow_down = on_slow_down
        self.clock, self.sleep, self.random = clock, sleep, random
        self._counts = Counters()
        self._trouble, self._troubled_at = "", 0.0

    def __repr__(self) -> str:
        return f"<RetryingStore {self.budget_s:g} s of {self.inner!r}>"

    def head(self, key: bytes) -> ObjectInfo:
        return self._retried(lambda: self.inner.head(key), _Attempts(self, self.metadata_budget_s))

    def list_page(self, prefix: bytes, *, delimiter: bytes = b"/", token: str = "", limit: int = 1000) -> Page:
        return self._retried(
            lambda: self.inner.list_page(prefix, delimiter=delimiter, token=token, limit=limit),
            _Attempts(self, self.metadata_budget_s),
        )

    def get(self, info: ObjectInfo, offset: int, length: int, *, spent_s: float = 0.0) -> Body:
        """See `api.Store.get`. `spent_s`: so much of the budget was spent on it before."""
        attempts = _Attempts(self, self.budget_s, spent_s=spent_s)
        body = self.opened(info, offset, length, attempts)
        return _ResumingBody(self, body, info, offset, length, attempts)

    def many(self) -> ManyGets[Any] | None:
        """The inner store's way to get many small objects at once, not asked again: `get` is for what it fails at."""
        return self.inner.many() if isinstance(self.inner, _GettingMany) else None

    # ---- writing

    def put_object(
        self,
        key: bytes,
        data: Data,
        properties: Properties | None = None,
        *,
        if_absent: bool = False,
        if_match: str = "",
    ) -> ObjectInfo:
        return self._written(
            lambda: self.inner.put_object(key, data, properties, if_absent=if_absent, if_match=if_match)
        )

    def copy_object(
        self, source: ObjectInfo, key: bytes, properties: Properties | None = None, *, keep_metadata: bool = False
    ) -> ObjectInfo:
        return self._written(lambda: self.inner.copy_object(source, key, properties, keep_metadata=keep_metadata))

    def delete_object(self, key: bytes) -> None:
        self._written(lambda: self.inner.delete_object(key))

    def delete_objects(self, keys: Sequence[bytes]) -> dict[bytes, StoreError]:
        return self._written(lambda: self.inner.delete_objects(keys))

    def create_upload(self, key: bytes, properties: Properties | None = None) -> str:
        return self._written(lambda: self.inner.create_upload(key, properties))

    def upload_part(self, key: bytes, upload_id: str, number: int, data: Data) -> Part:
        return self._written(lambda: self.inner.upload_part(key, upload_id, number, data))

    def upload_part_copy(
        self, key: bytes, upload_id: str, number: int, source: ObjectInfo, offset: int, length: int
    ) -> Part:
        return self._written(lambda: self.inner.upload_part_copy(key, upload_id, number, source, offset, length))

    def complete_upload(
        self, key: bytes, upload_id: str, parts: Sequence[Part], *, if_absent: bool = False, if_match: str = ""
    ) -> ObjectInfo:
        return self._written(
            lambda: self.inner.complete_upload(key, upload_id, parts, if_absent=if_absent, if_match=if_match)
        )

    def abort_upload(self, key: bytes, upload_id: str) -> None:
        self._written(lambda: self.inner.abort_upload(key, upload_id))

    def list_parts(self, key: bytes, upload_id: str) -> list[Part]:
        return self._written(lambda: self.inner.list_parts(key, upload_id))

    def list_uploads(self, prefix: bytes) -> list[UploadInfo]:
        return self._written(lambda: self.inner.list_uploads(prefix))

    def _written(self, call: Callable[[], T]) -> T:
        return self._retried(call, _Attempts(self, self.budget_s))

    def close(self) -> None:
        self.inner.close()

    def statistics(self) -> StoreStatistics:
        """The inner store's counts, and our retries."""
        inner = self.inner.statistics() if isinstance(self.inner, _Counting) else StoreStatistics()
        return replace(inner, retries=self._counts.statistics().retries)

    def refresh_credentials(self) -> bool:
        """Whether the inner store found other credentials."""
        return isinstance(self.inner, _Refreshing) and self.inner.refresh_credentials()

    def count_retry(self) -> None:
        self._counts.add("retries")

    def slow_down(self) -> None:
        if self.on_slow_down is not None:
            self.on_slow_down()

    @property
    def trouble(self) -> str:
        """Why bytes could not be got the last time; "" once some came, or after a while in which nobody asked."""
        return self._trouble if self.clock() - self._troubled_at < _TROUBLE_S else ""

    def works(self) -> None:
        self._trouble = ""

    def try_again(self, error: StoreError, attempts: _Attempts) -> None:
        """Returns when the get may go on. Raises what it fails with in the end, and remembers that."""
        try:
            attempts.after(error)
        except _ABOUT_ONE_OBJECT:
            self.works()  # a bucket that says so works
            raise
        except StoreError as exc:
            self._trouble, self._troubled_at = str(exc), self.clock()
            raise

    def _retried(self, call: Callable[[], T], attempts: _Attempts) -> T:
        while True:
            try:
                return call()
            except StoreError as exc:
                attempts.after(exc)

    def opened(self, info: ObjectInfo, offset: int, length: int, attempts: _Attempts) -> Body:
        """A body of the inner store, as one of the requests that `attempts` counts."""
        while True:
            try:
                return self.inner.get(info, offset, length)
            except StoreError as exc:
                self.try_again(exc, attempts)


class _ResumingBody:
    def __init__(
        self, store: RetryingStore, body: Body, info: ObjectInfo, offset: int, length: int, attempts: _Attempts
    ) -> None:
        self.info = body.info
        self._store, self._body, self._asked = store, body, info
        self._offset, self._length, self._attempts = offset, length, attempts

    def chunks(self) -> Iterator[memoryview]:
        """The bytes asked for, each once, over as many GETs as it takes."""
        done, body = 0, self._body
        while True:
            try:
                for chunk in body.chunks():
                    done += len(chunk)
                    self._attempts.progress()
                    self._store.works()
                    yield chunk
            except StoreError as exc:
                if done >= self._length:
                    raise
                self._store.try_again(exc, self._attempts)
            else:
                return
            offset, left = self._offset + done, self._length - done
            body = self._store.opened(self._asked, offset, left, self._attempts)
