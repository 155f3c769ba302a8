"""Draws what the monitor has seen of a run: loss, step time of each rank, throughput."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

import matplotlib.pyplot as plt

Report = dict[str, Any]
WINDOW_STEPS = 15
"""Losses and step times are smoothed over so many steps."""
STYLES = ("-", "--", ":", "-.")


def draw(reports: Sequence[Report], path: Path) -> None:
    """Writes a PNG.

    Args:
        reports: of all trainers, as they were published, each with its `time_s`.
        path: of the file.
    """
    figure, (losses, times, rates) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    modes = list(dict.fromkeys(report["group"] for report in reports))
    for number, mode in enumerate(modes):
        colour = f"C{number}"
        of_mode = [report for report in reports if report["group"] == mode]
        steps, loss = _means_by_step(of_mode)
        losses.plot(steps, _smooth(np.array(loss)), STYLES[number % len(STYLES)], color=colour, label=mode)
        ranks = sorted({report["rank"] for report in of_mode})
        for rank, style in zip(ranks, STYLES * len(ranks), strict=False):
            own = [report for report in of_mode if report["rank"] == rank]
            time_ms = _smooth(np.array([report["step_time_s"] for report in own]) * 1e3)
            times.plot(
                [report["step"] for report in own],
                time_ms,
                style,
                color=colour,
                linewidth=1,
                label=f"{mode} rank {rank}",
            )
        seconds, rate = _throughput(of_mode)
        rates.plot(seconds, rate, color=colour, linewidth=1, label=mode)
    losses.set(title=f"Loss (median of {WINDOW_STEPS})", xlabel="step", ylabel="cross-entropy", yscale="log")
    times.set(title=f"Step time (median of {WINDOW_STEPS})", xlabel="step", ylabel="ms", ylim=(0, None))
    rates.set(title="Throughput, all ranks", xlabel="seconds since the mode began", ylabel="samples/s", ylim=(0, None))
    for axes in (losses, times, rates):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _means_by_step(reports: Sequence[Report]) -> tuple[list[int], list[float]]:
    by_step: dict[int, list[float]] = {}
    for report in reports:
        by_step.setdefault(report["step"], []).append(report["loss"])
    steps = sorted(by_step)
    return steps, [float(np.mean(by_step[step])) for step in steps]


def _smooth(values: np.ndarray) -> np.ndarray:
    """The running median: single slow steps, as a busy machine has them, do not hide the rest."""
    return np.array([np.median(values[max(0, end - WINDOW_STEPS) : end]) for end in range(1, len(values) + 1)])


def _throughput(reports: Sequence[Report]) -> tuple[np.ndarray, np.ndarray]:
    """Samples per second in ten slices of the time that was trained."""
    at_s = np.array([report["time_s"] for report in reports])
    at_s -= at_s.min()
    edges = np.linspace(0, max(at_s.max(), 1e-3), 11)
    samples, _ = np.histogram(at_s, edges, weights=[report["samples"] for report in reports])
    return (edges[:-1] + edges[1:]) / 2, samples / np.diff(edges)
