"""One operation: rounds, results, mismatches and what a lying rank is told."""

from __future__ import annotations

import numpy as np
import pytest

from broker import limits
from broker.collectives.claims import Claim, CollectiveKind, ReduceOp
from broker.collectives.effects import Effect, Failed, Mismatch, Missing, Result
from broker.collectives.operation import Operation, OperationState
from broker.errors import ProtocolError
from broker.ids import Generation, Rank, SessionId
from tests.collectives.harness import CHUNK_BYTES, SECOND_NS, claim

CHUNK = bytes(CHUNK_BYTES)
LONG = claim(shape=(16 * 12,))


def operation(members: int = 2) -> Operation:
    """Rank r has session 10 + r."""
    return Operation(Generation(1), 1, {Rank(rank): SessionId(10 + rank) for rank in range(members)})


def arrive(
    target: Operation, rank: int, its_claim: Claim, payload: bytes | None = None, now_ns: int = 0
) -> list[Effect]:
    first_chunk = bytes(min(its_claim.nbytes, its_claim.chunk_bytes))
    return target.arrive(Rank(rank), its_claim, first_chunk if payload is None else payload, now_ns)


def floats(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


def failures(effects: list[Effect]) -> dict[int, Mismatch | Missing]:
    return {effect.session: effect.failure for effect in effects if isinstance(effect, Failed)}


def test_a_round_is_reduced_when_the_chunk_of_the_last_rank_is_there() -> None:
    subject = operation()
    its_claim = claim(shape=(2,))
    assert arrive(subject, 1, its_claim, floats(1, 2)) == []
    results = arrive(subject, 0, its_claim, floats(10, 20))
    payload = floats(11, 22)
    assert results == [Result(10, 1, 1, 0, 0, payload, True), Result(11, 1, 1, 0, 0, payload, True)]
    assert subject.state is OperationState.FINISHED


def test_the_ranks_of_an_all_reduce_share_one_buffer() -> None:
    subject = operation(3)
    arrive(subject, 0, claim())
    arrive(subject, 1, claim())
    results = [effect for effect in arrive(subject, 2, claim()) if isinstance(effect, Result)]
    assert len({id(result.payload) for result in results}) == 1


def test_rounds_sent_ahead_come_out_together_and_in_order() -> None:
    subject = operation()
    arrive(subject, 0, LONG)
    for number in range(1, 4):
        assert subject.contribute(Rank(0), number, CHUNK) == []
    assert [effect.round for effect in arrive(subject, 1, LONG) if isinstance(effect, Result)] == [0, 0]
    for number in range(1, 4):
        effects = subject.contribute(Rank(1), number, CHUNK)
        assert [(effect.session, effect.round) for effect in effects if isinstance(effect, Result)] == [
            (10, number),
            (11, number),
        ]


def test_only_the_last_result_is_marked_as_last() -> None:
    subject = operation(1)
    its_claim = claim(CollectiveKind.ALL_GATHER, None, shape=(17,))
    effects = arrive(subject, 0, its_claim) + subject.contribute(Rank(0), 1, bytes(4))
    assert [(effect.round, effect.last) for effect in effects if isinstance(effect, Result)] == [(0, False), (1, True)]


def test_a_rank_may_be_so_many_rounds_ahead_of_the_results_and_no_more() -> None:
    subject = operation()
    arrive(subject, 0, LONG)
    for number in range(1, limits.ROUNDS_AHEAD):
        subject.contribute(Rank(0), number, CHUNK)
    assert subject.held_bytes == limits.ROUNDS_AHEAD * CHUNK_BYTES
    with pytest.raises(ProtocolError, match="8 rounds ahead"):
        subject.contribute(Rank(0), limits.ROUNDS_AHEAD, CHUNK)
    assert subject.held_bytes == limits.ROUNDS_AHEAD * CHUNK_BYTES
    arrive(subject, 1, LONG)
    assert subject.contribute(Rank(0), limits.ROUNDS_AHEAD, CHUNK) == []


@pytest.mark.parametrize("length", [0, CHUNK_BYTES - 1, CHUNK_BYTES + 1])
def test_a_payload_of_another_length_than_claimed_is_a_protocol_error(length: int) -> None:
    subject = operation()
    with pytest.raises(ProtocolError, match=f"has {length} bytes, not 64"):
        arrive(subject, 0, LONG, bytes(length))
    assert subject.arrived_ns == {}
    arrive(subject, 0, LONG)
    with pytest.raises(ProtocolError, match=f"has {length} bytes, not 64"):
        subject.contribute(Rank(0), 1, bytes(length))


@pytest.mark.parametrize("number", [-1, 0, 2])
def test_a_round_out_of_order_is_a_protocol_error(number: int) -> None:
    subject = operation()
    arrive(subject, 0, LONG)
    with pytest.raises(ProtocolError, match="in place of 1"):
        subject.contribute(Rank(0), number, CHUNK)


def test_a_round_after_the_last_is_a_protocol_error() -> None:
    subject = operation()
    arrive(subject, 0, claim())
    with pytest.raises(ProtocolError, match="that has 1"):
        subject.contribute(Rank(0), 1, b"")


def test_a_broadcast_gives_the_chunks_to_the_others_and_an_empty_clock_to_its_root() -> None:
    subject = operation(3)
    its_claim = claim(CollectiveKind.BROADCAST, None, 1, shape=(17,))
    arrive(subject, 0, its_claim, b"")
    arrive(subject, 1, its_claim)
    assert arrive(subject, 2, its_claim, b"") == [
        Result(10, 1, 1, 0, 0, CHUNK, False),
        Result(11, 1, 1, 0, 0, b"", False),
        Result(12, 1, 1, 0, 0, CHUNK, False),
    ]
    assert subject.missing_ranks == (0, 1, 2)
    assert subject.contribute(Rank(1), 1, b"tail") == []
    assert subject.contribute(Rank(0), 1, b"") == []
    assert subject.missing_ranks == (2,), "a receiver that does not read holds the root back"
    effects = subject.contribute(Rank(2), 1, b"")
    assert effects[0] == Result(10, 1, 1, 1, 0, b"tail", True)


def test_a_receiver_of_a_broadcast_sends_empty_chunks() -> None:
    its_claim = claim(CollectiveKind.BROADCAST, None, 1, shape=(17,))
    subject = operation()
    with pytest.raises(ProtocolError, match="has 64 bytes, not 0"):
        arrive(subject, 0, its_claim)
    arrive(subject, 0, its_claim, b"")
    with pytest.raises(ProtocolError, match="has 1 bytes, not 0"):
        subject.contribute(Rank(0), 1, b"x")


def test_an_all_gather_gives_every_rank_the_chunks_of_all_positions() -> None:
    subject = operation()
    its_claim = claim(CollectiveKind.ALL_GATHER, None, shape=(1,))
    arrive(subject, 1, its_claim, b"bbbb")
    assert arrive(subject, 0, its_claim, b"aaaa") == [
        Result(session, 1, 1, 0, position, payload, position == 1)
        for session in (10, 11)
        for position, payload in enumerate([b"aaaa", b"bbbb"])
    ]


def test_a_reduce_scatter_gives_each_position_its_part_of_the_round() -> None:
    subject = operation()
    its_claim = claim(CollectiveKind.REDUCE_SCATTER, shape=(6,), chunk_bytes=16)
    arrive(subject, 0, its_claim, floats(0, 1, 2, 3))
    effects = arrive(subject, 1, its_claim, floats(0, 1, 2, 3))
    assert effects == [Result(10, 1, 1, 0, 0, floats(0, 2, 4), False), Result(11, 1, 1, 0, 1, floats(6), False)]
    subject.contribute(Rank(0), 1, floats(4, 5))
    effects = subject.contribute(Rank(1), 1, floats(4, 5))
    assert effects == [Result(10, 1, 1, 1, 0, b"", True), Result(11, 1, 1, 1, 1, floats(8, 10), True)]


def test_a_mean_divides_by_the_members_present() -> None:
    subject = operation(3)
    its_claim = claim(op=ReduceOp.MEAN, shape=(1,))
    for rank in range(2):
        arrive(subject, rank, its_claim, floats(3))
    (first, *_) = arrive(subject, 2, its_claim, floats(6))
    assert isinstance(first, Result)
    assert bytes(first.payload) == floats(4)


def test_a_mismatch_with_all_claims_here_fails_at_once_and_names_them_all() -> None:
    subject = operation()
    arrive(subject, 0, claim(shape=(4,), chunk_bytes=limits.CHUNK_BYTES))
    effects = arrive(subject, 1, Claim.barrier(SECOND_NS))
    told = Mismatch({0: "all_reduce sum float32 (4,)", 1: "barrier"})
    assert failures(effects) == {10: told, 11: told}
    assert told.error("dp", 1).claims == told.claims


def test_a_mismatch_waits_a_little_for_the_claims_of_the_others() -> None:
    subject = operation(3)
    arrive(subject, 0, claim())
    assert arrive(subject, 1, Claim.barrier(SECOND_NS), now_ns=5) == []
    assert subject.deadline_ns == 5 + limits.MISMATCH_GRACE_NS
    assert subject.expire(subject.deadline_ns - 1) == []
    told = failures(subject.expire(subject.deadline_ns))
    assert set(told) == {10, 11}
    assert isinstance(told[10], Mismatch)
    assert set(told[10].claims) == {0, 1}


def test_the_grace_ends_with_the_last_claim() -> None:
    subject = operation(3)
    arrive(subject, 0, claim())
    arrive(subject, 1, Claim.barrier(SECOND_NS))
    assert set(failures(arrive(subject, 2, claim()))) == {10, 11, 12}


def test_a_mismatched_operation_keeps_no_payload_and_drops_what_still_comes() -> None:
    subject = operation(3)
    arrive(subject, 0, LONG)
    subject.contribute(Rank(0), 1, CHUNK)
    arrive(subject, 1, Claim.barrier(SECOND_NS))
    assert subject.held_bytes == 0
    assert subject.contribute(Rank(0), 2, CHUNK) == []
    assert subject.held_bytes == 0


def test_a_broadcast_from_a_rank_that_is_gone_fails_and_says_so() -> None:
    subject = operation()
    its_claim = claim(CollectiveKind.BROADCAST, None, 3)
    arrive(subject, 0, its_claim, b"")
    told = failures(arrive(subject, 1, its_claim, b""))[10]
    assert isinstance(told, Mismatch)
    assert told.claims[0].endswith("but rank 3 is not in generation 1")


def test_a_reduce_scatter_that_cannot_be_shared_out_fails_and_says_so() -> None:
    subject = operation()
    its_claim = claim(CollectiveKind.REDUCE_SCATTER, shape=(3, 2))
    arrive(subject, 0, its_claim)
    told = failures(arrive(subject, 1, its_claim))[10]
    assert isinstance(told, Mismatch)
    assert told.claims[1].endswith("but 3 rows cannot be shared out evenly to 2 members")


def test_a_rank_that_stops_halfway_is_named_at_the_deadline() -> None:
    subject = operation(3)
    for rank in range(3):
        arrive(subject, rank, LONG)
    subject.contribute(Rank(1), 1, CHUNK)
    assert set(failures(subject.expire(SECOND_NS)).values()) == {Missing((0, 2), 1.0)}
    assert subject.state is OperationState.FAILED


def test_the_first_deadline_of_any_rank_counts() -> None:
    subject = operation(3)
    arrive(subject, 0, claim(timeout_ns=9 * SECOND_NS), now_ns=0)
    arrive(subject, 1, claim(timeout_ns=2 * SECOND_NS), now_ns=SECOND_NS)
    assert subject.deadline_ns == 3 * SECOND_NS
    assert failures(subject.expire(3 * SECOND_NS))[10] == Missing((2,), 2.0)


def test_an_operation_is_shown_in_one_line() -> None:
    subject = operation()
    arrive(subject, 0, Claim.barrier(1))
    assert repr(subject) == "<Operation 1 GATHERING barrier arrived=1/2 rounds=0>"
