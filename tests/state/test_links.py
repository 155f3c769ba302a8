"""Links in the broker's state: who is introduced, what is decided, and what is told when a generation has ended."""

from __future__ import annotations

import msgspec
import pytest

from broker.collectives.claims import Claim
from broker.limits_links import (
    LINK_BREAKS_MAX,
    LINK_GRACE_S,
    LINK_MEETING_S,
    LINK_REPORTS_OWED_MAX,
    LINKED_RANKS_MAX,
)
from broker.protocol.bodies import Join, Membership, decode_body
from broker.protocol.frames import Kind, Lane
from broker.protocol.links import SECRET_BYTES, Decision, LinkState, Reach, Trouble
from tests.state.harness import Peer, Talk

PATIENCE_NS = 10**10


def reach(rank: int, **changes: object) -> Reach:
    fields: dict[str, object] = {
        "version": 1, "addresses": [f"10.0.0.{rank + 1}:5000"], "secret": bytes([rank]) * SECRET_BYTES,
        "host": f"host-{rank}",
    }  # fmt: skip
    return Reach(**{**fields, **changes})


class World:
    """A broker, and members that say how they are reached."""

    def __init__(self, world_size: int = 2) -> None:
        self.talk = Talk()
        self.world_size = world_size
        self.number = 0

    def member(self, rank: int, links: Reach | None = None, *, linkable: bool = True) -> Peer:
        peer = self.talk.peer(f"rank-{rank}")
        wished = (links or reach(rank)) if linkable else None
        peer.put(Kind.JOIN, body=Join("dp", self.world_size, rank, PATIENCE_NS, links=wished), target=100 + rank)
        return peer

    def members(self, **changes: object) -> list[Peer]:
        """All members of a group that has formed."""
        members = [self.member(rank, reach(rank, **changes)) for rank in range(self.world_size)]
        self.number = members[0].all_of(Kind.JOINED)[0].number
        return members

    def linked(self) -> list[Peer]:
        """All members of a group whose first generation is linked."""
        members = self.members()
        self.ready(members, 1)
        return members

    def say(self, peer: Peer, generation: int, state: int, rank: int = -1, cause: str = "") -> None:
        body = None if state == LinkState.READY else Trouble(rank, cause)
        peer.put(Kind.LINKS, number=self.number, target=generation, count=state, body=body)

    def ready(self, members: list[Peer], generation: int) -> None:
        for member in members:
            self.say(member, generation, LinkState.READY)

    def report(self, peer: Peer, generation: int, sequence: int) -> None:
        peer.put(Kind.COMMITTED, number=self.number, target=generation, sequence=sequence, lane=Lane.CONTROL)


def told(peer: Peer) -> Membership:
    """What a member was told last of its group."""
    (*_, frame) = [frame for frame in peer.frames if frame.kind in (Kind.JOINED, Kind.CHANGED)]
    return decode_body(frame.body, Membership)


def decisions(peer: Peer) -> list[tuple[int, str, str]]:
    found = [(frame.target, decode_body(frame.body, Decision)) for frame in peer.all_of(Kind.LINKS)]
    return [(generation, decision.schedule, decision.cause) for generation, decision in found]


def verdicts(peer: Peer) -> list[tuple[int, int]]:
    return [(frame.target, frame.sequence) for frame in peer.all_of(Kind.COMMITTED)]


@pytest.fixture
def world() -> World:
    return World()


def test_members_that_can_be_linked_are_introduced_with_one_secret(world: World) -> None:
    first, second = world.members()
    for member in (first, second):
        assert [(peer.rank, peer.addresses, peer.host) for peer in told(member).peers] == [
            (0, ["10.0.0.1:5000"], "host-0"),
            (1, ["10.0.0.2:5000"], "host-1"),
        ]
    assert told(first).secret == told(second).secret
    assert len(told(first).secret) == SECRET_BYTES
    assert decisions(first) == []


def test_each_generation_has_a_secret_of_its_own(world: World) -> None:
    world.talk = Talk()
    world.world_size = 3
    members = world.members()
    first = told(members[0]).secret
    members[2].die()
    assert told(members[0]).secret not in (first, b"")


def test_links_are_used_when_all_are_ready_and_not_before(world: World) -> None:
    first, second = world.members()
    world.say(first, 1, LinkState.READY)
    world.say(first, 1, LinkState.READY)
    assert decisions(first) == []
    world.say(second, 1, LinkState.READY)
    assert decisions(first) == decisions(second) == [(1, "auto", "")]


