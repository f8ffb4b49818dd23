"""Asking the bucket what it holds, for the catalog: single names first, whole listings when it pays, each once.

A cold lookup asks for that one name: HEAD of the key and one key of `key/`, at the same time. From the third lookup in
a directory on, or with the first readdir, the directory is listed page by page; whoever waits goes on as soon as the
listing has passed what he asked for. When the bucket cannot be reached, what is known already stays the answer and
the result says it is stale, unless the mount promised `--ttl 0`. Only the first to notice waits for the
budget: from then on known names are answered at once, and one request a second finds out when the bucket is back.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import trio

from mountkit import errors, names
from mountkit.catalog.listing import Listing
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import Change, Directory, StaleCookie
from mountkit.errors import AccessDenied, BadAnswer, MountkitError, ObjectChanged, ObjectMissing, StoreError
from mountkit.store.api import ObjectInfo, Page, Store

log = logging.getLogger(__name__)
_SINGLE_LOOKUPS = 2
_DIRECTORIES = 4096
_REQUESTS_AT_ONCE = 64
_PAGE = 1000
_PROBE_S = 1.0
T = TypeVar("T")


class _Lookup:
    """One name being asked for; whoever waits shares the answer, and the error."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.answered = False
        self.error: StoreError | None = None


class _Listing:
    """One directory's listing under way."""

    def __init__(self) -> None:
        self.started = time.time()
        self.advanced = trio.Event()
        """Set, and replaced, after each page and at the end."""
        self.done = self.whole = False
        self.error: MountkitError | None = None
        self.changes: list[Change] = []
        self.writer: Listing | None = None

    @property
    def void(self) -> bool:
        """Whether what it lists was expired meanwhile: its pages count for nothing."""
        return not self.done and self.writer is not None and not self.writer.alive

    def __repr__(self) -> str:
        return f"<_Listing {'done' if self.done else 'running'} error={self.error!r}>"

    def advance(self) -> None:
        event, self.advanced = self.advanced, trio.Event()
        event.set()


