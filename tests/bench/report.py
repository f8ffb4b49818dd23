"""Medians of the samples, the table of them, and the targets they are held against."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.bench.runs import Sample

Key = tuple[str, str, str]
"""Work, phase, who."""
PEERS = ("rclone", "s3fs")


class Medians:
    """The median rate (and the rest) of each work, phase and mounter."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.samples: dict[Key, list[Sample]] = {}
        for sample in samples:
            self.samples.setdefault((sample.work, sample.phase, sample.who), []).append(sample)

    def rate(self, work: str, phase: str, who: str = "mountkit") -> float | None:
        found = self.samples.get((work, phase, who))
        return statistics.median(sample.rate for sample in found) if found else None

    def seconds(self, work: str, phase: str, who: str = "mountkit") -> float | None:
        found = self.samples.get((work, phase, who))
        return statistics.median(sample.seconds for sample in found) if found else None

    def memory(self, work: str, phase: str, who: str) -> float | None:
        found = self.samples.get((work, phase, who))
        return max(sample.pss_mb for sample in found) if found else None

    def best_peer(self, work: str, phase: str) -> float | None:
        return max((rate for who in PEERS if (rate := self.rate(work, phase, who)) is not None), default=None)

    def cpu_per_gb(self, work: str, phase: str, who: str) -> float | None:
        found = [sample for sample in self.samples.get((work, phase, who), []) if sample.bytes_read]
        return statistics.median(sample.cpu_s / sample.bytes_read * 1e9 for sample in found) if found else None

    def fetched_per_byte(self, work: str, phase: str, who: str = "mountkit") -> float | None:
        found = [sample for sample in self.samples.get((work, phase, who), []) if sample.bytes_read]
        return statistics.median(sample.requests["bytes"] / sample.bytes_read for sample in found) if found else None


