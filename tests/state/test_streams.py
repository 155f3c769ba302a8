"""Large messages: cut-through, bounded memory, and what happens when somebody is slow or dies."""

from __future__ import annotations

import pytest

from broker.limits import CHUNK_BYTES, KIB, MIB
from broker.protocol.bodies import Declare, Failure
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind, Lane
from tests.state.harness import Peer, Talk

PART = bytes(CHUNK_BYTES)


def test_the_first_chunk_is_forwarded_before_the_last_arrives() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    stream = publisher.open_stream("a", 3 * CHUNK_BYTES)
    (opening,) = reader.delivered()
    assert (opening.total_bytes, opening.sequence, opening.payload) == (3 * CHUNK_BYTES, 1, b"")
    for number in range(1, 4):
        publisher.chunk(stream, PART, last=number == 3)
        assert reader.chunk_bytes() == number * CHUNK_BYTES
    assert reader.large() == [3 * PART]


def test_chunks_are_freed_when_all_readers_have_passed_them() -> None:
    talk = Talk()
    publisher, readers = talk.peer(), [talk.peer(), talk.peer()]
    for reader in readers:
        reader.subscribe("a", queue_bytes=512 * MIB)
    stream = publisher.open_stream("a", 200 * CHUNK_BYTES)
    for number in range(1, 201):
        publisher.chunk(stream, PART, last=number == 200)
        assert talk.state.held_bytes() <= 3 * CHUNK_BYTES
    assert all(reader.chunk_bytes() == 200 * CHUNK_BYTES for reader in readers)


def test_chunks_that_nobody_wants_are_freed_at_once() -> None:
    talk = Talk()
    publisher = talk.peer()
    stream = publisher.open_stream("a", 100 * CHUNK_BYTES)
    for number in range(1, 101):
        publisher.chunk(stream, PART, last=number == 100)
        assert talk.state.held_bytes() <= 2 * CHUNK_BYTES
    assert publisher.is_open


def test_a_reader_that_dies_in_the_middle_holds_nothing_any_more() -> None:
    talk = Talk()
    publisher, reader, other = talk.peer(), talk.peer(), talk.peer()
    reader.subscribe("a", queue_bytes=512 * MIB)
    other.subscribe("a", queue_bytes=512 * MIB)
    stream = publisher.open_stream("a", 100 * CHUNK_BYTES)
    publisher.chunk(stream, PART)
    reader.reading = False
    publisher.chunk(stream, PART)
    reader.die()
    for number in range(3, 101):
        publisher.chunk(stream, PART, last=number == 100)
        assert talk.state.held_bytes() <= 4 * CHUNK_BYTES
    assert other.large() == [100 * PART]


def test_a_reader_that_unsubscribes_in_the_middle_and_dies_holds_nothing_any_more() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", queue_bytes=512 * MIB)
    stream = publisher.open_stream("a", 2 * CHUNK_BYTES)
    reader.reading = False
    publisher.chunk(stream, PART)
    reader.put(Kind.UNSUBSCRIBE, number=number, target=1)
    reader.die()
    publisher.chunk(stream, PART, last=True)
    talk.state.router.topics["a"].ring.clear()
    assert talk.state.held_bytes() == 0


def test_the_reader_of_a_large_message_gets_it_whole_with_credit_given_chunk_by_chunk() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", queue_bytes=64 * KIB)
    publisher.publish_large("a", 10 * PART)
    credited = 0
    while reader.chunk_bytes() < 10 * CHUNK_BYTES:
        arrived = reader.chunk_bytes()
        reader.credit(number, 0, arrived - credited)
        credited = arrived
        assert reader.chunk_bytes() > arrived, "the message stands still"
    assert reader.large() == [10 * PART]


