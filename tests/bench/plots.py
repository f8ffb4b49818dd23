"""Plots of a run as PNG: throughput of each work, the first epoch over time. They need matplotlib (extra `bench`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench.report import Medians

_COLOURS = {"mountkit": "#d1495b", "rclone": "#66a182", "s3fs": "#edae49", "s5cmd": "#777777", "disk": "#bbbbbb"}


def throughput(medians: Medians, path: Path) -> None:
    """A panel for each work and phase: bars of the medians, from zero."""
    plt = _pyplot()
    rows = [key for key in dict.fromkeys(k[:2] for k in medians.samples) if len(_of(medians, *key)) > 1]
    columns = 5
    height = -(-len(rows) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(3.0 * columns, 2.3 * height), squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, (work, phase) in zip(axes.flat, rows, strict=False):
        rates = _of(medians, work, phase)
        axis.bar(list(rates), list(rates.values()), color=[_COLOURS[who] for who in rates])
        unit = medians.samples[work, phase, next(iter(rates))][0].unit
        axis.set_title(f"{work}, {phase}: {unit}", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def first_epoch(medians: Medians, path: Path) -> None:
    """Files read by time, of the first round."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(8, 4.5))
    for (work, phase, who), samples in medians.samples.items():
        if work in ("img", "img-order") and phase == "cold" and samples[0].progress:
            label = who if work == "img" else "mountkit, order given"
            times, counts = zip((0.0, 0), *samples[0].progress, strict=True)
            style = "--" if work == "img-order" else "-"
            axis.plot(times, counts, style, color=_COLOURS[who], label=label)
    copied = medians.seconds("img", "cold", "s5cmd")
    files = max((s.progress[-1][1] for found in medians.samples.values() for s in found if s.progress), default=0)
    if copied and files:
        axis.plot([0, copied], [0, files], ":", color=_COLOURS["s5cmd"], label="s5cmd, a copy to disk")
    axis.set(xlabel="seconds", ylabel="files read", title="First epoch, shuffled, nothing cached")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _of(medians: Medians, work: str, phase: str) -> dict[str, float]:
    rates = {who: medians.rate(work, phase, who) for who in _COLOURS}
    return {who: rate for who, rate in rates.items() if rate}


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt
