"""The store protocol, sentence by sentence, against memory, moto and SeaweedFS."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mountkit.errors import ObjectChanged, ObjectMissing
from mountkit.store.api import Store
from tests.fakes.memory_store import content
from tests.store.contract import Bench, read


def listed(store: Store, prefix: bytes, limit: int, delimiter: bytes = b"/") -> tuple[list[bytes], list[bytes]]:
    objects, prefixes, token = [], [], ""
    while True:
        page = store.list_page(prefix, delimiter=delimiter, token=token, limit=limit)
        assert len(page.objects) + len(page.prefixes) <= limit
        objects += [each.key for each in page.objects]
        prefixes += page.prefixes
        token = page.next_token
        if not token:
            return objects, prefixes


def test_head_and_listing_tell_the_same_version(bench: Bench) -> None:
    bench.put(b"d/a", content(1000))
    head = bench.store.head(b"d/a")
    (entry,) = bench.store.list_page(b"d/").objects
    assert (entry.key, entry.size, entry.etag) == (head.key, head.size, head.etag) == (b"d/a", 1000, head.etag)
    assert entry.mtime_ns // 10**9 == head.mtime_ns // 10**9
    assert head.etag.startswith('"') and head.etag.endswith('"')


def test_head_of_a_missing_key_is_object_missing(bench: Bench) -> None:
    with pytest.raises(ObjectMissing):
        bench.store.head(b"nowhere")


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (999, 1), (10, 500), (0, 1000)])
def test_a_range_is_exactly_the_bytes_asked_for(bench: Bench, offset: int, length: int) -> None:
    bench.put(b"a", content(1000, 7))
    info = bench.store.head(b"a")
    assert read(bench.store, info, offset, length) == content(1000, 7)[offset : offset + length]


def test_a_large_body_comes_whole_in_pieces(bench: Bench) -> None:
    bench.put(b"large", content(5_000_000))
    body = bench.store.get(bench.store.head(b"large"), 1, 4_999_998)
    pieces = list(body.chunks())
    assert len(pieces) > 1 and min(map(len, pieces)) >= 1
    assert b"".join(pieces) == content(5_000_000)[1:-1]


def test_a_changed_object_is_never_read_as_its_old_version(bench: Bench) -> None:
    bench.put(b"a", content(1000, 1))
    old = bench.store.head(b"a")
    bench.put(b"a", content(1000, 2))
    with pytest.raises(ObjectChanged):
        bench.store.get(old._replace(version_id=""), 0, 10)


def test_a_deleted_object_is_missing(bench: Bench) -> None:
    bench.put(b"a", content(10))
    info = bench.store.head(b"a")
    bench.delete(b"a")
    with pytest.raises(ObjectMissing):
        bench.store.get(info, 0, 10)


def test_a_listing_rolls_up_at_the_delimiter_and_goes_on_over_pages(bench: Bench) -> None:
    for number in range(7):
        bench.put(f"p/f{number}".encode(), b"x")
        bench.put(f"p/d{number}/deep/er".encode(), b"x")
    objects, prefixes = listed(bench.store, b"p/", 3)
    assert objects == [f"p/f{n}".encode() for n in range(7)]
    assert prefixes == [f"p/d{n}/".encode() for n in range(7)]


def test_a_listing_without_delimiter_holds_every_key_in_byte_order(bench: Bench) -> None:
    keys = [b"a", b"a/b", b"a/b/c", b"b", "ä".encode(), b"z"]
    keys = [
        b"q/" + k for k in keys if k not in (b"a", b"a/b")
    ]  # SeaweedFS cannot hold a file and a directory of a name
    for key in keys:
        bench.put(key, b"x")
    objects, prefixes = listed(bench.store, b"q/", 2, delimiter=b"")
    assert objects == sorted(keys) and prefixes == []


def test_an_empty_prefix_lists_nothing(bench: Bench) -> None:
    page = bench.store.list_page(b"nowhere/")
    assert (page.objects, page.prefixes, page.next_token) == ((), (), "")


def test_a_directory_marker_is_among_the_objects(bench: Bench) -> None:
    bench.put(b"m/", b"")
    bench.put(b"m/a", b"x")
    assert b"m/" in [each.key for each in bench.store.list_page(b"m/").objects] or not bench.takes(b"m/")
    assert b"m/a" in [each.key for each in bench.store.list_page(b"m/").objects]


ODD_KEYS = [
    *(b"%41 b", b"a%2Fb", b"%", b"a#b", b"a?b=c&d", b"~*", b"back\\slash", b"a b", b"a+b", b" lead", b"trail "),
    *("é/é".encode(), "e\u0301".encode(), "\U0001f600/🎉".encode(), b"a;b:c@d$e,f!g'(h)", b'<&>"', b"...", b"..a/b.."),
    *(b"x//y", b"x/./y", b"x/../y", b"../up", b"trailing/", b"/leading", b"//", b"tab\there", b"del\x7f", b"\x01"),
]


def test_the_right_object_comes_for_every_odd_key_the_server_can_hold(bench: Bench) -> None:
    held = [key for key in ODD_KEYS if bench.takes(key)]
    assert len(held) >= len(ODD_KEYS) // 2
    for key in held:
        _the_right_object_comes(bench, key)


def _the_right_object_comes(bench: Bench, key: bytes) -> None:
    # what a careless client would fetch instead
    for decoy in {key.strip(b"/"), key.replace(b"//", b"/"), key.replace(b"+", b" "), key.replace(b"%41", b"A")} - {
        key
    }:
        if decoy and bench.takes(decoy):
            bench.put(decoy, b"decoy of another length")
    bench.put(key, content(600, 3))
    info = bench.store.head(key)
    assert info.size == 600
    assert read(bench.store, info) == content(600, 3)
    assert read(bench.store, info, 100, 50) == content(600, 3)[100:150]
    if key.rstrip(b"/"):
        assert key in listed(bench.store, b"", 1000, delimiter=b"")[0]


def test_128_threads_at_once_each_get_their_own_bytes(bench: Bench) -> None:
    for number in range(16):
        bench.put(f"t/{number}".encode(), content(20_000, number))
    infos = [bench.store.head(f"t/{number}".encode()) for number in range(16)]
    together = threading.Barrier(128)

    def one(number: int) -> bool:
        together.wait(20)
        return read(bench.store, infos[number % 16]) == content(20_000, number % 16)

    with ThreadPoolExecutor(128) as threads:
        assert all(threads.map(one, range(128)))
