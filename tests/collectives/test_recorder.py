"""The flight recorder: what it keeps, who it says is late and by how much, and when something last moved."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from broker.collectives.claims import Claim
from broker.collectives.recorder import Outcome, Progress, Recorded, Recorder, behind_others
from broker.ids import Rank
from broker.limits import RECORDED_OPERATIONS, STRAGGLER_OPERATIONS

MS = 1_000_000
STEP_NS = 200 * MS


def recorded(
    sequence: int, arrived_ns: Mapping[int, int], *, generation: int = 1, outcome: Outcome = Outcome.DONE
) -> Recorded:
    arrived = {Rank(rank): came_ns for rank, came_ns in arrived_ns.items()}
    return Recorded(generation, sequence, "star", Claim.barrier(1), arrived, max(arrived.values()), outcome)


def steps(
    recorder: Recorder, late_ns: Mapping[int, int], world_size: int, count: int = 20, buckets: int = 1, seed: int = 0
) -> None:
    """A clock goes on: in each step all ranks come within 0.3 ms, but some come later, to the first of the buckets."""
    clock_ns, chance = 0, random.Random(seed)
    for step in range(count):
        clock_ns += STEP_NS
        for bucket in range(buckets):
            came = {rank: clock_ns + chance.randrange(300_000) for rank in range(world_size)}
            if not bucket:
                for rank, later_ns in late_ns.items():
                    came[rank] += later_ns
            recorder.record(recorded(step * buckets + bucket + 1, came))
            clock_ns = max(came.values())


@pytest.mark.parametrize("world_size", [2, 3, 4, 16, 200])
def test_a_rank_that_is_late_by_50_ms_in_each_step_is_first_within_20_steps(world_size: int) -> None:
    recorder = Recorder(world_size)
    steps(recorder, {1: 50 * MS}, world_size)
    stragglers = recorder.stragglers()
    assert [straggler.rank for straggler in stragglers] == [1]
    assert 45 * MS <= stragglers[0].lateness_ns <= 55 * MS
    assert stragglers[0].late_operations == stragglers[0].operations == 20


def test_of_two_late_ranks_the_later_one_is_first_and_both_are_as_late_as_they_are() -> None:
    recorder = Recorder(8)
    steps(recorder, {6: 20 * MS, 3: 80 * MS}, 8)
    stragglers = recorder.stragglers()
    assert [straggler.rank for straggler in stragglers] == [3, 6]
    assert [round(straggler.lateness_ns / MS, -1) for straggler in stragglers] == [80, 20]


def test_a_rank_that_is_late_to_the_first_of_many_buckets_is_as_late_as_it_is() -> None:
    recorder = Recorder(4)
    steps(recorder, {2: 50 * MS}, 4, count=10, buckets=12)
    (straggler,) = recorder.stragglers()
    assert straggler.rank == 2
    assert 45 * MS <= straggler.lateness_ns <= 55 * MS
    assert 0 < straggler.late_operations < straggler.operations == STRAGGLER_OPERATIONS


def test_a_rank_that_is_early_makes_nobody_late() -> None:
    recorder = Recorder(4)
    steps(recorder, dict.fromkeys((0, 1, 3), 30 * MS), 4)
    assert recorder.stragglers() == []


def test_ranks_that_come_together_are_no_stragglers_and_one_slow_step_makes_none() -> None:
    recorder = Recorder(4)
    steps(recorder, {}, 4, count=40)
    assert recorder.stragglers() == []
    steps(recorder, {1: 5 * MS}, 4, count=6)
    steps(recorder, {2: 500 * MS}, 4, count=1)
    assert [straggler.rank for straggler in recorder.stragglers()] == [1]


def test_who_was_late_in_an_earlier_generation_has_gone() -> None:
    recorder = Recorder(2)
    steps(recorder, {1: 50 * MS}, 2)
    recorder.record(recorded(1, {0: 0, 1: 0}, generation=2))
    assert recorder.stragglers() == []


def test_an_operation_to_which_one_rank_has_come_tells_nothing_of_lateness() -> None:
    recorder = Recorder(2)
    recorder.record(recorded(1, {0: 5}, outcome=Outcome.MISSING))
    assert recorder.stragglers() == []
    assert (recorder.operations, recorder.failed_operations) == (1, 1)


def test_the_last_operations_are_kept_fewer_of_them_for_many_ranks() -> None:
    small, large = Recorder(2), Recorder(1024)
    for sequence in range(1, 1001):
        small.record(recorded(sequence, {0: sequence}))
        large.record(recorded(sequence, {0: sequence}))
    assert [each.sequence for each in small.recent(3)] == [998, 999, 1000]
    assert len(small.recent(10_000)) == RECORDED_OPERATIONS
    assert len(large.recent(10_000)) == 16
    assert small.operations == 1000


def test_the_last_failure_is_kept_and_a_change_of_members_is_none() -> None:
    recorder = Recorder(2)
    recorder.record(recorded(1, {0: 1}, outcome=Outcome.MISMATCH))
    recorder.record(recorded(2, {0: 1}, outcome=Outcome.VOID))
    recorder.record(recorded(3, {0: 1}))
    assert recorder.last_failure is not None
    assert recorder.last_failure.sequence == 1
    assert recorder.failed_operations == 2


@pytest.mark.parametrize("count", range(2, 9))
def test_how_far_behind_the_lower_median_of_the_others_is_as_computed_at_length(count: int) -> None:
    chance = random.Random(count)
    came = {Rank(rank): chance.randrange(1000) for rank in range(count)}
    for rank, behind in behind_others(came):
        others = sorted(each for other, each in came.items() if other != rank)
        assert behind == came[rank] - others[(len(others) - 1) // 2]


def test_something_moves_when_its_number_changes() -> None:
    progress = Progress()
    assert progress.since_ns(1) is None
    for now_ns, moved in ((10, 3), (20, 3), (30, 4), (40, 4)):
        progress.observe({1: moved, 2: 0}, now_ns)
    assert (progress.since_ns(1), progress.since_ns(2)) == (30, 10)
    progress.observe({}, 50)
    assert progress.since_ns(1) is None