@pytest.mark.parametrize(("wishes", "expected"), [(("ring", "auto"), "ring"), (("halving", "halving"), "halving")])
def test_the_schedule_that_some_ask_for_is_everybodys(world: World, wishes: tuple[str, str], expected: str) -> None:
    members = [world.member(rank, reach(rank, schedule=wish)) for rank, wish in enumerate(wishes)]
    world.number = members[0].all_of(Kind.JOINED)[0].number
    world.ready(members, 1)
    assert [decisions(member) for member in members] == [[(1, expected, "")]] * 2


def test_members_that_ask_for_different_schedules_are_not_linked(world: World) -> None:
    members = [world.member(0, reach(0, schedule="ring")), world.member(1, reach(1, schedule="halving"))]
    assert [told(member).peers for member in members] == [[], []]
    assert told(members[0]).unlinked == "the members ask for different schedules: halving, ring"


@pytest.mark.parametrize(
    "other",
    [
        {"version": 2}, {"addresses": []}, {"addresses": ["trainer-1:5000"]}, {"addresses": ["10.0.0.1:0"]},
        {"addresses": ["10.0.0.1:5000"] * 5}, {"secret": b"short"}, {"host": "h" * 129}, {"schedule": "tree"},
    ],
)  # fmt: skip
def test_one_member_that_cannot_be_linked_is_enough_for_none(world: World, other: dict[str, object]) -> None:
    members = [world.member(0), world.member(1, reach(1, **other))]
    assert [told(member).peers for member in members] == [[], []]
    assert all(member.is_open for member in members)


def test_a_member_that_does_not_offer_links_is_enough_for_none(world: World) -> None:
    members = [world.member(0), world.member(1, linkable=False)]
    assert [(told(member).peers, told(member).unlinked) for member in members] == [
        ([], "not all members can be linked")
    ] * 2


def test_too_many_members_are_not_linked() -> None:
    world = World(LINKED_RANKS_MAX + 1)
    assert told(world.members()[0]).peers == []


def test_a_pair_that_cannot_meet_takes_everybody_to_star_and_is_named(world: World) -> None:
    first, second = world.members()
    world.say(second, 1, LinkState.READY)
    world.say(first, 1, LinkState.FAILED, rank=1, cause="10.0.0.2:5000:\n connection refused")
    expected = [(1, "star", "rank 0 cannot reach rank 1: 10.0.0.2:5000: connection refused")]
    assert decisions(first) == decisions(second) == expected
    # What comes after the decision changes nothing.
    world.ready([first, second], 1)
    world.say(second, 1, LinkState.BROKEN)
    world.talk.tick(LINK_MEETING_S + 1)
    assert decisions(first) == expected
    assert told(first).generation == 1


def test_a_pair_that_could_not_meet_does_not_try_again_and_others_do() -> None:
    world = World(3)
    members = world.members()
    world.say(members[0], 1, LinkState.FAILED, rank=1)
    members[2].die()
    assert (told(members[0]).peers, told(members[0]).unlinked) == (
        [], "two members could not reach one another before",
    )  # fmt: skip
    members[1].die()
    world.member(1)
    world.member(2)
    assert len(told(members[0]).peers) == 3


def test_a_member_that_fails_by_itself_is_not_introduced_again(world: World) -> None:
    first, second = world.members()
    world.say(second, 1, LinkState.FAILED, rank=-1, cause="no memory")
    assert decisions(first) == [(1, "star", "rank 1 cannot be linked: no memory")]


def test_who_is_not_ready_in_time_is_named(world: World) -> None:
    first, second = world.members()
    world.say(first, 1, LinkState.READY)
    world.talk.tick(LINK_MEETING_S + 1)
    assert (
        decisions(first) == decisions(second) == [(1, "star", f"ranks [1] were not ready after {LINK_MEETING_S:g} s")]
    )


def test_a_word_about_a_generation_that_is_over_changes_nothing() -> None:
    world = World(3)
    members = world.members()
    members[2].die()
    world.ready(members[:2], 1)
    world.say(members[0], 1, LinkState.FAILED, rank=1)
    assert decisions(members[0]) == []
    world.ready(members[:2], 2)
    assert decisions(members[0]) == [(2, "auto", "")]


