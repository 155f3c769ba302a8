"""Whether a thread looks at its client's lines for a while before it sleeps, and how long.

To sleep and to be woken takes tens of microseconds of both sides, and while messages come in closer succession than
that, as requests and their replies do, it is cheaper to look. Where the other side shares the processor, it cannot
write as long as this one looks. So a thread looks only after waits that were short, and each look in vain doubles how
many of them it takes until the next one:

    short waits in a row >= doubt -> look --found in time--> doubt / 2, and the next wait begins with a look as well
                                       `--in vain---------> doubt * 2, and none until so many waits were short

A look that finds something is in vain too if such looks take longer, in the mean, than to sleep would have cost.
The client's lock is held meanwhile, and Python's.
"""

from __future__ import annotations

from typing import Final

from broker.clock import monotonic_ns
from clients.reading.lines import Lines

WAKE_NS: Final = 20_000
"""What it takes to be woken."""
PAYS_NS: Final = 20_000
"""Looks that find something are to take no longer than this, in the mean."""
DOUBT_MIN: Final = 2
DOUBT_MAX: Final = 2048
"""Short waits in a row until the next look."""
_WAKE_NS, _PAYS_NS, _DOUBT_MIN, _DOUBT_MAX = WAKE_NS, PAYS_NS, DOUBT_MIN, DOUBT_MAX
_LOOKS_MAX = 16
"""Between two looks at the clock."""


class Looking:
    """What one client has seen of its waits."""

    __slots__ = ("_doubt", "_longest_ns", "_mean_ns", "_short")

    def __init__(self, longest_ns: int) -> None:
        """`longest_ns`: of a look; 0 never looks."""
        self._longest_ns = longest_ns
        self._doubt = _DOUBT_MIN
        self._short = 0
        self._mean_ns = 0

    def look(self, lines: Lines) -> bool:
        """Looks for a while, if that promises something; says whether there is something to read."""
        if not self._longest_ns or self._short < self._doubt:
            return False
        began_ns = now_ns = monotonic_ns()
        while now_ns - began_ns < self._longest_ns:
            for _ in range(_LOOKS_MAX):
                if lines.has_more():
                    self.looked(monotonic_ns() - began_ns, True)
                    return True
            now_ns = monotonic_ns()
        self.looked(self._longest_ns, False)
        return False

    def looked(self, took_ns: int, found: bool) -> None:
        """A look has ended."""
        self._mean_ns += (took_ns - self._mean_ns) // 8
        if found and self._mean_ns <= _PAYS_NS:
            self._doubt = max(_DOUBT_MIN, self._doubt // 2)
            self._short = self._doubt
        else:
            self._doubt = min(_DOUBT_MAX, 2 * self._doubt)
            self._short = 0
            self._mean_ns = 0

    def slept(self, waited_ns: int, found: bool) -> None:
        """A thread has slept, and something had come on a line, or it was something else."""
        if found and waited_ns < self._longest_ns + _WAKE_NS:
            self._short += 1
        else:
            self._short = 0

    def __repr__(self) -> str:
        return f"<Looking longest_ns={self._longest_ns} short={self._short} doubt={self._doubt}>"
