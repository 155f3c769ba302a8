"""The statistics of the benchmarks: medians of repeats, ratios within a repeat."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Figures = Mapping[str, float]
"""What one run of one step has measured, by name; the unit is the end of the name."""


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