def test_a_lost_link_begins_another_generation_of_the_same_members(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = world.linked()
    with caplog.at_level("DEBUG", logger="broker.state.links"):
        world.say(first, 1, LinkState.BROKEN, cause="reset")
    assert [record.getMessage() for record in caplog.records] == [
        "links.broke group='dp' generation=1 rank=0 cause=reset"
    ]
    assert told(first).generation == 1
    world.talk.tick(LINK_GRACE_S + 0.3)
    for member in (first, second):
        assert (told(member).generation, told(member).lost_ranks, len(told(member).peers)) == (2, [], 2)


def test_a_lost_link_to_a_lost_member_is_the_members_loss(world: World) -> None:
    first, second = world.linked()
    world.say(first, 1, LinkState.BROKEN, cause="reset")
    second.die()
    world.talk.tick(LINK_GRACE_S + 0.3)
    assert (told(first).generation, told(first).lost_ranks) == (2, [1])


def test_links_that_break_again_and_again_are_given_up(world: World) -> None:
    members = world.linked()
    for generation in range(1, LINK_BREAKS_MAX + 1):
        world.ready(members, generation)
        world.say(members[0], generation, LinkState.BROKEN)
        world.talk.tick(LINK_GRACE_S + 0.3)
    assert told(members[0]).peers == []
    assert "nothing was finished" in told(members[0]).unlinked


def test_links_that_have_finished_something_are_made_again_as_often_as_they_break(world: World) -> None:
    members = world.linked()
    for generation in range(1, 2 * LINK_BREAKS_MAX + 1):
        world.ready(members, generation)
        world.say(members[0], generation, LinkState.BROKEN)
        world.talk.tick(LINK_GRACE_S + 0.3)
        for member in members:
            world.report(member, generation, 3)
        assert len(told(members[0]).peers) == 2


def test_the_verdict_is_what_any_member_has_finished_when_all_have_said_so() -> None:
    world = World(3)
    members = world.linked()
    members[2].die()
    world.report(members[0], 1, 6)
    assert verdicts(members[0]) == []
    world.report(members[1], 1, 7)
    assert verdicts(members[0]) == verdicts(members[1]) == [(1, 7)]


def test_what_a_member_has_finished_that_has_left_counts() -> None:
    world = World(3)
    members = world.linked()
    world.report(members[2], 1, 9)
    members[2].put(Kind.LEAVE, number=world.number, target=7, lane=Lane.CONTROL)
    world.report(members[0], 1, 8)
    world.report(members[1], 1, 8)
    assert verdicts(members[0]) == verdicts(members[1]) == [(1, 9)]
    assert verdicts(members[2]) == []


def test_nobody_waits_for_what_a_dead_member_has_finished() -> None:
    world = World(3)
    members = world.linked()
    members[2].die()
    world.report(members[0], 1, 8)
    members[1].die()
    assert verdicts(members[0]) == [(1, 8)]


def test_a_member_that_never_says_what_it_has_finished_is_cut_off_and_the_others_get_their_verdicts() -> None:
    world = World(3)
    first, silent, other = world.linked()
    for _ in range(LINK_REPORTS_OWED_MAX + 1):
        assert silent.is_open
        generation = told(first).generation
        world.ready([first, silent, other], generation)
        other.die()
        world.report(first, generation, 3)
        if silent.is_open:
            other = world.member(2)
    assert not silent.is_open
    assert "COMMITTED is missing" in str(silent.record.session.failure)
    assert len(verdicts(first)) == LINK_REPORTS_OWED_MAX + 1


@pytest.mark.parametrize("kind", [Kind.LINKS, Kind.COMMITTED])
def test_words_about_a_group_that_was_not_joined_end_the_session(world: World, kind: Kind) -> None:
    world.linked()
    stranger = world.talk.peer("stranger")
    stranger.put(kind, number=world.number, target=1)
    assert not stranger.is_open


def test_a_malformed_trouble_ends_the_session(world: World) -> None:
    first, second = world.members()
    second.put(Kind.LINKS, number=world.number, target=1, count=LinkState.FAILED, body=b"\xc1")
    assert not second.is_open
    assert told(first).lost_ranks == [1]


def newcomer_that_waits(world: World) -> tuple[list[Peer], Peer]:
    """The members of a generation that meets and is busy, and somebody who waits to be let in."""
    members = world.members()
    members.pop().die()
    claim = msgspec.msgpack.encode(Claim.barrier(PATIENCE_NS))
    members[0].put(Kind.CONTRIBUTE, number=world.number, target=2, sequence=1, body=claim)
    newcomer = world.member(2)
    assert not newcomer.all_of(Kind.JOINED)
    return members, newcomer


@pytest.mark.parametrize("state", [LinkState.READY, LinkState.FAILED, LinkState.BROKEN])
def test_a_word_of_somebody_who_is_no_member_yet_changes_nothing(state: int) -> None:
    world = World(3)
    members, newcomer = newcomer_that_waits(world)
    world.say(newcomer, 2, state, rank=0, cause="none of my business")
    assert newcomer.is_open
    world.ready(members, 2)
    assert decisions(members[0]) == [(2, "auto", "")]


def test_who_is_no_member_yet_cannot_end_a_generation() -> None:
    world = World(3)
    members, newcomer = newcomer_that_waits(world)
    for kind in (Kind.BOARD, Kind.REGROUP):
        newcomer.put(kind, number=world.number, target=2)
    assert newcomer.is_open
    assert [frame.target for frame in members[0].all_of(Kind.CHANGED)] == [2]
