"""The client's half: what is sent when, where results go, and which errors are raised how often."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress

import numpy as np
import pytest

from broker import limits
from broker.collectives.claims import Claim, CollectiveKind
from broker.collectives.effects import Missing
from broker.collectives.member import Member, MemberOperation
from broker.errors import (
    CollectiveMismatchError,
    ConnectionClosed,
    GenerationChangedError,
    InvalidValue,
    ProtocolError,
)
from broker.ids import Generation, Rank
from tests.collectives.harness import CHUNK_BYTES, SECOND_NS, claim, flat, start


def member(rank: int = 0, ranks: tuple[int, ...] = (0, 1), world_size: int = 4) -> Member:
    return Member("dp", Rank(rank), world_size, Generation(1), [Rank(each) for each in ranks])


def all_reduce(subject: Member, elements: int = 4) -> tuple[MemberOperation, np.ndarray]:
    array = np.arange(elements, dtype=np.float32)
    return start(subject, claim(shape=(elements,)), array), array


def barrier(subject: Member) -> MemberOperation:
    return subject.start(Claim.barrier(SECOND_NS))


def test_the_claim_travels_with_the_first_chunk_and_chunks_are_views_of_the_array() -> None:
    operation, array = all_reduce(member(), elements=17)
    first, second = operation.next_round(), operation.next_round()
    assert first is not None
    assert second is not None
    assert (first.number, first.claim, bytes(first.payload)) == (0, operation.claim, array[:16].tobytes())
    assert (second.number, second.claim, bytes(second.payload)) == (1, None, array[16:].tobytes())
    assert np.shares_memory(np.frombuffer(first.payload, np.float32), array)
    assert operation.next_round() is None


def test_a_rank_sends_a_window_of_rounds_and_one_more_for_each_result() -> None:
    operation, _ = all_reduce(member(), elements=16 * 20)
    for _ in range(limits.ROUNDS_AHEAD):
        assert operation.next_round() is not None
    assert operation.next_round() is None
    operation.result(0, 0, bytes(CHUNK_BYTES), last=False)
    assert operation.next_round() is not None
    assert operation.next_round() is None


def test_an_all_gather_waits_for_all_positions_of_a_round() -> None:
    its_claim = claim(CollectiveKind.ALL_GATHER, None, shape=(16 * 20,))
    operation = start(member(), its_claim, np.zeros(16 * 20, np.float32))
    while operation.next_round() is not None:
        pass
    operation.result(0, 0, bytes(CHUNK_BYTES), last=False)
    assert operation.next_round() is None
    operation.result(0, 1, bytes(CHUNK_BYTES), last=False)
    assert operation.next_round() is not None


def test_operations_are_opened_in_the_order_of_their_start() -> None:
    subject = member()
    first, second = barrier(subject), barrier(subject)
    assert second.next_round() is None
    assert first.next_round() is not None
    assert second.next_round() is not None


def test_a_member_gives_the_rounds_of_its_oldest_operation_first() -> None:
    subject = member()
    first, _ = all_reduce(subject, elements=32)
    second = barrier(subject)
    sent = []
    while (following := subject.next_round()) is not None:
        sent.append((following[0], following[1].number))
    assert sent == [(first, 0), (first, 1), (second, 0)]


def test_operations_beyond_the_window_wait_without_memory_until_one_ends() -> None:
    subject = member()
    operations = [barrier(subject) for _ in range(limits.OPERATIONS_AHEAD + 1)]
    sent = 0
    while subject.next_round() is not None:
        sent += 1
    assert sent == limits.OPERATIONS_AHEAD
    operations[0].result(0, 0, b"", last=True)
    following = subject.next_round()
    assert following is not None
    assert following[0] is operations[-1]


def test_the_array_changes_in_finish_and_not_before() -> None:
    operation, array = all_reduce(member())
    operation.next_round()
    doubled = (2 * array).tobytes()
    operation.result(0, 0, doubled, last=True)
    assert operation.done
    assert array.tolist() == [0, 1, 2, 3]
    assert bytes(operation.finish()) == doubled
    assert array.tolist() == [0, 2, 4, 6]
    assert bytes(operation.finish()) == doubled


def test_an_operation_that_fails_halfway_leaves_the_array_as_it_was() -> None:
    operation, array = all_reduce(member(), elements=17)
    operation.next_round()
    operation.result(0, 0, bytes(CHUNK_BYTES), last=False)
    error = CollectiveMismatchError("dp", 1, {0: "barrier"})
    operation.failed(error)
    with pytest.raises(CollectiveMismatchError):
        operation.finish()
    assert (operation.done, operation.error) == (True, error)
    assert array.tolist() == list(range(17))


def test_a_payload_can_be_received_straight_into_its_destination() -> None:
    operation, array = all_reduce(member())
    operation.next_round()
    operation.destination(0, 0, 16)[:] = bytes(16)
    operation.result(0, 0, None, last=True)
    operation.finish()
    assert array.tolist() == [0, 0, 0, 0]


def test_a_reduce_scatter_places_the_parts_of_its_own_position() -> None:
    its_claim = claim(CollectiveKind.REDUCE_SCATTER, shape=(6,), chunk_bytes=16)
    operation = start(member(rank=3, ranks=(0, 3)), its_claim, np.zeros(6, np.float32))
    operation.next_round()
    operation.next_round()
    operation.result(0, 1, b"aaaa", last=False)
    operation.result(1, 1, b"bbbbcccc", last=True)
    assert bytes(operation.finish()) == b"aaaabbbbcccc"


def test_the_root_of_a_broadcast_gets_nothing_and_its_receivers_send_nothing() -> None:
    its_claim = claim(CollectiveKind.BROADCAST, None, 0, shape=(1,))
    root = start(member(0), its_claim, np.ones(1, np.float32))
    array = np.zeros(1, np.float32)
    receiver = start(member(1), its_claim, array)
    sent, claimed = root.next_round(), receiver.next_round()
    assert sent is not None
    assert claimed is not None
    assert (len(sent.payload), len(claimed.payload)) == (4, 0)
    root.result(0, 0, b"", last=True)
    receiver.result(0, 0, sent.payload, last=True)
    assert len(root.finish()) == 0
    receiver.finish()
    assert array.tolist() == [1]


@pytest.mark.parametrize(
    ("number", "position", "length"), [(1, 0, 64), (0, 1, 64), (0, -1, 64), (-1, 0, 64), (0, 0, 63), (0, 0, 0)]
)
def test_a_result_that_was_not_to_come_is_a_protocol_error(number: int, position: int, length: int) -> None:
    operation, _ = all_reduce(member(), elements=17)
    operation.next_round()
    with pytest.raises(ProtocolError):
        operation.result(number, position, bytes(length), last=False)
    assert not operation.done


def test_a_result_before_the_first_contribution_is_a_protocol_error() -> None:
    operation, _ = all_reduce(member())
    with pytest.raises(ProtocolError, match="before rank 0 has begun"):
        operation.destination(0, 0, 16)


@pytest.mark.parametrize(("elements", "last"), [(17, True), (16, False)])
def test_an_end_at_another_round_than_the_last_is_a_protocol_error(elements: int, last: bool) -> None:
    operation, _ = all_reduce(member(), elements=elements)
    operation.next_round()
    with pytest.raises(ProtocolError, match="ended after"):
        operation.result(0, 0, bytes(64), last=last)


def test_a_frame_about_an_operation_that_is_not_in_progress_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="operation 1 of group 'dp'"):
        member().operation(1)


def test_an_operation_that_has_ended_ignores_what_still_arrives() -> None:
    operation, _ = all_reduce(member())
    operation.next_round()
    error = ConnectionClosed("gone")
    operation.failed(error)
    operation.result(0, 0, bytes(16), last=True)
    operation.failed(ConnectionClosed("again"))
    assert operation.error is error


@pytest.mark.parametrize(("contribution", "target"), [(12, 16), (16, 12), (None, 16), (16, None)])
def test_arrays_of_another_length_than_claimed_are_refused_and_use_up_no_sequence(
    contribution: int | None, target: int | None
) -> None:
    subject = member()
    arrays = [None if length is None else memoryview(bytearray(length)) for length in (contribution, target)]
    with pytest.raises(InvalidValue, match="needs 16 bytes on rank 0"):
        subject.start(claim(), arrays[0], arrays[1])
    assert (subject.next_sequence, subject.pending) == (1, ())


def test_a_claim_that_cannot_be_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(InvalidValue, match="negative"):
        member().start(claim(shape=(-1,)))


def test_arrays_of_any_format_are_taken_as_bytes() -> None:
    array = np.arange(4, dtype=np.float32).reshape(2, 2)
    operation = member().start(claim(shape=(2, 2)), memoryview(array), memoryview(array))
    following = operation.next_round()
    assert following is not None
    assert bytes(following.payload) == array.tobytes()


def test_a_change_is_raised_by_every_operation_in_progress_and_not_again() -> None:
    subject = member(0, (0, 1, 2))
    operations = [barrier(subject), barrier(subject)]
    subject.changed(Generation(2), [Rank(1)], [Rank(0), Rank(2)])
    for operation in operations:
        with pytest.raises(GenerationChangedError) as caught:
            operation.finish()
        assert (caught.value.generation, caught.value.lost_ranks, caught.value.ranks) == (2, [1], [0, 2])
    following = barrier(subject)
    assert (following.sequence, subject.generation, subject.ranks, subject.position) == (1, 2, (0, 2), 0)


def test_a_change_between_operations_is_raised_by_the_next_call_and_not_again() -> None:
    subject = member(0, (0, 1))
    subject.changed(Generation(2), [Rank(1)], [Rank(0)])
    with pytest.raises(GenerationChangedError):
        barrier(subject)
    assert barrier(subject).sequence == 1


def test_changes_that_nobody_has_seen_are_raised_as_one() -> None:
    subject = member(0, (0, 1, 2))
    subject.changed(Generation(2), [Rank(2)], [Rank(0), Rank(1)])
    subject.changed(Generation(3), [Rank(1)], [Rank(0)])
    subject.changed(Generation(4), [], [Rank(0), Rank(1)])
    with pytest.raises(GenerationChangedError) as caught:
        barrier(subject)
    assert (caught.value.generation, caught.value.lost_ranks, caught.value.ranks) == (4, [1, 2], [0, 1])
    barrier(subject)


def test_a_change_after_one_that_was_raised_is_raised_by_the_next_call() -> None:
    subject = member(0, (0, 1, 2))
    operation = barrier(subject)
    subject.changed(Generation(2), [Rank(2)], [Rank(0), Rank(1)])
    with pytest.raises(GenerationChangedError):
        operation.finish()
    subject.changed(Generation(3), [Rank(1)], [Rank(0)])
    with pytest.raises(GenerationChangedError) as caught:
        barrier(subject)
    assert caught.value.lost_ranks == [1]
    assert barrier(subject).sequence == 1


def test_nothing_starts_in_a_generation_before_the_caller_has_been_told_of_it() -> None:
    subject = member(0, (0, 1, 2))
    operation = barrier(subject)
    subject.changed(Generation(2), [Rank(2)], [Rank(0), Rank(1)])
    # The caller has not looked at the first one: what it starts now is meant for the members that it knows.
    with pytest.raises(GenerationChangedError):
        barrier(subject)
    with pytest.raises(GenerationChangedError):
        operation.finish()
    assert barrier(subject).sequence == 1


def test_an_operation_that_a_change_has_failed_tells_of_later_ones_too() -> None:
    subject = member(0, (0, 1, 2))
    operation = barrier(subject)
    subject.changed(Generation(2), [Rank(2)], [Rank(0), Rank(1)])
    subject.changed(Generation(3), [Rank(1)], [Rank(0)])
    with pytest.raises(GenerationChangedError) as caught:
        operation.finish()
    assert (caught.value.generation, caught.value.lost_ranks) == (3, [1, 2])
    assert barrier(subject).sequence == 1


def test_a_change_that_was_raised_is_not_kept() -> None:
    subject = member(0, (0, 1))
    subject.changed(Generation(2), [Rank(1)], [Rank(0)])
    change = weakref.ref(subject._unseen_change)
    gc.disable()
    try:
        with suppress(GenerationChangedError):
            barrier(subject)
        assert change() is None
    finally:
        gc.enable()


def test_after_a_change_the_window_of_operations_is_free_again() -> None:
    subject = member()
    for _ in range(limits.OPERATIONS_AHEAD):
        barrier(subject)
    while subject.next_round() is not None:
        pass
    subject.changed(Generation(2), [Rank(1)], [Rank(0)])
    with pytest.raises(GenerationChangedError):
        barrier(subject)
    following = barrier(subject)
    assert following.next_round() is not None


def test_a_closed_connection_fails_everything_in_progress() -> None:
    subject = member()
    operations = [barrier(subject), barrier(subject)]
    subject.closed(ConnectionClosed("the broker is gone"))
    assert [type(operation.error) for operation in operations] == [ConnectionClosed, ConnectionClosed]
    assert subject.pending == ()


def test_a_failure_says_what_the_broker_has_said() -> None:
    subject = member()
    operation = barrier(subject)
    operation.failed(Missing((Rank(1),), 2.0).error("dp", operation.sequence))
    with pytest.raises(TimeoutError, match=r"operation 1: after 2 s ranks \[1\] had not arrived"):
        operation.finish()


def test_a_member_and_its_operations_are_shown_in_one_line() -> None:
    subject = member()
    operation = barrier(subject)
    assert repr(subject) == "<Member 'dp' rank=0 generation=1 ranks=[0, 1] pending=1>"
    assert repr(operation) == "<MemberOperation 1 pending barrier sent=0 received=0/1>"


def test_flat_bytes_share_the_memory_of_the_array() -> None:
    array = np.zeros(3, np.float32)
    flat(array)[:4] = np.float32(7).tobytes()
    assert array.tolist() == [7, 0, 0]
