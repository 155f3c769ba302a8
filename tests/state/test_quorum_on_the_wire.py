"""Operations with a quorum as frames: who took part, what late ranks are told, events, totals, and the call in time."""

from __future__ import annotations

import msgpack
import msgspec
import numpy as np
import pytest

from broker import limits
from broker.collectives.claims import Claim, Quorum
from broker.protocol.bodies import CollectiveFailure, Membership, TookPart, decode_body
from broker.protocol.frames import Frame, Kind
from tests.state.harness import Peer, Talk
from tests.state.test_groups_on_the_wire import claim, contribute, failed, joined, memberships, results

DEADLINE_NS = 10_000_000


def quorum(ranks: int = 2, **terms: object) -> Claim:
    return msgspec.structs.replace(claim(), quorum=Quorum(ranks, **{"deadline_ns": DEADLINE_NS, **terms}))


def told(peer: Peer) -> list[tuple[int, list[int], list[int], int]]:
    """Of each TOOK_PART: the operation, the ranks, the carried ones, how far behind."""
    frames: list[Frame] = peer.all_of(Kind.TOOK_PART)
    bodies = [decode_body(frame.body, TookPart) for frame in frames]
    return [(frame.sequence, body.ranks, body.carried, frame.count) for frame, body in zip(frames, bodies, strict=True)]


def values(peer: Peer) -> list[list[float]]:
    return [np.frombuffer(frame.payload, np.float32).tolist() for frame in results(peer)]


def ones(number: float = 1.0) -> np.ndarray:
    return np.full(4, number, np.float32)


def test_the_broker_asks_to_be_called_at_the_deadline_and_then_says_who_took_part() -> None:
    talk = Talk()
    peers = joined(talk, 3)
    wakes: list[int] = []
    talk.state.own.groups.wake = wakes.append
    for peer in peers[:2]:
        contribute(peer, ones(), quorum())
    assert wakes == [talk.now_ns + DEADLINE_NS]
    assert told(peers[0]) == []
    talk.tick(DEADLINE_NS / 1e9)
    assert told(peers[0]) == told(peers[1]) == [(1, [0, 1], [], 0)]
    assert values(peers[0]) == [[2.0] * 4]
    assert told(peers[2]) == []
    contribute(peers[2], ones(5), quorum())
    assert told(peers[2]) == [(1, [0, 1], [], 0)]
    assert values(peers[2]) == [[2.0] * 4]
    for peer in peers:
        contribute(peer, ones(), quorum(), sequence=2)
    assert told(peers[2])[1:] == [(2, [0, 1, 2], [2], 0)]
    assert values(peers[0])[1] == [8.0] * 4


def test_a_rank_that_misses_is_announced_with_the_groups_totals_and_these_outlive_the_group() -> None:
    talk = Talk()
    peers = joined(talk, 3)
    watcher = talk.peer("watcher")
    watcher.subscribe("$sys/groups/dp")
    for peer in peers[:2]:
        contribute(peer, ones(), quorum())
    talk.tick(DEADLINE_NS / 1e9)
    heard = [msgpack.unpackb(payload) for payload in watcher.payloads()]
    events = [event for event in heard if event["event"] == "late"]
    totals = {"operations": 1, "missed": 1, "carried": 0, "added": 0, "dropped": 0}
    assert [(event["rank"], event["late"]) for event in events] == [(2, totals)]
    for peer in peers:
        peer.die()
    assert talk.state.own.groups.by_number == {}
    assert talk.state.own.groups.late_totals.missed == 1


def test_a_rank_that_is_too_far_behind_is_told_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk()
    peers = joined(talk, 3)
    monkeypatch.setattr(limits, "QUORUM_KEPT_MAX", 1)
    for sequence in (1, 2, 3):
        for peer in peers[:2]:
            contribute(peer, ones(), quorum(), sequence=sequence)
        talk.tick(DEADLINE_NS / 1e9)
    contribute(peers[2], ones(), quorum())
    assert failed(peers[2]) == [CollectiveFailure(missed=2)]


def test_a_member_may_ask_for_another_generation_of_the_same_members_once() -> None:
    talk = Talk()
    peers = joined(talk, 2)
    number = peers[0].all_of(Kind.JOINED)[0].number
    for _ in range(2):
        peers[0].put(Kind.REGROUP, number=number, target=1)
    for peer in peers:
        assert memberships(peer, Kind.CHANGED) == [Membership(2, [0, 1])]
    assert all(peer.is_open for peer in peers)


def test_who_is_no_member_may_not_regroup() -> None:
    talk = Talk()
    number = joined(talk, 2)[0].all_of(Kind.JOINED)[0].number
    stranger = talk.peer("stranger")
    stranger.put(Kind.REGROUP, number=number, target=1)
    assert not stranger.is_open
