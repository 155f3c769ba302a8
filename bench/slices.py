"""Short slices in turns, of two kinds, and what they say: the machine's slow and fast spells are then in both kinds.

| with |without|without| with | with |without| ...        each two make a pair
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

RESAMPLES: Final = 10_000


def turns(pairs: int) -> Iterator[bool]:
    """The order of the slices: whether each is one with what is measured."""
    for number in range(pairs):
        yield from (False, True) if number % 2 else (True, False)


def resampled(count: int, seed: int = 1, resamples: int = RESAMPLES) -> npt.NDArray[np.int64]:
    """For a bootstrap over so many pairs: which of them each resample has; of shape [resamples, count]."""
    return np.random.default_rng(seed).integers(0, count, (resamples, count))


def interval(estimates: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Where an estimate lies with 95 %, by what the resamples gave."""
    low, high = np.percentile(estimates, [2.5, 97.5])
    return float(low), float(high)