def send_with_credit(publisher: Peer, topic: str, stream: int, sent: int, total: int, window: int) -> int:
    """Sends chunks of a large message as credit allows, as a good client does; returns how much is sent now."""
    while sent < total and window + publisher.topic_credit(topic)[1] > sent:
        size = min(CHUNK_BYTES, total - sent)
        publisher.chunk(stream, bytes(size), last=sent + size == total)
        sent += size
    return sent


def test_two_publishers_that_stream_into_one_slow_block_reader_both_finish() -> None:
    window = 1 * MIB
    talk = Talk(publish_window_bytes=window)
    publishers, reader = [talk.peer(), talk.peer()], talk.peer()
    number = reader.subscribe("a", queue_bytes=256 * KIB, queue_messages=2)
    total = 12 * MIB
    streams = [publisher.open_stream("a", total) for publisher in publishers]
    sent = [0, 0]
    credited = 0
    while len(reader.large()) < 2:
        before = (sent[:], reader.chunk_bytes())
        for position, publisher in enumerate(publishers):
            sent[position] = send_with_credit(publisher, "a", streams[position], sent[position], total, window)
        arrived = reader.chunk_bytes()
        if arrived > credited:
            reader.credit(number, 0, arrived - credited)
            credited = arrived
        assert talk.state.held_bytes() <= 30 * MIB
        assert (sent, reader.chunk_bytes()) != before, f"deadlock at {sent}: {reader.record.subscriptions[number]}"
    assert reader.dropped(number) == 0


def test_a_slow_block_reader_holds_back_the_publishers_of_its_topics_only() -> None:
    window = 1 * MIB
    talk = Talk(publish_window_bytes=window)
    publisher, other, slow, good = talk.peer(), talk.peer(), talk.peer(), talk.peer()
    slow.subscribe("slow")
    good.subscribe("fast", queue_bytes=512 * MIB)
    slow.reading = False
    held_back = publisher.open_stream("slow", 100 * MIB)
    sent = send_with_credit(publisher, "slow", held_back, 0, 100 * MIB, window)
    assert sent < 12 * MIB
    for sender in (publisher, other):
        stream = sender.open_stream("fast", 50 * MIB)
        assert send_with_credit(sender, "fast", stream, 0, 50 * MIB, window) == 50 * MIB
    slow.reading = True
    talk.settle()
    assert send_with_credit(publisher, "slow", held_back, sent, 100 * MIB, window) > sent


def test_a_message_behind_an_unfinished_one_is_delivered_when_that_is_complete() -> None:
    talk = Talk()
    first, second, reader = talk.peer(), talk.peer(), talk.peer()
    reader.subscribe("#")
    one = first.open_stream("a", 2 * CHUNK_BYTES)
    first.chunk(one, PART)
    second.publish("b", b"small")
    second.publish_large("b", 2 * PART)
    assert reader.payloads() == [b""]
    first.chunk(one, PART, last=True)
    assert reader.payloads() == [b"", b"small", b""]
    assert reader.large() == [2 * PART, 2 * PART]


@pytest.mark.parametrize("chunks", [2, 3], ids=["begins with its first chunk", "has begun"])
def test_another_lane_goes_on_while_a_large_message_waits_for_its_publisher(chunks: int) -> None:
    talk = Talk()
    first, second, reader = talk.peer(), talk.peer(), talk.peer()
    reader.subscribe("#")
    first.open_stream("a", chunks * CHUNK_BYTES, lane=Lane.BULK)
    second.publish("b", b"default")
    second.publish("c", b"control", lane=Lane.CONTROL)
    assert reader.payloads()[chunks - 2 :] == [b"default", b"control"]


def test_a_message_of_few_chunks_leaves_with_the_first_of_them_and_wakes_nobody_before() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    stream = publisher.open_stream("a", 2 * CHUNK_BYTES)
    assert reader.all_of(Kind.DELIVER) == []
    publisher.chunk(stream, PART)
    # It does not wait for the second one.
    assert len(reader.all_of(Kind.DELIVER)) == 1
    assert reader.chunk_bytes() == CHUNK_BYTES
    publisher.chunk(stream, PART, last=True)
    assert reader.large() == [bytes(2 * CHUNK_BYTES)]