def table(medians: Medians) -> str:
    """A Markdown table of the median rates, with the range where there was more than one round."""
    columns = [
        who for who in ("mountkit", "rclone", "s3fs", "s5cmd", "disk") if any(key[2] == who for key in medians.samples)
    ]
    lines = [f"| work | phase | unit | {' | '.join(columns)} |", f"|---|---|---|{'---:|' * len(columns)}"]
    rows = dict.fromkeys((work, phase) for work, phase, _ in medians.samples)
    for work, phase in rows:
        units = {s.unit for key, found in medians.samples.items() if key[:2] == (work, phase) for s in found}
        cells = [_cell(medians.samples.get((work, phase, who), [])) for who in columns]
        lines.append(f"| {work} | {phase} | {'/'.join(sorted(units))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(samples: list[Sample]) -> str:
    if not samples:
        return ""
    values = sorted(sample.seconds if sample.unit == "s" else sample.rate for sample in samples)
    middle = f"{statistics.median(values):,.4g}" if values[-1] < 1000 else f"{statistics.median(values):,.0f}"
    return middle if len(values) == 1 else f"{middle} ({values[0]:,.4g}-{values[-1]:,.4g})"


@dataclass(frozen=True)
class Target:
    """`measured`: the figure to hold against `bound`, None if the run has not what it takes."""

    what: str
    bound: float
    measured: Callable[[Medians], float | None]
    at_most: bool = False

    def line(self, medians: Medians) -> str:
        value = self.measured(medians)
        sign = "≤" if self.at_most else "≥"
        if value is None:
            return f"| {self.what} | {sign} {self.bound:g} | not measured | |"
        met = value <= self.bound if self.at_most else value >= self.bound
        return f"| {self.what} | {sign} {self.bound:g} | {value:.3g} | {'yes' if met else '**no**'} |"


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def _to_peer(work: str, phase: str) -> Callable[[Medians], float | None]:
    return lambda m: _ratio(m.rate(work, phase), m.best_peer(work, phase))


def _to(
    work: str, phase: str, who: str, *, their_work: str = "", their_phase: str = ""
) -> Callable[[Medians], float | None]:
    return lambda m: _ratio(m.rate(work, phase), m.rate(their_work or work, their_phase or phase, who))


def _time(work: str, phase: str) -> Callable[[Medians], float | None]:
    """Our time over the best peer's, for works of the same size."""
    return lambda m: _ratio(m.best_peer(work, phase), m.rate(work, phase))


def _cpu(work: str) -> Callable[[Medians], float | None]:
    return lambda m: _ratio(m.cpu_per_gb(work, "cold", "mountkit"), m.cpu_per_gb(work, "cold", "rclone"))


TARGETS = (
    Target("img, first epoch / best peer", 10, _to_peer("img", "cold")),
    Target("img, first epoch / s5cmd", 1.0, _to("img", "cold", "s5cmd")),
    Target("img with a given order / s5cmd", 1.2, _to("img-order", "cold", "s5cmd", their_work="img")),
    Target("imgseq, cold / best peer", 10, _to_peer("imgseq", "cold")),
    Target("img, second epoch / best peer", 10, _to_peer("img", "again")),
    Target(
        "img, third epoch / best peer's second",
        15,
        lambda m: _ratio(m.rate("img", "third"), m.best_peer("img", "again")),
    ),
    Target("img, third epoch / disk", 0.8, _to("img", "third", "disk", their_phase="again")),
    Target("img, warm / best peer", 5, _to_peer("img", "warm")),
    Target("img, warm / disk", 0.7, _to("img", "warm", "disk")),
    Target("seq, cold / best peer", 2, _to_peer("seq", "cold")),
    Target("seq, cold / s5cmd", 0.9, _to("seq", "cold", "s5cmd")),
    Target("seqpar, cold / best peer", 2, _to_peer("seqpar", "cold")),
    *(
        Target(f"{work}, {'page cache dropped' if phase == 'again' else 'warm'} / disk", 0.95, _to(work, phase, "disk"))
        for work in ("seq", "seqpar", "rand")
        for phase in ("again", "warm")
    ),
    Target("rand, cold / best peer", 1.5, _to_peer("rand", "cold")),
    Target("rand, bytes fetched for a byte read", 10, lambda m: m.fetched_per_byte("rand", "cold"), at_most=True),
    Target("rand1, cold / best peer", 1.5, _to_peer("rand1", "cold")),
    Target("rand1, bytes fetched for a byte read", 10, lambda m: m.fetched_per_byte("rand1", "cold"), at_most=True),
    Target("walk, time / best peer's", 0.5, _time("walk", "cold"), at_most=True),
    Target("walkm, time / best peer's", 0.25, _time("walkm", "cold"), at_most=True),
    Target(
        "walkm, memory / rclone's",
        0.25,
        lambda m: _ratio(m.memory("walkm", "cold", "mountkit"), m.memory("walkm", "cold", "rclone")),
        at_most=True,
    ),
    Target("walkm after a remount, s", 6, lambda m: m.seconds("walkm", "remounted"), at_most=True),
    Target("ls, cold / best peer", 5, _to_peer("ls", "cold")),
    Target("img, GETs a file", 1.05, lambda m: _per_file(m, "get"), at_most=True),
    Target("img, HEADs a directory", 2, lambda m: _per_file(m, "head", 20), at_most=True),
    Target("bill: bytes fetched for a byte read", 4, lambda m: m.rate("bill", "cold"), at_most=True),
    *(Target(f"{work}, CPU seconds a GB / rclone's", 1.0, _cpu(work), at_most=True) for work in ("img", "seq")),
)


def _per_file(medians: Medians, kind: str, count: int = 0) -> float | None:
    found = [s for s in medians.samples.get(("img", "cold", "mountkit"), []) if s.requests and s.progress]
    values = [sample.requests[kind] / (count or sample.progress[-1][1]) for sample in found]
    return statistics.median(values) if values else None


def targets(medians: Medians) -> str:
    """A Markdown table of the targets, what was measured, and whether it is enough."""
    lines = ["| what | target | measured | met |", "|---|---:|---:|---|"]
    return "\n".join([*lines, *(target.line(medians) for target in TARGETS)])
