"""How long to wait for the last ranks, learned from how long they have taken.

A lag is the time from the first whole contribution of an operation to a later one, of whatever rank, also of one that
came too late. Of the last 256 lags:

    wait = median + 8 * (median distance from the median), and at least 1 ms more than the median

Both medians are of the middle of the crowd: up to half of the ranks may be late, by any time, without a change of the
wait. When all get slower it follows within a few operations.

The spread is the median absolute deviation of F. R. Hampel, "The influence curve and its role in robust estimation",
Journal of the American Statistical Association, 1974.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

LAGS_KEPT: Final = 256
"""A few dozen operations of a small group: long enough for a steady median, short enough to follow a job."""
LAGS_MIN: Final = 8
"""Before so many are known, nothing is."""
FIRST_WAIT_NS: Final = 1_000_000_000
"""Until then. First steps compile, load and fill caches, and are late for reasons that do not come again."""
SPREADS: Final = 8
"""Of a normal distribution the spread is two thirds of a standard deviation, so these are five of those."""
MARGIN_NS: Final = 1_000_000
"""What a scheduler may take to run a process that is ready: lags that are all alike leave no room for it."""
REFRESH: Final = 8
"""So many new lags make it worth to look at all of them again."""


class Deadlines:
    """Lags of the ranks in, the time to wait out."""

    __slots__ = ("_lags_ns", "_new", "_wait_ns")

    def __init__(self) -> None:
        self._lags_ns: deque[int] = deque(maxlen=LAGS_KEPT)
        self._new = 0
        self._wait_ns = FIRST_WAIT_NS

    def observe(self, lag_ns: int) -> None:
        """A rank came so long after the first one."""
        self._lags_ns.append(lag_ns)
        self._new += 1

    @property
    def wait_ns(self) -> int:
        """How long after the first one the last ranks are to be waited for."""
        if self._new >= REFRESH and len(self._lags_ns) >= LAGS_MIN:
            self._new = 0
            middle = _median(self._lags_ns)
            spread = _median([abs(lag - middle) for lag in self._lags_ns])
            self._wait_ns = middle + max(SPREADS * spread, MARGIN_NS)
        return self._wait_ns

    def __repr__(self) -> str:
        return f"<Deadlines lags={len(self._lags_ns)} wait={self.wait_ns / 1e6:g} ms>"


def _median(values: Sequence[int] | deque[int]) -> int:
    """The lower of the two in the middle, where there are two."""
    return sorted(values)[(len(values) - 1) // 2]
