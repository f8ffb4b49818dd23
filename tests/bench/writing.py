"""Writing measured: `python -m tests.bench.writing`, into a mount of a SeaweedFS on this machine.

Each work is done once a round by everybody in turn; the medians are shown. `served` is mountkit without passthrough,
`disk` the file system that the mounts stage on. `upload` ends when the bucket has everything; `mountkit push`, s5cmd
and rclone do that, too. What is written is uploaded meanwhile, on the same cores. ext4 is slow to make files where many
were deleted in the minutes before: `--dir` on a file system made for it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.bench.mounters import drop_page_cache
from tests.servers import SeaweedServer

_BUCKET = "bench"
_SMALL_BYTES, _BLOCK_BYTES, _PAGE_BYTES, _WRITERS, _WARM_BYTES = 20_000, 1 << 20, 4096, 4, 2 << 30
_RCLONE = ["--transfers", "16", "--s3-upload-concurrency", "8", "--s3-no-check-bucket", "--retries", "1"]
_MOUNTKIT = [sys.executable, "-m", "mountkit"]
_S3FS = "passwd_file={base}/password,url={url},use_path_request_style,use_cache={cache}"


class Writers:
    """Who is compared, over one server and one directory to work in."""

    def __init__(self, server: SeaweedServer, base: Path) -> None:
        self.server, self.base = server, base
        self._prefixes = itertools.count()
        keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        remote = {"TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": server.endpoint, "ENV_AUTH": "true"}
        rclone = {f"RCLONE_CONFIG_STORE_{name}": value for name, value in remote.items()}
        self.environment = {**os.environ, **keys, **rclone, "AWS_REGION": "us-east-1", "XDG_RUNTIME_DIR": str(base)}
        password = base / "password"
        password.write_text(f"{server.access_key}:{server.secret_key}\n")
        password.chmod(0o600)

    @contextlib.contextmanager
    def directory(self, who: str) -> Iterator[Path]:
        """A fresh directory to write to, and nothing of it left afterwards; in the bucket there was nothing, either."""
        at, cache = self.base / f"at-{who}", self.base / f"cache-{who}"
        for each in (at, cache):
            each.mkdir()
        try:
            if who == "disk":
                yield at
            elif who == "s3fs":
                options = _S3FS.format(base=self.base, url=self.server.endpoint, cache=cache)
                self.run("s3fs", _BUCKET, at, "-o", options)
                yield at
                self.run("umount", at)
            else:
                self.mountkit(
                    "mount",
                    f"s3://{_BUCKET}/{who}-{next(self._prefixes)}",
                    at,
                    "--writable",
                    "--cache",
                    cache,
                    *self.flags(who),
                )
                yield at
                self.mountkit("unmount", at)
        finally:
            shutil.rmtree(cache)
            shutil.rmtree(at)

    def flags(self, who: str) -> list[str]:
        return ["--endpoint", self.server.endpoint, *(["--no-passthrough"] if who == "served" else [])]

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far: of the store's server, of mountkit's processes by kind, of commands that ended."""
        times = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = {"store": _cpu_of(psutil.Process(self.server.pid)), "commands": times.ru_utime + times.ru_stime}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if words[:2] == [sys.executable, "-I"]:
                    found[words[3].rpartition("mountkit.")[2]] = _cpu_of(process)
        return found

    def mountkit(self, *words: object) -> None:
        self.run(*_MOUNTKIT, *words)

    def run(self, *words: object) -> None:
        """Raises CalledProcessError, with what the program said on the terminal."""
        subprocess.run([str(word) for word in words], env=self.environment, check=True, stdout=subprocess.DEVNULL)


def _cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def warm_memory() -> None:
    """Takes memory and lets it go: what a virtual machine's host had taken back, the next writer would pay for."""
    bytearray(_WARM_BYTES)


def small(directory: Path, count: int) -> float:
    """Files created, written, closed; files/s."""
    data = random.Random(1).randbytes(_SMALL_BYTES)
    began = time.perf_counter()
    for number in range(count):
        with open(f"{directory}/{number}", "wb", buffering=0) as file:
            file.write(data)
    return count / (time.perf_counter() - began)


