"""What is measured: each work with its phases through each mounter, once a round; and what only one mounter can do.

A phase is `cold` (fresh processes, empty cache, page cache dropped), `again` and `third` (page cache dropped: from the
mounter's disk cache), or `warm` (page cache kept). `disk` is the same data as plain files, `s5cmd` a copy to disk.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import data
from tests.bench.endpoint import Endpoint
from tests.bench.mounters import Mount, copy, drop_page_cache, environment

_REPOSITORY = Path(__file__).parents[2]
_PAUSE_S = 1.0
_WORK_S = 1800.0
_BILLED_FILES = 100
_AHEAD = 512


@dataclass(frozen=True)
class Work:
    """`count`: files or reads; `peer_count`: the same for a peer, whose rate does not change over an epoch."""

    name: str
    bucket: str
    phases: tuple[str, ...]
    kind: str = ""
    count: int = 1000
    peer_count: int = 1000
    workers: int = 8
    copied: str = ""
    copy_flags: str = ""
    on_disk: bool = True
    not_by: tuple[str, ...] = ()
    """Peers that take hours for it."""


def works(files: int, *, quick: bool) -> list[Work]:
    """The works of a run; `quick` leaves out the million keys and shortens the rest."""
    peers = min(files, 400 if quick else 1500)
    reads = 400 if quick else 1000
    every = ("cold", "again", "warm")
    found = [
        Work("img", "images", ("cold", "again", "third", "warm"), count=files, peer_count=peers, copied="*"),
        Work("imgseq", "images", ("cold",), count=files, peer_count=peers),
        Work("seq", "large", every, copied="shard-1g.bin", copy_flags="-c 32 -p 8"),
        Work("seqpar", "large", every),
        Work("rand", "large", every, count=reads, peer_count=reads),
        Work("rand1", "large", ("cold",), kind="rand", count=reads // 4, peer_count=reads // 4, workers=1),
        Work("walk", "images", every),
        Work("ls", "flat", ("cold", "again", "warm"), on_disk=False, not_by=("s3fs",)),
        Work("walkm", "million", ("cold", "again"), kind="walk", on_disk=False, not_by=("s3fs",)),
    ]
    return [work for work in found if not (quick and work.name in ("walkm", "seqpar", "rand1"))]


@dataclass
class Sample:
    """One measurement."""

    work: str
    phase: str
    who: str
    rate: float
    unit: str
    seconds: float
    cpu_s: float = 0.0
    pss_mb: float = 0.0
    bytes_read: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    progress: list[tuple[float, int]] = field(default_factory=list)


class Bench:
    """One endpoint, one directory to work in."""

    def __init__(self, endpoint: Endpoint, root: Path, base: Path, *, files: int) -> None:
        self._endpoint, self._root, self._base, self._files = endpoint, root, base, files

    def measure(self, work: Work, who: str) -> Iterator[Sample]:
        """The work's phases through one mounter, `disk` or `s5cmd`."""
        if who in work.not_by:
            return
        if who == "s5cmd":
            if work.copied:
                yield self._copied(work)
        elif who == "disk":
            if work.on_disk:
                yield from self._on_disk(work)
        else:
            yield from self._mounted(work, who)

    def _mounted(self, work: Work, who: str) -> Iterator[Sample]:
        count = work.count if who == "mountkit" else work.peer_count
        drop_page_cache()
        with Mount(who, work.bucket, self._endpoint.url, self._base) as mount:
            for phase in work.phases:
                self._prepare(phase)
                yield self._timed(work, phase, mount, count)
        if work.name == "walkm" and who == "mountkit":
            with Mount(who, work.bucket, self._endpoint.url, self._base, keep=True, flags=("--ttl", "1h")) as mount:
                yield self._timed(work, "remounted", mount, count)

    def _prepare(self, phase: str) -> None:
        if phase in ("again", "third"):
            time.sleep(_PAUSE_S)
            drop_page_cache()

    def _timed(self, work: Work, phase: str, mount: Mount, count: int) -> Sample:
        self._endpoint.reset()
        before = mount.cost()
        result = self._run(work, mount.directory, count)
        after = mount.cost()
        return Sample(
            work.name,
            phase,
            mount.who,
            result["rate"],
            result["unit"],
            result["seconds"],
            round(after.cpu_s - before.cpu_s, 2),
            round(after.pss_mb, 1),
            result["bytes"],
            asdict(self._endpoint.counts()),
            result.get("progress", []),
        )

    def _on_disk(self, work: Work) -> Iterator[Sample]:
        directory = self._root / work.bucket
        for phase in ("again", "warm"):
            self._prepare(phase)
            result = self._run(work, directory, work.count)
            yield Sample(work.name, phase, "disk", result["rate"], result["unit"], result["seconds"])

    def _copied(self, work: Work) -> Sample:
        drop_page_cache()
        seconds = copy(work.bucket, work.copied, self._endpoint.url, self._base, flags=work.copy_flags)
        done, unit = (self._files, "files/s") if work.copied == "*" else (data.LARGE_BYTES / 1e6, "MB/s")
        return Sample(work.name, "cold", "s5cmd", round(done / seconds, 2), unit, round(seconds, 3))

    def _run(self, work: Work, directory: Path, count: int) -> dict[str, Any]:
        options = {"--count": count, "--workers": work.workers, "--total": self._files}
        words = [word for option, value in options.items() for word in (option, str(value))]
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.work", work.kind or work.name, str(directory), *words],
            cwd=_REPOSITORY,
            capture_output=True,
            text=True,
            timeout=_WORK_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{work.name} failed on {directory}: {done.stderr[-500:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    # ---- what only mountkit has, or promises ---------------------------------------------------------------
    def own(self) -> Iterator[Sample]:
        """An epoch whose order is known; the bill of a few files; the first byte; a mount at rest."""
        yield self._ordered()
        yield from self._first_bytes()
        yield self._idle()

    def _ordered(self) -> Sample:
        order = self._base / "order.txt"
        order.write_text("".join(f"{key}\n" for key in data.image_keys(self._files, order="shuffled")))
        url = self._endpoint.url
        work = Work("img-order", "images", (), kind="img", count=self._files)
        drop_page_cache()
        with Mount("mountkit", "images", url, self._base) as mount:
            words = ["mountkit", "warm", str(mount.directory), "--order", str(order), "--ahead", str(_AHEAD)]
            with (self._base / "warm.log").open("wb") as log:
                warm = subprocess.Popen(words, env=environment(url), stdout=log, stderr=log)
            try:
                return self._timed(work, "cold", mount, self._files)
            finally:
                warm.terminate()
                warm.wait()

    def _first_bytes(self) -> Iterator[Sample]:
        """The first file of a fresh mount; then a hundred random files: what was fetched for them, and for how long."""
        keys = random.Random(9).sample(data.image_keys(self._files, order="listed"), _BILLED_FILES)
        drop_page_cache()
        with Mount("mountkit", "images", self._endpoint.url, self._base) as mount:
            self._endpoint.reset()
            began = time.perf_counter()
            with (mount.directory / keys[0]).open("rb") as file:
                file.read(1)
            yield Sample("first byte", "cold", "mountkit", 0, "s", round(time.perf_counter() - began, 4))
            size = sum(len((mount.directory / key).read_bytes()) for key in keys)
            time.sleep(2.0)
            at_two = self._endpoint.counts()
            time.sleep(3.0)
            counts = self._endpoint.counts()
            ratio = counts.bytes / size
            requests = {**asdict(counts), "after 2 s": counts.get - at_two.get}
            yield Sample("bill", "cold", "mountkit", round(ratio, 2), "bytes/byte", 0, 0, 0, size, requests)

    def _idle(self) -> Sample:
        """CPU and requests of a mount that nobody uses, over ten seconds."""
        with Mount("mountkit", "images", self._endpoint.url, self._base) as mount:
            (mount.directory / data.image_key(0)).read_bytes()
            time.sleep(5.0)
            self._endpoint.reset()
            before = mount.cost()
            time.sleep(10.0)
            used = mount.cost().cpu_s - before.cpu_s
            counts = asdict(self._endpoint.counts())
            return Sample("idle", "warm", "mountkit", round(used, 3), "CPU s", 10.0, round(used, 3), 0, 0, counts)


def clean(base: Path) -> None:
    """Removes what the run has left in its directory."""
    for path in base.glob("cache-*"):
        shutil.rmtree(path, ignore_errors=True)
