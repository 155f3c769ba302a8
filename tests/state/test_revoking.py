"""Permissions that change while sessions are open."""

from __future__ import annotations

import pytest

from broker.errors import ConnectionClosed
from broker.limits import CHUNK_BYTES
from broker.protocol.bodies import Declare, Failure, Join, Settle, decode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind
from broker.security.identity import Identity
from broker.security.permissions import Permissions
from broker.security.roles import READY_MADE
from tests.state.harness import Peer, Talk
from tests.state.test_authority import ADMIN, denials, permissions, role

SOME = Identity("somebody", ("some",))
Filters = dict[str, tuple[str, ...]]


class World:
    """A broker whose rules for somebody can be changed."""

    def __init__(self, allow: Filters, deny: Filters | None = None) -> None:
        self.talk = Talk(permissions=permissions(some=role(allow, deny)), ring_messages=0)
        self.some: Peer = self.talk.peer("somebody", identity=SOME)
        self.ada: Peer = self.talk.peer("ada", identity=ADMIN)

    def change(self, allow: Filters, deny: Filters | None = None) -> None:
        self.talk.state.replace_permissions(permissions(some=role(allow, deny)))
        self.talk.settle()


def ended(peer: Peer) -> dict[int, Failure]:
    return {frame.number: decode_body(frame.body, Failure) for frame in peer.all_of(Kind.UNSUBSCRIBE)}


def test_a_subscription_ends_with_the_reason_and_others_go_on() -> None:
    world = World({"subscribe": ("a", "b")})
    a, b = world.some.subscribe("a"), world.some.subscribe("b")
    world.change({"subscribe": ("b",)})
    told = ended(world.some)
    assert list(told) == [a]
    assert told[a].code == Code.DENIED
    assert "it may subscribe b" in told[a].reason
    world.ada.publish("a", b"x")
    world.ada.publish("b", b"y")
    assert world.some.payloads() == [b"y"]
    assert world.some.delivered(b)
    assert world.some.is_open


def test_what_waits_and_is_denied_now_is_not_delivered() -> None:
    world = World({"subscribe": ("#",)})
    number = world.some.subscribe("#", queue_messages=2)
    for payload in (b"1", b"2", b"3", b"4"):
        world.ada.publish("a" if payload in b"13" else "b", payload)
    assert world.some.payloads() == [b"1", b"2"]
    world.change({"subscribe": ("#",)}, {"subscribe": ("a",)})
    world.some.credit(number, 4, 100)
    assert world.some.payloads() == [b"1", b"2", b"4"]
    assert world.some.dropped(number) == 1


def test_a_large_message_under_way_is_cut_off() -> None:
    world = World({"subscribe": ("#",)})
    world.some.subscribe("#")
    stream = world.ada.open_stream("a", 2 * CHUNK_BYTES)
    world.ada.chunk(stream, b"x" * CHUNK_BYTES)
    world.change({"subscribe": ("#",)}, {"subscribe": ("a",)})
    world.ada.chunk(stream, b"x" * CHUNK_BYTES, last=True)
    assert world.some.large() == []
    assert len(world.some.all_of(Kind.STREAM_ABORT)) == 1


def test_a_publisher_is_refused_from_the_next_message_on_and_heard_again_when_it_may() -> None:
    world = World({"publish": ("a",)})
    number = world.ada.subscribe("a")
    world.some.publish("a", b"1")
    world.change({})
    world.some.publish("a", b"2")
    assert world.ada.payloads(number) == [b"1"]
    assert len(denials(world.some)) == 1
    world.change({"publish": ("a",)})
    assert [frame.number for frame in world.some.all_of(Kind.POLICY)][-1] == world.some.topic("a")
    world.some.publish("a", b"3")
    world.change({})
    world.some.publish("a", b"4")
    assert world.ada.payloads(number) == [b"1", b"3"]
    assert len(denials(world.some)) == 2


def test_a_topic_that_was_named_in_vain_works_once_it_may_be_published_to() -> None:
    world = World({})
    world.some.publish("a", b"1")
    assert "a" not in world.talk.state.router.topics
    world.change({"publish": ("a",)})
    number = world.ada.subscribe("a")
    world.some.publish("a", b"2")
    assert world.ada.payloads(number) == [b"2"]
    assert world.talk.state.router.topics["a"].publishers == 1
    world.some.die()
    assert world.talk.state.router.topics["a"].publishers == 0


def test_a_large_message_of_a_publisher_that_is_under_way_arrives() -> None:
    world = World({"publish": ("a",)})
    world.ada.subscribe("a")
    stream = world.some.open_stream("a", 2 * CHUNK_BYTES)
    world.some.chunk(stream, b"x" * CHUNK_BYTES)
    world.change({})
    world.some.chunk(stream, b"x" * CHUNK_BYTES, last=True)
    assert [len(payload) for payload in world.ada.large()] == [2 * CHUNK_BYTES]
    assert world.some.is_open


def test_a_responder_that_may_not_respond_any_more_is_lost_to_whoever_waits_for_it() -> None:
    world = World({"respond": ("ask",)})
    number = world.some.subscribe("ask", responder=True, queue_messages=1)
    for request in (1, 2):
        world.ada.publish("ask", b"q", Flag.REQUEST, target=request, sequence=request)
    world.change({})
    assert list(ended(world.some)) == [number]
    assert [failure.code for failure in world.ada.failures()] == [Code.RESPONDER_LOST]
    world.ada.publish("ask", b"q", Flag.REQUEST, target=3, sequence=3)
    assert world.ada.failures()[-1].code == Code.NO_RESPONDERS


