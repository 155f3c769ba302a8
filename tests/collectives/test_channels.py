"""Sends and receives between two ranks in the broker: order, bounds, failures, and rubbish."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from broker import limits
from broker.collectives.claims import Claim, CollectiveKind, channel_ends, channel_number
from broker.collectives.effects import Changed, Failed, GivenUp, Joined, Mismatch, Missing, Result
from broker.collectives.group import Group
from broker.collectives.member import Member, MemberOperation
from broker.errors import CollectiveAbortedError, ProtocolError
from broker.ids import Generation, GroupNumber, Rank, SessionId
from tests.collectives.harness import CHUNK_BYTES, SECOND_NS, flat

CHANNEL = channel_number(0, 2, 7)


def send_claim(elements: int = 4, timeout_ns: int = SECOND_NS, root: int = 0) -> Claim:
    return Claim(CollectiveKind.SEND, None, root, "float32", (elements,), timeout_ns, CHUNK_BYTES)


def receive_claim(timeout_ns: int = SECOND_NS, root: int = 0) -> Claim:
    return Claim(CollectiveKind.RECEIVE, None, root, "uint8", (0,), timeout_ns)


def group_of(ranks: int) -> Group:
    """Session n + 1 has rank n."""
    group = Group("dp", GroupNumber(1), ranks, 0)
    for rank in range(ranks):
        effects = group.join(SessionId(rank + 1), rank, ranks, SECOND_NS, 0)
    assert all(isinstance(effect, Joined) for effect in effects)
    return group


def end(rank: int, channel: int = CHANNEL, ranks: int = 3) -> Member:
    """A client's end of a channel, which may open as many as it likes."""
    member = Member("dp", Rank(rank), ranks, Generation(1), sorted(channel_ends(channel)))
    member.channel, member.allowed = channel, 1 << 30
    return member


def exchange(group: Group, ends: dict[int, Member], seed: int = 0, now_ns: int = 0) -> None:
    """Everything that can move moves, in an order of the seed."""
    ranks, random = list(ends), Random(seed)
    while ranks:
        rank = random.choice(ranks)
        following = ends[rank].next_round()
        if following is None:
            ranks.remove(rank)
            continue
        operation, (number, payload, claim) = following
        effects = group.contribute(
            SessionId(rank + 1), 1, operation.sequence, number, claim, bytes(payload), now_ns, ends[rank].channel
        )
        assert group.held_bytes <= limits.OPERATIONS_AHEAD * limits.ROUNDS_AHEAD * CHUNK_BYTES
        for effect in effects:
            tell(ends, effect)
        ranks = list(ends)


def tell(ends: dict[int, Member], effect: object) -> None:
    assert isinstance(effect, (Result, Failed))
    member = ends[effect.session - 1]
    operation = member.operation(effect.sequence)
    assert effect.channel == member.channel
    if isinstance(effect, Failed):
        operation.failed(effect.failure.error("dp", effect.sequence))
        return
    if effect.claim is not None:
        operation.agree(effect.claim)
    operation.result(effect.round, effect.position, bytes(effect.payload), last=effect.last)


def send(member: Member, array: np.ndarray) -> MemberOperation:
    return member.start(send_claim(array.size), flat(array), None)


@pytest.mark.parametrize("seed", range(20))
def test_arrays_arrive_in_their_order(seed: int) -> None:
    group, ends = group_of(3), {0: end(0), 2: end(2)}
    arrays = [np.full(Random(each).choice([0, 1, 16, 17, 400]), each, np.float32) for each in range(12)]
    targets = [np.empty_like(array) for array in arrays]
    sends = [send(ends[0], array) for array in arrays]
    receives = [
        ends[2].start(receive_claim()) if each % 3 == 0 else ends[2].start(send_claim(target.size), None, flat(target))
        for each, target in enumerate(targets)
    ]
    exchange(group, ends, seed)
    assert all(operation.done and operation.error is None for operation in (*sends, *receives))
    for each, (array, operation) in enumerate(zip(arrays, receives, strict=True)):
        assert bytes(operation.finish()) == array.tobytes()
        assert each % 3 == 0 or np.array_equal(targets[each], array)
        assert operation.claim.shape == array.shape
    assert group.snapshot().operations == ()
    assert group.next_deadline_ns is None


def test_a_sender_is_a_bounded_number_of_chunks_ahead() -> None:
    group, ends = group_of(3), {0: end(0)}
    send(ends[0], np.ones(4000, np.float32))
    exchange(group, ends)
    assert group.held_bytes == limits.ROUNDS_AHEAD * CHUNK_BYTES


def test_another_shape_is_told_to_both() -> None:
    group, ends = group_of(3), {0: end(0), 2: end(2)}
    operations = [
        send(ends[0], np.ones(4, np.float32)),
        ends[2].start(send_claim(5), None, flat(np.ones(5, np.float32))),
    ]
    exchange(group, ends)
    claims = {
        0: "send from rank 0 float32 (4,) in chunks of 64 bytes",
        2: "send from rank 0 float32 (5,) in chunks of 64 bytes",
    }
    for operation in operations:
        assert Mismatch(claims).error("dp", 1).args == operation.error.args


