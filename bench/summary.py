"""The statistics of the benchmarks: percentiles of samples, medians of repeats, ratios within a repeat."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

Figures = Mapping[str, float]
"""What one run of one step has measured, by name; the unit is the end of the name."""

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest sample that at least `percent` of all samples do not exceed.

    It is always a value that was measured, never an interpolation between two.

    Args:
        ordered: samples, ascending; at least one.
        percent: above 0, at most 100.
    """
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def percentiles(samples: Sequence[float], unit: str, scale: float = 1.0) -> dict[str, float]:
    """The percentiles, the maximum and the count of samples.

    Args:
        samples: at least one, in any order.
        unit: the end of the figures' names, as in `p50_us`.
        scale: what a sample is multiplied with to be in that unit.
    """
    ordered = sorted(samples)
    figures = {f"p{percent:g}_{unit}": percentile(ordered, percent) * scale for percent in PERCENTILES}
    return {**figures, f"max_{unit}": ordered[-1] * scale, "count": len(ordered)}


def medians(repeats: Sequence[Figures]) -> dict[str, float]:
    """The median over the repeats of each figure."""
    return {name: statistics.median(figures[name] for figures in repeats) for name in repeats[0]}


def ratio(name: str, repeats: Sequence[Figures | None], reference: Sequence[Figures | None]) -> float | None:
    """The median of the ratios of a figure to the reference's in the same repeat.

    Both ran within seconds of each other, so what slows the machine down for a while is in both and cancels out.

    Args:
        name: the figure.
        repeats: a contestant's figures, by repeat; None where its step failed.
        reference: as repeats.

    Returns:
        None when there is no repeat in which both succeeded.
    """
    pairs = zip(repeats, reference, strict=True)
    ratios = [ours[name] / theirs[name] for ours, theirs in pairs if ours and theirs and theirs[name]]
    return statistics.median(ratios) if ratios else None