def small_at_once(directory: Path, count: int) -> float:
    """The same by four processes, each in a directory of its own; files/s of all."""
    begin, end = multiprocessing.Barrier(_WRITERS + 1), multiprocessing.Barrier(_WRITERS + 1)

    def write(mine: Path) -> None:
        begin.wait()
        small(mine, count // _WRITERS)
        end.wait()

    writers = []
    for number in range(_WRITERS):
        (directory / f"of-{number}").mkdir()
        writers.append(multiprocessing.Process(target=write, args=[directory / f"of-{number}"]))
        writers[-1].start()
    begin.wait()
    began = time.perf_counter()
    end.wait()
    seconds = time.perf_counter() - began
    for writer in writers:
        writer.join()
    return count // _WRITERS * _WRITERS / seconds


def sequential(directory: Path, count: int) -> float:
    """A new file in blocks of 1 MiB, until it is closed; MB/s."""
    return _write_blocks(directory, random.Random(2).randbytes(_BLOCK_BYTES), count)


def sequential_again(directory: Path, count: int) -> float:
    """One file in blocks of 1 MiB, written over; MB/s."""
    block = random.Random(2).randbytes(_BLOCK_BYTES)
    _write_blocks(directory, block, count)
    return _write_blocks(directory, block, count)


def _write_blocks(directory: Path, block: bytes, count: int) -> float:
    began = time.perf_counter()
    fd = os.open(f"{directory}/large", os.O_WRONLY | os.O_CREAT)
    for _ in range(count):
        os.write(fd, block)
    os.close(fd)
    return count * _BLOCK_BYTES / 1e6 / (time.perf_counter() - began)


def scattered(directory: Path, count: int) -> float:
    """4 KiB at random places of such a file; MB/s."""
    blocks = 1024 if count > 10_000 else 256
    _write_blocks(directory, random.Random(2).randbytes(_BLOCK_BYTES), blocks)
    dice, page = random.Random(3), random.Random(4).randbytes(_PAGE_BYTES)
    places = [dice.randrange(blocks * _BLOCK_BYTES // _PAGE_BYTES) * _PAGE_BYTES for _ in range(count)]
    began = time.perf_counter()
    fd = os.open(f"{directory}/large", os.O_WRONLY)
    for place in places:
        os.pwrite(fd, page, place)
    os.close(fd)
    return count * _PAGE_BYTES / 1e6 / (time.perf_counter() - began)


WORKS: dict[str, tuple[Callable[[Path, int], float], int, str]] = {
    "small": (small, 3000, "files/s"),
    "small4": (small_at_once, 3000, "files/s"),
    "seq": (sequential, 1024, "MB/s"),
    "again": (sequential_again, 1024, "MB/s"),
    "rand": (scattered, 40_000, "MB/s"),
}


def make_tree(directory: Path, *, files: int, large_bytes: int) -> None:
    """What is uploaded: small files and a large one, of random bytes."""
    dice = random.Random(5)
    (directory / "small").mkdir(parents=True)
    for number in range(files):
        (directory / "small" / f"{number:05}").write_bytes(dice.randbytes(_SMALL_BYTES))
    with (directory / "large").open("wb") as file:
        for _ in range(large_bytes // _BLOCK_BYTES):
            file.write(dice.randbytes(_BLOCK_BYTES))


def upload(writers: Writers, who: str, tree: Path, number: int) -> tuple[float, str, dict[str, float]]:
    """Seconds until the bucket has the tree, and the CPU seconds that took."""
    target = f"s3://{_BUCKET}/upload-{number}-{who}"
    cache = writers.base / "cache-push"
    with writers.directory(who) if who in ("mountkit", "served") else contextlib.nullcontext() as directory:
        before, began = writers.cpu(), time.perf_counter()
        if directory is not None:
            writers.run("cp", "-r", tree, directory)
            writers.mountkit("drain", directory, "--cache", writers.base / f"cache-{who}")
        elif who == "push":
            writers.mountkit("push", tree, target, "--cache", cache, "--endpoint", writers.server.endpoint)
        elif who == "rclone":
            writers.run("rclone", "copy", tree, f"store:{_BUCKET}/upload-{number}-{who}", *_RCLONE)
        else:
            writers.run("s5cmd", "--endpoint-url", writers.server.endpoint, "cp", f"{tree}/", f"{target}/")
        seconds, spent = time.perf_counter() - began, _since(before, writers.cpu())
    shutil.rmtree(cache, ignore_errors=True)
    return seconds, "s", spent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.writing", description=__doc__)
    parser.add_argument("--who", default="disk,mountkit,served", help="of disk,mountkit,served,s3fs,push,s5cmd,rclone")
    parser.add_argument("--works", default="small,small4,seq,again,rand", help="of small,small4,seq,again,rand,upload")
    parser.add_argument("--rounds", type=int, default=3, help="medians are taken over so many (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one round, a quarter of each work")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure (default: a temporary one)")
    return parser.parse_args()


def main() -> None:
    given = _arguments()
    rounds, share = (1, 4) if given.quick else (given.rounds, 1)
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="mountkit-bench-", dir=given.dir) as base:
        server = SeaweedServer()
        try:
            server.create_bucket(_BUCKET)
            writers = Writers(server, Path(base))
            for number in range(rounds):
                for who, work, value, unit, spent in _round(writers, given, share, number):
                    found.setdefault((work, who), []).append(value)
                    load = psutil.getloadavg()[0]
                    cpu = ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in spent.items() if seconds >= 0.05)
                    print(f"{work:7} {who:9} {value:12,.1f} {unit:8} load {load:.1f}; CPU s: {cpu}", flush=True)
        finally:
            server.stop()
    print("\nmedians")
    for (work, who), values in found.items():
        print(f"{work:7} {who:9} {statistics.median(values):12,.1f}   of {', '.join(f'{v:,.1f}' for v in values)}")


def _round(
    writers: Writers, given: argparse.Namespace, share: int, number: int
) -> Iterator[tuple[str, str, float, str, dict[str, float]]]:
    works = given.works.split(",")
    for work in (name for name in works if name in WORKS):
        measured, count, unit = WORKS[work]
        for who in given.who.split(","):
            if who in ("push", "s5cmd", "rclone"):
                continue
            with writers.directory(who) as directory:
                warm_memory()
                before = writers.cpu()
                value = measured(directory, count // share)
                yield who, work, value, unit, _since(before, writers.cpu())
    if "upload" in works:
        tree = writers.base / "tree"
        make_tree(tree, files=5000 // share, large_bytes=(3 << 30) // share)
        for who in given.who.split(","):
            if who not in ("disk", "s3fs"):
                drop_page_cache()
                warm_memory()
                yield who, "upload", *upload(writers, who, tree, number)
        shutil.rmtree(tree)


def _since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    return {kind: seconds - before.get(kind, 0.0) for kind, seconds in now.items()}


if __name__ == "__main__":
    main()
