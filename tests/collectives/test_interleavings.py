"""Random jobs in random order: ranks run ahead, disagree, stall, die, leave and come back.

Three things hold in every one of them: each operation that was started ends, in a result or an error; the ranks that
are alive agree about each operation, down to the bits; and the group holds no more than its bounds allow (the harness
asserts that with every frame).
"""

from __future__ import annotations

from collections import defaultdict
from random import Random

import numpy as np
import pytest

from broker.collectives.claims import POINT_KINDS, REDUCING_KINDS, ROOTED_KINDS, Claim, CollectiveKind, ReduceOp
from broker.collectives.member import MemberOperation
from broker.errors import CollectiveError, CollectiveMismatchError, GenerationChangedError
from broker.ids import SessionId
from tests.collectives.harness import SECOND_NS, Cluster, claim, start
from tests.thorough import rounds

KINDS = [kind for kind in CollectiveKind if kind not in POINT_KINDS]


class Job:
    """A cluster whose sessions do something at random; all of it follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.cluster = Cluster(self.random.randint(1, 4), seed)
        self.started: list[tuple[SessionId, int, int, MemberOperation]] = []
        self.next_session = 1
        self.events = [self.start, self.start, self.start, self.deliver, self.deliver, self.deliver]
        self.events *= 4
        self.events += [self.join, self.join, self.end, self.wait]

    def run(self) -> None:
        """Random events, then time until nothing is left to happen."""
        for _ in range(self.cluster.group.world_size):
            self.join()
        for _ in range(self.random.randint(50, 400)):
            self.random.choice(self.events)()
        self.cluster.settle_with_time()

    def alive(self) -> list[SessionId]:
        return list(self.cluster.seats)

    def join(self) -> None:
        if len(self.alive()) < 6:
            rank = self.random.choice([None, None, self.random.randrange(self.cluster.group.world_size)])
            self.cluster.join(self.next_session, rank, self.random.randint(1, 3) * SECOND_NS)
            self.next_session += 1

    def end(self) -> None:
        if self.alive():
            self.random.choice([self.cluster.lose, self.cluster.leave])(self.random.choice(self.alive()))

    def wait(self) -> None:
        self.cluster.advance(self.random.randint(0, SECOND_NS))

    def deliver(self) -> None:
        for _ in range(self.random.randint(1, 20)):
            self.cluster.step()

    def start(self) -> None:
        members = [(session, seat.member) for session, seat in self.cluster.seats.items() if seat.member is not None]
        if not members:
            return
        session, member = self.random.choice(members)
        for _ in range(self.random.randint(1, 3)):
            its_claim = self.claim(member.generation, member.next_sequence, len(member.ranks))
            array = np.random.default_rng(member.rank).normal(size=its_claim.shape).astype(np.float32)
            try:
                operation = start(member, its_claim, array)
            except GenerationChangedError:
                return
            self.started.append((session, member.generation, operation.sequence, operation))

    def claim(self, generation: int, sequence: int, members: int) -> Claim:
        """What the program asks for at this place, the same on all ranks; now and then a rank has run astray."""
        program = Random(f"{generation} {sequence}")
        astray = self.random.random() < 0.02
        kind = program.choice(KINDS)
        if kind is CollectiveKind.BARRIER or astray:
            return Claim.barrier(self.random.randint(1, 2) * SECOND_NS)
        op = ReduceOp.SUM if kind in REDUCING_KINDS else None
        root = program.randrange(self.cluster.group.world_size) if kind in ROOTED_KINDS else None
        rows = program.choice([0, 1, 5, 40]) * members
        return claim(kind, op, root, shape=(rows, 5), timeout_ns=self.random.randint(1, 2) * SECOND_NS)


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    jobs = [Job(seed) for seed in range(rounds(100))]
    for job in jobs:
        job.run()
    return jobs


def outcomes(job: Job) -> dict[tuple[int, int], list[MemberOperation]]:
    """The operations of those who are still alive, by the generation and sequence in which they were started."""
    found = defaultdict(list)
    for session, generation, sequence, operation in job.started:
        if session in job.cluster.seats:
            found[generation, sequence].append(operation)
    return found


def test_every_operation_that_a_living_rank_has_started_ends(jobs: list[Job]) -> None:
    hanging = [operation for job in jobs for each in outcomes(job).values() for operation in each if not operation.done]
    assert hanging == []


def test_living_ranks_agree_whether_an_operation_has_failed(jobs: list[Job]) -> None:
    for job in jobs:
        for place, operations in outcomes(job).items():
            assert len({operation.error is None for operation in operations}) == 1, (place, operations)


def test_living_ranks_have_the_same_bits(jobs: list[Job]) -> None:
    compared = 0
    for job in jobs:
        for operations in outcomes(job).values():
            kind = operations[0].claim.kind
            if operations[0].error is None and kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.ALL_GATHER):
                assert len({bytes(operation.finish()) for operation in operations}) == 1
                compared += len(operations) > 1
    assert compared > rounds(100)


def test_every_failure_is_one_that_a_program_can_catch(jobs: list[Job]) -> None:
    errors = [op.error for job in jobs for each in outcomes(job).values() for op in each if op.error is not None]
    assert all(isinstance(error, CollectiveError) for error in errors)
    # The jobs have met what they are meant to meet.
    assert {type(error).__name__ for error in errors} == {
        "CollectiveMismatchError",
        "RankTimeoutError",
        "GenerationChangedError",
    }


def test_all_ranks_that_were_told_of_a_mismatch_were_told_the_same(jobs: list[Job]) -> None:
    for job in jobs:
        for operations in outcomes(job).values():
            told = {str(op.error) for op in operations if isinstance(op.error, CollectiveMismatchError)}
            assert len(told) <= 1


def test_nothing_is_left_in_the_group_when_all_is_over(jobs: list[Job]) -> None:
    for job in jobs:
        assert job.cluster.group.snapshot().operations == ()
        assert (job.cluster.group.held_bytes, job.cluster.group.next_deadline_ns) == (0, None)
