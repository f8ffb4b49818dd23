"""A cache disk that lies, loses, fills or fails, under a real mount: right bytes, one warning, and it heals."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine, content, drop_page_cache, wait_until

SMALL, LARGE = 150_000, 3_000_000
SOAK = pytest.mark.soak


def fill(bucket: Bucket, *, count: int = 6, first: int = 0) -> dict[str, bytes]:
    """Objects of both kinds: small ones lie in segments, large ones in files of their own."""
    numbers = range(first, first + count)
    objects = {f"d/{n:03d}": content(n, SMALL if n % 3 else LARGE) for n in numbers}
    for key, data in objects.items():
        bucket.put(key, data)
    return objects


def check(root: Path, objects: dict[str, bytes]) -> None:
    for key, data in objects.items():
        assert (root / key).read_bytes() == data, key


def cache_files(line: CommandLine) -> list[Path]:
    found = [path for folder in ("objects", "segments") for path in line.cache.rglob(f"{folder}/**/*")]
    return [path for path in found if path.is_file() and path.stat().st_size]


def state_directory(line: CommandLine, root: Path) -> Path:
    return Path(line.status(root)["state_directory"])


def until_sealed(line: CommandLine, root: Path, count: int) -> None:
    wait_until(lambda: line.status(root)["cache"].get("sealed", 0) >= count, seconds=20)


def flip(path: Path) -> None:
    """One byte in a hundred."""
    chance = random.Random(path.name)
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        for _ in range(len(data) // 100):
            data[chance.randrange(len(data))] ^= 0xFF
        file.seek(0)
        file.write(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


SPOILERS: dict[str, Callable[[Path], None]] = {"flipped": flip, "truncated": truncate, "deleted": Path.unlink}


@pytest.mark.parametrize("how", SPOILERS)
@pytest.mark.parametrize("mode", ["sealed", pytest.param("always", marks=pytest.mark.soak), "between"])
def test_spoilt_cache_files_are_found_out_and_fetched_again(
    bucket: Bucket, mountkit: CommandLine, how: str, mode: str
) -> None:
    """[bytes-1] [bytes-4]"""
    objects = fill(bucket)
    flags = ["--verify", "always"] if mode == "always" else []
    root = mountkit.mount(bucket.source, *flags)
    check(root, objects)
    native = mountkit.status(root)["passthrough"]
    if native:
        until_sealed(mountkit, root, len(objects))
    if mode == "between":
        mountkit.unmount(root)
    files = cache_files(mountkit)
    assert files
    for path in files:
        SPOILERS[how](path)
    drop_page_cache()
    if mode == "between":
        root = mountkit.mount(bucket.source, *flags)
    check(root, objects)
    check(root, objects)
    status = mountkit.status(root)
    log = Path(status["log"]).read_text()
    if mode != "always" or how != "deleted":  # what servers still hold open is right, and nothing is to be said
        assert "not what was written" in log or "were deleted" in log
    assert status["state"] == "ok", status["reasons"]
    assert status["reads"]["errors"] == 0


def test_with_verify_always_an_open_file_is_checked_too(bucket: Bucket, mountkit: CommandLine) -> None:
    """[bytes-1] Sealed files are trusted while they are open; with `--verify always` no byte ever is."""
    data = content(1, LARGE)
    bucket.put("d/f", data)
    root = mountkit.mount(bucket.source, "--verify", "always")
    assert mountkit.status(root)["passthrough"] is False
    with open(root / "d/f", "rb") as file:
        assert file.read() == data
        for path in cache_files(mountkit):
            flip(path)
        drop_page_cache()
        assert os.pread(file.fileno(), LARGE, 0) == data


def test_a_file_that_is_sealed_again_is_never_taken_for_the_spoilt_one_that_is_still_open(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    """[bytes-1] The kernel wants one backing file an inode: while the spoilt one is open, others read through us."""
    data = content(1, LARGE)
    bucket.put("d/f", data)
    root = mountkit.mount(bucket.source)
    assert mountkit.status(root)["passthrough"]
    check(root, {"d/f": data})
    until_sealed(mountkit, root, 1)
    wait_until(lambda: os.stat(root / "d/f").st_ino >> 62 == 1)
    with open(root / "d/f", "rb") as held:
        assert held.read() == data
        assert mountkit.status(root)["reads"]["passthrough_opens"] == 1
        for path in cache_files(mountkit):
            flip(path)
        check(root, {"d/f": data})
        until_sealed(mountkit, root, 1)

        def opened_again() -> bool:
            check(root, {"d/f": data})
            return mountkit.status(root)["reads"]["opens"] > 6

        wait_until(opened_again)
        drop_page_cache()
        check(root, {"d/f": data})
    wait_until(lambda: os.stat(root / "d/f").st_ino >> 62 == 1)
    check(root, {"d/f": data})
    assert mountkit.status(root)["reads"]["passthrough_opens"] > 1, "natively again, once nobody holds the spoilt one"


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(random.Random(1).randbytes(path.stat().st_size))


@pytest.mark.parametrize("name", ["catalog.db", "index.db"])
@pytest.mark.parametrize(
    "how", ["deleted", "overwritten", *(pytest.param(h, marks=SOAK) for h in ("truncated", "flipped"))]
)
def test_a_database_that_is_lost_or_spoilt_under_a_live_mount_is_begun_anew(
    bucket: Bucket, mountkit: CommandLine, name: str, how: str
) -> None:
    """[failures-7]"""
    objects = fill(bucket)
    root = mountkit.mount(bucket.source, "--ttl", "1s")
    check(root, objects)
    spoil = {"overwritten": overwrite, **SPOILERS}[how]
    for path in [p for p in state_directory(mountkit, root).iterdir() if p.name in (name, f"{name}-wal")]:
        if path.stat().st_size:
            spoil(path)
    objects |= fill(bucket, first=10)

    def works() -> bool:
        with contextlib.suppress(OSError):
            check(root, objects)
            return mountkit.status(root)["state"] == "ok"
        return False

    wait_until(works, seconds=20)
    check(root, objects)


# ---- the disk itself -----------------------------------------------------------------------------------------
@contextlib.contextmanager
def tmpfs(directory: Path, size: str) -> Iterator[None]:
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@contextlib.contextmanager
def reading(root: Path, objects: dict[str, bytes]) -> Iterator[list[str]]:
    """A reader that goes on all the while: what went wrong for him."""
    failures: list[str] = []
    ended = threading.Event()

    def read_on() -> None:
        while not ended.is_set():
            for key, data in objects.items():
                try:
                    if (root / key).read_bytes() != data:
                        failures.append(f"{key}: wrong bytes")
                except OSError as exc:
                    failures.append(str(exc))

    reader = threading.Thread(target=read_on)
    reader.start()
    try:
        yield failures
    finally:
        ended.set()
        reader.join(60)


def warnings(line: CommandLine, root: Path) -> list[str]:
    """What the mount's log warns of, without the words that tell when and who."""
    log = Path(line.status(root)["log"]).read_text()
    return [text.partition("]: ")[2] for text in log.splitlines() if " WARNING " in text or " ERROR " in text]


