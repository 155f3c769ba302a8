"""Replay of what a topic retains."""

from __future__ import annotations

import pytest

from broker.limits import CHUNK_BYTES, MIB
from broker.protocol.batches import split_batch
from broker.protocol.frames import Flag, Kind
from tests.state.harness import Peer, Talk


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last + 1)]


def published(talk: Talk) -> None:
    """Sequences 1 to 3 alone, 4 to 7 in a batch, 8 alone."""
    publisher = talk.peer("publisher")
    for payload in numbers(1, 3):
        publisher.publish("a", payload)
    publisher.publish_batch("a", numbers(4, 7))
    publisher.publish("a", b"8")


def unpacked(reader: Peer, number: int) -> list[bytes]:
    """Payloads of all delivered messages, those in batches too."""
    found = []
    for frame in reader.delivered(number):
        if frame.flags & Flag.BATCH:
            found += [payload for _, _, _, payload in split_batch(bytes(frame.payload), frame.count)]
        else:
            found.append(bytes(frame.payload))
    return found


@pytest.mark.parametrize(
    ("replay", "expected"),
    [
        ("all", numbers(1, 8)),
        ("latest", numbers(8, 8)),
        (0, numbers(1, 8)),
        (1, numbers(1, 8)),
        (3, numbers(3, 8)),
        (4, numbers(4, 8)),
        (6, numbers(6, 8)),
        (7, numbers(7, 8)),
        (8, numbers(8, 8)),
        (9, []),
        (1 << 63, []),
        (None, []),
    ],
)
def test_replay_starts_at_the_sequence_also_inside_a_batch(replay: int | str | None, expected: list[bytes]) -> None:
    talk = Talk()
    published(talk)
    reader = talk.peer()
    number = reader.subscribe("a", replay=replay)
    assert unpacked(reader, number) == expected
    talk.peers[0].publish("a", b"9")
    assert unpacked(reader, number) == [*expected, b"9"]
    assert reader.sequences()[-1] == 9


def test_latest_out_of_a_batch_is_its_last_message() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    publisher.publish_batch("a", numbers(1, 5))
    reader.subscribe("a", replay="latest")
    assert (reader.payloads(), reader.sequences()) == ([b"5"], [5])


def test_replay_covers_every_topic_of_a_filter() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    for topic in ("x/a", "x/b", "y"):
        publisher.publish(topic, topic.encode())
    reader.subscribe("x/+", replay="latest")
    assert sorted(reader.payloads()) == [b"x/a", b"x/b"]


def test_the_answer_to_the_subscription_comes_before_its_replay_in_a_session() -> None:
    talk = Talk()
    published(talk)
    reader = talk.peer()
    reader.subscribe("a", replay="all")
    assert [frame.kind for frame in reader.frames][:3] == [Kind.DONE, Kind.TOPIC, Kind.DELIVER]


def test_the_ring_is_bounded_in_messages() -> None:
    talk = Talk(ring_messages=5)
    publisher, reader = talk.peer(), talk.peer()
    for payload in numbers(1, 20):
        publisher.publish("a", payload)
    reader.subscribe("a", replay="all")
    assert reader.payloads() == numbers(16, 20)


def test_the_ring_is_bounded_in_bytes() -> None:
    talk = Talk(ring_bytes=1000)
    publisher, reader = talk.peer(), talk.peer()
    for _ in range(10):
        publisher.publish("a", bytes(300))
    reader.subscribe("a", replay="all")
    assert reader.sequences() == [8, 9, 10]


def test_the_newest_batch_is_kept_when_it_has_more_messages_than_the_ring() -> None:
    talk = Talk(ring_messages=5)
    publisher, reader = talk.peer(), talk.peer()
    publisher.publish_batch("a", numbers(1, 9))
    number = reader.subscribe("a", replay="latest")
    assert unpacked(reader, number) == [b"9"]


def test_a_ring_of_no_messages_keeps_none() -> None:
    talk = Talk(ring_messages=0)
    published(talk)
    reader = talk.peer()
    reader.subscribe("a", replay="all")
    assert reader.delivered() == []


def test_replay_keeps_to_the_overflow_policy() -> None:
    talk = Talk()
    published(talk)
    newest, oldest, latest = talk.peer(), talk.peer(), talk.peer()
    one = newest.subscribe("a", "drop_newest", queue_messages=5, replay="all")
    assert unpacked(newest, one) == numbers(1, 5)
    assert newest.dropped(one) == 3
    oldest.reading = False
    two = oldest.subscribe("a", "drop_oldest", queue_messages=5, replay="all")
    assert unpacked(oldest, two) == numbers(4, 8)
    three = latest.subscribe("a", "latest", replay="all")
    assert unpacked(latest, three) == []
    latest.credit(three, 1)
    assert unpacked(latest, three) == [b"8"]
    assert not latest.delivered()[0].flags & Flag.BATCH


