"""`mountkit explain`: what a path is, what of it is cached, and why it is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine, content, wait_until
from tests.store.raw_server import CLOSE, answer


@pytest.fixture
def root(bucket: Bucket, mountkit: CommandLine) -> Path:
    bucket.put("d/small", b"small")
    bucket.put("d/large", content(1, 5_000_000))
    bucket.put("d", b"hidden by the directory")
    bucket.put("odd//key", b"odd")
    return mountkit.mount(bucket.source, "--ttl", "5m")


def explained(mountkit: CommandLine, path: object) -> dict[str, str]:
    result = mountkit.run("explain", str(path), "--json")
    assert result.code == 0, result.err
    found: dict[str, str] = json.loads(result.out)
    return found


def test_a_file_is_told_with_its_version_what_is_cached_and_what_the_bucket_says(
    bucket: Bucket, mountkit: CommandLine, root: Path
) -> None:
    path = root / "d/large"
    unknown = explained(mountkit, path)
    assert unknown["in the mount"] == "nothing is known of it now: the next look asks the bucket"
    assert "an object: 5.0 MB" in unknown["in the bucket"]
    assert not path.is_dir()
    found = explained(mountkit, path)
    assert found["key"] == f"s3://data/{bucket.prefix}d/large"
    assert found["in the mount"].startswith("a file of 5.0 MB, known for ")
    assert "(--ttl 300s)" in found["in the mount"]
    assert bucket.head("d/large")["ETag"] in found["version"]
    assert found["cached"].startswith("0 B of 5.0 MB, 0 of 5 blocks whole")
    assert found["in the bucket"] == "the same version"
    path.read_bytes()
    native = mountkit.status(root)["passthrough"]
    wait_until(lambda: not native or "sealed: read natively" in explained(mountkit, path)["cached"])
    assert explained(mountkit, path)["cached"].startswith("5.0 MB of 5.0 MB, 5 of 5 blocks whole")


def test_why_a_path_is_missing(bucket: Bucket, mountkit: CommandLine, root: Path) -> None:
    assert not (root / "late").exists()
    negative = explained(mountkit, root / "late")
    assert negative["in the mount"].startswith("absent, known for ")
    assert negative["in the bucket"] == "there is no such key"
    assert "way out" not in negative
    bucket.put("late", b"there now")
    assert "mountkit refresh" in explained(mountkit, root / "late")["way out"]
    below = explained(mountkit, root / "late/x")
    assert "`late` is no directory there" in below["in the mount"]
    odd = explained(mountkit, f"{root}/odd//key")
    assert "no path can be this key" in odd["in the mount"]
    assert odd["in the mount"].endswith(f"{root}/.mountkit/keys/odd%2F%2Fkey")
    assert Path(odd["in the mount"].rpartition(" ")[2]).read_bytes() == b"odd"
    hidden = explained(mountkit, root / "d")
    assert "the directory hides the object" in hidden["hidden"]
    assert Path(hidden["hidden"].rpartition(" ")[2]).read_bytes() == b"hidden by the directory"


@pytest.mark.parametrize(("key", "name"), [("d", "d"), ("odd//key", "odd%2F%2Fkey"), ("d/small", "d%2Fsmall")])
def test_what_was_read_below_the_hidden_directory_is_known(
    bucket: Bucket, mountkit: CommandLine, root: Path, key: str, name: str
) -> None:
    path = root / ".mountkit/keys" / name
    assert "nothing is known of it now" in explained(mountkit, path)["in the mount"]
    data = path.read_bytes()
    found = explained(mountkit, path)
    assert found["key"] == f"s3://data/{bucket.prefix}{key}"
    assert found["in the mount"].startswith(f"a file of {len(data)} B, known for ")
    assert found["cached"].startswith(f"{len(data)} B of {len(data)} B")
    assert found["in the bucket"] == "the same version"
    assert "hidden" not in found


def test_a_replaced_a_deleted_and_a_forbidden_object(bucket: Bucket, mountkit: CommandLine, root: Path) -> None:
    path = root / "d/small"
    path.read_bytes()
    bucket.put("d/small", b"another")
    replaced = explained(mountkit, path)
    assert replaced["in the bucket"].startswith("another version: 7 B")
    assert "mountkit refresh" in replaced["way out"]
    bucket.delete("d/small")
    deleted = explained(mountkit, path)
    assert deleted["in the bucket"] == "there is no such key"
    assert "mountkit refresh" in deleted["way out"]

    def refuse(method: str, target: str) -> bytes | None:
        if method == "GET" and "/d/large" in target:
            return answer(403, code="AccessDenied")
        return None

    bucket.proxy.fault = refuse
    forbidden = explained(mountkit, root / "d/large")
    assert "may not read" in forbidden["refused"]
    assert "s3:GetObject" in forbidden["refused"]


def test_an_archived_object_is_named_as_one(bucket: Bucket, mountkit: CommandLine, root: Path) -> None:
    def freeze(method: str, target: str) -> bytes | None:
        if "/d/large" not in target or "list-type" in target:
            return None
        if method == "GET":
            return answer(403, code="InvalidObjectState")
        fields = 'Content-Length: 9\r\nETag: "x"\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n'
        return f"HTTP/1.1 200 OK\r\n{fields}x-amz-storage-class: DEEP_ARCHIVE\r\n\r\n".encode() + CLOSE

    bucket.proxy.fault = freeze
    found = explained(mountkit, root / "d/large")
    assert "DEEP_ARCHIVE: reading fails with EIO" in found["archived"]


def test_the_root_a_pipe_and_what_is_no_mount(bucket: Bucket, mountkit: CommandLine, root: Path) -> None:
    assert "the mount point of s3://data" in explained(mountkit, root)["path"]
    plain = mountkit.run("explain", str(root / "d/large"))
    assert "\x1b" not in plain.out
    assert plain.out.startswith("key ")
    assert mountkit.run("explain", "/tmp").code == 2