def assert_said_once(line: CommandLine, root: Path, cause: str) -> None:
    """One warning that the disk cannot be used, and why, however many writes it has refused; one that it can again."""
    (said,) = [text for text in warnings(line, root) if "cannot be used: " in text]
    assert cause in said
    (healed,) = [text for text in warnings(line, root) if text.endswith("works again")]
    assert warnings(line, root).index(said) < warnings(line, root).index(healed)


def is_ok(line: CommandLine, root: Path) -> Callable[[], bool]:
    return lambda: bool(line.status(root)["state"] == "ok")


def until_degraded(line: CommandLine, root: Path, *causes: str) -> None:
    """Waits until `status` says that the mount is degraded, and names one of the causes."""

    def named() -> bool:
        status = line.status(root)
        return status["state"] == "degraded" and any(cause in " ".join(status["reasons"]) for cause in causes)

    wait_until(named, seconds=15)


def test_a_disk_smaller_than_the_data_is_filled_and_used(bucket: Bucket, mountkit: CommandLine) -> None:
    """[failures-3] 64 MB for 90 MB of data: nothing is wrong with that, so nothing is said to be degraded."""
    objects = {f"d/{n}": content(n, 9_000_000) for n in range(10)}
    for key, data in objects.items():
        bucket.put(key, data)
    with tmpfs(mountkit.cache, "64M"):
        root = mountkit.mount(bucket.source)
        check(root, objects)
        check(root, objects)
        status = mountkit.status(root)
        assert status["cache"]["full"]
        assert (status["state"], status["reads"]["errors"]) == ("ok", 0)
        mountkit.unmount(root)


@contextlib.contextmanager
def kept_full(path: Path) -> Iterator[None]:
    """A file that takes every byte its disk has, also those that are given back meanwhile; gone at the end."""
    end = threading.Event()

    def fill_up() -> None:
        with open(path, "wb", buffering=0) as file:
            for size in itertools.chain([65536], itertools.repeat(4096)):
                with contextlib.suppress(OSError):
                    while not end.is_set() and file.write(bytes(size)) == size:
                        pass
                started.set()
                if end.wait(0.02):
                    return

    started = threading.Event()
    filler = threading.Thread(target=fill_up)
    filler.start()
    try:
        assert started.wait(30)
        yield
    finally:
        end.set()
        filler.join()
        path.unlink()