@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "latest"])
def test_a_message_whose_publisher_goes_before_its_first_chunk_counts_as_lost_and_the_next_one_comes(
    overflow: str,
) -> None:
    talk = Talk()
    bad, good, reader = talk.peer(), talk.peer(), talk.peer()
    number = reader.subscribe("a", overflow)
    reader.credit(number, 2, 8 * MIB)
    bad.open_stream("a", 2 * CHUNK_BYTES)
    bad.die()
    assert reader.all_of(Kind.DELIVER) == []
    assert reader.dropped(number) == 1
    good.publish("a", b"next")
    assert reader.payloads() == [b"next"]


def test_messages_behind_one_that_has_not_begun_come_in_order() -> None:
    talk = Talk()
    first, second, reader = talk.peer(), talk.peer(), talk.peer()
    reader.subscribe("#")
    stream = first.open_stream("a", 2 * CHUNK_BYTES)
    second.publish("b", b"small")
    first.chunk(stream, PART)
    first.chunk(stream, PART, last=True)
    talk.settle()
    assert reader.large() == [bytes(2 * CHUNK_BYTES)]
    assert reader.payloads()[-1] == b"small"


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "latest"])
def test_a_reader_that_is_too_slow_for_a_large_message_loses_it_and_the_others_notice_nothing(
    overflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.state.delivery.STREAM_LAG_BYTES_MAX", 1 * MIB)
    talk = Talk()
    publisher, slow, good = talk.peer(), talk.peer(), talk.peer()
    number = slow.subscribe("a", overflow, queue_bytes=1 * MIB)
    good.subscribe("a", queue_bytes=512 * MIB)
    slow.credit(number, 1, 64 * MIB)
    stream = publisher.open_stream("a", 20 * MIB)
    publisher.chunk(stream, PART)
    assert slow.chunk_bytes() == CHUNK_BYTES
    slow.reading = False
    for part in range(2, 20 * MIB // CHUNK_BYTES + 1):
        publisher.chunk(stream, PART, last=part == 20 * MIB // CHUNK_BYTES)
        assert talk.state.held_bytes() <= 3 * MIB
    assert good.large() == [bytes(20 * MIB)]
    slow.reading = True
    talk.settle()
    assert [failure.code for failure in slow.failures(Kind.STREAM_ABORT)] == [Code.DROPPED]
    assert slow.dropped(number) == 1
    publisher.publish("a", b"next")
    assert slow.payloads()[-1] == b"next"
    assert good.all_of(Kind.STREAM_ABORT) == []


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "latest"])
def test_a_reader_that_keeps_up_gets_a_large_message_whatever_its_bound_in_bytes(overflow: str) -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", overflow, queue_bytes=64 * KIB)
    reader.credit(number, 1, 64 * KIB)
    stream = publisher.open_stream("a", 5 * MIB)
    for part in range(1, 5 * MIB // CHUNK_BYTES + 1):
        publisher.chunk(stream, PART, last=part == 5 * MIB // CHUNK_BYTES)
        reader.credit(number, 0, CHUNK_BYTES)
    assert reader.large() == [bytes(5 * MIB)]
    assert reader.dropped(number) == 0


def test_a_publisher_that_dies_in_the_middle_aborts_its_message_and_later_ones_flow() -> None:
    talk = Talk()
    publisher, survivor, reader = talk.peer("p"), talk.peer("s"), talk.peer()
    number = reader.subscribe("a")
    stream = publisher.open_stream("a", 10 * CHUNK_BYTES)
    publisher.chunk(stream, PART)
    survivor.publish("a", b"later")
    publisher.die()
    (failure,) = reader.failures(Kind.STREAM_ABORT)
    assert failure.code == Code.PUBLISHER_GONE
    assert "'p'" in failure.reason
    assert reader.payloads()[-1] == b"later"
    assert reader.dropped(number) == 1
    survivor.publish_large("a", 2 * PART)
    assert reader.large() == [2 * PART]


def test_an_unfinished_message_that_had_not_started_is_dropped_silently_but_counted() -> None:
    talk = Talk()
    first, second, reader = talk.peer(), talk.peer(), talk.peer()
    number = reader.subscribe("#")
    first.open_stream("a", 10 * CHUNK_BYTES)
    second.open_stream("b", 10 * CHUNK_BYTES)
    second.die()
    first.die()
    assert len(reader.all_of(Kind.STREAM_ABORT)) == 1
    assert reader.dropped(number) == 2


def test_a_publisher_can_give_its_message_up() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    stream = publisher.open_stream("a", 10 * CHUNK_BYTES)
    publisher.chunk(stream, PART)
    publisher.put(Kind.STREAM_ABORT, stream=stream, body=Failure(Code.PUBLISHER_GONE, "changed my mind"))
    assert [failure.reason for failure in reader.failures(Kind.STREAM_ABORT)] == ["changed my mind"]
    publisher.publish_large("a", PART)
    assert reader.large() == [PART]
    late = talk.peer()
    late.subscribe("a", replay="all")
    assert late.sequences() == [2]


@pytest.mark.parametrize("overflow", ["block", "drop_newest", "latest"])
def test_messages_whose_publisher_died_do_not_use_up_the_readers_credit(overflow: str) -> None:
    talk = Talk()
    reader, survivor = talk.peer(), talk.peer()
    number = reader.subscribe("a", overflow, queue_messages=2)
    reader.credit(number, 1, 64 * MIB)
    for _ in range(5):
        publisher = talk.peer()
        publisher.open_stream("a", 10 * CHUNK_BYTES)
        publisher.die()
    survivor.publish("a", b"alive")
    assert reader.payloads()[-1] == b"alive"


@pytest.mark.parametrize("given_up", [1, 2])
def test_the_credit_of_messages_that_were_given_up_goes_to_what_waits_in_another_lane(given_up: int) -> None:
    talk = Talk()
    reader, survivor = talk.peer(), talk.peer()
    reader.subscribe("a", queue_messages=1)
    publishers = [talk.peer() for _ in range(given_up)]
    for publisher in publishers:
        publisher.open_stream("a", 10 * CHUNK_BYTES)
    survivor.publish("a", b"waits", lane=Lane.BULK)
    for publisher in reversed(publishers):
        publisher.die()
    assert reader.payloads()[-1] == b"waits"


def test_the_credit_of_a_message_that_was_given_up_goes_to_a_job_that_waits() -> None:
    talk = Talk()
    publisher, member = talk.peer(), talk.peer()
    publisher.put(Kind.DECLARE, body=Declare("jobs", acknowledge=True), target=1)
    member.subscribe("+", queue_group="g", queue_messages=1)
    stream = publisher.open_stream("a", 10 * CHUNK_BYTES)
    publisher.publish("jobs", b"job")
    publisher.put(Kind.STREAM_ABORT, stream=stream, body=Failure(Code.PUBLISHER_GONE, "changed my mind"))
    talk.tick(0.2)
    assert member.payloads()[-1] == b"job"


def both_finish(publishers: list[Peer], streams: list[int], readers: dict[Peer, int], window: int) -> None:
    """Publishers on the topics `a` and `b` send all of their large messages, whose readers take what is complete."""
    total, sent = 8 * MIB, [0, 0]
    while sent != [total, total]:
        before = sent[:]
        for position, topic in enumerate("ab"):
            publisher = publishers[position]
            sent[position] = send_with_credit(publisher, topic, streams[position], sent[position], total, window)
        assert sent != before, f"they wait for each other at {sent}"
        for reader, number in readers.items():
            if reader.large():
                reader.credit(number, 1)


def test_two_members_of_a_group_that_get_large_messages_do_not_hold_back_each_others_publishers() -> None:
    window = 1 * MIB
    talk = Talk(publish_window_bytes=window)
    publishers, others, members = [talk.peer(), talk.peer()], talk.peer(), [talk.peer(), talk.peer()]
    wishes = {"queue_group": "g", "queue_messages": 1, "queue_bytes": 512 * MIB}
    numbers = {member: member.subscribe("#", **wishes) for member in members}
    streams = [publisher.open_stream(topic, 8 * MIB) for publisher, topic in zip(publishers, "ab", strict=True)]
    for topic in "ab":
        others.publish(topic, b"waits behind a large one")
    both_finish(publishers, streams, numbers, window)
    assert [len(member.large()) for member in members] == [1, 1]


def test_a_subscriber_that_came_too_late_for_a_large_message_does_not_hold_its_publisher_back() -> None:
    window = 1 * MIB
    talk = Talk(publish_window_bytes=window)
    publishers, first, late = [talk.peer(), talk.peer()], talk.peer(), talk.peer()
    numbers = {first: first.subscribe("#", queue_messages=1, queue_bytes=512 * MIB)}
    streams = [publishers[0].open_stream("a", 8 * MIB)]
    numbers[late] = late.subscribe("#", queue_messages=1, queue_bytes=512 * MIB)
    streams.append(publishers[1].open_stream("b", 8 * MIB))
    talk.peer().publish("a", b"waits behind a large one")
    both_finish(publishers, streams, numbers, window)
    assert [len(reader.large()) for reader in numbers] == [2, 1]


def test_a_held_back_publisher_whose_reader_has_died_goes_on() -> None:
    window = 1 * MIB
    talk = Talk(publish_window_bytes=window)
    publisher, slow = talk.peer(), talk.peer()
    slow.subscribe("a")
    slow.reading = False
    stream = publisher.open_stream("a", 60 * MIB)
    sent = send_with_credit(publisher, "a", stream, 0, 60 * MIB, window)
    assert sent < 60 * MIB
    slow.die()
    assert send_with_credit(publisher, "a", stream, sent, 60 * MIB, window) == 60 * MIB


def test_a_large_control_message_needs_no_credit_and_is_bounded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.state.delivery.STREAM_LAG_BYTES_MAX", 1 * MIB)
    talk = Talk(publish_window_bytes=1 * MIB)
    publisher, slow, good = talk.peer(), talk.peer(), talk.peer()
    number = slow.subscribe("a", queue_bytes=4 * MIB)
    good.subscribe("a")
    slow.reading = False
    stream = publisher.open_stream("a", 40 * MIB, lane=Lane.CONTROL)
    for part in range(1, 40 * MIB // CHUNK_BYTES + 1):
        publisher.chunk(stream, PART, last=part == 40 * MIB // CHUNK_BYTES, lane=Lane.CONTROL)
        assert talk.state.held_bytes() <= 6 * MIB
    assert good.large() == [bytes(40 * MIB)]
    slow.reading = True
    talk.settle()
    assert slow.dropped(number) == 1


def test_an_empty_large_message_is_one_last_chunk() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    stream = publisher.open_stream("a", 0)
    publisher.chunk(stream, b"", last=True)
    assert reader.large() == [b""]


def test_streams_of_several_subscriptions_share_a_session() -> None:
    talk = Talk()
    publishers, reader = [talk.peer(), talk.peer()], talk.peer()
    for topic in ("a", "b"):
        reader.subscribe(topic)
    streams = [publisher.open_stream(topic, 2 * CHUNK_BYTES) for publisher, topic in zip(publishers, "ab", strict=True)]
    for last in (False, True):
        for publisher, stream in zip(publishers, streams, strict=True):
            publisher.chunk(stream, PART, last=last)
    assert len({frame.stream for frame in reader.delivered()}) == 2
    assert reader.large() == [2 * PART] * 2
    assert all(frame.flags & Flag.CHUNKED for frame in reader.delivered())