def test_a_member_of_a_group_that_it_may_not_be_in_loses_its_session_and_the_others_go_on() -> None:
    world = World({"join": ("dp",)})
    for peer in (world.some, world.ada):
        peer.put(Kind.JOIN, body=Join("dp", 2), target=5)
    assert len(world.ada.all_of(Kind.JOINED)) == 1
    world.change({})
    assert not world.some.is_open
    failure = world.some.session.failure
    assert isinstance(failure, ConnectionClosed)
    assert failure.code == Code.DENIED
    assert "join 'dp'" in failure.reason
    assert len(world.ada.all_of(Kind.CHANGED)) == 1
    assert world.ada.is_open


def test_jobs_of_a_member_that_may_not_have_them_go_to_others() -> None:
    world = World({"subscribe": ("jobs/#",), "join": ("g",)})
    world.ada.put(Kind.DECLARE, body=Declare("jobs/#", acknowledge=True), target=9)
    number = world.some.subscribe("jobs/#", queue_group="g")
    world.ada.publish("jobs/a", b"a")
    world.ada.publish("jobs/b", b"b")
    held = {bytes(frame.payload): frame.stream for frame in world.some.delivered(number)}
    assert held.keys() == {b"a", b"b"}
    world.change({"subscribe": ("jobs/#",), "join": ("g",)}, {"subscribe": ("jobs/a",)})
    other = world.talk.peer("other", identity=ADMIN)
    theirs = other.subscribe("jobs/#", queue_group="g")
    assert b"a" in other.payloads(theirs)
    # What it had not settled of the others it got again; the old delivery is nobody's any more.
    world.some.put(Kind.SETTLE, body=Settle([held[b"a"]]), number=number)
    work = world.talk.state.router.topics["jobs/a"].works["g"]
    assert work.queue.held == 1
    again = [frame for frame in world.some.delivered(number)[2:] if frame.flags & Flag.TRACKED]
    assert {bytes(frame.payload) for frame in again} <= {b"b"}


def test_a_queue_group_that_may_not_be_joined_any_more_ends_its_subscription() -> None:
    world = World({"subscribe": ("jobs",), "join": ("g",)})
    number = world.some.subscribe("jobs", queue_group="g")
    world.change({"subscribe": ("jobs",)})
    assert list(ended(world.some)) == [number]


def test_a_subscription_is_widened_as_well() -> None:
    world = World({"subscribe": ("a/#",)}, {"subscribe": ("a/b",)})
    number = world.some.subscribe("a/#")
    world.ada.publish("a/b", b"1")
    world.change({"subscribe": ("a/#",)})
    world.ada.publish("a/b", b"2")
    assert world.some.payloads(number) == [b"2"]
    assert ended(world.some) == {}


def test_a_publisher_that_a_narrowed_subscription_held_back_goes_on() -> None:
    world = World({"subscribe": ("#",)})
    world.some.subscribe("#", queue_messages=1)
    window = world.talk.state.publishing.window_messages
    for _ in range(window):
        world.ada.publish("a", b"x")
    before = world.ada.topic_credit("a")[0]
    assert before < window
    assert world.talk.state.router.topics["a"].held_back
    world.change({"subscribe": ("#",)}, {"subscribe": ("a",)})
    assert world.ada.topic_credit("a")[0] > before
    assert not world.talk.state.router.topics["a"].held_back


@pytest.mark.parametrize("times", [3])
def test_changing_back_and_forth_leaves_everything_as_it_was(times: int) -> None:
    world = World({"subscribe": ("#",), "publish": ("#",), "join": ("#",)})
    number = world.some.subscribe("a/#", queue_group="g")
    for _ in range(times):
        world.change({"subscribe": ("a/#",), "join": ("g",)})
        world.change({"subscribe": ("#",), "publish": ("#",), "join": ("#",)})
    world.some.publish("a/b", b"x")
    assert world.some.payloads(number) == [b"x"]


def test_without_rules_nothing_is_asked_and_with_the_first_ones_it_is() -> None:
    talk = Talk()
    some = talk.peer("somebody")
    some.subscribe("a")
    talk.state.replace_permissions(Permissions(configured=True, roles=READY_MADE))
    talk.settle()
    assert list(ended(some)) == [1]
    talk.state.replace_permissions(Permissions())
    some.subscribe("a")


def test_whoever_may_not_be_in_a_group_any_more_gets_nothing_that_waits_or_comes() -> None:
    world = World({"join": ("dp",), "subscribe": ("a",)})
    for peer in (world.some, world.ada):
        peer.put(Kind.JOIN, body=Join("dp", 2), target=5)
    number = world.some.subscribe("a")
    world.some.reading = False
    world.ada.publish("a", b"waits")
    world.talk.state.replace_permissions(permissions(some=role({})))
    world.ada.publish("a", b"comes")
    world.some.reading = True
    world.talk.settle()
    assert world.some.delivered(number) == []
    assert not world.some.is_open
    failure = world.some.session.failure
    assert isinstance(failure, ConnectionClosed)
    assert failure.code == Code.DENIED


def test_what_waits_for_a_member_that_may_not_have_it_goes_to_another_one() -> None:
    world = World({"subscribe": ("+",), "join": ("g",)})
    number = world.some.subscribe("+", queue_group="g", queue_messages=1)
    for payload in (b"1", b"2"):
        world.ada.publish("work", payload)
    theirs = world.ada.subscribe("+", queue_group="g")
    world.change({"subscribe": ("+",), "join": ("g",)}, {"subscribe": ("work",)})
    assert world.some.payloads(number) == [b"1"]
    assert world.ada.payloads(theirs) == [b"2"]
    assert world.some.record.subscriptions[number].dropped == 0
