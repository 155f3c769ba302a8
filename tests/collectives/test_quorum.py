"""Operations that do not wait for everybody: who is in the result, what becomes of the late, nothing counted twice."""

from __future__ import annotations

from dataclasses import asdict
from random import Random

import msgspec
import numpy as np
import pytest

from broker import limits
from broker.collectives.claims import Claim, CollectiveKind, Quorum, ReduceOp
from broker.collectives.deadlines import FIRST_WAIT_NS
from broker.collectives.effects import Lagging, Wake
from broker.collectives.member import MemberOperation
from broker.errors import (
    CollectiveMismatchError,
    GenerationChangedError,
    InvalidValue,
    ProtocolError,
    RankBehindError,
    RankTimeoutError,
)
from tests.collectives.harness import CHUNK_BYTES, SECOND_NS, Cluster, claim, start

MS_NS = 1_000_000
ELEMENTS = 3 * CHUNK_BYTES // 8


def quorum(ranks: int = 2, *, op: ReduceOp = ReduceOp.SUM, timeout_ns: int = 60 * SECOND_NS, **terms: object) -> Claim:
    """An all_reduce of three chunks of int64, or float64 for a mean, with a deadline of 10 ms."""
    dtype = "float64" if op is ReduceOp.MEAN else "int64"
    its_claim = claim(op=op, dtype=dtype, shape=(ELEMENTS,), timeout_ns=timeout_ns)
    return msgspec.structs.replace(its_claim, quorum=Quorum(ranks, **{"deadline_ns": 10 * MS_NS, **terms}))


class Ranks(Cluster):
    """A cluster whose ranks contribute arrays filled with one number."""

    def give(self, rank: int, value: float, its_claim: Claim | None = None) -> MemberOperation:
        its_claim = its_claim or quorum()
        array = np.full(ELEMENTS, value, its_claim.dtype)
        return start(self.member(rank + 1), its_claim, array)


@pytest.fixture
def ranks() -> Ranks:
    return Ranks(3).formed()


def value_of(operation: MemberOperation) -> float:
    result = np.frombuffer(operation.finish(), operation.claim.dtype)
    assert len(set(result.tolist())) == 1
    return float(result[0])


def part_of(operation: MemberOperation) -> tuple[list[int], list[int], int]:
    told = operation.participation
    assert told is not None
    return [*told.ranks], [*told.carried], told.behind


def test_when_all_come_it_is_an_all_reduce(ranks: Ranks) -> None:
    operations = [ranks.give(rank, 10**rank) for rank in range(3)]
    ranks.settle()
    assert [value_of(operation) for operation in operations] == [111] * 3
    assert [part_of(operation) for operation in operations] == [([0, 1, 2], [], 0)] * 3
    assert ranks.group.held_bytes == 0


def test_at_the_deadline_those_who_came_get_their_result_and_the_deadline_is_asked_for(ranks: Ranks) -> None:
    operations = [ranks.give(rank, 10**rank) for rank in (0, 2)]
    ranks.settle()
    assert not operations[0].done
    assert ranks.notes == [Wake(ranks.now_ns + 10 * MS_NS)]
    assert ranks.group.next_deadline_ns == ranks.now_ns + 10 * MS_NS
    ranks.advance(10 * MS_NS - 1)
    ranks.settle()
    assert not operations[0].done
    ranks.advance(1)
    ranks.settle()
    assert [value_of(operation) for operation in operations] == [101, 101]
    assert part_of(operations[0]) == ([0, 2], [], 0)
    assert ranks.notes[1:] == [Lagging(1, 1)]


def test_too_few_wait_beyond_the_deadline_and_go_on_as_soon_as_they_are_enough(ranks: Ranks) -> None:
    first = ranks.give(0, 1)
    ranks.settle()
    ranks.advance(11 * MS_NS)
    ranks.settle()
    assert not first.done
    second = ranks.give(1, 10)
    ranks.settle()
    assert (value_of(first), value_of(second)) == (11, 11)


