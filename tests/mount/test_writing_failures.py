"""Writers, servers, movers and whole mounts that die; disks that fill; what was acknowledged is never lost."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mountkit import mountinfo
from tests.mount.conftest import Bucket, CommandLine, content, kill, kill_all_at_once, wait_until
from tests.mount.test_disk import tmpfs
from tests.mount.writing import drain_and_unmount, is_drained, journal, objects

FLAGS = pytest.mark.parametrize("flag", ["--passthrough", pytest.param("--no-passthrough", marks=pytest.mark.soak)])


_REFUSED = b"<Error><Code>AccessDenied</Code><Message>not you</Message></Error>"
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(_REFUSED)
FORBIDDEN += _REFUSED


def _mount(bucket: Bucket, mountkit: CommandLine, flag: str, *more: str) -> Path:
    return mountkit.mount(bucket.source, "--writable", *([flag] if flag.startswith("--no") else []), *more)


@FLAGS
def test_what_was_closed_survives_the_death_of_everything(bucket: Bucket, mountkit: CommandLine, flag: str) -> None:
    """[writing-6]"""
    mounted = _mount(bucket, mountkit, flag)
    (mounted / "d").mkdir()
    for number in range(40):
        (mounted / "d" / f"f{number}").write_bytes(content(number, 3000))
    os.rename(mounted / "d" / "f7", mounted / "renamed")
    os.unlink(mounted / "d" / "f8")
    kill_all_at_once(mountkit)
    mounted = _mount(bucket, mountkit, flag)
    expected = {f"d/f{n}": content(n, 3000) for n in range(40) if n not in (7, 8)} | {"renamed": content(7, 3000)}
    found = {str(p.relative_to(mounted)): p.read_bytes() for p in mounted.rglob("*") if p.is_file()}
    assert found == expected
    drain_and_unmount(mountkit, mounted)
    assert objects(bucket) == expected


WRITER = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | (os.O_APPEND if len(sys.argv) > 2 else 0))
os.write(fd, b"half")
print("written", flush=True)
time.sleep(60)
"""


def _killed_writer(path: Path, *flags: str, number: int = signal.SIGKILL) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), *flags], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    writer.send_signal(number)
    writer.wait()
    writer.stdout.close()


@FLAGS
def test_a_writer_killed_in_a_new_file_publishes_nothing(bucket: Bucket, mountkit: CommandLine, flag: str) -> None:
    """[writing-4]"""
    mounted = _mount(bucket, mountkit, flag)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
        _killed_writer(mounted / f"new-{number}", number=number)
    (mounted / "log").write_bytes(b"closed ")
    _killed_writer(mounted / "log", "append")
    (mounted / "whole").write_bytes(b"whole")
    wait_until(lambda: objects(bucket) == {"log": b"closed half", "whole": b"whole"})
    assert (mounted / "new-9").read_bytes() == b"half"
    assert os.getxattr(mounted / "new-9", "user.mountkit.state") == b"abandoned"
    drain_and_unmount(mountkit, mounted)
    assert objects(bucket) == {"log": b"closed half", "whole": b"whole"}
    mounted = _mount(bucket, mountkit, flag)
    assert sorted(os.listdir(mounted)) == ["log", "whole"]
    lost = journal(mountkit, "SELECT lost_path FROM node WHERE abandoned = 1 ORDER BY lost_path")
    assert [path for (path,) in lost] == [b"new-11", b"new-15", b"new-9"]


def test_a_program_begun_beside_a_new_file_does_not_stop_the_mount(bucket: Bucket, mountkit: CommandLine) -> None:
    """[writing-4] execve closes the files of a caller whom nobody can look at meanwhile: we must not wait for that."""
    mounted = mountkit.mount(bucket.source, "--writable")
    status = mountkit.status(mounted)  # asked for now: nobody can look at a process that hangs in execve
    with open(mounted / "new", "wb", buffering=0) as file:
        file.write(b"half")
        child = os.posix_spawn("/bin/true", ["true"], {})
        try:
            wait_until(lambda: os.waitpid(child, os.WNOHANG) != (0, 0), seconds=10)
        except AssertionError:
            for pid in (status["keeper_pid"], status["mover_pid"], *status["server_pids"]):
                kill(pid)
            raise
        file.write(b" whole")
    drain_and_unmount(mountkit, mounted)
    assert objects(bucket) == {"new": b"half whole"}


