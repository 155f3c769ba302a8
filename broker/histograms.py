"""Histograms of times: cheap to add to, and the same everywhere.

The bounds double, from 5 us to 10.5 s, so that the place of a time is the length of a number in bits:

    up to   5 us  10 us  20 us  40 us ... 5.2 s  10.5 s  and what is longer
            0     1      2      3         20     21      22
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

FIRST_NS: Final = 5_000
BUCKETS: Final = 23
"""Of a histogram, with the last one, which has no bound."""
BOUNDS_S: Final = tuple(FIRST_NS * 2**index / 1e9 for index in range(BUCKETS - 1))
_FIRST_NS, _LAST = FIRST_NS, BUCKETS - 1
_SUM_MAX_NS: Final = (1 << 63) - 1
"""Where a sum stops that would not fit 64 bits."""


class Histogram:
    """How often times of each length came.

    Attributes:
        sum_ns: of all times.
    """

    __slots__ = ("_added", "_observed", "sum_ns")

    def __init__(self) -> None:
        if not cython.compiled:
            # Compiled they are numbers, and no objects, and 0 to begin with.
            self._observed = [0] * BUCKETS
        # What others have told, which is not bounded.
        self._added = [0] * BUCKETS
        self.sum_ns = 0

    @property
    def counts(self) -> list[int]:
        """For each bucket, how many times were in it and not in one before."""
        return [self._observed[index] + self._added[index] for index in range(BUCKETS)]

    def observe(self, time_ns: int, weight: int = 1) -> None:
        """Adds a time, as often as `weight` says; one below 0 counts as 0."""
        if time_ns < 0:
            time_ns = 0
        rest, index = (time_ns - 1) // _FIRST_NS, 0
        while rest > 0 and index < _LAST:
            rest >>= 1
            index += 1
        self._observed[index] += weight
        self.sum_ns += time_ns * weight

    def add(self, counts: Sequence[int], sum_ns: int) -> None:
        """Adds what another histogram has."""
        self._added = [mine + theirs for mine, theirs in zip(self._added, counts, strict=True)]
        # Who reports may report anything, again and again.
        self.sum_ns = min(self.sum_ns + sum_ns, _SUM_MAX_NS)

    def take(self) -> tuple[list[int], int]:
        """The counts and the sum; from here on it is empty."""
        taken = self.counts, self.sum_ns
        self._added, self.sum_ns = [0] * BUCKETS, 0
        for index in range(BUCKETS):
            self._observed[index] = 0
        return taken

    @property
    def total(self) -> int:
        """How many times there were."""
        return sum(self.counts)

    def __repr__(self) -> str:
        return f"<Histogram total={self.total} sum_ns={self.sum_ns}>"
