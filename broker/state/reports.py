"""What the broker says of a group without being asked, on `$sys/groups/<name>`: who is late, and what does not move.

Only what is news is said, and of one group at most once a second, so that these words push little out of the topic's
ring, from which newcomers learn who has joined and who was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from broker.collectives.group import Group
from broker.collectives.recorder import Straggler
from broker.collectives.snapshots import GroupSnapshot, OperationSnapshot
from broker.ids import GroupNumber
from broker.limits import GROUP_REPORT_INTERVAL_NS, STUCK_NS

STRAGGLERS_TOLD: Final = 16
_OTHER: Final = 2.0
"""A lateness that has changed by so many times is news."""


@dataclass(slots=True)
class _Told:
    """What was said of a group."""

    at_ns: int
    operations: int = 0
    latest_ns: int = 0
    stragglers: tuple[Straggler, ...] = ()
    stuck: tuple[int, str, int] | None = None


class Reports:
    """What was said of each group, and what is to be said next."""

    def __init__(self, announce: Callable[[str, object], None]) -> None:
        self._announce = announce
        self._told: dict[GroupNumber, _Told] = {}

    def look(self, group: Group, snapshot: Callable[[], GroupSnapshot], now_ns: int) -> None:
        """Time has passed: what is new is announced. `snapshot` is asked once in a second."""
        told = self._told.setdefault(group.number, _Told(now_ns))
        if now_ns - told.at_ns < GROUP_REPORT_INTERVAL_NS:
            return
        told.at_ns = now_ns
        if group.recorder.operations != told.operations:
            told.operations = group.recorder.operations
            stragglers = tuple(group.recorder.stragglers()[:STRAGGLERS_TOLD])
            told.latest_ns = stragglers[0].lateness_ns if stragglers else 0
            if _is_news(told.stragglers, stragglers):
                told.stragglers = stragglers
                self._tell(group, "stragglers", {"stragglers": [_straggler(each) for each in stragglers]})
        if not group.ranks:
            return
        stuck = [each for each in snapshot().operations if now_ns - each.moved_ns >= STUCK_NS and each.missing_ranks]
        key = (int(group.generation), stuck[0].schedule, stuck[0].sequence) if stuck else None
        if key is not None and key != told.stuck:
            self._tell(group, "stuck", _stuck(stuck[0], now_ns))
        told.stuck = key

    @property
    def stuck_groups(self) -> int:
        """Groups with an operation that had not moved for STUCK_NS at the last look."""
        return sum(told.stuck is not None for told in self._told.values())

    @property
    def latest_ns(self) -> int:
        """How late the latest rank of all groups is; 0 when nobody is late."""
        return max((told.latest_ns for told in self._told.values()), default=0)

    def forget(self, number: GroupNumber) -> None:
        """A group has dissolved."""
        self._told.pop(number, None)

    def _tell(self, group: Group, event: str, more: dict[str, object]) -> None:
        told: dict[str, object] = {
            "event": event,
            "group": group.name,
            "generation": group.generation,
            "ranks": list(group.ranks),
        }
        self._announce(f"$sys/groups/{group.name}", told | more)

    def __repr__(self) -> str:
        return f"<Reports groups={len(self._told)}>"


def _is_news(before: Sequence[Straggler], now: Sequence[Straggler]) -> bool:
    """Others are late, or some are much later, or much less late. In which order they are is none."""
    old = {each.rank: each.lateness_ns for each in before}
    new = {each.rank: each.lateness_ns for each in now}
    return old.keys() != new.keys() or any(not 1 / _OTHER < new[rank] / old[rank] < _OTHER for rank in new)


def _straggler(straggler: Straggler) -> dict[str, object]:
    return {
        "rank": straggler.rank,
        "lateness_s": straggler.lateness_ns / 1e9,
        "late_operations": straggler.late_operations,
        "operations": straggler.operations,
    }


def _stuck(operation: OperationSnapshot, now_ns: int) -> dict[str, object]:
    return {
        "sequence": operation.sequence,
        "schedule": operation.schedule,
        "claim": operation.claim,
        "waiting_s": round((now_ns - min(operation.arrived_ns.values(), default=now_ns)) / 1e9, 6),
        "arrived_ranks": sorted(operation.arrived_ns),
        "missing_ranks": list(operation.missing_ranks),
    }