def test_too_few_at_the_time_out_fail_as_without_a_quorum(ranks: Ranks) -> None:
    operation = ranks.give(0, 1, quorum(timeout_ns=SECOND_NS))
    ranks.settle_with_time()
    assert isinstance(operation.error, RankTimeoutError)
    assert operation.error.missing_ranks == [1, 2]
    late = ranks.give(1, 1)
    ranks.settle()
    assert isinstance(late.error, RankTimeoutError)


def test_a_time_out_before_the_deadline_is_a_deadline_for_those_who_are_enough(ranks: Ranks) -> None:
    its_claim = quorum(deadline_ns=0, timeout_ns=FIRST_WAIT_NS // 2)
    operations = [ranks.give(rank, 1, its_claim) for rank in (0, 1)]
    ranks.settle_with_time()
    assert [value_of(operation) for operation in operations] == [2, 2]


@pytest.mark.parametrize("op", [ReduceOp.SUM, ReduceOp.MEAN])
def test_a_late_rank_gets_the_same_result_and_is_added_to_the_next_one(ranks: Ranks, op: ReduceOp) -> None:
    first = [ranks.give(rank, 2, quorum(op=op)) for rank in (0, 1)]
    ranks.settle()
    ranks.advance(10 * MS_NS)
    late = ranks.give(2, 8, quorum(op=op))
    ranks.settle()
    assert {value_of(operation) for operation in [*first, late]} == {4 if op is ReduceOp.SUM else 2}
    assert part_of(late) == ([0, 1], [], 0)
    second = [ranks.give(rank, 2, quorum(op=op)) for rank in range(3)]
    ranks.settle()
    # A mean is over all arrays that are in it.
    assert {value_of(operation) for operation in second} == {14 if op is ReduceOp.SUM else 14 / 4}
    assert {str(part_of(operation)) for operation in second} == {"([0, 1, 2], [2], 0)"}
    third = [ranks.give(rank, 1, quorum(op=op)) for rank in range(3)]
    ranks.settle()
    assert {str(part_of(operation)) for operation in third} == {"([0, 1, 2], [], 0)"}
    assert ranks.group.held_bytes == 0


def test_a_rank_that_stops_in_the_middle_of_its_array_is_late_too(ranks: Ranks) -> None:
    first = [ranks.give(rank, 1) for rank in (0, 1)]
    late = ranks.give(2, 5)
    session = 3
    for _ in range(2):
        assert ranks._send(session)
        assert ranks._contribute(session)
    while any(ranks._send(each) or ranks._contribute(each) or ranks._receive(each) for each in (1, 2)):
        continue
    ranks.advance(10 * MS_NS)
    while any(ranks._receive(each) for each in (1, 2)):
        continue
    assert value_of(first[0]) == 2
    # What it is still to be sent is not sent before all of its array is here: else it would end with a part of it.
    assert not ranks.seats[session].to_client
    ranks.settle()
    assert value_of(late) == 2
    second = [ranks.give(rank, 1) for rank in range(3)]
    ranks.settle()
    assert value_of(second[0]) == 3 + 5


def test_what_is_to_be_dropped_is_and_is_counted(ranks: Ranks) -> None:
    first = [ranks.give(rank, 1) for rank in (0, 1)]
    ranks.settle()
    ranks.advance(10 * MS_NS)
    late = ranks.give(2, 5, quorum(carry=False))
    ranks.settle()
    assert value_of(late) == value_of(first[0]) == 2
    second = [ranks.give(rank, 1) for rank in range(3)]
    ranks.settle()
    assert (value_of(second[0]), part_of(second[0])) == (3, ([0, 1, 2], [], 0))
    assert asdict(ranks.group.late_totals) == {"operations": 2, "missed": 1, "carried": 0, "added": 0, "dropped": 1}


def test_tensors_of_one_shape_are_told_apart_by_name(ranks: Ranks) -> None:
    for rank in (0, 1):
        ranks.give(rank, 1, quorum(name="a"))
    ranks.settle()
    ranks.advance(10 * MS_NS)
    ranks.give(2, 100, quorum(name="a"))
    ranks.settle()
    other = [ranks.give(rank, 1, quorum(name="b")) for rank in range(3)]
    ranks.settle()
    assert value_of(other[0]) == 3
    same = [ranks.give(rank, 1, quorum(name="a")) for rank in range(3)]
    ranks.settle()
    assert value_of(same[0]) == 103


def test_a_rank_that_is_operations_behind_is_not_waited_for(ranks: Ranks) -> None:
    for _ in range(3):
        operations = [ranks.give(rank, 1) for rank in (0, 1)]
        ranks.settle()
        if not operations[0].done:
            ranks.advance(10 * MS_NS)
            ranks.settle()
    # Only the first had to wait: after that it was known that rank 2 has not even begun it.
    assert ranks.now_ns == SECOND_NS + 10 * MS_NS
    caught_up = []
    for expected in (2, 1, 0):
        late = ranks.give(2, 0, quorum(abstains=True))
        ranks.settle()
        assert (value_of(late), part_of(late)) == (2, ([0, 1], [], expected))
        caught_up.append(late)
    operations = [ranks.give(rank, 1) for rank in range(3)]
    ranks.settle()
    assert value_of(operations[2]) == 3


def test_a_rank_that_was_late_the_last_time_is_not_waited_for_until_it_is_in_time(ranks: Ranks) -> None:
    for rank in (0, 1):
        ranks.give(rank, 1)
    ranks.settle()
    ranks.advance(10 * MS_NS)
    ranks.advance(1)
    ranks.give(2, 1)
    ranks.settle()
    # It has begun the operation before this one, so it is not behind; but it has come too late for that.
    second = [ranks.give(rank, 1) for rank in (0, 1)]
    ranks.settle()
    assert part_of(second[0]) == ([0, 1], [2], 0)
    ranks.advance(10 * MS_NS)
    ranks.give(2, 1)
    ranks.settle()
    # This time it was as late as the deadline allows, so now it is waited for.
    third = [ranks.give(rank, 1) for rank in (0, 1)]
    ranks.settle()
    assert not third[0].done


def test_who_abstains_is_waited_for_no_more_and_gets_the_result(ranks: Ranks) -> None:
    given = [ranks.give(rank, 1) for rank in (0, 1)]
    ranks.settle()
    silent = ranks.give(2, 9, quorum(abstains=True))
    ranks.settle()
    assert [value_of(operation) for operation in [*given, silent]] == [2, 2, 2]
    assert part_of(silent) == ([0, 1], [], 0)


def test_when_all_have_come_there_is_nobody_to_wait_for(ranks: Ranks) -> None:
    silent = [ranks.give(rank, 9, quorum(abstains=True)) for rank in range(3)]
    ranks.settle()
    assert [value_of(operation) for operation in silent] == [0, 0, 0]
    given = [ranks.give(0, 7), *(ranks.give(rank, 9, quorum(abstains=True)) for rank in (1, 2))]
    ranks.settle()
    assert [value_of(operation) for operation in given] == [7, 7, 7]


def test_a_rank_that_is_too_far_behind_is_told_and_by_how_much(monkeypatch: pytest.MonkeyPatch, ranks: Ranks) -> None:
    monkeypatch.setattr(limits, "QUORUM_KEPT_MAX", 2)
    for _ in range(5):
        for rank in (0, 1):
            ranks.give(rank, 1)
        ranks.settle()
        ranks.advance(10 * MS_NS)
        ranks.settle()
    errors = []
    for _ in range(3):
        operation = ranks.give(2, 1)
        ranks.settle()
        assert isinstance(operation.error, RankBehindError)
        errors.append((operation.error.sequence, operation.error.missed))
    assert errors == [(1, 4), (2, 3), (3, 2)]
    # What is kept can still be had, and what is carried from there is.
    late = ranks.give(2, 5)
    ranks.settle()
    assert value_of(late) == 2
    ranks.leave(3)
    assert ranks.group.held_bytes == 0


def test_what_is_kept_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch, ranks: Ranks) -> None:
    monkeypatch.setattr(limits, "QUORUM_KEPT_BYTES_MAX", 5 * CHUNK_BYTES)
    for _ in range(6):
        for rank in (0, 1):
            ranks.give(rank, 1)
        ranks.settle()
        ranks.advance(10 * MS_NS)
        ranks.settle()
        assert ranks.group.held_bytes <= 5 * CHUNK_BYTES


