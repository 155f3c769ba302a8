"""How long collectives take and how far apart their ranks come: from what groups record, as time passes.

No operation pays for it. Of a group's operations that have ended since the last look, the newest are observed, and of
a large group fewer (limits.OPERATIONS_OBSERVED, ARRIVALS_OBSERVED): one that does thousands in a second is sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker import schedules
from broker.collectives.claims import CollectiveKind
from broker.collectives.group import Group
from broker.collectives.recorder import Outcome, Recorded
from broker.histograms import Histogram
from broker.ids import GroupNumber
from broker.limits import ARRIVALS_OBSERVED, OPERATIONS_OBSERVED

ALL_REDUCE: Final = CollectiveKind.ALL_REDUCE.value
OTHER: Final = "other"
"""Any kind of collective but all-reduce."""


class Observing:
    """What was seen of all groups since the broker began.

    Attributes:
        durations: by kind (all_reduce or other) and schedule, from the first rank's arrival to the end; of operations
            that were done and whose end is known.
        skews: from the first rank's arrival to the last one's.
        told: called with each operation that is observed, if somebody wants it.
    """

    def __init__(self) -> None:
        self.durations: dict[tuple[str, ...], Histogram] = {
            (kind, way): Histogram() for kind in (ALL_REDUCE, OTHER) for way in schedules.ALL
        }
        self.skews = Histogram()
        self.told: Callable[[Group, Recorded], None] | None = None
        self._seen: dict[GroupNumber, int] = {}
        self._operations = 0
        self._failed = 0
        self._generations = 0

    def look(self, group: Group) -> None:
        """Time has passed: the operations of a group that have ended since are observed."""
        recorder = group.recorder
        ended = recorder.operations - self._seen.get(group.number, 0)
        if not ended:
            return
        self._seen[group.number] = recorder.operations
        most = max(1, min(OPERATIONS_OBSERVED, ARRIVALS_OBSERVED // group.world_size))
        for operation in recorder.recent(min(ended, most)):
            self._observe(operation)
            if self.told is not None:
                self.told(group, operation)

    def _observe(self, operation: Recorded) -> None:
        if operation.outcome is not Outcome.DONE or not operation.arrived_ns:
            return
        first_ns, last_ns = min(operation.arrived_ns.values()), max(operation.arrived_ns.values())
        self.skews.observe(last_ns - first_ns)
        kind = operation.claim.kind.value if operation.claim is not None else ""
        duration = self.durations.get((ALL_REDUCE if kind == ALL_REDUCE else OTHER, operation.schedule))
        if operation.finished_ns and duration is not None:
            duration.observe(operation.finished_ns - first_ns)

    def dissolved(self, group: Group) -> None:
        """A group is gone; what it has counted stays."""
        self.look(group)
        self._seen.pop(group.number, None)
        self._operations += group.recorder.operations
        self._failed += group.recorder.failed_operations
        self._generations += group.generation

    def totals(self, groups: list[Group]) -> tuple[int, int, int]:
        """Operations that were done, those that were not, and generations: of these groups and all that are gone."""
        operations = self._operations + sum(group.recorder.operations for group in groups)
        failed = self._failed + sum(group.recorder.failed_operations for group in groups)
        return operations - failed, failed, self._generations + sum(group.generation for group in groups)

    def __repr__(self) -> str:
        return f"<Observing groups={len(self._seen)} skews={self.skews.total}>"
