"""The benchmark's command line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.bench import data, mounters, report, runs
from tests.bench.endpoint import Endpoint, NotInstalledError

_FILES, _QUICK_FILES = 20_000, 4_000


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--peers", default="", help="which of s3fs,rclone,s5cmd run beside mountkit (default: none)")
    parser.add_argument("--works", default="", help="only these, of img,imgseq,seq,seqpar,rand,rand1,walk,ls,walkm,own")
    parser.add_argument("--rounds", type=int, default=3, help="medians are taken over so many (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one round, a fifth of the files, not all works")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="time to the first byte (default: 20)")
    parser.add_argument("--rate", default="90m", help="bandwidth of a connection, in bytes/s (default: 90m; 0: any)")
    parser.add_argument("--data", type=Path, help="where the served data lie or are made (default: below --dir)")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure (default: a temporary one)")
    parser.add_argument("--report", type=Path, nargs="+", help="measure nothing: tables and plots of these .json files")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="prefix of the .json and .png files written")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    if given.report:
        found = [json.loads(path.read_text()) for path in given.report]
        _show_all(given, [runs.Sample(**sample) for one in found for sample in one["samples"]])
        return 0
    if os.getuid() != 0:
        print("error: the benchmark drops the page cache, which takes root", file=sys.stderr)
        return 2
    peers = [name for name in given.peers.split(",") if name]
    try:
        mounters.require(["mountkit", *peers])
        with tempfile.TemporaryDirectory(prefix="mountkit-bench-", dir=given.dir) as base:
            samples = _run(given, peers, Path(base))
    except NotInstalledError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    _write(given, samples)
    return 0


def _run(given: argparse.Namespace, peers: list[str], base: Path) -> list[runs.Sample]:
    files = _QUICK_FILES if given.quick else _FILES
    root = given.data or base / "data"
    root.mkdir(parents=True, exist_ok=True)
    files = data.ensure(root, images=files)
    works = [w for w in runs.works(files, quick=given.quick) if not given.works or w.name in given.works.split(",")]
    samples: list[runs.Sample] = []
    with Endpoint(root, delay_ms=given.delay_ms, rate=given.rate) as endpoint:
        bench = runs.Bench(endpoint, root, base, files=files)
        for _ in range(1 if given.quick else given.rounds):
            for work in works:
                for who in ("mountkit", *peers, "disk"):
                    for sample in bench.measure(work, who):
                        _show(sample)
                        samples.append(sample)
            if not given.works or "own" in given.works:
                for sample in bench.own():
                    _show(sample)
                    samples.append(sample)
            runs.clean(base)
    return samples


def _show(sample: runs.Sample) -> None:
    rate = f"{sample.rate:,.1f} {sample.unit}" if sample.unit != "s" else ""
    cost = f"cpu {sample.cpu_s:6.2f} s  {sample.pss_mb:4.0f} MB  {sample.requests or ''}  load {os.getloadavg()[0]:.1f}"
    print(f"{sample.work:10} {sample.phase:9} {sample.who:8} {rate:>22} {sample.seconds:8.2f} s  {cost}", flush=True)


def _write(given: argparse.Namespace, samples: list[runs.Sample]) -> None:
    machine = {"cores": os.cpu_count(), "kernel": platform.release(), "delay_ms": given.delay_ms, "rate": given.rate}
    path = given.out.with_suffix(".json")
    path.write_text(json.dumps({"machine": machine, "samples": [asdict(sample) for sample in samples]}, indent=1))
    print(f"\n{path}")
    _show_all(given, samples)


def _show_all(given: argparse.Namespace, samples: list[runs.Sample]) -> None:
    medians = report.Medians(samples)
    print(f"\n{report.table(medians)}\n\n{report.targets(medians)}\n")
    try:
        from tests.bench import plots

        plots.throughput(medians, given.out.with_name(f"{given.out.name}-works.png"))
        plots.first_epoch(medians, given.out.with_name(f"{given.out.name}-epoch.png"))
    except ImportError:
        print("no plots: they need matplotlib, `pip install 'mountkit[bench]'`")


if __name__ == "__main__":
    sys.exit(main())
