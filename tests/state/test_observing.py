"""What is seen of groups: how long their operations take, how far apart their ranks come, and how many there were."""

from __future__ import annotations

import pytest

from broker import schedules
from broker.collectives.claims import Claim, CollectiveKind, ReduceOp
from broker.collectives.group import Group
from broker.collectives.recorder import Outcome, Recorded
from broker.ids import GroupNumber, Rank, SessionId
from broker.limits import ARRIVALS_OBSERVED, OPERATIONS_OBSERVED
from broker.state.observing import ALL_REDUCE, OTHER, Observing
from tests.state.harness import SECOND_NS

MS = 1_000_000
SUM = Claim(CollectiveKind.ALL_REDUCE, ReduceOp.SUM, None, "float32", (4,), 1)


def group_of(world_size: int = 2) -> Group:
    group = Group("dp", GroupNumber(1), world_size, 0)
    for number in range(world_size):
        group.join(SessionId(number + 1), None, world_size, SECOND_NS, 0)
    return group


def record(
    group: Group, *came_ns: int, end_ns: int = 0, claim: Claim = SUM, way: str = "star", outcome: Outcome = Outcome.DONE
) -> None:
    arrived = {Rank(rank): at_ns for rank, at_ns in enumerate(came_ns)}
    sequence = group.recorder.operations + 1
    group.recorder.record(Recorded(1, sequence, way, claim, arrived, end_ns, outcome))


def test_duration_and_skew_count_from_the_first_arrival() -> None:
    group, observing = group_of(), Observing()
    record(group, 5 * MS, 8 * MS, end_ns=9 * MS)
    observing.look(group)
    assert (observing.skews.total, observing.skews.sum_ns) == (1, 3 * MS)
    duration = observing.durations[ALL_REDUCE, "star"]
    assert (duration.total, duration.sum_ns) == (1, 4 * MS)


def test_durations_are_told_apart_by_kind_and_schedule() -> None:
    group, observing = group_of(), Observing()
    record(group, 0, 1, end_ns=MS, way="shm")
    record(group, 0, 1, end_ns=MS, claim=Claim.barrier(1))
    observing.look(group)
    found = {key for key, histogram in observing.durations.items() if histogram.total}
    assert found == {(ALL_REDUCE, "shm"), (OTHER, "star")}


@pytest.mark.parametrize("way", schedules.ALL)
def test_no_schedule_is_left_out(way: str) -> None:
    group, observing = group_of(), Observing()
    record(group, 0, 1, end_ns=MS, way=way)
    observing.look(group)
    assert observing.durations[ALL_REDUCE, way].total == 1


def test_an_operation_of_which_nobody_knows_the_end_has_a_skew_and_no_duration() -> None:
    group, observing = group_of(), Observing()
    record(group, 0, 2 * MS)
    observing.look(group)
    assert observing.skews.sum_ns == 2 * MS
    assert not any(histogram.total for histogram in observing.durations.values())


def test_operations_that_failed_are_counted_and_not_measured() -> None:
    group, observing = group_of(), Observing()
    record(group, 0, 2 * MS, end_ns=3 * MS, outcome=Outcome.MISSING)
    record(group, end_ns=0, outcome=Outcome.VOID)
    record(group, 0, 0, end_ns=1)
    observing.look(group)
    assert observing.skews.total == 1
    assert observing.totals([group]) == (1, 2, 1)


def test_an_operation_is_observed_once() -> None:
    group, observing = group_of(), Observing()
    record(group, 0, 1)
    for _ in range(3):
        observing.look(group)
    record(group, 0, 1)
    observing.look(group)
    assert observing.skews.total == 2


@pytest.mark.parametrize(("world_size", "most"), [(2, OPERATIONS_OBSERVED), (1024, ARRIVALS_OBSERVED // 1024)])
def test_of_many_operations_at_once_the_newest_are_observed(world_size: int, most: int) -> None:
    group, observing = group_of(world_size), Observing()
    for number in range(OPERATIONS_OBSERVED + 10):
        record(group, 0, number * MS)
    observing.look(group)
    assert observing.skews.total == most
    assert observing.skews.sum_ns == sum(OPERATIONS_OBSERVED + 9 - number for number in range(most)) * MS


def test_what_a_group_has_counted_stays_when_it_is_gone() -> None:
    group, observing = group_of(), Observing()
    record(group, 0, 1)
    observing.dissolved(group)
    assert observing.skews.total == 1
    other = group_of()
    record(other, 0, 1, outcome=Outcome.MISSING)
    assert observing.totals([other]) == (1, 1, 2)
    observing.look(other)
    assert observing.skews.total == 1


def test_whoever_asks_is_told_each_operation_that_is_observed() -> None:
    group, observing = group_of(), Observing()
    told: list[int] = []
    observing.told = lambda group, operation: told.append(operation.sequence)
    record(group, 0, 1)
    record(group, outcome=Outcome.VOID)
    observing.look(group)
    assert told == [1, 2]
