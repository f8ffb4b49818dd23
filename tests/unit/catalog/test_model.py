"""The catalog against a dict: whatever happens to the bucket and in whatever order it is heard of."""

from __future__ import annotations

import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mountkit import names
from mountkit.catalog.listing import Listing
from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import Change, Kind, Known, StaleCookie
from mountkit.catalog.view import CatalogView
from mountkit.store.api import ObjectInfo, Page
from tests.unit.catalog.bucket import Bucket, Clock, info

COMPONENTS = [b"a", b"A", b"a-", b"a.b", b"b", "é".encode(), "e\u0301".encode(), b"a%"]
ODD_COMPONENTS = [b".", b"..", b"", b"\xff", b"x" * 256, b"n\0l", b".mountkit"]
component = st.sampled_from([b"a"] * 8 + [b"b"] * 4 + COMPONENTS) | st.sampled_from(
    [b"a", *COMPONENTS, *ODD_COMPONENTS]
)
keys = st.tuples(
    st.lists(component, min_size=1, max_size=3).map(b"/".join), st.sampled_from([b"", b"", b"", b"/"])
).map(b"".join)
MOUNT = b"m//nt/"
keys = keys.map(lambda key: MOUNT + (key or b"a"))
versions = st.sampled_from("12")
limits = st.integers(1, 4)
Snapshot = dict[bytes, ObjectInfo]


def directories_of(objects: Snapshot) -> set[bytes]:
    """Relative prefixes of all directories, the root's empty one among them."""
    found = {b""}
    for key in objects:
        parts = key[len(MOUNT) :].split(b"/")[:-1]
        for depth in range(1, len(parts) + 1):
            prefix = b"/".join(parts[:depth]) + b"/"
            if names.classify(prefix) is not names.KeyKind.MARKER:
                break
            found.add(prefix)
    return found


def tree_of(objects: Snapshot) -> dict[bytes, str | None]:
    """Relative path → ETag; None for directories. A directory hides the file of its name."""
    tree: dict[bytes, str | None] = {
        key[len(MOUNT) :]: found.etag
        for key, found in objects.items()
        if names.classify(key[len(MOUNT) :]) is names.KeyKind.PATH
    }
    tree |= {prefix[:-1]: None for prefix in directories_of(objects) if prefix}
    return tree


class CatalogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.path = tempfile.mkdtemp(prefix="catalog-model-")
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        self.clock, self.bucket = Clock(), Bucket()
        self.catalog = Catalog.open(self.fd, MOUNT, clock=self.clock)
        self.view = CatalogView.open(self.fd, clock=self.clock)
        self.history: list[tuple[float, Snapshot]] = []
        self.ids: dict[bytes, int] = {}
        self.versions_of: dict[int, tuple[bytes, str, int]] = {}
        self.listing: Listing | None = None
        self.token: bytes | None = None
        self.touched: set[bytes] = set()
        self.fetched: tuple[Page, bytes | None] | None = None
        """A page that was asked for and not yet taken in: the bucket may change in between."""

    def teardown(self) -> None:
        self.view.close()
        self.catalog.close()
        os.close(self.fd)
        shutil.rmtree(self.path)

    # -- the world ------------------------------------------------------------------------------------------------

    @initialize(some=st.lists(keys, max_size=12))
    def begin(self, some: list[bytes]) -> None:
        self.put(some, "1")

    @rule(some=st.lists(keys, min_size=1, max_size=4), version=versions)
    def put(self, some: list[bytes], version: str) -> None:
        self.step()
        self.bucket.objects |= {key: info(key, version) for key in some}
        self.touched.update(some)

    @rule(data=st.data())
    @precondition(lambda self: self.bucket.objects)
    def delete(self, data: st.DataObject) -> None:
        self.step()
        key = data.draw(st.sampled_from(sorted(self.bucket.objects)))
        del self.bucket.objects[key]
        self.touched.add(key)

    @rule(prefix=st.sampled_from([MOUNT + b"a/", MOUNT + b"b/", MOUNT]))
    def delete_tree(self, prefix: bytes) -> None:
        self.step()
        for key in [key for key in self.bucket.objects if key.startswith(prefix)]:
            del self.bucket.objects[key]
            self.touched.add(key)

    # -- what the mover hears -------------------------------------------------------------------------------------

    @rule(data=st.data(), limit=limits)
    def list_directory(self, data: st.DataObject, limit: int) -> None:
        directory, prefix = self.some_directory(data)
        self.step()
        listing = self.catalog.begin_listing(directory)
        for page in self.bucket.pages(prefix, limit):
            self.step()
            self.heard(listing.add(page))
        self.heard(listing.finish())

    @rule(data=st.data())
    def begin_listing(self, data: st.DataObject) -> None:
        directory, _ = self.some_directory(data)
        self.step()
        self.listing, self.token, self.fetched = self.catalog.begin_listing(directory), None, None

    @rule(limit=limits)
    @precondition(lambda self: self.listing is not None and self.fetched is None)
    def fetch_a_page(self, limit: int) -> None:
        self.fetched = self.next_page(limit)

    @rule(limit=limits, repeat=st.booleans(), drop=st.integers(0, 5))
    @precondition(lambda self: self.listing is not None)
    def advance_listing(self, limit: int, repeat: bool, drop: int) -> None:
        assert self.listing is not None
        self.step()
        if drop == 0:
            self.listing.abandon()
            self.listing = None
            return
        page, token = self.fetched or self.next_page(limit)
        self.fetched = None
        self.heard(self.listing.add(page))
        if repeat:
            self.heard(self.listing.add(page))
        self.token = token
        if token is None:
            self.heard(self.listing.finish())
            self.listing = None

    @rule(data=st.data(), batch=st.integers(1, 5))
    def list_tree(self, data: st.DataObject, batch: int) -> None:
        directory, prefix = self.some_directory(data)
        self.step()
        tree = self.catalog.begin_tree(directory)
        infos = self.bucket.below(prefix)
        for start in range(0, len(infos), batch):
            self.heard(tree.add(infos[start : start + batch]))
        self.heard(tree.finish())

    @rule(data=st.data(), name=st.sampled_from(COMPONENTS))
    def look_up(self, data: st.DataObject, name: bytes) -> None:
        directory, prefix = self.some_directory(data)
        self.step()
        self.ask(directory, prefix, name)

    @rule(key=keys)
    def look_up_key(self, key: bytes) -> None:
        self.step()
        self.ask_key(key)

    @rule(data=st.data())
    def doubt(self, data: st.DataObject) -> None:
        if self.ids:
            self.step()
            key = data.draw(st.sampled_from(sorted(self.ids)))
            self.heard(self.catalog.supersede(self.ids[key]))
            self.touched.add(key)
            known = self.catalog.lookup(self.parent_of(key), key.rpartition(b"/")[2])
            assert known is None or known.inode != self.ids[key]

    @rule()
    def expire(self) -> None:
        self.step()
        self.catalog.expire()

    @rule()
    def purge(self) -> None:
        self.step()
        live = {(found.key, found.etag, found.size) for found in self.bucket.objects.values()}
        held = {
            version
            for key, object_id in self.ids.items()
            if key not in self.touched and (version := self.versions_of[object_id]) in live
        }
        purged = {(row.key, row.etag, row.size) for row in self.catalog.purge(older_than_s=10)}
        assert not purged & held

    @rule()
    def restart(self) -> None:
        self.step()
        root = self.catalog.root
        self.catalog.close()
        self.catalog = Catalog.open(self.fd, MOUNT, clock=self.clock)
        assert (self.catalog.root, self.catalog.warnings) == (root, [])
        self.listing = None

    # -- what must hold -------------------------------------------------------------------------------------------

    @rule(limit=limits, page_limit=st.integers(1, 3))
    def listed_in_full_the_tree_is_the_bucket(self, limit: int, page_limit: int) -> None:
        self.step()
        start = self.clock.now
        shown: dict[bytes, str | None] = {}
        ids: dict[bytes, int] = {}
        waiting: list[tuple[int, bytes]] = [(self.catalog.root, b"")]
        while waiting:
            directory, path = waiting.pop()
            for name, kind, inode, etag in self.stream(directory, MOUNT + path, limit, page_limit, start):
                assert path + name not in shown
                shown[path + name] = etag
                if kind is Kind.DIRECTORY:
                    waiting.append((inode, path + name + b"/"))
                    assert self.view.path_of(inode) == path + name
                    assert self.view.parent_of(inode) == directory
                else:
                    ids[MOUNT + path + name] = inode
        assert shown == tree_of(self.bucket.objects)
        for key, object_id in ids.items():
            found = self.bucket.objects[key]
            version = (key, found.etag, found.size)
            assert self.versions_of.setdefault(object_id, version) == version
            if key in self.ids and key not in self.touched:
                assert self.ids[key] == object_id, "an unchanged object has a new id"
        self.ids, self.touched = ids, set()
        for key in self.bucket.objects:
            self.every_key_is_reachable(key, start)

    def every_key_is_reachable(self, key: bytes, fresh_after: float) -> None:
        relative = key[len(MOUNT) :]
        kind = names.classify(relative)
        if kind is names.KeyKind.MARKER or (
            kind is names.KeyKind.PATH and relative + b"/" not in directories_of(self.bucket.objects)
        ):
            current = self.view.root
            for part in relative.rstrip(b"/").split(b"/") if relative else ():
                known = self.view.lookup(current, part)
                assert known is not None
                assert known.as_of >= fresh_after
                assert known.inode is not None
                current = known.inode  # type: ignore[assignment]
            if kind is names.KeyKind.PATH:
                row = self.view.object(current)
                assert row is not None
                assert (row.key, row.etag) == (key, self.bucket.objects[key].etag)
            return
        known = self.walk_keys(key)
        if known is None or known.as_of < fresh_after:
            self.ask_key(key)
            known = self.walk_keys(key)
        assert known is not None
        assert known.object is not None
        assert (known.object.key, known.object.etag) == (key, self.bucket.objects[key].etag)

    @invariant()
    def whatever_is_known_was_true_at_some_moment_since(self) -> None:
        if not self.history:
            return
        self.history[-1] = (self.clock.now, dict(self.bucket.objects))
        for prefix in (b"", b"a/", b"a/a/"):
            directory = self.known_directory(prefix)
            if directory is None:
                continue
            for name in COMPONENTS:
                known = self.view.lookup(directory, name)
                assert known == self.catalog.lookup(directory, name)
                if known is not None:
                    self.was_true(prefix + name, known)

    def was_true(self, path: bytes, known: Known) -> None:
        since = [objects for now, objects in self.history if now >= known.as_of]
        is_directory = [path + b"/" in directories_of(objects) for objects in since]
        if known.kind is Kind.DIRECTORY:
            assert any(is_directory)
            return
        assert not all(is_directory)
        etags = {objects[MOUNT + path].etag if MOUNT + path in objects else None for objects in since}
        assert (known.object.etag if known.object else None) in etags

    # -- helpers --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """The bucket's state of the moment that ends becomes history."""
        state = dict(self.bucket.objects)
        if self.history:
            self.history[-1] = (self.clock.now, state)
        self.clock.tick()
        self.history.append((self.clock.now, state))

    def next_page(self, limit: int) -> tuple[Page, bytes | None]:
        assert self.listing is not None
        found = self.catalog.directory(self.listing.directory)
        assert found is not None
        return self.bucket.list_page(found.prefix, self.token, limit)

    def heard(self, changes: list[Change]) -> None:
        for change in changes:
            assert not change.name.endswith(b"/")
            assert self.catalog.directory(change.parent) is not None

    def some_directory(self, data: st.DataObject) -> tuple[int, bytes]:
        found: list[tuple[int, bytes]] = [(self.catalog.root, MOUNT)]
        for prefix in sorted(directories_of(self.bucket.objects)):
            directory = self.known_directory(prefix)
            if prefix and directory is not None:
                found.append((directory, MOUNT + prefix))
        return data.draw(st.sampled_from(found))

    def known_directory(self, prefix: bytes) -> int | None:
        current: int = self.catalog.root
        for part in prefix.split(b"/")[:-1]:
            known = self.catalog.lookup(current, part)
            if known is None or known.kind is not Kind.DIRECTORY:
                return None
            assert known.inode is not None
            current = known.inode
        return current

    def parent_of(self, key: bytes) -> int:
        return self.known_directory(key[len(MOUNT) : key.rfind(b"/") + 1]) or self.catalog.root

    def ask(self, directory: int, prefix: bytes, name: bytes) -> None:
        found = self.bucket.objects.get(prefix + name)
        if any(key.startswith(prefix + name + b"/") for key in self.bucket.objects):
            answer = self.catalog.record_directory(directory, name)
        elif found is not None:
            answer = self.catalog.record_object(directory, name, found)
        else:
            answer = self.catalog.record_absent(directory, name)
        assert self.view.lookup(directory, name) == answer

    def walk_keys(self, key: bytes) -> Known | None:
        current: int = self.view.keys_directory
        *continued, last = names.escape(key[len(MOUNT) :] or b"?")
        for part in continued:
            known = self.view.lookup(current, part)
            if known is None:
                return None
            assert known.kind is Kind.DIRECTORY
            assert known.inode is not None
            current = known.inode
        assert self.view.key_at(current, last) == key
        return self.view.lookup(current, last)

    def ask_key(self, key: bytes) -> None:
        self.catalog.record_key(key, self.bucket.objects.get(key))
        known = self.walk_keys(key)
        assert known is not None
        assert (known.object.key if known.object else None) == (key if key in self.bucket.objects else None)

    def stream(
        self, directory: int, prefix: bytes, limit: int, page_limit: int, fresh_after: float
    ) -> list[tuple[bytes, Kind, int, str | None]]:
        """Reads a directory while it is being listed, as a readdir does."""
        found: list[tuple[bytes, Kind, int, str | None]] = []
        listing, cookie = self.catalog.begin_listing(directory), 0
        if self.listing is not None and self.listing.directory == directory:
            self.listing = None
        pages = self.bucket.pages(prefix, page_limit)
        while True:
            page = self.view.page(directory, cookie, limit, fresh_after)
            assert len(page.entries) <= limit
            for entry in page.entries:
                found.append((entry.name, entry.kind, entry.inode, entry.object.etag if entry.object else None))
                cookie = entry.cookie
            if page.done:
                break
            if len(page.entries) < limit:
                following = next(pages, None)
                self.heard(listing.finish() if following is None else listing.add(following))
        stored = [name + b"/" if kind is Kind.DIRECTORY else name for name, kind, *_ in found]
        assert stored == sorted(set(stored))
        whole = self.view.page(directory, 0, 10_000, 0)
        assert [entry.name for entry in whole.entries] == [name for name, *_ in found]
        self.pages_correctly_from_any_cookie(directory, [entry.cookie for entry in whole.entries], limit)
        return found

    def pages_correctly_from_any_cookie(self, directory: int, cookies: list[int], limit: int) -> None:
        for position, cookie in enumerate(cookies):
            page = self.view.page(directory, cookie, limit, 0)
            assert [entry.cookie for entry in page.entries] == cookies[position + 1 :][:limit]
            assert page.done == (position + 1 + limit >= len(cookies))
        try:
            self.view.page(directory, self.view.generation + (1 << 31), 1, 0)
        except StaleCookie:
            return
        raise AssertionError("an unknown cookie was taken")


TestCatalogModel = CatalogMachine.TestCase
TestCatalogModel.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