def test_a_large_message_is_replayed_also_while_it_arrives() -> None:
    talk = Talk()
    publisher, early, late = talk.peer(), talk.peer(), talk.peer()
    stream = publisher.open_stream("a", 2 * CHUNK_BYTES)
    publisher.chunk(stream, b"1" * CHUNK_BYTES)
    early.subscribe("a", replay="all")
    publisher.chunk(stream, b"2" * CHUNK_BYTES, last=True)
    late.subscribe("a", replay="latest")
    assert early.large() == late.large() == [b"1" * CHUNK_BYTES + b"2" * CHUNK_BYTES]


def test_a_message_longer_than_the_ring_is_not_kept_and_neither_is_an_older_one() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    publisher.publish("a", b"old")
    publisher.publish_large("a", bytes(5 * MIB))
    assert talk.state.held_bytes() <= CHUNK_BYTES
    reader.subscribe("a", replay="latest")
    assert reader.delivered() == []


def test_inboxes_are_not_replayed() -> None:
    talk = Talk()
    responder, session = talk.peer(), talk.peer()
    responder.publish(f"$inbox/{session.record.id}", b"x")
    thief = talk.peer()
    thief.subscribe("#", replay="all")
    assert thief.delivered() == []
    assert talk.state.router.topic(f"$inbox/{session.record.id}").ring.last() == []


def retained_bytes(talk: Talk) -> int:
    return sum(topic.ring.held_bytes for topic in talk.state.router.topics.values())


def version(number: int) -> bytes:
    return bytes([number]) * (3 * MIB)


def test_the_last_value_survives_a_publisher_that_dies_in_the_middle_of_the_next_one() -> None:
    talk = Talk()
    publisher, other = talk.peer("publisher"), talk.peer("other")
    publisher.publish_large("weights", version(1))
    stream = other.open_stream("weights", 3 * MIB)
    other.chunk(stream, bytes(CHUNK_BYTES))
    other.die()
    reader = talk.peer()
    reader.subscribe("weights", replay="latest")
    assert (reader.large(), reader.sequences()) == ([version(1)], [1])
    assert retained_bytes(talk) == talk.state.router.retained_bytes
    assert talk.state.router.topics["weights"].ring.held_bytes == 3 * MIB


def test_a_newcomer_gets_the_last_complete_value_and_then_the_one_that_is_arriving() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    publisher.publish_large("weights", version(1))
    stream = publisher.open_stream("weights", 3 * MIB)
    publisher.chunk(stream, version(2)[:CHUNK_BYTES])
    reader = talk.peer()
    reader.subscribe("weights", replay="latest")
    assert reader.large() == [version(1)]
    for start in range(CHUNK_BYTES, 3 * MIB, CHUNK_BYTES):
        end = start + CHUNK_BYTES
        publisher.chunk(stream, version(2)[start:end], last=end == 3 * MIB)
    assert (reader.large(), reader.sequences()) == ([version(1), version(2)], [1, 2])
    late = talk.peer()
    late.subscribe("weights", replay="latest")
    assert late.large() == [version(2)]
    assert retained_bytes(talk) == talk.state.router.retained_bytes
    assert talk.state.router.topics["weights"].ring.held_bytes == 3 * MIB


def test_a_newcomer_in_the_middle_of_a_message_that_is_never_finished_has_the_last_value_all_the_same() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    publisher.publish_large("weights", version(1))
    publisher.chunk(publisher.open_stream("weights", 3 * MIB), bytes(CHUNK_BYTES))
    reader = talk.peer()
    number = reader.subscribe("weights", replay="latest")
    publisher.die()
    assert reader.large() == [version(1)]
    assert len(reader.failures(Kind.STREAM_ABORT)) == reader.dropped(number) == 1


def test_a_large_request_that_nobody_answers_ends_no_last_value() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    publisher.publish("a", b"kept")
    publisher.publish_large("a", bytes(8 * MIB), Flag.REQUEST, target=5)
    publisher.publish_large("b", bytes(8 * MIB))
    reader = talk.peer()
    reader.subscribe("+", replay="latest")
    assert reader.payloads() == [b"kept"]
