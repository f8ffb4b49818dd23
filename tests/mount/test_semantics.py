"""docs/semantics.md, paragraph by paragraph, on real mounts."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine, content, wait_until

DOCS = Path(__file__).parents[2] / "docs" / "semantics.md"


def test_every_paragraph_of_the_contract_is_quoted_by_a_test() -> None:
    tags = set(re.findall(r"\*\*\[([a-z]+-\d+)\]\*\*", DOCS.read_text()))
    assert tags
    sources = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert sorted(tag for tag in tags if f"[{tag}]" not in sources) == []


def test_keys_are_a_tree_and_markers_are_directories(bucket: Bucket, mountkit: CommandLine) -> None:
    """[names-1]"""
    for key in ("a/b/c.txt", "a/d.txt", "top.txt", "empty/"):
        bucket.put(key, b"" if key.endswith("/") else key.encode())
    root = mountkit.mount(bucket.source)
    found = {os.path.relpath(os.path.join(p, n), root) for p, ds, fs in os.walk(root) for n in ds + fs}
    assert found == {"a", "a/b", "a/b/c.txt", "a/d.txt", "top.txt", "empty"}
    assert (root / "empty").is_dir()
    assert list((root / "empty").iterdir()) == []
    assert (root / "a/b/c.txt").read_bytes() == b"a/b/c.txt"


def test_a_prefix_is_the_root_of_its_mount(bucket: Bucket, mountkit: CommandLine) -> None:
    """[names-1]"""
    bucket.put("train/x/1", b"one")
    bucket.put("other/2", b"two")
    root = mountkit.mount(bucket.source.replace("?", "/train?"))
    assert os.listdir(root) == ["x"]
    assert (root / "x/1").read_bytes() == b"one"


ODD = [
    "%2Fweird",
    "sp ace",
    "plus+",
    "hash#",
    "ask?",
    "quote'\"",
    "new\nline",
    "tab\t",
    "🐈",
    "A",
    "a",
    "e\u0301",
    "\u00e9",
]
# (SeaweedFS turns a backslash into a slash: that one is in test_names, on moto)


def test_names_mean_themselves(bucket: Bucket, mountkit: CommandLine) -> None:
    """[names-5]"""
    names = [*ODD, "x" * 255]
    for name in names:
        bucket.put(f"d/{name}", name.encode())
    root = mountkit.mount(bucket.source)
    for name in names:  # cold lookups first, then the listing
        assert (root / "d" / name).read_bytes() == name.encode()
    assert set(os.listdir(root / "d")) == set(names)


def test_attributes(bucket: Bucket, mountkit: CommandLine) -> None:
    """[attributes-1] [attributes-5]"""
    bucket.put("d/f", b"12345")
    info = bucket.head("d/f")
    root = mountkit.mount(bucket.source, "--uid", "1234", "--gid", "567", "--umask", "027")
    found = (root / "d/f").stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_size) == (0o440, 1234, 567, 5)
    assert int(found.st_mtime) == int(info["LastModified"].timestamp())
    assert (root / "d").stat().st_mode & 0o7777 == 0o550
    space = os.statvfs(root)
    assert space.f_bavail * space.f_frsize == 1 << 50


def test_extended_attributes_name_the_object(bucket: Bucket, mountkit: CommandLine) -> None:
    """[attributes-2]"""
    bucket.put("d/f", b"x")
    root = mountkit.mount(bucket.source)
    etag = bucket.head("d/f")["ETag"]
    assert os.getxattr(root / "d/f", "user.s3.key") == (bucket.prefix + "d/f").encode()
    assert os.getxattr(root / "d/f", "user.s3.etag") == etag.encode()
    assert "user.s3.key" in os.listxattr(root / "d/f")
    with pytest.raises(OSError) as caught:
        os.getxattr(root / "d/f", "user.other")
    assert caught.value.errno == errno.ENODATA


def test_inode_numbers_name_versions_over_remounts(bucket: Bucket, mountkit: CommandLine) -> None:
    """[attributes-3]"""
    bucket.put("d/same", b"one")
    bucket.put("d/changed", b"one")
    root = mountkit.mount(bucket.source, "--no-passthrough")
    before = {name: (root / "d" / name).stat().st_ino for name in ("same", "changed")}
    mountkit.unmount(root)
    bucket.put("d/changed", b"two")
    root = mountkit.mount(bucket.source, "--no-passthrough", "--ttl", "0")
    assert (root / "d/same").stat().st_ino == before["same"]
    assert (root / "d/changed").stat().st_ino != before["changed"]


def test_nothing_can_be_changed(bucket: Bucket, mountkit: CommandLine) -> None:
    """[attributes-4]"""
    bucket.put("d/f", b"x")
    root = mountkit.mount(bucket.source)
    for change in (
        lambda: (root / "new").write_bytes(b"x"),
        (root / "d/f").unlink,
        (root / "dir").mkdir,
        lambda: (root / "d/f").rename(root / "d/g"),
        lambda: os.truncate(root / "d/f", 0),
        lambda: os.chmod(root / "d/f", 0o777),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS


def test_a_replaced_object_is_a_new_file_and_its_open_handle_keeps_what_is_cached(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    """[bytes-2]"""
    old, new = content(1, 500_000), content(2, 500_000)
    bucket.put("d/f", old)
    root = mountkit.mount(bucket.source)
    with open(root / "d/f", "rb") as before:
        assert before.read(1000) == old[:1000]
        bucket.put("d/f", new)
        assert mountkit.run("refresh", str(root)).code == 0
        with open(root / "d/f", "rb") as after:
            assert after.read() == new
        assert before.read() == old[1000:]


def test_bytes_of_a_version_that_is_gone_are_estale_never_another_version(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    """[bytes-1] [bytes-2]"""
    old, new = content(1, 30_000_000), content(2, 30_000_000)
    bucket.put("d/f", old)
    root = mountkit.mount(bucket.source)
    with open(root / "d/f", "rb") as file:
        assert os.pread(file.fileno(), 1000, 0) == old[:1000]
        bucket.put("d/f", new)
        with pytest.raises(OSError) as caught:
            os.pread(file.fileno(), 1000, 25_000_000)
        assert caught.value.errno == errno.ESTALE
    with open(root / "d/f", "rb") as file:
        assert os.pread(file.fileno(), 1000, 25_000_000) == new[25_000_000:25_001_000]


def test_a_change_shows_within_the_ttl_and_at_once_after_refresh(bucket: Bucket, mountkit: CommandLine) -> None:
    """[fresh-1] [fresh-2]"""
    bucket.put("d/f", b"one")
    root = mountkit.mount(bucket.source, "--ttl", "1h")
    assert (root / "d/f").read_bytes() == b"one"
    assert not (root / "d/g").exists()
    bucket.put("d/f", b"second")
    bucket.put("d/g", b"new")
    bucket.put("e/h", b"new too")
    assert (root / "d/f").read_bytes() == b"one", "within the TTL the old state may show, and here it must"
    assert not (root / "d/g").exists()
    assert mountkit.run("refresh", str(root)).code == 0
    assert (root / "d/f").read_bytes() == b"second"
    assert (root / "d/g").read_bytes() == b"new"
    assert sorted(os.listdir(root)) == ["d", "e"]
    mountkit.unmount(root)
    root = mountkit.mount(bucket.source, "--ttl", "1s")
    assert (root / "d/f").read_bytes() == b"second"
    bucket.delete("d/g")
    wait_until(lambda: not (root / "d/g").exists(), seconds=5)


def test_with_ttl_zero_every_change_shows_at_once(bucket: Bucket, mountkit: CommandLine) -> None:
    """[fresh-1]"""
    root = mountkit.mount(bucket.source, "--ttl", "0")
    for n in range(5):
        bucket.put("f", b"%d" % n)
        assert (root / "f").read_bytes() == b"%d" % n
    bucket.delete("f")
    assert not (root / "f").exists()


def test_an_unreachable_bucket_leaves_what_is_known_and_says_degraded(bucket: Bucket, mountkit: CommandLine) -> None:
    """[fresh-3]"""
    bucket.put("d/f", b"known")
    root = mountkit.mount(bucket.source, "--ttl", "1s", "--metadata-budget", "2s")
    assert (root / "d/f").read_bytes() == b"known"
    assert os.listdir(root / "d") == ["f"]
    bucket.proxy.fault = lambda method, target: b""
    time.sleep(1.5)
    assert os.listdir(root / "d") == ["f"]
    assert (root / "d/f").read_bytes() == b"known"
    status = mountkit.status(root)
    assert status["state"] == "degraded"
    assert status["reasons"]
    bucket.proxy.fault = None
    time.sleep(1.1)
    os.listdir(root / "d")
    assert mountkit.status(root)["state"] == "ok"


def test_the_first_lookups_ask_for_one_name_then_the_directory_is_listed_once(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    """[fresh-4]"""
    for n in range(50):
        bucket.put(f"d/{n:02d}", b"x")
    root = mountkit.mount(bucket.source)
    bucket.proxy.requests.clear()
    for n in range(50):
        assert (root / f"d/{n:02d}").stat().st_size == 1
    assert bucket.proxy.count("HEAD") <= 6
    assert bucket.proxy.listings() <= 8
    bucket.proxy.requests.clear()
    assert not (root / "d/absent").exists()
    assert len(os.listdir(root / "d")) == 50
    assert bucket.proxy.requests == []


def test_altered_cache_files_are_found_out(bucket: Bucket, mountkit: CommandLine) -> None:
    """[bytes-1] [bytes-4]"""
    objects = {f"d/{n}": content(n, 150_000 if n % 2 else 3_000_000) for n in range(10)}
    for key, data in objects.items():
        bucket.put(key, data)
    root = mountkit.mount(bucket.source)
    for key, data in objects.items():
        assert (root / key).read_bytes() == data
    mountkit.unmount(root)
    spoiled = 0
    for folder in ("objects", "segments"):
        for path in mountkit.cache.rglob(f"{folder}/**/*"):
            if path.is_file() and path.stat().st_size:
                path.chmod(0o600)
                with open(path, "r+b") as file:
                    for offset in range(70_000, path.stat().st_size, 200_000):
                        file.seek(offset)
                        byte = file.read(1)
                        file.seek(offset)
                        file.write(bytes([byte[0] ^ 0xFF]))
                        spoiled += 1
    assert spoiled
    root = mountkit.mount(bucket.source)
    for key, data in objects.items():
        assert (root / key).read_bytes() == data
    log = Path(mountkit.status(root)["log"]).read_text()
    assert "not what was written" in log


def test_a_read_that_cannot_be_answered_fails_within_its_budget(bucket: Bucket, mountkit: CommandLine) -> None:
    """[failures-2]"""
    bucket.put("d/f", content(1, 100_000))
    root = mountkit.mount(bucket.source, "--data-budget", "2s", "--metadata-budget", "2s")
    assert (root / "d/f").stat().st_size == 100_000
    bucket.proxy.fault = lambda method, target: b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"
    started = time.monotonic()
    with pytest.raises(OSError) as caught:
        (root / "d/f").read_bytes()
    assert caught.value.errno == errno.EIO
    assert time.monotonic() - started < 8
    bucket.proxy.fault = None
    assert (root / "d/f").read_bytes() == content(1, 100_000)


def test_a_cache_that_is_full_makes_reads_slower_never_wrong(bucket: Bucket, mountkit: CommandLine) -> None:
    """[failures-3]"""
    objects = {f"d/{n}": content(n, 700_000) for n in range(12)} | {"d/big": content(3, 9_000_000)}
    for key, data in objects.items():
        bucket.put(key, data)
    root = mountkit.mount(bucket.source, "--cache-size", "3MB")
    for _ in range(2):
        for key, data in objects.items():
            assert (root / key).read_bytes() == data
    # While an object moves from a segment to a file of its own, both are there.
    wait_until(lambda: mountkit.status(root)["cache"]["bytes_used"] <= 4_500_000, seconds=60)


def test_forbidden_and_archived_objects_do_not_hide_their_neighbours(bucket: Bucket, mountkit: CommandLine) -> None:
    """[bytes-3]"""
    for name in ("forbidden", "archived", "fine"):
        bucket.put(f"d/{name}", b"x")
    root = mountkit.mount(bucket.source)
    os.listdir(root / "d")
    answers = {
        "forbidden": _error(403, "AccessDenied"),
        "archived": _error(403, "InvalidObjectState"),
    }
    bucket.proxy.fault = lambda method, target: next((a for n, a in answers.items() if f"d/{n}" in target), None)
    for name, number in (("forbidden", errno.EACCES), ("archived", errno.EIO)):
        with pytest.raises(OSError) as caught:
            (root / "d" / name).read_bytes()
        assert caught.value.errno == number, name
    assert (root / "d/fine").read_bytes() == b"x"
    bucket.proxy.fault = None


def _error(status: int, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
