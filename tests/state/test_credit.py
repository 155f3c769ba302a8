"""Credit of publishers and readers: granted in time, withheld in need, and enforced."""

from __future__ import annotations

import pytest

from broker.limits import BATCH_MESSAGES_MAX, CHUNK_BYTES, KIB, MESSAGE_BYTES_MAX, MIB
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind, Lane
from tests.state.harness import Talk


@pytest.mark.parametrize("window", [1, 2, 3, 10])
def test_a_publisher_that_waits_for_credit_always_gets_some(window: int) -> None:
    talk = Talk(publish_window_messages=window)
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a")
    for count in range(1, 40):
        assert window + publisher.topic_credit("a")[0] >= count if count > 1 else True
        publisher.publish("a", b"x")
        reader.credit(number, 1, 1)
    assert len(reader.delivered()) == 39


def test_a_publisher_gets_credit_when_half_of_its_window_is_used_up() -> None:
    talk = Talk(publish_window_messages=10, publish_window_bytes=1000)
    publisher = talk.peer()
    for _ in range(4):
        publisher.publish("a", b"x")
    assert publisher.all_of(Kind.CREDIT) == []
    publisher.publish("a", b"x")
    assert publisher.topic_credit("a") == (5, 5)
    publisher.publish("a", bytes(600))
    assert publisher.topic_credit("a") == (6, 605)


def test_credit_is_counted_per_topic() -> None:
    talk = Talk(publish_window_messages=4)
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("slow", queue_messages=1)
    for _ in range(4):
        publisher.publish("slow", b"x")
        publisher.publish("fast", b"x")
    assert publisher.topic_credit("slow")[0] < 4
    assert publisher.topic_credit("fast")[0] == 4


@pytest.mark.parametrize(
    "blocked_by",
    [{"queue_messages": 1}, {"queue_messages": 1000}],
    ids=["messages", "bytes"],
)
def test_a_publisher_that_ignores_its_credit_is_closed(blocked_by: dict[str, int]) -> None:
    talk = Talk(publish_window_messages=8, publish_window_bytes=1 * MIB)
    publisher, other, reader = talk.peer(), talk.peer(), talk.peer()
    reader.subscribe("a", **blocked_by)
    reader.reading = False
    sent = 0
    while publisher.is_open and sent < 10_000:
        publisher.publish("a", bytes(16_000))
        sent += 1
    assert sent < 2 * BATCH_MESSAGES_MAX
    assert publisher.session.failure.code == Code.LIMIT
    assert "'a'" in str(publisher.session.failure)
    assert "credit" in str(publisher.session.failure)
    other.publish("b", b"x")
    assert other.is_open
    assert reader.is_open


def test_one_batch_and_one_chunk_over_the_credit_are_forgiven() -> None:
    talk = Talk(publish_window_messages=2, publish_window_bytes=64 * KIB)
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a", queue_messages=1)
    publisher.publish_batch("a", [b""] * BATCH_MESSAGES_MAX)
    publisher.publish_large("a", bytes(CHUNK_BYTES))
    assert publisher.is_open


def test_control_messages_are_free() -> None:
    talk = Talk(publish_window_messages=2)
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a", queue_messages=2)
    for _ in range(100):
        publisher.publish("a", b"x", lane=Lane.CONTROL)
    assert len(reader.delivered()) == 100
    assert publisher.all_of(Kind.CREDIT) == []


def test_a_subscriber_of_the_same_topic_that_reads_does_not_lift_what_another_one_blocks() -> None:
    talk = Talk(publish_window_messages=4)
    publisher, one, two = talk.peer(), talk.peer(), talk.peer()
    first, second = one.subscribe("a", queue_messages=1), two.subscribe("a", queue_messages=1)
    for _ in range(4):
        publisher.publish("a", b"x")
    for _ in range(4):
        one.credit(first, 1)
    assert publisher.topic_credit("a")[0] < 4
    for _ in range(4):
        two.credit(second, 1)
    assert publisher.topic_credit("a")[0] == 4


def test_all_publishers_that_a_reader_held_back_go_on() -> None:
    talk = Talk(publish_window_messages=2)
    publishers, reader = [talk.peer() for _ in range(5)], talk.peer()
    number = reader.subscribe("+", queue_messages=1)
    for position, publisher in enumerate(publishers):
        for _ in range(2):
            publisher.publish("ab"[position % 2], b"x")
    while len(reader.delivered()) < 10:
        reader.credit(number, 1)
    assert [publisher.topic_credit("ab"[i % 2])[0] for i, publisher in enumerate(publishers)] == [2] * 5


def test_message_credit_holds_delivery_to_the_readers_bound() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", queue_messages=3)
    for _ in range(10):
        publisher.publish("a", b"x")
    for expected in (3, 4, 6):
        assert len(reader.delivered()) == expected
        reader.credit(number, 1 if expected == 3 else 2)
    assert len(reader.delivered()) == 8


def test_more_credit_than_was_used_does_not_raise_the_bound() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", queue_messages=3, queue_bytes=64 * KIB)
    reader.credit(number, 0xFFFFFFFF, MESSAGE_BYTES_MAX)
    for _ in range(10):
        publisher.publish("a", bytes(15_000))
    assert len(reader.delivered()) == 3
    reader.credit(number, 0xFFFFFFFF, 0)
    assert len(reader.delivered()) == 5


def test_byte_credit_lets_one_message_reach_over_the_bound_and_then_waits() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", queue_bytes=64 * KIB)
    for _ in range(10):
        publisher.publish("a", bytes(15_000))
    assert len(reader.delivered()) == 5
    reader.credit(number, 1, 15_000)
    assert len(reader.delivered()) == 6


@pytest.mark.parametrize("size", [64 * KIB, 100_000, 1 * MIB])
def test_one_frame_as_long_as_the_bound_or_longer_is_not_stuck_behind_a_short_one(size: int) -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a", queue_bytes=64 * KIB)
    publisher.publish("a", b"short")
    publisher.publish("a", bytes(size))
    assert [len(payload) for payload in reader.payloads()] == [5, size]


def test_the_byte_credit_of_a_batch_is_that_of_its_messages() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", queue_bytes=64 * KIB, queue_messages=100_000)
    for _ in range(10):
        publisher.publish_batch("a", [b"x" * 10] * 1000)
        reader.credit(number, 1000, 10_000)
    assert sum(frame.count for frame in reader.delivered()) == 10_000
    assert reader.record.subscriptions[number].queue.credit_bytes == 64 * KIB


def test_refused_requests_use_credit_like_any_message() -> None:
    talk = Talk(publish_window_messages=4)
    publisher = talk.peer()
    for _ in range(8):
        publisher.publish("nobody", b"x", Flag.REQUEST, target=1)
    assert publisher.topic_credit("nobody")[0] == 8
