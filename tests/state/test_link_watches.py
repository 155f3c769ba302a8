"""What members tell of their operations over links, on the wire and in the broker's state."""

from __future__ import annotations

import json

import msgspec
import pytest

from broker.collectives.claims import Claim, CollectiveKind, ReduceOp
from broker.collectives.recorder import Outcome, Recorded
from broker.collectives.snapshots import GroupSnapshot
from broker.ids import GroupNumber
from broker.limits_links import LINK_REPORT_LAST_S, LINK_REPORT_S
from broker.protocol.bodies import decode_body
from broker.protocol.frames import Kind, Lane
from broker.protocol.links import Decision, LinkState
from broker.protocol.operations import Operations, Told
from tests.state.harness import SECOND_NS, Peer
from tests.state.test_links import World, reach

MS = 1_000_000
CLAIM = msgspec.msgpack.encode(Claim(CollectiveKind.ALL_REDUCE, ReduceOp.SUM, None, "float32", (3,), 1))


class Watched(World):
    """Three members whose first generation is linked."""

    def __init__(self, hosts: str = "abc") -> None:
        super().__init__(3)
        self.peers = [self.member(rank, reach(rank, host=host)) for rank, host in enumerate(hosts)]
        self.number = self.peers[0].all_of(Kind.JOINED)[0].number
        self.ready(self.peers, 1)

    def tell(self, peer: Peer, *told: Told, generation: int = 1, **body: object) -> None:
        peer.put(
            Kind.OPERATIONS, lane=Lane.CONTROL, number=self.number, target=generation,
            time_ns=self.talk.now_ns + 12_345, body=Operations(list(told), [CLAIM], **body),
        )  # fmt: skip

    def tick(self, by_ms: int = 100) -> None:
        self.talk.tick(by_ms / 1000)

    @property
    def shown(self) -> GroupSnapshot:
        groups = self.talk.state.own.groups
        return groups.snapshot(groups.by_number[GroupNumber(self.number)], self.talk.now_ns)

    @property
    def recorded(self) -> list[Recorded]:
        return self.shown.recorder.recent(100)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_members_of_a_linked_generation_are_asked_to_tell_and_others_are_not(watched: Watched) -> None:
    (frame,) = watched.peers[0].all_of(Kind.LINKS)
    assert decode_body(frame.body, Decision).report_ms == LINK_REPORT_S * 1000
    world = World()
    first, _ = world.members()
    world.say(first, 1, LinkState.FAILED, 1, "no route")
    (frame,) = first.all_of(Kind.LINKS)
    assert decode_body(frame.body, Decision).report_ms == 0


def test_operations_that_members_tell_of_are_recorded_and_shown(watched: Watched) -> None:
    watched.tick()
    for peer in watched.peers:
        watched.tell(peer, Told(1, 50 * MS, 20 * MS, 1, 0))
    watched.tick()
    (recorded,) = watched.recorded
    assert (recorded.generation, recorded.sequence, recorded.outcome) == (1, 1, Outcome.DONE)
    assert sorted(recorded.arrived_ns) == [0, 1, 2]
    assert watched.shown.schedule == "ring"
    assert watched.shown.operations == ()


def test_an_operation_in_progress_is_shown_and_announced_with_who_holds_it_up(watched: Watched) -> None:
    listener = watched.talk.peer("listener")
    listener.subscribe("$sys/groups/dp")
    for _ in range(20):
        for peer in watched.peers[:2]:
            watched.tell(peer, Told(4, 150 * MS, 0, 0, 0), waits_for=0b100)
        watched.tick()
    (operation,) = watched.shown.operations
    assert (operation.sequence, operation.schedule, operation.missing_ranks) == (4, "ring", (2,))
    assert sorted(operation.arrived_ns) == [0, 1]
    said = [msgspec.msgpack.decode(frame.payload) for frame in listener.all_of(Kind.DELIVER)]
    (stuck,) = [each for each in said if each["event"] == "stuck"]
    assert (stuck["schedule"], stuck["missing_ranks"], stuck["arrived_ranks"]) == ("ring", [2], [0, 1])
    assert json.dumps(stuck)


def test_what_is_told_of_another_generation_or_by_others_is_ignored(watched: Watched) -> None:
    watched.tell(watched.peers[0], Told(1, 50 * MS, 20 * MS, 1, 0), generation=2)
    assert watched.peers[0].is_open
    world = World()
    first, second = world.members()
    first.put(Kind.OPERATIONS, number=world.number, target=1, body=Operations())
    assert first.is_open, "its links are not decided: it has nothing to tell, and no harm is done"
    stranger = watched.talk.peer("stranger")
    stranger.put(Kind.OPERATIONS, number=watched.number, target=1, body=Operations())
    assert not stranger.is_open


