"""The flight recorder of a group: what its last operations were, who came when, and who keeps the others waiting.

To record costs the group one small object for each operation. Everything else is worked out when somebody asks.

**Lateness.** How far a rank came behind the others in one operation is its arrival less the lower median of those of
the others: so one late rank of two is as late as one of a hundred, and one that is early makes nobody late. A rank's
lateness is the median of that over the operations of the window in which anybody waited at all (LATE_NS): a program
that reduces twenty buckets in a row is late once in each step, and not the less late for the nineteen that follow.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from broker.collectives.claims import Claim
from broker.ids import Rank
from broker.limits import (
    LATE_NS,
    LATE_OPERATIONS_MIN,
    RECORDED_ARRIVALS_MAX,
    RECORDED_OPERATIONS,
    STRAGGLER_ARRIVALS_MAX,
    STRAGGLER_OPERATIONS,
)


class Outcome(StrEnum):
    """What has become of an operation."""

    DONE = "done"
    MISSING = "missing"
    MISMATCH = "mismatch"
    INTERRUPTED = "interrupted"
    BROKEN = "broken"
    VOID = "void"
    """The members changed while it was in progress."""


class Recorded(NamedTuple):
    """An operation that is over.

    Attributes:
        generation: in which it was.
        sequence: its number there.
        schedule: `star`, `shm`, `ring` or `halving`.
        claim: what the ranks asked for, the first one's; None when it is not known any more.
        arrived_ns: when each rank came to it.
        finished_ns: when it was over; 0 when nobody has looked at a clock.
        outcome: what has become of it.
        failure: why it failed, in words with its group; empty when it did not.
    """

    generation: int
    sequence: int
    schedule: str
    claim: Claim | None
    arrived_ns: Mapping[Rank, int]
    finished_ns: int
    outcome: Outcome
    failure: str = ""


class Straggler(NamedTuple):
    """A rank that keeps the others waiting.

    Attributes:
        rank: which one.
        lateness_ns: by how much it usually comes behind the others, where anybody waits.
        late_operations: how often, of the window.
        operations: the window's.
    """

    rank: Rank
    lateness_ns: int
    late_operations: int
    operations: int


class Progress:
    """Since when operations in progress have not moved, as far as was observed."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, int]] = {}

    def observe(self, moved: Mapping[int, int], now_ns: int) -> None:
        """Of all operations in progress, by sequence, any number that changes when something has moved."""
        before = self._held
        self._held = {
            sequence: held if (held := before.get(sequence)) is not None and held[0] == number else (number, now_ns)
            for sequence, number in moved.items()
        }

    def since_ns(self, sequence: int) -> int | None:
        """Since when an operation has not moved; None before it was observed."""
        held = self._held.get(sequence)
        return None if held is None else held[1]

    def still_ns(self, now_ns: int) -> int:
        """For how long the one that stands still the longest has not moved; 0 when none is in progress."""
        return max((now_ns - since_ns for _, since_ns in self._held.values()), default=0)


class Recorder:
    """The last operations of one group.

    Attributes:
        operations: ever recorded.
        failed_operations: of these, those that were not done.
        last_failure: the last one that was neither done nor void, if there was one.
    """

    def __init__(self, world_size: int) -> None:
        """`world_size` bounds what is kept: many ranks, fewer operations."""
        self.operations = 0
        self.failed_operations = 0
        self.last_failure: Recorded | None = None
        kept = max(2, min(RECORDED_OPERATIONS, RECORDED_ARRIVALS_MAX // max(1, world_size)))
        self._recorded: deque[Recorded] = deque(maxlen=kept)
        self._window = max(2, min(STRAGGLER_OPERATIONS, STRAGGLER_ARRIVALS_MAX // max(1, world_size)))

    def record(self, operation: Recorded) -> None:
        """An operation is over."""
        self.operations += 1
        self._recorded.append(operation)
        if operation.outcome is not Outcome.DONE:
            self.failed_operations += 1
            if operation.outcome is not Outcome.VOID:
                self.last_failure = operation

    def recent(self, count: int) -> list[Recorded]:
        """The last operations, oldest first; at most `count`, and at most what is kept."""
        return [*self._recorded][-count:]

    def stragglers(self) -> list[Straggler]:
        """Who keeps the others waiting, the latest first; of the newest recorded generation."""
        window = self._late_window()
        behind: dict[Rank, list[int]] = {}
        for operation in window:
            arrived = operation.arrived_ns
            if max(arrived.values()) - min(arrived.values()) >= LATE_NS:
                for rank, late_ns in behind_others(arrived):
                    behind.setdefault(rank, []).append(late_ns)
        late = []
        for rank, lates in behind.items():
            often = sum(map(LATE_NS.__le__, lates))
            # A median is late when at least half are: of most ranks it need not be taken.
            if often >= LATE_OPERATIONS_MIN and 2 * often >= len(lates):
                lateness_ns = int(statistics.median(lates))
                if lateness_ns >= LATE_NS:
                    late.append(Straggler(rank, lateness_ns, often, len(window)))
        return sorted(late, key=lambda straggler: (-straggler.lateness_ns, straggler.rank))

    def _late_window(self) -> list[Recorded]:
        """The last operations of the newest generation to which at least two ranks have come."""
        newest = max((each.generation for each in self._recorded), default=0)
        recent = self.recent(self._window)
        return [each for each in recent if each.generation == newest and len(each.arrived_ns) > 1]

    def __repr__(self) -> str:
        return f"<Recorder operations={self.operations} failed={self.failed_operations} kept={len(self._recorded)}>"


def behind_others(arrived_ns: Mapping[Rank, int]) -> Iterable[tuple[Rank, int]]:
    """For each of at least two ranks, how far it came behind the lower median of the others; below 0 when ahead."""
    order = sorted(arrived_ns.items(), key=lambda item: item[1])
    middle: Final = (len(order) - 2) // 2
    for place, (rank, came_ns) in enumerate(order):
        yield rank, came_ns - order[middle + 1 if place <= middle else middle][1]
