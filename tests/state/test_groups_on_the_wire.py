"""Collective groups as frames: join, results, failures and changes."""

from __future__ import annotations

import msgpack
import msgspec
import numpy as np
import pytest

from broker.collectives.claims import Claim, CollectiveKind, ReduceOp
from broker.protocol.bodies import CollectiveFailure, Join, Membership, decode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Frame, Kind
from tests.state.harness import SECOND_NS, Peer, Talk


def join(peer: Peer, reference: int, *, world_size: int = 2, rank: int | None = None, timeout_s: float = 10) -> None:
    peer.put(Kind.JOIN, body=Join("dp", world_size, rank, int(timeout_s * 1e9)), target=reference)


def joined(talk: Talk, count: int = 2) -> list[Peer]:
    peers = [talk.peer(f"rank-{rank}") for rank in range(count)]
    for rank, peer in enumerate(peers):
        join(peer, 100 + rank, world_size=count, rank=rank)
    return peers


def claim(shape: tuple[int, ...] = (4,), timeout_s: float = 10) -> Claim:
    return Claim(CollectiveKind.ALL_REDUCE, ReduceOp.SUM, None, "float32", shape, int(timeout_s * 1e9))


def contribute(peer: Peer, array: np.ndarray, its_claim: Claim, *, sequence: int = 1, generation: int = 1) -> None:
    number = peer.all_of(Kind.JOINED)[-1].number
    peer.put(
        Kind.CONTRIBUTE, Flag.LAST, msgspec.msgpack.encode(its_claim),
        number=number, target=generation, sequence=sequence, payload=array.tobytes(),
    )  # fmt: skip


def memberships(peer: Peer, kind: Kind) -> list[Membership]:
    return [decode_body(frame.body, Membership) for frame in peer.all_of(kind)]


def failed(peer: Peer) -> list[CollectiveFailure]:
    return [decode_body(frame.body, CollectiveFailure) for frame in peer.all_of(Kind.FAILED)]


def results(peer: Peer) -> list[Frame]:
    return peer.all_of(Kind.RESULT)


def test_all_ranks_are_told_when_the_last_one_has_joined() -> None:
    talk = Talk()
    first, second = talk.peer(), talk.peer()
    join(first, 11)
    assert first.all_of(Kind.JOINED) == []
    join(second, 12)
    assert [frame.target for frame in first.all_of(Kind.JOINED)] == [11]
    assert [frame.target for frame in second.all_of(Kind.JOINED)] == [12]
    assert memberships(first, Kind.JOINED) == [Membership(1, [0, 1], 0)]
    assert memberships(second, Kind.JOINED) == [Membership(1, [0, 1], 1)]


@pytest.mark.parametrize("name", ["\x1b[2J", "two\nlines", "a//b", "/", "+", "data+tensor", "all/#", "a/" * 40 + "a"])
def test_a_group_whose_events_could_have_no_topic_is_refused(name: str) -> None:
    talk = Talk()
    watcher, peer = talk.peer(), talk.peer()
    watcher.subscribe("$sys/groups/#")
    peer.put(Kind.JOIN, body=Join(name, 1), target=7)
    (failure,) = peer.failures()
    assert failure.code == Code.INVALID
    assert f"topic {'$sys/groups/' + name!r}" in failure.reason
    assert peer.is_open
    assert not watcher.delivered()


def test_an_all_reduce_gives_every_rank_the_same_sum() -> None:
    talk = Talk()
    peers = joined(talk)
    for rank, peer in enumerate(peers):
        contribute(peer, np.full(4, rank + 1, "float32"), claim())
    for peer in peers:
        (frame,) = results(peer)
        assert (frame.sequence, frame.target, frame.flags & Flag.LAST) == (1, 1, Flag.LAST)
        assert np.frombuffer(frame.payload, "float32").tolist() == [3.0] * 4