@pytest.mark.parametrize(
    "body", [b"", b"\x93\x01\x02", msgspec.msgpack.encode({"told": [[1]]}), msgspec.msgpack.encode({"told": 1})]
)
def test_a_malformed_body_ends_its_session_and_no_other(watched: Watched, body: bytes) -> None:
    watched.peers[0].put(Kind.OPERATIONS, number=watched.number, target=1, body=body)
    assert not watched.peers[0].is_open
    assert watched.peers[1].is_open


@pytest.mark.parametrize("claim", [-1, 1, 2**40])
def test_a_claim_that_does_not_come_with_the_report_is_none(watched: Watched, claim: int) -> None:
    for peer in watched.peers:
        watched.tell(peer, Told(1, 50 * MS, 20 * MS, 1, claim))
    watched.tick()
    assert watched.recorded[0].claim is None


def test_a_lost_generation_is_told_of_a_little_longer(watched: Watched) -> None:
    watched.tick()
    watched.tell(watched.peers[0], Told(1, 50 * MS, 0, 0, 0), waits_for=0b100)
    watched.peers[2].die()
    assert watched.recorded == []
    assert watched.shown.operations == ()
    for peer in watched.peers[:2]:
        watched.tell(peer, Told(1, 60 * MS, 1 * MS, 5, 0))
    assert watched.recorded == []
    watched.tick(int(LINK_REPORT_LAST_S * 1000))
    watched.tick()
    (recorded,) = watched.recorded
    assert (recorded.generation, recorded.sequence, recorded.outcome) == (1, 1, Outcome.VOID)
    assert sorted(recorded.arrived_ns) == [0, 1]
    assert watched.shown.recorder.last_failure is None


def test_one_that_leaves_tells_first_and_its_words_count(watched: Watched) -> None:
    watched.tick()
    watched.tell(watched.peers[2], Told(1, 50 * MS, 20 * MS, 1, 0))
    watched.peers[2].put(Kind.LEAVE, number=watched.number, target=9, lane=Lane.CONTROL)
    for peer in watched.peers[:2]:
        watched.tell(peer, Told(1, 50 * MS, 20 * MS, 1, 0))
    watched.tick()
    assert [each.outcome for each in watched.recorded] == [] or watched.recorded[0].outcome is Outcome.DONE
    watched.tick(int(LINK_REPORT_LAST_S * 1000))
    assert [each.outcome for each in watched.recorded] == [Outcome.DONE]


def test_nothing_is_kept_of_a_group_that_is_gone(watched: Watched) -> None:
    for peer in watched.peers:
        watched.tell(peer, Told(1, 50 * MS, 0, 0, 0))
    for peer in watched.peers:
        peer.die()
    watches = watched.talk.state.own.groups._watches
    assert (watches._present, watches._ended) == ({}, {})


def test_stuck_for_a_second_is_measured_from_what_moved_last(watched: Watched) -> None:
    for step in range(30):
        for rank, peer in enumerate(watched.peers[:2]):
            received = 100 * min(step, 10) + rank
            watched.tell(peer, Told(1, 150 * MS, 0, 0, 0), phase=1, waits_for=0b100, received_bytes=received)
        watched.tick()
    (operation,) = watched.shown.operations
    assert 1.7 * SECOND_NS <= watched.talk.now_ns - operation.moved_ns <= 2.1 * SECOND_NS


@pytest.mark.parametrize(("hosts", "schedule"), [("aab", "hierarchical"), ("abc", "ring"), ("aaa", "ring")])
def test_the_schedule_that_members_of_such_hosts_take_is_shown(hosts: str, schedule: str) -> None:
    assert Watched(hosts).shown.schedule == schedule


def test_members_stand_still_while_what_they_tell_of_does_not_move(watched: Watched) -> None:
    groups = watched.talk.state.own.groups
    watched.tick()
    assert groups.standing_still(watched.talk.now_ns) == []
    for _ in range(3):
        watched.tell(watched.peers[0], Told(4, 150 * MS, 0, 0, 0), waits_for=0b110)
        watched.tick()
    assert groups.standing_still(watched.talk.now_ns) == [peer.record for peer in watched.peers]
    for peer in watched.peers:
        watched.tell(peer, Told(4, 250 * MS, 20 * MS, 1, 0))
    watched.tick()
    assert groups.standing_still(watched.talk.now_ns) == []