@FLAGS
def test_an_atomic_replace_in_a_loop_shows_one_version_or_the_other(
    bucket: Bucket, mountkit: CommandLine, flag: str
) -> None:
    """[writing-3]"""
    mounted = _mount(bucket, mountkit, flag)
    target = mounted / "state.json"
    target.write_bytes(bytes([0]) * 5000)
    over = threading.Event()
    seen: list[int] = []
    troubles: list[object] = []

    def read() -> None:
        while not over.is_set():
            try:
                data = target.read_bytes()
            except OSError as exc:
                troubles.append(exc)
                continue
            if len(data) != 5000 or len(set(data)) != 1:
                troubles.append((len(data), set(data)))
            seen.append(data[0])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(1, 151):
            (mounted / "tmp").write_bytes(bytes([turn]) * 5000)
            os.replace(mounted / "tmp", target)
    finally:
        over.set()
        reader.join()
    assert not troubles
    assert len(set(seen)) > 5
    drain_and_unmount(mountkit, mounted)
    assert objects(bucket) == {"state.json": bytes([150]) * 5000}


def test_a_log_is_in_the_bucket_while_it_is_open(bucket: Bucket, mountkit: CommandLine) -> None:
    """[uploads-10]"""
    mounted = _mount(bucket, mountkit, "", "--live", "1s")
    bucket.proxy.requests.clear()
    written = b""
    started = time.monotonic()
    with (mounted / "train.log").open("ab", buffering=0) as log:
        while time.monotonic() - started < 8:
            line = f"step {len(written)}\n".encode()
            log.write(line)
            written += line
            time.sleep(0.1)
        wait_until(lambda: objects(bucket).get("train.log") == written)
    puts = [request for request in bucket.proxy.requests if request.method == "PUT"]
    assert 4 <= len(puts) <= 12


def test_a_full_staging_area_is_enospc_and_earlier_files_are_intact(bucket: Bucket, mountkit: CommandLine) -> None:
    """[writing-8]"""
    mounted = _mount(bucket, mountkit, "--no-passthrough", "--staging-size", "1MB")
    (mounted / "early").write_bytes(content(1, 200_000))
    with pytest.raises(OSError) as caught:
        with (mounted / "large").open("wb", buffering=0) as file:
            for _ in range(40):
                file.write(bytes(100_000))
    assert caught.value.errno == errno.ENOSPC
    os.unlink(mounted / "large")
    assert (mounted / "early").read_bytes() == content(1, 200_000)
    wait_until(lambda: objects(bucket) == {"early": content(1, 200_000)})
    wait_until(lambda: is_drained(mountkit))

    def takes_more() -> bool:
        try:
            (mounted / "late").write_bytes(content(2, 100_000))
        except OSError:
            return False
        return True

    wait_until(takes_more)
    drain_and_unmount(mountkit, mounted)
    assert objects(bucket) == {"early": content(1, 200_000), "late": content(2, 100_000)}


@FLAGS
def test_a_full_disk_is_enospc_and_removing_makes_room(bucket: Bucket, mountkit: CommandLine, flag: str) -> None:
    """[writing-8] The journal lies on that disk, too: it must take the removal."""
    with tmpfs(mountkit.cache, "48M"):
        mounted = _mount(bucket, mountkit, flag)
        (mounted / "early").write_bytes(content(1, 2_000_000))
        with pytest.raises(OSError) as caught:
            with (mounted / "large").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1_000_000))
        assert caught.value.errno == errno.ENOSPC
        assert (mounted / "early").read_bytes() == content(1, 2_000_000)
        os.unlink(mounted / "large")

        def takes_more() -> bool:
            with contextlib.suppress(OSError):
                (mounted / "late").write_bytes(content(2, 20_000_000))
                return True
            return False

        wait_until(takes_more)
        drain_and_unmount(mountkit, mounted)
        assert objects(bucket) == {"early": content(1, 2_000_000), "late": content(2, 20_000_000)}


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("flag", "kills"),
    [
        ("--passthrough", 6),
        pytest.param("--passthrough", 30, marks=pytest.mark.soak),
        pytest.param("--no-passthrough", 30, marks=pytest.mark.soak),
    ],
)
def test_writers_never_notice_that_processes_die(bucket: Bucket, mountkit: CommandLine, flag: str, kills: int) -> None:
    """[writing-5]"""
    mounted = _mount(bucket, mountkit, flag)
    over = threading.Event()
    expected: dict[str, bytes] = {}
    troubles: list[BaseException] = []

    def write(writer: int) -> None:
        dice = random.Random(writer)
        directory = mounted / f"w{writer}"
        try:
            directory.mkdir()
            turn = 0
            while not over.is_set():
                turn += 1
                name, data = f"f{dice.randrange(30)}", content(dice.randrange(250), dice.randrange(200_000))
                action = dice.randrange(4)
                if action == 0:
                    (directory / name).write_bytes(data)
                elif action == 1:
                    (directory / "tmp").write_bytes(data)
                    os.replace(directory / "tmp", directory / name)
                elif action == 2 and f"w{writer}/{name}" in expected:
                    os.unlink(directory / name)
                    del expected[f"w{writer}/{name}"]
                    continue
                else:
                    with (directory / name).open("ab") as file:
                        file.write(data)
                    data = expected.get(f"w{writer}/{name}", b"") + data
                expected[f"w{writer}/{name}"] = data
                assert (directory / name).read_bytes() == data
        except BaseException as exc:
            troubles.append(exc)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in writers:
        thread.start()
    dice = random.Random(kills)
    try:
        for _ in range(kills):
            status = mountkit.status(mounted)
            kill(
                dice.choice([*status["server_pids"], *status["server_pids"], status["mover_pid"], status["keeper_pid"]])
            )
            time.sleep(dice.random() * 1.5)
            wait_until(lambda: mountkit.run("status", str(mounted)).code == 0, seconds=30)
            wait_until(lambda: "recovering" not in mountkit.run("status", str(mounted)).out, seconds=30)
    finally:
        over.set()
        for thread in writers:
            thread.join(60)
    assert not troubles
    found = {str(p.relative_to(mounted)): p.read_bytes() for p in mounted.rglob("*") if p.is_file()}
    assert {k: hashlib.md5(v).hexdigest() for k, v in found.items()} == {
        k: hashlib.md5(v).hexdigest() for k, v in expected.items()
    }
    drain_and_unmount(mountkit, mounted)
    stored = {key: body for key, body in objects(bucket).items() if not key.endswith("/")}
    assert {k: hashlib.md5(v).hexdigest() for k, v in stored.items()} == {
        k: hashlib.md5(v).hexdigest() for k, v in expected.items()
    }


