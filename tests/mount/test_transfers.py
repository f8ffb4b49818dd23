"""`push` and `pull`: whole directories, resumed, and never a byte outside of their target."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.mount.conftest import Bucket, CommandLine, content
from tests.mount.test_uploads import objects, read, unfinished, until


def make_tree(base: Path) -> dict[str, bytes]:
    files = {f"a/{n}.bin": content(n, 1000 + n) for n in range(60)}
    files |= {"deep/er/x.json": b"{}", "large.bin": content(9, 50_000_000), "empty": b""}
    for name, data in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(data)
    return files


def test_a_push_sends_everything_once_and_then_only_what_is_new(bucket: Bucket, mountkit: CommandLine) -> None:
    """[uploads-14]"""
    base = mountkit.base / "src"
    files = make_tree(base)
    (base / "nothing").mkdir()
    (base / "link").symlink_to("empty")
    (base / "broken").symlink_to("nowhere")
    os.mkfifo(base / "fifo")
    words = ("push", str(base), bucket.source, "--cache", str(mountkit.cache))
    result = mountkit.run(*words)
    assert result.code == 0, result.err
    assert "broken" in result.err and "fifo" in result.err
    found = objects(bucket)
    assert found == {name: len(data) for name, data in files.items()} | {"nothing/": 0, "link": 0}
    assert read(bucket, "large.bin") == files["large.bin"] and not unfinished(bucket)
    assert bucket.head("a/3.bin")["Metadata"]["mtime"].startswith(str(int((base / "a/3.bin").stat().st_mtime)))
    bucket.proxy.requests.clear()
    assert mountkit.run(*words).code == 0
    assert bucket.proxy.count("PUT") == bucket.proxy.count("POST") == 0
    (base / "a/3.bin").write_bytes(b"changed")
    (base / "new").write_bytes(b"new")
    assert "2 of" in mountkit.run(*words).err
    assert read(bucket, "a/3.bin") == b"changed" and read(bucket, "new") == b"new"


def test_a_push_that_was_killed_goes_on_in_the_middle_of_a_file(bucket: Bucket, mountkit: CommandLine) -> None:
    base = mountkit.base / "src"
    base.mkdir()
    data = content(3, 80_000_000)
    (base / "large.bin").write_bytes(data)
    words = ("push", str(base), bucket.source, "--cache", str(mountkit.cache))
    process = subprocess.Popen([sys.executable, "-m", "mountkit", *words], env=mountkit.environment)
    sent = lambda: [r for r in bucket.proxy.requests if "partNumber" in r.target and r.status == 200]  # noqa: E731
    try:
        until(lambda: len(sent()) >= 2, "no part was sent")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not mountkit.processes(), "the transfer goes on without its command")
    bucket.proxy.requests.clear()
    assert mountkit.run(*words).code == 0
    assert sum(r.method == "PUT" for r in bucket.proxy.requests) < 10
    assert read(bucket, "large.bin") == data and not unfinished(bucket)


def test_a_push_to_a_bucket_that_refuses_says_so(bucket: Bucket, mountkit: CommandLine) -> None:
    base = mountkit.base / "src"
    base.mkdir()
    (base / "x").write_bytes(b"x")
    denied = b"<Error><Code>AccessDenied</Code></Error>"
    answer = b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n%s" % (len(denied), denied)
    bucket.proxy.fault = lambda method, target: answer if method == "PUT" else None
    result = mountkit.run("push", str(base), bucket.source, "--cache", str(mountkit.cache))
    assert result.code == 9 and "may not write" in result.err
    assert mountkit.run("push", str(base / "x"), bucket.source).code == 2


def test_a_pull_fetches_everything_once_and_then_only_what_is_new(bucket: Bucket, mountkit: CommandLine) -> None:
    files = {f"a/{n}.bin": content(n, 1000 + n) for n in range(40)} | {"large.bin": content(9, 20_000_000), "e": b""}
    for name, data in files.items():
        bucket.put(name, data)
    target = mountkit.base / "target"
    result = mountkit.run("pull", bucket.source, str(target))
    assert result.code == 0, result.err
    found = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == files
    bucket.proxy.requests.clear()
    (target / "a/3.bin").unlink()
    assert "1 of" in mountkit.run("pull", bucket.source, str(target)).err
    assert (target / "a/3.bin").read_bytes() == files["a/3.bin"]
    assert sum(r.method == "GET" and not r.is_listing for r in bucket.proxy.requests) == 1


def test_a_pull_never_leaves_its_target(bucket: Bucket, mountkit: CommandLine) -> None:
    """[uploads-14]"""
    bucket.put("a/escape", b"out")
    bucket.put("b/file", b"in")
    target, outside = mountkit.base / "target", mountkit.base / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "a").symlink_to(outside)
    (outside / "victim").write_bytes(b"victim")
    (target / "b").mkdir()
    (target / "b/file").symlink_to(outside / "victim")
    result = mountkit.run("pull", bucket.source, str(target))
    assert result.code == 1 and "a/escape" in result.err
    assert os.listdir(outside) == ["victim"] and (outside / "victim").read_bytes() == b"victim"
    assert (target / "b/file").read_bytes() == b"in" and not (target / "b/file").is_symlink()