def test_a_rank_that_is_forgotten_in_the_middle_of_its_array_is_told(
    monkeypatch: pytest.MonkeyPatch, ranks: Ranks
) -> None:
    monkeypatch.setattr(limits, "QUORUM_KEPT_MAX", 1)
    late = ranks.give(2, 5)
    assert ranks._send(3)
    assert ranks._contribute(3)
    for _ in range(3):
        for rank in (0, 1):
            ranks.give(rank, 1)
        while any(ranks._send(each) or ranks._contribute(each) or ranks._receive(each) for each in (1, 2)):
            continue
        ranks.advance(10 * MS_NS)
        while any(ranks._receive(each) for each in (1, 2)):
            continue
    ranks.settle()
    assert isinstance(late.error, RankBehindError)
    assert ranks.group.late_totals.carried == 0
    # It may go on: what it comes for next is forgotten too, and then what is kept.
    for expected in (RankBehindError, type(None)):
        following = ranks.give(2, 5)
        ranks.settle()
        assert isinstance(following.error, expected)


def test_a_late_mismatch_is_told_to_the_late_rank_alone(ranks: Ranks) -> None:
    given = [ranks.give(rank, 1) for rank in (0, 1)]
    ranks.settle()
    ranks.advance(10 * MS_NS)
    late = ranks.give(2, 1, quorum(3))
    ranks.settle()
    assert isinstance(late.error, CollectiveMismatchError)
    assert late.error.claims == {0: given[0].claim.describe(), 2: late.claim.describe()}
    assert value_of(given[0]) == 2


