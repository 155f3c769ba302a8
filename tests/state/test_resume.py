"""Subscriptions that were cut off go on behind what they have received."""

from __future__ import annotations

import pytest

from broker.limits import CHUNK_BYTES, TOPICS_MAX
from broker.protocol.batches import split_batch
from broker.protocol.bodies import Resume, Subscribe
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.topics.marks import MARKS_MAX
from tests.state.harness import Peer, Talk

Seen = dict[str, tuple[int, int, int]]
REFERENCE = 77


def moment_of(peer: Peer, number: int) -> int:
    """The moment at which a subscription began."""
    (done,) = [frame for frame in peer.all_of(Kind.DONE) if frame.number == number]
    return done.sequence


def begin(talk: Talk, topic_filter: str = "a") -> int:
    """A subscription begins and is cut off before anything comes; returns its moment."""
    peer = talk.peer("cut off")
    moment = moment_of(peer, peer.subscribe(topic_filter))
    peer.die()
    return moment


def come_back(talk: Talk, moment: int, seen: Seen, topic_filter: str = "a", **wishes: object) -> Peer:
    """The subscription is asked for again by a new session."""
    peer = talk.peer("again")
    if seen:
        peer.put(Kind.RESUME, body=Resume(seen), number=1, lane=Lane.CONTROL)
    peer.subscribe(topic_filter, resume=moment, **wishes)
    return peer


def received(peer: Peer) -> list[tuple[str, int, int]]:
    """Topic, sequence and gap of each message."""
    names = {number: topic.name for number, topic in peer.names().items()}
    messages, gap = [], 0
    for frame in peer.frames:
        if frame.kind == Kind.GAP:
            gap = frame.sequence
        elif frame.kind == Kind.DELIVER:
            count = len(split_batch(bytes(frame.payload), frame.count)) if frame.flags & Flag.BATCH else 1
            for offset in range(count):
                messages.append((names[frame.number], frame.sequence + offset, gap))
                gap = 0
    assert sum(gap for _, _, gap in messages) <= peer.dropped(1)
    return messages


def publish(publisher: Peer, count: int, topic: str = "a", **fields: object) -> None:
    for _ in range(count):
        publisher.publish(topic, b"x", **fields)


def test_it_gets_what_was_published_meanwhile_and_nothing_twice() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    publish(publisher, 3)
    moment = begin(talk)
    publish(publisher, 4)
    peer = come_back(talk, moment, {"a": (0, 5, 0)})
    assert received(peer) == [("a", 6, 0), ("a", 7, 0)]
    publish(publisher, 1)
    assert received(peer)[2:] == [("a", 8, 0)]
    assert peer.dropped(1) == 0


def test_a_topic_of_which_it_had_nothing_begins_with_what_came_after_it() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    publish(publisher, 3, "in/old")
    publish(publisher, 2, "in/quiet")
    moment = begin(talk, "in/#")
    begin(talk, "other")
    publish(publisher, 2, "in/old")
    begin(talk, "other")
    publish(publisher, 2, "in/new")
    peer = come_back(talk, moment, {}, "in/#")
    assert received(peer) == [("in/old", 4, 0), ("in/old", 5, 0), ("in/new", 1, 0), ("in/new", 2, 0)]


@pytest.mark.parametrize(("seen", "gap"), [((0, 5, 0), 2), ((0, 7, 0), 0), ((0, 9, 0), 0), ((0, 0, 0), 4)])
def test_what_the_ring_has_lost_is_told_exactly(seen: tuple[int, int, int], gap: int) -> None:
    talk = Talk(ring_messages=3)
    publisher = talk.peer("publisher")
    publish(publisher, 3)
    moment = begin(talk)
    publish(publisher, 7)
    peer = come_back(talk, moment, {"a": seen} if any(seen) else {})
    first = max(8, seen[1] + 1)
    assert received(peer) == [("a", first, gap), *(("a", number, 0) for number in range(first + 1, 11))]
    assert peer.dropped(1) == gap


def test_what_no_ring_keeps_is_told_with_the_next_message() -> None:
    talk = Talk(ring_messages=0)
    publisher = talk.peer("publisher")
    moment = begin(talk)
    publish(publisher, 5)
    peer = come_back(talk, moment, {"a": (0, 1, 0)})
    assert (received(peer), peer.dropped(1)) == ([], 4)
    publish(publisher, 2)
    assert received(peer) == [("a", 6, 4), ("a", 7, 0)]


def test_a_hole_in_the_ring_is_told_where_it_is() -> None:
    talk = Talk()
    publisher, killed = talk.peer("publisher"), talk.peer("killed")
    moment = begin(talk)
    publish(publisher, 1)
    stream = killed.open_stream("a", 10 * CHUNK_BYTES)
    killed.chunk(stream, bytes(CHUNK_BYTES))
    publish(publisher, 2)
    killed.die()
    peer = come_back(talk, moment, {})
    assert received(peer) == [("a", 1, 0), ("a", 3, 1), ("a", 4, 0)]


def test_a_large_message_that_is_arriving_comes_whole() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    moment = begin(talk)
    stream = publisher.open_stream("a", 2 * CHUNK_BYTES)
    publisher.chunk(stream, b"x" * CHUNK_BYTES)
    peer = come_back(talk, moment, {})
    publisher.chunk(stream, b"y" * CHUNK_BYTES, last=True)
    assert peer.large() == [b"x" * CHUNK_BYTES + b"y" * CHUNK_BYTES]