def test_a_mismatch_fails_on_every_rank_with_every_claim() -> None:
    talk = Talk()
    peers = joined(talk)
    for peer, shape in zip(peers, [(4,), (5,)], strict=True):
        contribute(peer, np.zeros(shape, "float32"), claim(shape))
    talk.tick(0.5)
    for peer in peers:
        (failure,) = failed(peer)
        assert failure.claims == {0: "all_reduce sum float32 (4,)", 1: "all_reduce sum float32 (5,)"}
        assert results(peer) == []
        assert peer.is_open


def test_a_rank_that_does_not_arrive_is_named_at_the_deadline() -> None:
    talk = Talk()
    peers = joined(talk)
    contribute(peers[0], np.zeros(4, "float32"), claim(timeout_s=2))
    talk.tick(1.9)
    assert failed(peers[0]) == []
    talk.tick(0.2)
    (failure,) = failed(peers[0])
    assert (failure.missing_ranks, failure.timeout_s) == ([1], 2.0)


def test_survivors_of_a_killed_member_get_one_changed() -> None:
    talk = Talk()
    peers = joined(talk, 3)
    for peer in peers[:2]:
        contribute(peer, np.zeros(4, "float32"), claim())
    peers[2].die()
    for peer in peers[:2]:
        assert memberships(peer, Kind.CHANGED) == [Membership(2, [0, 1], -1, [2])]
        assert results(peer) == []
        contribute(peer, np.ones(4, "float32"), claim(), generation=2)
    for peer in peers[:2]:
        assert [frame.target for frame in results(peer)] == [2]


def test_a_member_that_leaves_is_answered_and_the_others_are_told() -> None:
    talk = Talk()
    peers = joined(talk)
    number = peers[0].all_of(Kind.JOINED)[0].number
    peers[1].put(Kind.LEAVE, number=number, target=55)
    assert [frame.target for frame in peers[1].all_of(Kind.DONE)] == [55]
    assert memberships(peers[0], Kind.CHANGED) == [Membership(2, [0], -1, [1])]
    peers[0].put(Kind.LEAVE, number=number, target=56)
    assert talk.state.own.groups.by_number == {}


def test_a_newcomer_takes_the_free_rank() -> None:
    talk = Talk()
    peers = joined(talk)
    peers[0].die()
    newcomer = talk.peer()
    join(newcomer, 77)
    assert memberships(newcomer, Kind.JOINED) == [Membership(3, [0, 1], 0)]
    assert memberships(peers[1], Kind.CHANGED)[-1] == Membership(3, [0, 1])


def test_a_join_that_waits_too_long_names_the_missing_ranks() -> None:
    talk = Talk()
    peer = talk.peer()
    join(peer, 5, world_size=3, rank=1, timeout_s=2)
    talk.tick(2.2)
    (failure,) = failed(peer)
    assert (failure.missing_ranks, failure.timeout_s) == ([0, 2], 2.0)
    assert [frame.target for frame in peer.all_of(Kind.FAILED)] == [5]
    assert talk.state.own.groups.by_number == {}
    assert peer.record.groups == set()


def test_a_refused_join_says_why_and_leaves_the_session_open() -> None:
    talk = Talk()
    first, second = talk.peer(), talk.peer()
    join(first, 1, rank=0)
    join(second, 2, rank=0)
    join(second, 3, world_size=5)
    join(second, 4, rank=9)
    join(second, 5, world_size=0)
    reasons = [failure.reason for failure in second.failures()]
    assert [frame.target for frame in second.all_of(Kind.ERROR)] == [2, 3, 4, 5]
    assert "rank 0 is held" in reasons[0]
    assert "world_size 5" in reasons[1]
    assert "rank 9" in reasons[2]
    assert second.is_open
    join(second, 6, rank=1)
    assert [frame.target for frame in second.all_of(Kind.JOINED)] == [6]


def test_a_second_join_of_a_session_that_waits_is_refused_and_the_first_one_goes_on() -> None:
    talk = Talk()
    first, second = talk.peer(), talk.peer()
    join(first, 1)
    join(first, 2)
    assert [frame.target for frame in first.all_of(Kind.ERROR)] == [2]
    join(second, 3)
    assert [frame.target for frame in first.all_of(Kind.JOINED)] == [1]
    join(first, 4)
    assert [frame.target for frame in first.all_of(Kind.ERROR)] == [2, 4]
    assert first.failures()[0].code == Code.COLLECTIVE


