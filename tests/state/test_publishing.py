"""Publishing: order, sequences, batches, acknowledgement."""

from __future__ import annotations

import pytest

from broker.protocol.batches import split_batch
from broker.protocol.bodies import MessageBody, Topic, decode_body, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Frame, Kind, Lane
from tests.state.harness import Talk


def test_a_message_reaches_every_subscriber_with_topic_sender_sequence_and_body() -> None:
    talk = Talk()
    publisher, first, second = talk.peer("trainer-0"), talk.peer("a"), talk.peer("b")
    first.subscribe("metrics/+")
    second.subscribe("metrics/loss")
    body = encode_body(MessageBody(headers={"step": "3"}))
    publisher.put(
        Kind.PUBLISH, number=publisher.topic("metrics/loss"), content=1, time_ns=99, body=body, payload=b"0.5"
    )
    for reader in (first, second):
        (frame,) = reader.delivered()
        assert (frame.sequence, frame.time_ns, frame.content, frame.count) == (1, 99, 1, 1)
        assert (frame.body, frame.payload, frame.lane) == (body, b"0.5", Lane.DEFAULT)
        assert reader.names()[frame.number] == Topic("metrics/loss", "trainer-0")


def test_sequences_count_per_topic_from_one_over_all_publishers() -> None:
    talk = Talk()
    first, second, reader = talk.peer(), talk.peer(), talk.peer()
    one, two = reader.subscribe("a"), reader.subscribe("b")
    for publisher in (first, second, first):
        publisher.publish("a", b"x")
    first.publish_batch("b", [b"1", b"2", b"3"])
    second.publish("b", b"4")
    assert reader.sequences(one) == [1, 2, 3]
    assert reader.sequences(two) == [1, 4]


def test_the_order_of_a_publisher_is_kept_also_across_topics_of_a_filter() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("t/#")
    for number in range(50):
        publisher.publish(f"t/{number % 3}", b"%d" % number)
    assert reader.payloads() == [b"%d" % number for number in range(50)]


def test_a_topic_is_announced_once_per_publisher_and_session() -> None:
    talk = Talk()
    first, second, reader = talk.peer("p1"), talk.peer("p2"), talk.peer()
    reader.subscribe("a")
    for _ in range(3):
        first.publish("a", b"x")
        second.publish("a", b"y")
    assert sorted(topic.sender for topic in reader.names().values()) == ["p1", "p2"]
    assert len(reader.all_of(Kind.TOPIC)) == 2
    senders = [reader.names()[frame.number].sender for frame in reader.delivered()]
    assert senders == ["p1", "p2"] * 3


def test_numbers_that_begin_again_mean_what_the_newest_announcement_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.state.announcing.TOPICS_PER_SESSION_MAX", 2)
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a/#")
    reader.subscribe("b/#")
    topics = ["a/1", "b/1", "b/2", "a/1", "a/1", "b/1", "b/2", "a/1"]
    for topic in topics:
        publisher.publish(topic, topic.encode())
    names: dict[int, str] = {}
    meant = []
    for frame in reader.frames:
        if frame.kind == Kind.TOPIC:
            names[frame.number] = decode_body(frame.body, Topic).name
        elif frame.kind == Kind.DELIVER:
            meant.append(names[frame.number])
    assert meant == topics
    assert reader.payloads() == [topic.encode() for topic in topics]


def test_a_batch_is_passed_on_unopened_and_shared() -> None:
    talk = Talk()
    publisher, first, second = talk.peer(), talk.peer(), talk.peer()
    first.subscribe("a")
    second.subscribe("a", "drop_newest", queue_messages=3)
    data = publisher.publish_batch("a", [b"1", b"2", b"3"])
    for reader in (first, second):
        (frame,) = reader.delivered()
        assert (frame.flags & Flag.BATCH, frame.count, frame.sequence) == (Flag.BATCH, 3, 1)
        assert frame.payload == data
    (kept,) = talk.state.router.topic("a").ring.last()
    assert kept.singles is None, "the broker has opened a batch that everybody wanted whole"


def test_a_batch_is_split_for_those_who_cannot_have_all_of_it() -> None:
    talk = Talk()
    publisher, small, latest = talk.peer(), talk.peer(), talk.peer()
    two = small.subscribe("a", "drop_newest", queue_messages=2)
    latest.subscribe("a", "latest")
    body = b"\x80"
    publisher.publish_batch("a", [b"1", b"2", b"3"])
    assert small.payloads() == [b"1", b"2"]
    assert small.sequences() == [1, 2]
    assert small.dropped(two) == 1
    assert latest.payloads() == []
    latest.credit(1, 1)
    assert latest.payloads() == [b"3"]
    assert latest.sequences() == [3]
    assert not any(frame.flags & Flag.BATCH for frame in small.delivered() + latest.delivered())
    assert body not in small.payloads()


