"""What the uploader makes of a journal, against a bucket in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio

from mountkit.catalog.tree import Catalog
from mountkit.catalog.values import Kind
from mountkit.errors import AccessDenied, StoreFull, StoreUnavailable
from mountkit.mover import multipart
from mountkit.staging.queue import Ending, UploadJournal
from mountkit.store.api import MIN_PART_BYTES, Properties
from tests.fakes.memory_store import MemoryStore, content
from tests.unit.mover.harness import in_trio
from tests.unit.mover.staged import (
    CANCELLED,
    COPY,
    DELETE,
    DONE,
    FAILED,
    PENDING,
    PUT,
    RUNNING,
    HandServer,
    uploading,
)

PART = MIN_PART_BYTES


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts as small as a store takes them, so that few bytes make many parts."""
    monkeypatch.setattr(multipart, "PART_BYTES", PART)
    monkeypatch.setattr("mountkit.mover.uploads.SINGLE_BYTES", PART)


@in_trio
async def test_what_was_staged_is_put_and_the_journal_says_so(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        metadata = {"mtime_ns": 1_354_040_105_123_456_789, "mode": 0o100644, "uid": 0, "xattrs": {"user.a": "0102"}}
        seq = bench.stage(b"d/a.json", content(1000), metadata=metadata)
        assert (await bench.uploads.commit([seq])) == {"states": {str(seq): DONE}, "errors": {}}
        held = bench.store.head(b"d/a.json")
        assert bench.store.data(b"d/a.json") == content(1000)
        assert (bench.column(seq, "etag"), bench.column(seq, "checksum")) == (held.etag, held.checksum)
        assert held.content_type == "application/json"
        assert held.metadata["mtime"] == "1354040105.123456789" and held.metadata["mode"] == "33188"
        assert held.metadata["xattr"] == "%7B%22user.a%22%3A%22AQI%3D%22%7D"


@in_trio
async def test_what_was_put_is_in_the_catalog_without_a_listing(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        seq = bench.stage(b"new/deep/a", content(10))
        await bench.uploads.commit([seq])
        new = catalog.lookup(catalog.root, b"new")
        assert new is not None and new.kind is Kind.DIRECTORY and new.inode is not None
        deep = catalog.lookup(new.inode, b"deep")
        assert deep is not None and deep.inode is not None
        found = catalog.lookup(deep.inode, b"a")
        assert found is not None and found.object is not None and found.object.size == 10
        gone = bench.queue(DELETE, b"new/deep/a", ordered=True)
        await bench.uploads.commit([gone])
        found = catalog.lookup(deep.inode, b"a")
        assert found is not None and found.kind is Kind.ABSENT


@in_trio
async def test_whoever_sees_an_upload_done_finds_it_in_the_catalog_also_beside_one_that_waits(
    directory_fd: int, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poisoned(MemoryStore):
        def put_object(self, key, *args, **kwargs):  # type: ignore[no-untyped-def]
            if key == b"poison":
                put.wait()
                raise StoreUnavailable("always")
            return super().put_object(key, *args, **kwargs)

    put = threading.Event()
    store = Poisoned()
    store.on_write = lambda call, key: put.set()
    end, missing = UploadJournal.end, []

    def watched_end(journal: UploadJournal, endings: Sequence[Ending]) -> None:
        missing.extend(each.seq for each in endings if catalog.lookup(catalog.root, b"a") is None)
        end(journal, endings)

    monkeypatch.setattr(UploadJournal, "end", watched_end)
    async with uploading(directory_fd, catalog, store, budget_s=0.0) as bench:
        done, _ = bench.stage(b"a", b"x", old=True), bench.stage(b"poison", b"x", old=True)
        bench.uploads.staged()  # while nobody waits for them, both end in one turn of the uploader
        await bench.until(done, DONE)
        assert not missing


@in_trio
async def test_a_put_lingers_and_what_is_cancelled_meanwhile_is_never_sent(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        first = bench.stage(b"a", b"first")
        bench.uploads.staged()
        await trio.sleep(0.3)
        assert bench.state(first) is PENDING
        assert bench.cancel(first)
        second = bench.stage(b"a", b"second")
        await bench.until(second, DONE)
        assert [call for call, _ in bench.store.calls] == ["put_object"]
        assert bench.store.data(b"a") == b"second"


@in_trio
async def test_operations_of_one_key_go_one_after_another(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        seqs = [bench.stage(b"k", content(100, n), old=True) for n in range(10)]
        last = bench.stage(b"other", b"x", old=True)
        await bench.uploads.commit([*seqs, last])
        assert bench.store.data(b"k") == content(100, 9)
        assert [key for call, key in bench.store.calls if call == "put_object"].count(b"k") == 10


@in_trio
async def test_an_ordered_operation_waits_for_everything_before_it(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    seen: list[list[bytes]] = []
    store.on_write = lambda call, key: seen.append(store.keys()) if key == b"latest" else None
    async with uploading(directory_fd, catalog, store) as bench:
        shards = [bench.stage(f"step/{n}".encode(), content(50_000, n)) for n in range(20)]
        marker = bench.stage(b"latest", b"step", ordered=True)
        await bench.uploads.commit([marker])
        assert all(bench.state(seq) is DONE for seq in shards)
        (keys,) = seen
        assert len(keys) == 21


@in_trio
async def test_an_ordered_operation_stays_behind_a_failed_one_and_commit_says_why(
    directory_fd: int, catalog: Catalog
) -> None:
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store) as bench:
        store.fail_next(AccessDenied("you may not"), call="put_object")
        shard = bench.stage(b"shard", b"x")
        marker = bench.stage(b"latest", b"y", ordered=True)
        answer = await bench.uploads.commit([shard, marker])
        assert answer["states"] == {str(shard): FAILED, str(marker): PENDING}
        assert [error["sentence"] for error in answer["errors"].values()] == ["you may not"] * 2
        end = await bench.drained(retry=False)
        assert (end["left"], end["failed"], list(end["errors"])) == (1, 1, ["shard"])
        assert store.data(b"latest") is None and bench.uploads.statistics().trouble
        assert await bench.drained() == {"left": 0, "failed": 0, "errors": {}}
        assert store.data(b"latest") == b"y"


@in_trio
async def test_a_later_put_passes_a_failed_one_and_makes_it_needless(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store) as bench:
        store.fail_next(StoreFull("no room"), call="put_object")
        first = bench.stage(b"a", b"first")
        assert (await bench.uploads.commit([first]))["states"] == {str(first): FAILED}
        second = bench.stage(b"a", b"second")
        await bench.uploads.commit([second])
        assert (bench.state(first), bench.state(second)) == (CANCELLED, DONE)
        await bench.drained()
        assert store.data(b"a") == b"second"


@in_trio
async def test_a_rename_that_failed_keeps_its_source_from_being_replaced(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store) as bench:
        store.put_object(b"old", b"precious")
        store.fail_next(AccessDenied("no"), call="copy_object")
        copy = bench.queue(COPY, b"new", source_key=b"old")
        await bench.until(copy, FAILED)
        put = bench.stage(b"old", b"another")
        answer = await bench.uploads.commit([put])
        assert answer["states"] == {str(put): PENDING} and answer["errors"]
        await bench.drained()
        assert (store.data(b"new"), store.data(b"old")) == (b"precious", b"another")


@in_trio
async def test_trouble_that_passes_never_fails_an_upload(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    store.fail_next(StoreUnavailable("down"), times=10**6)
    async with uploading(directory_fd, catalog, store, budget_s=0.05) as bench:
        seqs = [bench.stage(f"{n}".encode(), content(n)) for n in range(5)]
        bench.uploads.staged()
        while not bench.uploads.statistics().trouble:
            await trio.sleep(0.01)
        assert all(bench.state(seq) is not FAILED for seq in seqs)
        store.heal()
        assert (await bench.drained())["left"] == 0
        assert [store.data(f"{n}".encode()) for n in range(5)] == [content(n) for n in range(5)]
        assert not bench.uploads.statistics().trouble


@in_trio
async def test_one_key_that_always_fails_does_not_hold_up_the_others(directory_fd: int, catalog: Catalog) -> None:
    """[uploads-6]"""

    class Poisoned(MemoryStore):
        def put_object(self, key, *args, **kwargs):  # type: ignore[no-untyped-def]
            if key == b"poison":
                raise StoreUnavailable("always")
            return super().put_object(key, *args, **kwargs)

    async with uploading(directory_fd, catalog, Poisoned(), budget_s=0.02) as bench:
        poison = bench.stage(b"poison", b"x", old=True)
        others = [bench.stage(f"{n}".encode(), b"y", old=True) for n in range(200)]
        await bench.uploads.commit(others)
        assert bench.state(poison) in (PENDING, 1)


@in_trio
async def test_a_copy_waits_for_the_put_of_its_source_and_the_delete_for_the_copy(
    directory_fd: int, catalog: Catalog
) -> None:
    async with uploading(directory_fd, catalog) as bench:
        bench.stage(b"tmp", content(5000), metadata={"mode": 33188})
        bench.queue(COPY, b"final", source_key=b"tmp")
        last = bench.queue(DELETE, b"tmp", ordered=True)
        await bench.uploads.commit([last])
        assert bench.store.keys() == [b"final"] and bench.store.data(b"final") == content(5000)
        assert bench.store.head(b"final").metadata["mode"] == "33188"


@in_trio
async def test_a_copy_onto_itself_changes_metadata_only(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        bench.stage(b"a", content(50))
        seq = bench.queue(COPY, b"a", source_key=b"a", metadata={"mode": 33261})
        await bench.uploads.commit([seq])
        assert bench.store.head(b"a").metadata["mode"] == "33261" and bench.store.data(b"a") == content(50)


@in_trio
@pytest.mark.parametrize("in_parts", [False, True])
async def test_a_rename_asks_for_class_and_encryption_as_a_put_does(
    directory_fd: int, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, in_parts: bool
) -> None:
    if in_parts:
        monkeypatch.setattr("mountkit.mover.uploads.MAX_COPY_BYTES", 10)
    async with uploading(directory_fd, catalog) as bench:
        bench.set(storage_class="STANDARD_IA", sse="aws:kms:key-1")
        bench.store.put_object(b"old", content(50), Properties("text/x-own", {"own": "1"}))
        await bench.uploads.commit([bench.queue(COPY, b"new", source_key=b"old")])
        held = bench.store.head(b"new")
        assert (held.storage_class, bench.store.encryption[b"new"]) == ("STANDARD_IA", "aws:kms:key-1")
        assert (held.content_type, held.metadata["own"]) == ("text/x-own", "1")


FOREIGN = Properties(
    "text/x-own",
    {"own": "1", "mode": "33188", "xattr": "%7B%7D"},
    "STANDARD_IA",
    "aws:kms:key-1",
    {"content-encoding": "gzip", "cache-control": "no-cache", "content-disposition": "inline"},
)
"""As another tool put it."""


@in_trio
@pytest.mark.parametrize("in_parts", [False, True])
async def test_a_renamed_object_is_described_as_before(
    directory_fd: int, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, in_parts: bool
) -> None:
    """[uploads-12]"""
    if in_parts:
        monkeypatch.setattr("mountkit.mover.uploads.MAX_COPY_BYTES", 10)
    async with uploading(directory_fd, catalog) as bench:
        bench.store.put_object(b"old", content(50), FOREIGN)
        before = bench.store.head(b"old")
        await bench.uploads.commit([bench.queue(COPY, b"new", source_key=b"old")])
        after = bench.store.head(b"new")
        assert (after.content_type, after.headers, after.storage_class, after.sse) == (
            *(before.content_type, before.headers, before.storage_class, before.sse),
        )
        assert before.metadata.items() <= after.metadata.items()


@in_trio
@pytest.mark.parametrize("in_parts", [False, True])
async def test_an_object_whose_mode_is_changed_keeps_what_else_describes_it(
    directory_fd: int, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, in_parts: bool
) -> None:
    """[uploads-12] Only its extended attributes are all ours."""
    if in_parts:
        monkeypatch.setattr("mountkit.mover.uploads.MAX_COPY_BYTES", 10)
    async with uploading(directory_fd, catalog) as bench:
        bench.store.put_object(b"a", content(50), FOREIGN)
        before = bench.store.head(b"a")
        await bench.uploads.commit([bench.queue(COPY, b"a", source_key=b"a", metadata={"mode": 33261})])
        after = bench.store.head(b"a")
        assert (after.content_type, after.headers, after.storage_class, after.sse) == (
            *(before.content_type, before.headers, before.storage_class, before.sse),
        )
        assert (after.metadata["own"], after.metadata["mode"]) == ("1", "33261")
        assert "xattr" not in after.metadata


@in_trio
async def test_deletes_in_a_row_are_one_request(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        for n in range(500):
            bench.store.put(f"{n}".encode(), b"x")
        seqs = [bench.queue(DELETE, f"{n}".encode(), ordered=True) for n in range(500)]
        await bench.uploads.commit(seqs)
        assert bench.store.keys() == [] and bench.store.statistics().delete <= 3


@in_trio
async def test_bytes_that_changed_since_are_not_put_under_the_old_stamp(directory_fd: int, catalog: Catalog) -> None:
    """The later PUT of the same file stands in, and an ordered one between them waits for it."""
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store) as bench:
        file = bench.file(b"first")
        first = bench.queue(PUT, b"shard", file=file)
        marker = bench.stage(b"latest", b"shard", ordered=True)
        bench.write(file, b"second version")
        bench.uploads.staged()
        await trio.sleep(1.2)
        assert store.keys() == [] and bench.state(first) is PENDING and bench.state(marker) is PENDING
        second = bench.queue(PUT, b"shard", file=file)
        await bench.uploads.commit([second, marker])
        assert store.data(b"shard") == b"second version" and store.data(b"latest") == b"shard"
        assert bench.state(first) is CANCELLED
        assert [key for call, key in store.calls if call == "put_object"] == [b"shard", b"latest"]


@in_trio
async def test_a_put_that_is_updated_in_place_is_done_with_its_new_stamp(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        file = bench.file(b"first")
        seq = bench.queue(PUT, b"a", file=file)
        bench.uploads.staged()
        await trio.sleep(0.1)
        bench.write(file, b"second")
        status = os.stat(str(file), dir_fd=bench.staging_fd)
        bench.db.execute(
            "UPDATE operation SET size = ?, mtime_ns = ?, ctime_ns = ? WHERE seq = ?",
            (status.st_size, status.st_mtime_ns, status.st_ctime_ns, seq),
        )
        await bench.uploads.commit([seq])
        assert bench.store.data(b"a") == b"second"


@in_trio
async def test_a_file_rewritten_as_it_is_sent_and_renamed_before_its_new_bytes_are_ends_under_its_new_name(
    directory_fd: int, catalog: Catalog
) -> None:
    """[uploads-1] The server cancels the PUT that was to stand in for the old one: nobody else will end that."""
    async with uploading(directory_fd, catalog) as bench:
        file = bench.file(b"first")
        first = bench.queue(PUT, b"a", file=file, state=RUNNING)  # by a mover that is killed now
        bench.write(file, b"second, longer")
        second = bench.queue(PUT, b"a", file=file)
        assert bench.cancel(second)
        bench.queue(PUT, b"b", file=file, ordered=True)
        bench.queue(DELETE, b"a", ordered=True)
        bench.uploads.journal.recover()
        with trio.fail_after(5):
            assert await bench.drained() == {"left": 0, "failed": 0, "errors": {}}
        assert bench.state(first) is CANCELLED
        assert bench.store.data(b"b") == b"second, longer"
        assert bench.store.keys() == [b"b"]


@in_trio
async def test_a_file_rewritten_as_it_is_sent_and_deleted_is_gone(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        file = bench.file(b"first")
        bench.queue(PUT, b"a", file=file, old=True)
        bench.write(file, b"second, longer")
        bench.queue(DELETE, b"a", ordered=True)
        with trio.fail_after(5):
            assert await bench.drained() == {"left": 0, "failed": 0, "errors": {}}
        assert bench.store.calls == [("delete_object", b"a")]


@in_trio
async def test_a_file_rewritten_as_it_is_sent_again_and_again_ends_once(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        file = bench.file(b"0")
        seqs = []
        for turn in range(4):
            bench.write(file, bytes(turn))
            seqs.append(bench.queue(PUT, b"a", file=file))
        with trio.fail_after(5):
            assert await bench.drained() == {"left": 0, "failed": 0, "errors": {}}
        assert [bench.state(seq) for seq in seqs] == [CANCELLED] * 3 + [DONE]


@in_trio
async def test_a_live_put_takes_what_was_there_when_the_file_has_grown(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        file = bench.file(b"line 1\n")
        seq = bench.queue(PUT, b"log", file=file, live=True)
        bench.write(file, b"line 1\nline 2\n")
        await bench.uploads.commit([seq])
        assert bench.store.data(b"log") == b"line 1\n"


# ---- large files


@in_trio
async def test_a_large_file_goes_in_parts(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        data = content(3 * PART + 5)
        seq = bench.stage(b"large", data)
        await bench.uploads.commit([seq])
        assert bench.store.data(b"large") == data and not bench.store.uploads
        assert [call for call, _ in bench.store.calls].count("upload_part") == 4
        assert bench.column(seq, "checksum").endswith("-4")


@in_trio
async def test_parts_that_did_not_change_are_copied_in_the_bucket(directory_fd: int, catalog: Catalog) -> None:
    """[uploads-11]"""
    async with uploading(directory_fd, catalog) as bench:
        data = bytearray(content(4 * PART + 100))
        file = bench.file(bytes(data))
        await bench.uploads.commit([bench.queue(PUT, b"large", file=file)])
        bench.store.calls.clear()
        data[2 * PART + 7] ^= 1
        data += b"appended"
        bench.write(file, bytes(data))
        await bench.uploads.commit([bench.queue(PUT, b"large", file=file)])
        assert bench.store.data(b"large") == bytes(data)
        calls = [call for call, _ in bench.store.calls]
        assert (calls.count("upload_part"), calls.count("upload_part_copy")) == (2, 3)


@in_trio
async def test_what_it_would_be_copied_from_may_be_gone(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        data = content(2 * PART)
        file = bench.file(data)
        await bench.uploads.commit([bench.queue(PUT, b"large", file=file)])
        bench.store.delete(b"large")
        await bench.uploads.commit([bench.queue(PUT, b"large", file=file)])
        assert bench.store.data(b"large") == data


@in_trio
async def test_an_upload_refused_in_its_middle_leaves_nothing_behind(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store) as bench:
        store.fail_next(StoreFull("no room"), call="upload_part")
        seq = bench.stage(b"large", content(3 * PART))
        answer = await bench.uploads.commit([seq])
        assert answer["states"] == {str(seq): FAILED} and not store.uploads
        await bench.drained()
        assert store.data(b"large") == content(3 * PART) and not store.uploads


@in_trio
async def test_a_file_that_changes_while_it_is_sent_is_not_published(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store) as bench:
        file = bench.file(content(3 * PART))
        changed = bench.queue(PUT, b"large", file=file)

        def change(call: str, key: bytes) -> None:
            if call == "upload_part" and not store.data(b"done"):
                store.put(b"done", b"x")
                bench.write(file, content(3 * PART, 1))

        store.on_write = change
        with trio.move_on_after(0.5):
            await bench.uploads.commit([changed])
        await bench.until(changed, PENDING)
        assert store.data(b"large") is None
        later = bench.queue(PUT, b"large", file=file)
        await bench.uploads.commit([later])
        assert store.data(b"large") == content(3 * PART, 1) and not store.uploads


@in_trio
async def test_a_lost_answer_to_a_completion_is_found_out(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store) as bench:
        store.lose_answer_of("complete_upload")
        seq = bench.stage(b"large", content(2 * PART))
        assert (await bench.uploads.commit([seq]))["states"] == {str(seq): DONE}
        assert bench.column(seq, "etag") == store.head(b"large").etag
        assert [call for call, _ in store.calls].count("create_upload") == 1


@in_trio
async def test_parts_the_store_has_lost_are_sent_anew(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    lost = []

    def lose(call: str, key: bytes) -> None:
        if call == "upload_part" and not lost:
            lost.append(True)
            store.uploads.clear()

    store.on_write = lose
    async with uploading(directory_fd, catalog, store) as bench:
        seq = bench.stage(b"large", content(3 * PART), old=True)
        await bench.until(seq, DONE)
        assert store.data(b"large") == content(3 * PART) and not store.uploads


@in_trio
async def test_an_upload_that_is_cancelled_while_it_waits_is_aborted(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store, budget_s=0.02) as bench:
        store.fail_next(StoreUnavailable("down"), times=100, call="complete_upload")
        seq = bench.stage(b"large", content(2 * PART), old=True)
        await bench.until(seq, PENDING)
        while not bench.uploads.statistics().trouble or bench.state(seq) is not PENDING:
            await trio.sleep(0.01)
        assert store.uploads and bench.cancel(seq)
        while store.uploads:
            await trio.sleep(0.01)


# ---- no clobber


@in_trio
async def test_no_clobber_refuses_what_somebody_else_wrote(directory_fd: int, catalog: Catalog) -> None:
    async with uploading(directory_fd, catalog) as bench:
        bench.set(clobber=False)
        theirs = bench.store.put_object(b"a", b"theirs")
        refused = bench.stage(b"a", b"ours", metadata={"if_match": ""})
        answer = await bench.uploads.commit([refused])
        assert answer["states"] == {str(refused): FAILED}
        assert answer["errors"][str(refused)]["kind"] == "ObjectChanged"
        assert bench.store.data(b"a") == b"theirs"
        known = bench.stage(b"a", b"ours again", metadata={"if_match": theirs.etag})
        assert (await bench.uploads.commit([known]))["states"] == {str(known): DONE}


@in_trio
async def test_no_clobber_knows_its_own_earlier_writes(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store) as bench:
        bench.set(clobber=False)
        store.lose_answer_of("put_object")
        first = bench.stage(b"a", b"first", metadata={"if_match": ""})
        second = bench.stage(b"a", b"second", metadata={"if_match": ""})
        large = bench.stage(b"l", content(2 * PART), metadata={"if_match": ""})
        store.lose_answer_of("complete_upload")
        answer = await bench.uploads.commit([first, second, large])
        assert set(answer["states"].values()) == {DONE}
        assert store.data(b"a") == b"second"
        deleted = bench.queue(DELETE, b"a", ordered=True)
        third = bench.stage(b"a", b"third", metadata={"if_match": ""})
        assert set((await bench.uploads.commit([deleted, third]))["states"].values()) == {DONE}


# ---- the next mover


@in_trio
async def test_the_next_mover_resumes_an_upload_and_sends_only_what_is_missing(
    directory_fd: int, catalog: Catalog
) -> None:
    store = MemoryStore()
    data = content(6 * PART)
    async with uploading(directory_fd, catalog, store, budget_s=0.0) as bench:  # no thread of it tries again later
        seq = bench.stage(b"large", data, old=True)
        sent = 0

        def hold(call: str, key: bytes) -> None:
            nonlocal sent
            sent += call == "upload_part"
            if sent == 3:
                store.fail_next(StoreUnavailable("the mover is about to die"), times=10**6)

        store.on_write = hold
        while bench.db.execute("SELECT count(*) FROM part").fetchone()[0] < 3:
            await trio.sleep(0.01)
    store.heal()
    store.on_write = lambda call, key: None
    store.calls.clear()
    async with uploading(directory_fd, catalog, store) as bench:
        assert (await bench.uploads.commit([seq]))["states"] == {str(seq): DONE}
        assert store.data(b"large") == data and not store.uploads
        assert [call for call, _ in store.calls].count("upload_part") <= 3
        assert "create_upload" not in [call for call, _ in store.calls]


@in_trio
async def test_a_part_of_an_older_stamp_is_not_kept(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store, budget_s=0.02) as bench:
        store.fail_next(StoreUnavailable("down"), times=100, call="complete_upload")
        file = bench.file(content(2 * PART))
        seq = bench.queue(PUT, b"large", file=file, old=True)
        while bench.db.execute("SELECT count(*) FROM part").fetchone()[0] < 2:
            await trio.sleep(0.01)
    server = HandServer(directory_fd)  # goes on while no mover runs
    server.write(file, content(2 * PART, 1))
    status = os.stat(str(file), dir_fd=server.staging_fd)
    stamp = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    server.db.execute(
        "UPDATE operation SET size = ?, mtime_ns = ?, ctime_ns = ?, state = 0 WHERE seq = ?", (*stamp, seq)
    )
    server.close()
    store.heal()
    async with uploading(directory_fd, catalog, store) as bench:
        await bench.uploads.commit([seq])
        assert store.data(b"large") == content(2 * PART, 1) and not store.uploads


@in_trio
async def test_an_upload_begun_in_the_moment_of_a_kill_is_aborted(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    store.create_upload(b"large")
    other = store.create_upload(b"large-other")
    async with uploading(directory_fd, catalog, store) as bench:
        seq = bench.stage(b"large", content(2 * PART), state=1, upload_id="", upload_part_bytes=PART)
    async with uploading(directory_fd, catalog, store) as bench:
        await bench.uploads.commit([seq])
        assert list(store.uploads) == [other] and store.data(b"large") == content(2 * PART)


@in_trio
async def test_an_upload_completed_in_the_moment_of_a_kill_is_not_done_again(
    directory_fd: int, catalog: Catalog
) -> None:
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store) as bench:
        seq = bench.stage(b"large", content(2 * PART), old=True)
        await bench.until(seq, DONE)
        bench.db.execute("UPDATE operation SET state = 1, upload_id = 'upload-1', upload_part_bytes = ?", (PART,))
    store.calls.clear()
    async with uploading(directory_fd, catalog, store) as bench:
        assert (await bench.uploads.commit([seq]))["states"] == {str(seq): DONE}
        assert {call for call, _ in store.calls} == {"list_parts", "head"}


@in_trio
async def test_what_had_failed_is_tried_again_by_the_next_mover(directory_fd: int, catalog: Catalog) -> None:
    store = MemoryStore()
    async with uploading(directory_fd, catalog, store) as bench:
        store.fail_next(AccessDenied("no"), call="put_object")
        seq = bench.stage(b"a", b"x", old=True)
        await bench.until(seq, FAILED)
    async with uploading(directory_fd, catalog, store) as bench:
        await bench.until(seq, DONE)


def test_parts_grow_so_that_ten_thousand_reach_the_largest_object() -> None:
    assert multipart.part_bytes_for(1) == multipart.PART_BYTES
    for size in (10**9, 10**11, 5 * 2**40):
        part = multipart.part_bytes_for(size)
        assert -(-size // part) <= 10_000 and part <= 5 * 2**30
    base = multipart.Base(b"k", '"e"', 10, 6 << 20, b"d" * 16)
    assert multipart.part_bytes_for(10**9, base) == 6 << 20
    assert multipart.part_bytes_for(10**12, base) > 6 << 20
    assert multipart.part_bytes_for(10**9, replace(base, digests=b"")) == multipart.PART_BYTES
