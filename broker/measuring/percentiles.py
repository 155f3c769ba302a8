"""Percentiles of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
RARE_PERCENT: Final = 99.9
RARE_SAMPLES_MIN: Final = 2000
"""The rarest percentile is only told when at least two samples are beyond it; else it would be the maximum."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest sample that at least `percent` of all samples do not exceed.

    It is always a value that was measured, never an interpolation between two.

    Args:
        ordered: samples, ascending; at least one.
        percent: above 0, at most 100.
    """
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def percentiles(samples: Sequence[float], unit: str, scale: float = 1.0) -> dict[str, float]:
    """The percentiles, the maximum and the count of samples; of few samples without the rarest percentile.

    Args:
        samples: at least one, in any order.
        unit: the end of the figures' names, as in `p50_us`.
        scale: what a sample is multiplied with to be in that unit.
    """
    ordered = sorted(samples)
    told = [percent for percent in PERCENTILES if percent < RARE_PERCENT or len(ordered) >= RARE_SAMPLES_MIN]
    figures = {f"p{percent:g}_{unit}": percentile(ordered, percent) * scale for percent in told}
    return {**figures, f"max_{unit}": ordered[-1] * scale, "count": len(ordered)}