@pytest.mark.parametrize(
    "other", [quorum(3), quorum(name="x"), msgspec.structs.replace(quorum(), quorum=None), claim()], ids=str
)
def test_a_mismatch_in_time_is_told_to_all(ranks: Ranks, other: Claim) -> None:
    operations = [ranks.give(0, 1), ranks.give(1, 1)]
    ranks.settle()
    operations.append(start(ranks.member(3), other, np.ones(other.shape, other.dtype)))
    ranks.settle_with_time()
    for operation in operations:
        assert isinstance(operation.error, CollectiveMismatchError)


def test_a_quorum_of_more_than_are_present_is_told_as_a_mismatch(ranks: Ranks) -> None:
    ranks.lose(1)
    ranks.settle()
    for rank in (1, 2):
        with pytest.raises(GenerationChangedError):
            ranks.give(rank, 1)
    operations = [ranks.give(rank, 1, quorum(3)) for rank in (1, 2)]
    ranks.settle_with_time()
    for operation in operations:
        assert isinstance(operation.error, CollectiveMismatchError)
        assert "generation 2 has 2 ranks" in operation.error.claims[1]


def test_a_change_of_the_members_ends_it_and_drops_what_was_carried(ranks: Ranks) -> None:
    for rank in (0, 1):
        ranks.give(rank, 1)
    ranks.settle()
    ranks.advance(10 * MS_NS)
    ranks.give(2, 5)
    ranks.settle()
    waiting = ranks.give(0, 1)
    ranks.settle()
    ranks.lose(3)
    ranks.settle()
    assert isinstance(waiting.error, GenerationChangedError)
    assert (ranks.group.held_bytes, ranks.group.late_totals.dropped) == (0, 1)


def test_with_other_operations_between_each_keeps_its_place(ranks: Ranks) -> None:
    barriers = []
    for rank in (0, 1):
        ranks.give(rank, 1)
        barriers.append(start(ranks.member(rank + 1), Claim.barrier(60 * SECOND_NS)))
    ranks.settle()
    ranks.advance(10 * MS_NS)
    ranks.settle()
    assert not any(barrier.done for barrier in barriers)
    late = ranks.give(2, 1)
    start(ranks.member(3), Claim.barrier(60 * SECOND_NS))
    ranks.settle()
    assert value_of(late) == 2
    assert all(barrier.done and barrier.error is None for barrier in barriers)