def test_an_acknowledged_message_is_answered_with_its_sequence() -> None:
    talk = Talk()
    publisher = talk.peer()
    publisher.publish("a", b"x")
    publisher.publish("a", b"y", Flag.ACKNOWLEDGE, target=77)
    publisher.publish("a", b"z")
    publisher.publish_large("a", bytes(600_000), Flag.ACKNOWLEDGE, target=78)
    assert [(frame.target, frame.sequence) for frame in publisher.all_of(Kind.DONE)] == [(77, 2), (78, 4)]


def test_a_large_message_is_not_acknowledged_before_its_last_chunk() -> None:
    talk = Talk()
    publisher = talk.peer()
    stream = publisher.open_stream("a", 40_000, Flag.ACKNOWLEDGE, target=5)
    publisher.chunk(stream, bytes(20_000))
    assert publisher.all_of(Kind.DONE) == []
    publisher.chunk(stream, bytes(20_000), last=True)
    assert [frame.target for frame in publisher.all_of(Kind.DONE)] == [5]


def test_flush_is_answered_after_everything_before_it_was_routed() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    publisher.publish("a", b"x")
    publisher.put(Kind.FLUSH, target=9)
    assert [frame.target for frame in publisher.all_of(Kind.DONE)] == [9]
    assert reader.payloads() == [b"x"]


def test_a_topic_number_can_be_given_anew() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("#")
    for name in ("a", "b"):
        publisher.put(Kind.TOPIC, number=1, body=Topic(name))
        publisher.put(Kind.PUBLISH, number=1, payload=b"x")
    assert [topic.name for topic in reader.names().values()] == ["a", "b"]
    assert publisher.is_open


def test_a_topic_number_that_is_given_anew_in_the_middle_of_a_large_message_aborts_it() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    stream = publisher.open_stream("a", 1 << 20)
    publisher.chunk(stream, bytes(100_000))
    publisher.put(Kind.TOPIC, number=publisher.topic("a"), body=Topic("a"))
    assert [failure.code for failure in reader.failures(Kind.STREAM_ABORT)] == [Code.PUBLISHER_GONE]
    publisher.publish("a", b"next")
    assert reader.payloads()[-1] == b"next"


@pytest.mark.parametrize("name", ["$sys/x", "", "a//b", "a/+", "a\x00", "x" * 600])
def test_a_topic_that_is_none_closes_the_session_with_the_reason(name: str) -> None:
    talk = Talk()
    publisher = talk.peer()
    publisher.put(Kind.TOPIC, number=1, body=Topic(name))
    assert not publisher.is_open
    assert publisher.session.failure.code == Code.INVALID
    assert "topic" in str(publisher.session.failure)


def test_the_entries_of_a_split_batch_keep_content_time_and_body() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a", queue_group="g")
    data = publisher.publish_batch("a", [b"1", b"2"])
    entries = split_batch(data, 2)
    assert [(f.content, f.time_ns, f.body, f.payload) for f in reader.delivered()] == [tuple(e) for e in entries]


def test_control_messages_overtake_what_waits_for_the_link() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("#")
    reader.reading = False
    publisher.publish_large("bulk", bytes(3 << 20), lane=Lane.BULK)
    for number in range(5):
        publisher.publish("a", b"%d" % number)
    publisher.publish("control/stop", b"stop", lane=Lane.CONTROL)
    reader.reading = True
    talk.settle()
    assert [frame.lane for frame in reader.delivered()] == [Lane.CONTROL] + [Lane.DEFAULT] * 5 + [Lane.BULK]
    assert reader.large() == [bytes(3 << 20)]


def test_a_control_message_overtakes_a_large_message_that_has_started() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("#")
    reader.reading = False
    publisher.publish_large("bulk", bytes(2 << 20), lane=Lane.BULK)
    reader.receive_some(300_000)
    before = reader.chunk_bytes()
    publisher.publish("control/stop", b"stop", lane=Lane.CONTROL)
    reader.reading = True
    talk.settle()
    position = next(i for i, frame in enumerate(reader.frames) if frame.payload == b"stop")
    chunks_before = [frame for frame in reader.frames[:position] if frame.kind == Kind.CHUNK]
    assert before < 2 << 20
    assert len(chunks_before) <= 2, "a control message waits for one chunk at most, and for the one on the link"
    assert reader.large() == [bytes(2 << 20)]


def test_messages_that_are_read_at_once_keep_their_order_and_lanes() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    number = publisher.topic("a")
    lanes = [Lane.DEFAULT, Lane.BULK, Lane.CONTROL, Lane.DEFAULT, Lane.BULK, Lane.CONTROL, Lane.DEFAULT]
    for position, lane in enumerate(lanes):
        frame = Frame(Kind.PUBLISH, lane=lane, number=number, payload=b"%d" % position)
        publisher.session.put(frame)
    # The publisher's own outbox sorts them by lane; the broker sends the first one that comes at once.
    talk.settle()
    assert reader.payloads() == [b"2", b"5", b"0", b"3", b"6", b"1", b"4"]
    assert reader.sequences() == list(range(1, 8))