def test_a_session_that_left_before_the_group_formed_can_join_again() -> None:
    talk = Talk()
    first, second = talk.peer(), talk.peer()
    join(first, 1)
    number = next(iter(talk.state.own.groups.by_number))
    first.put(Kind.LEAVE, number=number, target=2)
    join(first, 3)
    join(second, 4)
    assert [frame.target for frame in first.all_of(Kind.JOINED)] == [3]


def test_a_join_is_taken_back_whether_it_waits_was_refused_or_has_been_answered() -> None:
    talk = Talk()
    first, second = talk.peer(), talk.peer()
    assert first.welcome.takes_back
    join(first, 1, rank=0)
    first.put(Kind.LEAVE, sequence=1)
    assert talk.state.own.groups.by_number == {}
    join(first, 2, rank=0)
    join(first, 3, rank=0)
    first.put(Kind.LEAVE, sequence=3)
    join(second, 4, rank=1)
    assert [frame.target for frame in first.all_of(Kind.ERROR)] == [3]
    assert [frame.target for frame in first.all_of(Kind.JOINED)] == [2]
    first.put(Kind.LEAVE, sequence=2)
    join(first, 5, rank=0)
    assert [frame.target for frame in first.all_of(Kind.JOINED)] == [2, 5]
    assert memberships(second, Kind.CHANGED) == [Membership(2, [1], -1, [0]), Membership(3, [0, 1])]
    assert first.is_open


def test_a_waiting_session_that_dies_is_forgotten() -> None:
    talk = Talk()
    first = talk.peer()
    join(first, 1)
    first.die()
    assert talk.state.own.groups.by_number == {}
    assert joined(talk)[0].all_of(Kind.JOINED)


def test_contributing_to_a_group_that_one_has_not_joined_closes_the_session_only() -> None:
    talk = Talk()
    peers, stranger = joined(talk), talk.peer()
    number = peers[0].all_of(Kind.JOINED)[0].number
    for kind in (Kind.CONTRIBUTE, Kind.LEAVE):
        stranger = talk.peer()
        stranger.put(kind, number=number, target=1, sequence=1)
        assert stranger.session.failure.code == Code.PROTOCOL
        assert f"group number {number}" in str(stranger.session.failure)
    assert all(peer.is_open for peer in peers)


def test_a_malformed_claim_closes_the_session_and_the_others_are_told_of_the_loss() -> None:
    talk = Talk()
    peers = joined(talk)
    number = peers[0].all_of(Kind.JOINED)[0].number
    peers[0].put(Kind.CONTRIBUTE, body=b"\xc1junk", number=number, target=1, sequence=1)
    assert peers[0].session.failure.code == Code.PROTOCOL
    assert memberships(peers[1], Kind.CHANGED) == [Membership(2, [1], -1, [0])]


def test_what_happens_in_groups_is_announced() -> None:
    talk = Talk()
    watcher = talk.peer()
    watcher.subscribe("$sys/groups/+")
    peers = joined(talk)
    peers[1].die()
    events = [msgpack.unpackb(payload) for payload in watcher.payloads()]
    assert [(event["event"], event["rank"]) for event in events] == [("joined", 0), ("joined", 1), ("lost", 1)]
    assert talk.now_ns == SECOND_NS


def test_groups_that_are_gone_use_up_no_topics() -> None:
    talk = Talk()
    talk.state.router.topics_max = 20
    peer = talk.peer("a")
    for number in range(50):
        peer.put(Kind.JOIN, body=Join(f"g{number}", 1), target=5)
        peer.put(Kind.LEAVE, number=peer.all_of(Kind.JOINED)[-1].number, target=6)
    assert len(talk.state.router.topics) <= 20
    peer.publish("mine", b"x")
    assert peer.is_open
    assert {"mine", "$sys/sessions"} <= talk.state.router.topics.keys()