def test_a_batch_is_cut_where_it_was_seen() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    moment = begin(talk)
    publisher.publish_batch("a", [b"1", b"2", b"3"])
    publisher.publish_batch("a", [b"4", b"5"])
    peer = come_back(talk, moment, {"a": (0, 2, 0)})
    assert received(peer) == [("a", 3, 0), ("a", 4, 0), ("a", 5, 0)]


def test_each_lane_goes_on_by_itself() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    moment = begin(talk)
    for lane in (Lane.BULK, Lane.DEFAULT, Lane.CONTROL, Lane.BULK, Lane.DEFAULT, Lane.CONTROL):
        publish(publisher, 1, lane=lane)
    # A control message had overtaken all others; of the bulk lane nothing had come.
    peer = come_back(talk, moment, {"a": (6, 2, 0)})
    assert sorted(received(peer)) == [("a", 1, 0), ("a", 4, 0), ("a", 5, 0)]
    assert peer.dropped(1) == 0


@pytest.mark.parametrize(
    ("replay", "sequences"), [(None, [6, 7]), ("latest", [5, 6, 7]), ("all", [1, 2, 3, 4, 5, 6, 7]), (4, [4, 5, 6, 7])]
)
def test_where_nothing_had_come_the_wish_for_kept_messages_holds(
    replay: str | int | None, sequences: list[int]
) -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    publish(publisher, 5)
    moment = begin(talk)
    publish(publisher, 2)
    assert [sequence for _, sequence, _ in received(come_back(talk, moment, {}, replay=replay))] == sequences
    assert received(come_back(talk, moment, {"a": (0, 6, 0)}, replay=replay)) == [("a", 7, 0)]


def test_on_another_broker_everything_is_new() -> None:
    talk = Talk(ring_messages=3)
    publisher = talk.peer("publisher")
    publish(publisher, 5)
    begin(talk, "other")
    publish(publisher, 1)
    assert received(come_back(talk, 0, {})) == [("a", 4, 3), ("a", 5, 0), ("a", 6, 0)]


def test_latest_gets_the_newest_if_it_is_a_new_one() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    moment = begin(talk)
    publish(publisher, 4)
    peer = come_back(talk, moment, {"a": (0, 1, 0)}, overflow="latest")
    peer.credit(1, 1)
    assert received(peer) == [("a", 4, 2)]
    peer = come_back(talk, moment, {"a": (0, 4, 0)}, overflow="latest")
    peer.credit(1, 1)
    assert received(peer) == []


def test_a_topic_that_was_forgotten_goes_on_with_higher_sequences() -> None:
    talk = Talk()
    router = talk.state.router
    publisher = talk.peer("publisher")
    publish(publisher, 5)
    moment = begin(talk)
    publisher.die()
    for number in range(TOPICS_MAX + 1 - len(router.topics)):
        router.topic(f"filler/{number}")
    assert "a" not in router.topics
    publish(talk.peer("another"), 2)
    assert received(come_back(talk, moment, {"a": (0, 5, 0)})) == [("a", 6, 0), ("a", 7, 0)]


def test_what_was_seen_may_come_in_many_frames_and_counts_for_its_subscription_alone() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    moment = begin(talk, "#")
    for number in range(5):
        publish(publisher, 2, f"t/{number}")
    peer = talk.peer()
    for number in range(4):
        peer.put(
            Kind.RESUME, body=Resume({f"t/{number}": (0, number % 2 + 1, 0), f"gone/{number}": (9, 9, 9)}), number=1
        )
    assert len(peer.record.resuming[1]) == 4
    peer.subscribe("#", resume=moment)
    assert received(peer) == [("t/0", 2, 0), ("t/2", 2, 0), ("t/4", 1, 0), ("t/4", 2, 0)]
    assert peer.record.resuming == (0, {})
    peer.put(Kind.RESUME, body=Resume({"t/0": (0, 2, 0)}), number=3)
    peer.put(Kind.RESUME, body=Resume({"t/1": (0, 2, 0)}), number=2)
    peer.subscribe("t/0", resume=moment)
    assert peer.sequences(2) == [1, 2]


def test_very_old_moments_begin_with_the_oldest_that_is_known() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    moment = begin(talk)
    publish(publisher, 1)
    for _ in range(MARKS_MAX + 5):
        begin(talk, "other")
        publish(publisher, 1)
    sequences = [sequence for _, sequence, _ in received(come_back(talk, moment, {}))]
    assert sequences == list(range(MARKS_MAX + 6 - MARKS_MAX + 1, MARKS_MAX + 7))


@pytest.mark.parametrize(
    "wishes",
    [Subscribe("a", queue_group="g", resume=1), Subscribe("a", responder=True, resume=1), Subscribe("a", resume=-1)],
)
def test_what_does_not_go_on_is_refused(wishes: Subscribe) -> None:
    talk = Talk()
    peer = talk.peer()
    peer.put(Kind.SUBSCRIBE, body=wishes, number=1, target=REFERENCE)
    assert [failure.code for failure in peer.failures()] == [Code.INVALID]
    assert peer.is_open


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x81\xa4seen\x01", b"\x81\xa4seen\x81\xa1a\x92\x01\x02"])
def test_malformed_bodies_end_the_session_and_cost_nobody_else(body: bytes) -> None:
    talk = Talk()
    peer, other = talk.peer(), talk.peer()
    peer.session.put(Frame(Kind.RESUME, number=1, body=body))
    talk.settle()
    assert not peer.is_open
    assert other.is_open


def test_sequences_that_no_topic_has_had_are_waited_for_by_nobody() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    moment = begin(talk)
    publish(publisher, 2)
    peer = come_back(talk, moment, {"a": (-5, 1 << 62, -9)})
    publish(publisher, 1)
    assert received(peer) == [("a", 3, 0)]