def test_who_comes_late_hears_of_the_failure() -> None:
    group, ends = group_of(3), {0: end(0), 2: end(2)}
    first = send(ends[0], np.ones(4, np.float32))
    exchange(group, ends)
    for effect in group.tick(SECOND_NS):
        tell(ends, effect)
    late = ends[2].start(receive_claim())
    exchange(group, ends, now_ns=SECOND_NS)
    assert first.error.args == late.error.args == Missing((Rank(2),), 1.0).error("dp", 1).args
    send(ends[0], np.ones(4, np.float32))
    following = ends[2].start(receive_claim())
    exchange(group, ends, now_ns=SECOND_NS)
    assert bytes(following.finish()) == np.ones(4, np.float32).tobytes()


def test_what_is_given_up_fails_for_both() -> None:
    group, ends = group_of(3), {0: end(0), 2: end(2)}
    first = send(ends[0], np.ones(4, np.float32))
    exchange(group, ends)
    assert group.give_up(SessionId(3), 1, 1, CHANNEL, 0) == []
    assert group.give_up(SessionId(1), 2, 1, CHANNEL, 0) == []
    effects = group.give_up(SessionId(1), 1, 1, CHANNEL, 0)
    assert [effect.failure for effect in effects] == [GivenUp(Rank(0))]
    for effect in effects:
        tell(ends, effect)
    late = ends[2].start(receive_claim())
    exchange(group, ends)
    assert isinstance(first.error, CollectiveAbortedError)
    assert isinstance(late.error, CollectiveAbortedError)
    assert group.give_up(SessionId(1), 1, 1, CHANNEL, 0) == []


def test_a_change_of_the_members_ends_them_and_newcomers_wait_for_them() -> None:
    group, ends = group_of(3), {0: end(0)}
    send(ends[0], np.ones(4, np.float32))
    exchange(group, ends)
    effects = group.lost(SessionId(2))
    assert {type(effect) for effect in effects} == {Changed}
    assert group.snapshot().operations == ()
    ends[0].generation = Generation(2)
    group.contribute(SessionId(1), 2, 1, 0, send_claim(), bytes(16), 0, CHANNEL)
    assert group.join(SessionId(9), 1, 3, 5 * SECOND_NS, 0) == []
    effects = group.contribute(SessionId(3), 2, 1, 0, receive_claim(), b"", 0, CHANNEL)
    assert [type(effect) for effect in effects] == [Result, Result, Changed, Changed, Joined]


@pytest.mark.parametrize(
    ("rank", "channel", "claim"),
    [
        (1, CHANNEL, send_claim()),
        (0, CHANNEL, send_claim(root=2)),
        (0, CHANNEL, receive_claim()),
        (0, channel_number(0, 0, 1), send_claim()),
        (0, channel_number(0, 9, 1), send_claim()),
        (0, 1, send_claim()),
        (0, (1 << 64) - 1, send_claim()),
        (0, 0, send_claim()),
        (0, CHANNEL, Claim.barrier(SECOND_NS)),
        (0, CHANNEL, Claim(CollectiveKind.GATHER, None, 0, "float32", (4,), SECOND_NS)),
    ],
)
def test_rubbish_closes_the_session_of_who_sends_it(rank: int, channel: int, claim: Claim) -> None:
    group = group_of(3)
    payload = bytes(claim.sent_bytes(rank))
    with pytest.raises(ProtocolError):
        group.contribute(SessionId(rank + 1), 1, 1, 0, claim, payload, 0, channel)
    assert group.snapshot().operations == ()


def test_a_rank_that_begins_too_many_or_one_twice_closes_its_session() -> None:
    group = group_of(3)
    for sequence in range(1, limits.OPERATIONS_AHEAD + 1):
        group.contribute(SessionId(1), 1, sequence, 0, send_claim(), bytes(16), 0, channel_number(0, 2, sequence % 5))
    with pytest.raises(ProtocolError, match="64 sends in progress"):
        group.contribute(SessionId(1), 1, 99, 0, send_claim(), bytes(16), 0, CHANNEL)
    group.contribute(SessionId(1), 1, 1, 0, receive_claim(root=1), b"", 0, channel_number(1, 0, 0))
    with pytest.raises(ProtocolError, match="twice"):
        group.contribute(SessionId(1), 1, 1, 0, receive_claim(root=1), b"", 0, channel_number(1, 0, 0))


def test_what_waits_for_its_other_end_stands_still() -> None:
    group, ends = group_of(3), {0: end(0), 2: end(2)}
    assert group.still_ns(7) == 0
    send(ends[0], np.ones(4, np.float32))
    exchange(group, ends, now_ns=2)
    assert group.still_ns(7) == 5
    ends[2].start(receive_claim())
    exchange(group, ends, now_ns=7)
    assert group.still_ns(9) == 0