def test_a_second_writable_mount_of_the_same_source_is_refused(bucket: Bucket, mountkit: CommandLine) -> None:
    """[writing-9]"""
    _mount(bucket, mountkit, "")
    second = mountkit.base / "second"
    second.mkdir()
    result = mountkit.run("mount", bucket.source, str(second), "--cache", str(mountkit.cache), "--writable")
    assert result.code == 3
    assert "is mounted writable already" in result.err
    assert not [m for m in mountinfo.ours() if m.directory == str(second)]
    readable = mountkit.mount(bucket.source, name="readable")
    assert os.listdir(readable) == []


@FLAGS
def test_an_upload_refused_for_good_is_an_error_of_later_closes(
    bucket: Bucket, mountkit: CommandLine, flag: str
) -> None:
    """[uploads-7]"""
    mounted = _mount(bucket, mountkit, flag)
    bucket.proxy.fault = lambda method, _target: FORBIDDEN if method in ("PUT", "POST") else None
    (mounted / "a.txt").write_bytes(b"staged")
    wait_until(lambda: "a.txt" in " ".join(mountkit.status(mounted)["reasons"]), seconds=20)
    with pytest.raises(OSError) as caught:
        (mounted / "b.txt").write_bytes(b"more")
    assert caught.value.errno in (errno.EACCES, errno.EIO)
    fd = os.open(mounted / "c.txt", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"c")
    with pytest.raises(OSError) as caught:
        os.fsync(fd)
    assert caught.value.errno in (errno.EACCES, errno.EIO)
    with pytest.raises(OSError):
        os.close(fd)
    assert (mounted / "a.txt").read_bytes() == b"staged"
    bucket.proxy.fault = None
    assert mountkit.run("drain", str(mounted)).code == 0
    assert objects(bucket) == {"a.txt": b"staged", "b.txt": b"more", "c.txt": b"c"}
    (mounted / "d.txt").write_bytes(b"works again")


def test_no_clobber_refuses_what_somebody_else_wrote_meanwhile(bucket: Bucket, mountkit: CommandLine) -> None:
    """[uploads-9]"""
    bucket.put("shared", b"first")
    mounted = _mount(bucket, mountkit, "", "--no-clobber")
    (mounted / "mine").write_bytes(b"one")
    os.replace(mounted / "mine", mounted / "other")
    (mounted / "other").write_bytes(b"two")
    wait_until(lambda: objects(bucket).get("other") == b"two", seconds=20)
    with (mounted / "shared").open("ab") as file:
        bucket.put("shared", b"somebody else's")
        file.write(b" mine")
    wait_until(lambda: "shared" in " ".join(mountkit.status(mounted)["reasons"]), seconds=20)
    assert objects(bucket)["shared"] == b"somebody else's"
    assert (mounted / "shared").read_bytes() == b"first mine"