@pytest.mark.parametrize("catalog", ["kept", "deleted"])
def test_a_disk_that_others_fill_is_said_and_used_again_when_there_is_room(
    bucket: Bucket, mountkit: CommandLine, catalog: str
) -> None:
    """[failures-3] [failures-10] Full to the last byte, so that not even the catalog finds room."""
    objects = fill(bucket)
    with tmpfs(mountkit.cache, "64M"):
        root = mountkit.mount(bucket.source, "--ttl", "1s")
        check(root, objects)
        state = state_directory(mountkit, root)
        with reading(root, objects) as failures:
            with kept_full(mountkit.cache / "of-others"):
                if catalog == "deleted":
                    for name in ("catalog.db", "catalog.db-wal"):
                        (state / name).unlink(missing_ok=True)
                more = {f"e/{n}": content(n, SMALL) for n in range(40)}
                for key, data in more.items():
                    bucket.put(key, data)
                assert mountkit.run("refresh", str(root)).code == 0
                check(root, more)
                until_degraded(mountkit, root, "full", "No space left")
            wait_until(is_ok(mountkit, root), seconds=25)
        check(root, objects | more)
        assert failures == []
        mountkit.unmount(root)


def test_a_disk_that_becomes_read_only_is_said_and_used_again(bucket: Bucket, mountkit: CommandLine) -> None:
    """[failures-3] [failures-10] As a file system does that met an error of its own."""
    objects = fill(bucket)
    with broken_disk(mountkit.base, mountkit.cache) as control:
        root = mountkit.mount(bucket.source, "--ttl", "1s")
        check(root, objects)
        with reading(root, objects) as failures:
            control.write_text("read-only")
            objects2 = fill(bucket, first=20, count=3)
            assert mountkit.run("refresh", str(root)).code == 0
            check(root, objects2)
            until_degraded(mountkit, root, "Read-only")
            control.unlink()
            wait_until(is_ok(mountkit, root), seconds=25)
        check(root, objects | objects2)
        assert failures == []
        assert_said_once(mountkit, root, "Read-only file system")
        mountkit.unmount(root)


@contextlib.contextmanager
def broken_disk(base: Path, directory: Path) -> Iterator[Path]:
    """A disk at `directory` that fails while the file that is yielded says what fails."""
    backing, control = base / "backing", base / "control"
    backing.mkdir(mode=0o700)
    directory.mkdir(mode=0o700)
    command = [sys.executable, "-m", "tests.faults.broken_disk", str(backing), str(directory), str(control)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as disk:
        assert disk.stdout is not None
        assert disk.stdout.readline() == b"ready\n"
        try:
            yield control
        finally:
            control.unlink(missing_ok=True)
            subprocess.run(["umount", "-l", directory], check=True)
            disk.wait(20)


@pytest.mark.parametrize("what", ["write", "read", "read write"])
def test_a_disk_with_io_errors_is_said_and_used_again(bucket: Bucket, mountkit: CommandLine, what: str) -> None:
    """[failures-3] [failures-10] Without passthrough: who reads the disk natively gets the disk's own error."""
    objects = fill(bucket)
    with broken_disk(mountkit.base, mountkit.cache) as control:
        root = mountkit.mount(bucket.source, "--ttl", "1s", "--no-passthrough")
        check(root, objects)
        with reading(root, objects) as failures:
            control.write_text(what)
            drop_page_cache()
            more = fill(bucket, first=40, count=3)
            assert mountkit.run("refresh", str(root)).code == 0
            check(root, more)
            drop_page_cache()
            check(root, objects)
            until_degraded(mountkit, root, "cache")
            control.unlink()
            wait_until(is_ok(mountkit, root), seconds=25)
        check(root, objects | more)
        assert failures == []
        assert_said_once(mountkit, root, "Input/output error")
        mountkit.unmount(root)


@pytest.mark.parametrize("what", ["state directory", "cache directory"])
def test_a_removed_cache_directory_is_made_anew(bucket: Bucket, mountkit: CommandLine, what: str) -> None:
    """[failures-3] [failures-10]"""
    objects = fill(bucket)
    root = mountkit.mount(bucket.source, "--ttl", "1s")
    check(root, objects)
    before = mountkit.status(root)
    with reading(root, objects) as failures:
        _remove(Path(before["state_directory"]) if what == "state directory" else Path(mountkit.cache))
        objects2 = fill(bucket, first=30, count=3)
        wait_until(lambda: Path(before["state_directory"], "index.db").exists(), seconds=20)
        wait_until(is_ok(mountkit, root), seconds=20)
        assert mountkit.run("refresh", str(root)).code == 0
        check(root, objects2)
    check(root, objects | objects2)
    assert [text for text in failures if "ESTALE" not in text and "Stale" not in text] == []
    status = mountkit.status(root)
    assert status["cache"]["objects"] > 0, "the new directory is used"
    assert [text for text in warnings(mountkit, root) if "was removed" in text]


def _remove(directory: Path) -> None:
    """As `rm -r` of a person who says it again when files were made meanwhile."""
    for _ in range(100):
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:  # of the state directory inside, made anew and gone again
            continue
        except OSError as exc:
            if exc.errno != errno.ENOTEMPTY:
                raise
        else:
            return
    raise AssertionError(f"{directory} cannot be removed")