class Lister:
    """Fills the catalog from one store. One trio thread owns it; listings run in the nursery given to `run`."""

    def __init__(self, catalog: Catalog, store: Store, *, probe: Store | None = None) -> None:
        """`probe` is the store without retries."""
        self._catalog, self._store = catalog, store
        self._probe_store = probe or store
        self._away = False
        self._limiter = trio.CapacityLimiter(_REQUESTS_AT_ONCE)
        self._listings: dict[int, _Listing] = {}
        self._lookups: dict[tuple[int, bytes], _Lookup] = {}
        self._misses: OrderedDict[int, int] = OrderedDict()
        self._nursery: trio.Nursery | None = None
        self.unreachable = ""
        """Why the bucket could not be asked the last time; empty once it answers again."""
        self._lost = trio.Event()

    def __repr__(self) -> str:
        return f"<Lister {len(self._listings)} listings, {len(self._lookups)} lookups under way>"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                await self._lost.wait()
                await trio.sleep(_PROBE_S)
                if self.unreachable:
                    with contextlib.suppress(StoreError):
                        await self._call(lambda: self._probe_store.list_page(self._catalog.prefix, limit=1))

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Runs a task that walks the tree beside the listings, for as long as these run."""
        assert self._nursery is not None
        self._nursery.start_soon(task)

    def answered(self) -> None:
        """The bucket was heard from."""
        if self.unreachable:
            log.warning("the bucket answers again")
            self.unreachable, self._away = "", False
            self._lost = trio.Event()

    def _unanswered(self, error: StoreError) -> None:
        if not self.unreachable:
            log.warning("the bucket cannot be asked: %s; what is known stays visible", error)
        self.unreachable = str(error)
        self._away = self._away or error.transient
        self._lost.set()

    # ---- names ---------------------------------------------------------------------------------------------
    async def lookup(self, parent: int, name: bytes, fresh_after: float, *, stale: bool = True) -> bool:
        """Has the catalog know `name` in `parent` as of `fresh_after`. True if only older knowledge could be had, and
        `stale` allows it.

        Raises ObjectChanged for a directory the catalog does not have, the StoreError where nothing is known.
        """
        while not self._knows(parent, name, fresh_after):
            if self._away and stale and self._knows(parent, name, 0.0):
                return True
            under_way = self._lookups.get((parent, name))
            if under_way is not None:
                await under_way.ended.wait()
                if under_way.error is not None:
                    return self._fall_back(under_way.error, known=stale and self._knows(parent, name, 0.0))
                if under_way.answered and fresh_after > time.time() - 1.0:
                    return False  # with --ttl 0 an answer that came while we waited is as fresh as can be
                continue
            asking = self._lookups[parent, name] = _Lookup()
            try:
                await self._ask_for_name(parent, name)
                asking.answered = True
                return False
            except StoreError as exc:
                asking.error = exc
                return self._fall_back(exc, known=stale and self._knows(parent, name, 0.0))
            finally:
                del self._lookups[parent, name]
                asking.ended.set()
        return False

    def _knows(self, parent: int, name: bytes, fresh_after: float) -> bool:
        known = self._catalog.lookup(parent, name)
        return known is not None and known.as_of >= fresh_after

    async def _ask_for_name(self, parent: int, name: bytes) -> None:
        directory = self._directory(parent)
        if directory.hidden:
            await self._ask_for_odd_key(parent, name)
            return
        misses = self._misses[parent] = self._misses.pop(parent, 0) + 1
        if len(self._misses) > _DIRECTORIES:
            self._misses.popitem(last=False)
        if misses > _SINGLE_LOOKUPS:
            asked = time.time()
            listing = self._listing(parent)
            await listing.advanced.wait()
            if self._knows(parent, name, min(listing.started, asked)):
                return
            if listing.error is not None:
                raise listing.error
        await self._single(directory, name)

    async def _single(self, directory: Directory, name: bytes) -> None:
        """One round trip: is there an object of that name, is there anything below it?"""
        key = directory.prefix + name
        if not names.valid_name(name):
            self._catalog.record_absent(directory.id, name)
            return
        info: list[ObjectInfo | None] = [None]
        below: list[Page] = []
        refused: list[AccessDenied] = []

        async def head() -> None:
            try:
                info[0] = await self._call(lambda: self._store.head(key))
            except ObjectMissing:
                info[0] = None
            except AccessDenied as exc:
                refused.append(exc)

        async def first_below() -> None:
            below.append(await self._call(lambda: self._store.list_page(key + b"/", delimiter=b"", limit=1)))

        await _both(head, first_below)
        if below[0].objects:  # a file of the same name is shadowed
            self._catalog.record_directory(directory.id, name)
        elif info[0] is not None:
            self._catalog.record_object(directory.id, name, info[0])
        elif refused:
            await self._by_listing(directory, name, refused[0])
        else:
            self._catalog.record_absent(directory.id, name)

    async def _by_listing(self, directory: Directory, name: bytes, refused: AccessDenied) -> None:
        """The listing tells: who may list below a prefix only is refused a HEAD of what is not there, too."""
        asked = time.time()
        listing = self._listing(directory.id)
        while not self._knows(directory.id, name, min(listing.started, asked)):
            if listing.done:
                raise listing.error or refused
            await listing.advanced.wait()

    async def _ask_for_odd_key(self, parent: int, name: bytes) -> None:
        if names.is_continuation(name):
            self._catalog.record_directory(parent, name)
            return
        key = self._catalog.key_at(parent, name)
        if key is None:
            self._catalog.record_absent(parent, name)
            return
        info: ObjectInfo | None = None
        with contextlib.suppress(ObjectMissing):
            info = await self._call(lambda: self._store.head(key))
        self._catalog.record_key(key, info)

    # ---- listings ------------------------------------------------------------------------------------------
    async def list_beyond(self, directory: int, cookie: int, fresh_after: float, *, stale: bool = True) -> bool:
        """Returns once readers can page on after `cookie`; True if only an older listing could be had, and `stale`
        allows it."""
        fresh_after = min(fresh_after, time.time())  # a clock set back must not ask for listings of the future
        while True:
            try:
                page = self._catalog.page(directory, cookie, 1, fresh_after)
            except (KeyError, StaleCookie):
                raise ObjectChanged("that place in a directory is not known any more") from None
            if page.entries or page.done:
                return False
            if self._away and stale and self._has_beyond(directory, cookie):
                return True
            listing = self._listing(directory)
            await listing.advanced.wait()
            if listing.error is not None:
                return self._fall_back(listing.error, known=stale and self._has_beyond(directory, cookie))

    def _has_beyond(self, directory: int, cookie: int) -> bool:
        page = self._catalog.page(directory, cookie, 1, 0.0)
        return bool(page.entries or page.done)

    async def list_whole(self, directory: int, fresh_after: float) -> list[Change]:
        """Returns once the directory's listing is complete as of `fresh_after`: the names that changed by it."""
        known = self._directory(directory)
        if known.listed_at is not None and known.listed_at >= fresh_after and directory not in self._listings:
            return []
        changes: list[Change] = []
        while True:
            listing = self._listing(directory)
            while not listing.done:
                await listing.advanced.wait()
            if listing.error is not None:
                raise listing.error
            changes += listing.changes
            if listing.whole:  # else it was voided by an `expire`, and another has to be waited for
                return changes

    async def refresh(self, directory: int | None) -> list[Change]:
        """Asks anew for every directory below `directory` that was ever listed: all names that changed."""
        directories, changes = self._catalog.known_below(directory)
        self._catalog.expire(directory)
        with _bare_errors():
            async with trio.open_nursery() as nursery:
                for listed in directories:
                    await trio.lowlevel.checkpoint()
                    nursery.start_soon(self._refresh_one, listed, changes)
        return changes

    async def _refresh_one(self, directory: int, changes: list[Change]) -> None:
        changes += await self.list_whole(directory, math.inf)

    def _listing(self, directory: int) -> _Listing:
        """The listing of this directory that is under way, or one that starts now."""
        listing = self._listings.get(directory)
        if listing is None or listing.void:
            known = self._directory(directory)
            listing = self._listings[directory] = _Listing()
            assert self._nursery is not None
            self._nursery.start_soon(self._list, known, listing)
        return listing

    async def _list(self, directory: Directory, listing: _Listing) -> None:
        try:
            await self._list_pages(directory, listing)
        except MountkitError as exc:
            listing.error = exc
        listing.done = True
        if self._listings.get(directory.id) is listing:
            del self._listings[directory.id]
        listing.advance()

    async def _list_pages(self, directory: Directory, listing: _Listing) -> None:
        writer = listing.writer = self._catalog.begin_listing(directory.id)
        token, reached = "", b""
        while writer.alive:
            asked = token
            page = await self._call(lambda: self._store.list_page(directory.prefix, token=asked, limit=_PAGE))  # noqa: B023
            last = max((*(each.key for each in page.objects[-1:]), *page.prefixes[-1:]), default=b"")
            if last and last <= reached and page.next_token:
                raise BadAnswer("the pages of the listing do not advance")  # else it could go on for ever
            reached = max(reached, last)
            listing.changes += writer.add(page)
            token = page.next_token
            if not token:
                listing.whole = writer.alive
                listing.changes += writer.finish()
                return
            listing.advance()

    # ---- inside --------------------------------------------------------------------------------------------
    def _directory(self, ident: int) -> Directory:
        found = self._catalog.directory(ident)
        if found is None:
            raise ObjectChanged("that directory is not known any more")
        return found

    async def _call(self, request: Callable[[], T]) -> T:
        try:
            answer = await trio.to_thread.run_sync(request, abandon_on_cancel=True, limiter=self._limiter)
        except (ObjectMissing, AccessDenied):  # a bucket that says so works
            self.answered()
            raise
        except StoreError as exc:
            self._unanswered(exc)
            raise
        self.answered()
        return answer

    def _fall_back(self, error: MountkitError, *, known: bool) -> bool:
        if known and isinstance(error, StoreError) and error.transient:
            return True
        log.warning("a name cannot be asked for: %s", error)
        raise error


async def _both(first: Callable[[], Awaitable[None]], second: Callable[[], Awaitable[None]]) -> None:
    """Runs two async functions at once; the first error of theirs comes out bare."""
    with _bare_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(second)


@contextlib.contextmanager
def _bare_errors() -> Iterator[None]:
    """A nursery's group of nothing but our errors comes out as the first of them."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = errors.named(group)
        if error is None:
            raise
        raise error from group