def test_a_rank_has_one_under_way_and_the_broker_sees_to_that(ranks: Ranks) -> None:
    operations = [ranks.give(0, 1) for _ in range(3)]
    ranks.settle()
    assert [operation.opened for operation in operations] == [True, False, False]
    with pytest.raises(ProtocolError, match="with another quorum one under way"):
        ranks.group.contribute(1, 1, 2, 0, quorum(), bytes(CHUNK_BYTES), ranks.now_ns)
    for rank in (1, 2):
        for _ in range(3):
            ranks.give(rank, 1)
    ranks.settle()
    assert [value_of(operation) for operation in operations] == [3, 3, 3]


@pytest.mark.parametrize(
    ("its_claim", "problem"),
    [
        (quorum(0), "from 1 to 3 ranks"),
        (quorum(4), "from 1 to 3 ranks"),
        (quorum(deadline_ns=-1), "deadline_ns"),
        (quorum(name="x" * 200), "longer than"),
        (msgspec.structs.replace(quorum(), op=ReduceOp.MAX), "sum or mean only"),
        (msgspec.structs.replace(quorum(), shape=(1 << 24,)), "reduce it in parts"),
        (
            msgspec.structs.replace(quorum(), kind=CollectiveKind.ALL_GATHER, op=None),
            "all_reduce with op sum or mean only",
        ),
    ],
)
def test_what_cannot_be_is_refused(its_claim: Claim, problem: str) -> None:
    with pytest.raises(InvalidValue, match=problem):
        its_claim.check(3)


def test_a_stranger_with_chunks_of_another_length_does_not_reach_the_sum(ranks: Ranks) -> None:
    other = msgspec.structs.replace(quorum(), chunk_bytes=2 * CHUNK_BYTES)
    for its_claim in (quorum(), other):
        for rank in (0, 1):
            ranks.give(rank, 1, its_claim)
        ranks.settle()
        ranks.advance(10 * MS_NS)
        late = ranks.give(2, 100, its_claim)
        ranks.settle()
        assert value_of(late) == 2
    assert ranks.group.late_totals.carried == 2


@pytest.mark.parametrize("seed", range(60))
def test_every_contribution_is_in_one_result_or_counted_and_all_ranks_get_the_same(seed: int) -> None:
    random = Random(seed)
    steps, count = 12, 4
    ranks = Ranks(count, seed=seed).formed()
    needed = random.randrange(1, count + 1)
    left = dict.fromkeys(range(count), 0)
    results: dict[int, set[float]] = {}
    parts: dict[int, set[str]] = {}
    given: set[int] = set()
    dropped: set[int] = set()
    pending: dict[int, MemberOperation] = {}
    while min(left.values()) < steps or pending:
        for rank, operation in [*pending.items()]:
            if operation.done:
                step = operation.sequence
                results.setdefault(step, set()).add(value_of(operation))
                included, carried, _ = part_of(operation)
                parts.setdefault(step, set()).add(f"{included} {carried}")
                quorum_terms = operation.claim.quorum
                assert quorum_terms is not None
                bit = 1 << ((step - 1) * count + rank)
                if rank not in included and not quorum_terms.abstains and not quorum_terms.carry:
                    dropped.add(bit)
                del pending[rank]
        free = [rank for rank in range(count) if rank not in pending and left[rank] < steps]
        if free and random.random() < 0.3:
            rank = random.choice(free)
            bit = 1 << (left[rank] * count + rank)
            abstains = random.random() < 0.2
            its_claim = quorum(needed, carry=random.random() < 0.7, abstains=abstains)
            pending[rank] = ranks.give(rank, bit, its_claim)
            left[rank] += 1
            if not abstains:
                given.add(bit)
        elif random.random() < 0.05:
            ranks.advance(4 * MS_NS)
        else:
            ranks.step() or ranks.advance(MS_NS)
    assert sorted(results) == list(range(1, steps + 1))
    assert all(len(each) == 1 for each in results.values())
    assert all(len(each) == 1 for each in parts.values())
    totals = ranks.group.late_totals
    # Bits: if one were added twice, or lost, the sum would show it.
    in_results = sum(int(value) for each in results.values() for value in each)
    assert in_results & ~sum(given - dropped) == 0
    missing = bin(sum(given - dropped) - in_results).count("1")
    assert missing == totals.carried - totals.added
    assert len(dropped) == totals.dropped
