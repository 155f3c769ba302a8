"""The four overflow policies, exactly."""

from __future__ import annotations

import pytest

from broker.limits import KIB, MIB
from broker.protocol.frames import Kind, Lane
from tests.state.harness import Talk


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(1, count + 1)]


def test_drop_newest_keeps_the_first_messages_and_counts_the_rest() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", "drop_newest", queue_messages=4)
    for payload in numbers(10):
        publisher.publish("a", payload)
    assert reader.payloads() == numbers(4)
    assert reader.dropped(number) == 6
    reader.credit(number, 2)
    for payload in (b"11", b"12", b"13"):
        publisher.publish("a", payload)
    assert reader.payloads() == [*numbers(4), b"11", b"12"]
    assert reader.dropped(number) == 7


def test_block_queues_everything_then_withholds_credit_and_grants_it_when_the_reader_does() -> None:
    talk = Talk(publish_window_messages=16)
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", "block", queue_messages=4)
    for payload in numbers(16):
        publisher.publish("a", payload)
    assert reader.payloads() == numbers(4)
    assert publisher.topic_credit("a") == (0, 0)
    for _ in range(4):
        reader.credit(number, 4)
    assert reader.payloads() == numbers(16)
    assert publisher.topic_credit("a")[0] == 16
    assert reader.dropped(number) == 0


def test_drop_oldest_sends_without_message_credit_and_the_reader_evicts() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", "drop_oldest", queue_messages=4)
    for payload in numbers(10):
        publisher.publish("a", payload)
    assert reader.payloads() == numbers(10)
    assert reader.dropped(number) == 0


def test_drop_oldest_keeps_the_newest_of_what_waits_for_the_link() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", "drop_oldest", queue_messages=4)
    reader.reading = False
    for payload in numbers(10):
        publisher.publish("a", payload)
    reader.reading = True
    talk.settle()
    assert reader.payloads() == numbers(10)[-4:]
    assert reader.dropped(number) == 6
    assert publisher.topic_credit("a") == (0, 0)


def test_drop_oldest_evicts_single_messages_of_a_batch_that_waits() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", "drop_oldest", queue_messages=4)
    reader.reading = False
    publisher.publish_batch("a", numbers(4))
    publisher.publish("a", b"5")
    publisher.publish_batch("a", [b"6", b"7"])
    reader.reading = True
    talk.settle()
    assert reader.sequences()[0] == 4
    assert reader.payloads()[:2] == [b"4", b"5"]
    assert sum(frame.count for frame in reader.delivered()) == 4
    assert reader.dropped(number) == 3


def test_a_batch_longer_than_the_queue_leaves_its_newest_messages() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", "drop_oldest", queue_messages=2)
    reader.reading = False
    publisher.publish_batch("a", numbers(7))
    reader.reading = True
    talk.settle()
    assert reader.payloads() == [b"6", b"7"]
    assert reader.dropped(number) == 5


def test_drop_oldest_keeps_a_control_message_and_drops_bulk() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("#", "drop_oldest", queue_messages=3)
    reader.reading = False
    publisher.publish("stop", b"stop", lane=Lane.CONTROL)
    for payload in numbers(6):
        publisher.publish("bulk", payload, lane=Lane.BULK)
    reader.reading = True
    talk.settle()
    assert reader.payloads() == [b"stop", b"5", b"6"]
    assert reader.dropped(number) == 4


def test_the_bytes_of_a_drop_oldest_reader_that_takes_nothing_are_bounded() -> None:
    talk = Talk(publish_window_bytes=1 << 30, publish_window_messages=100_000)
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", "drop_oldest", queue_messages=50, queue_bytes=64 * KIB)
    for _ in range(100):
        publisher.publish("a", bytes(10_000))
    sent = len(reader.payloads())
    assert 6 <= sent <= 7
    assert reader.dropped(number) == 100 - sent - 6, "64 KiB wait in the broker"


def test_latest_sends_only_when_asked_and_then_the_newest() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", "latest")
    for payload in numbers(5):
        publisher.publish("a", payload)
    assert reader.payloads() == []
    assert reader.dropped(number) == 4
    reader.credit(number, 1, 64 << 20)
    assert reader.payloads() == [b"5"]
    publisher.publish("a", b"6")
    assert reader.payloads() == [b"5"]
    reader.credit(number, 1, 64 << 20)
    reader.credit(number, 1, 64 << 20)
    publisher.publish("a", b"7")
    publisher.publish("a", b"8")
    assert reader.payloads() == [b"5", b"6", b"7"]
    assert reader.dropped(number) == 4


def test_latest_that_has_asked_before_gets_the_next_message_at_once() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", "latest")
    reader.credit(number, 1, 1)
    publisher.publish("a", b"1")
    assert reader.payloads() == [b"1"]


def test_latest_is_asked_for_control_messages_too_so_that_each_question_has_an_answer() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", "latest")
    publisher.publish("a", b"stop", lane=Lane.CONTROL)
    assert reader.payloads() == []
    reader.credit(number, 1, 64 << 20)
    assert reader.payloads() == [b"stop"]
    publisher.publish("a", b"go")
    reader.credit(number, 1, 64 << 20)
    assert reader.payloads() == [b"stop", b"go"]


@pytest.mark.parametrize("overflow", ["drop_newest", "latest"])
def test_drops_are_announced_in_a_bounded_number_of_frames(overflow: str) -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", overflow, queue_messages=1)
    reader.reading = False
    for _ in range(3000):
        publisher.publish("a", b"x")
    assert reader.record.session.outbox.queued_bytes < 1000
    reader.reading = True
    talk.settle()
    assert len(reader.all_of(Kind.DROPPED)) < 10
    assert reader.dropped(number) == 2999


def test_a_slow_reader_with_drop_oldest_costs_little_and_the_other_one_gets_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.state.delivery.STREAM_LAG_BYTES_MAX", 1 * MIB)
    talk = Talk()
    publisher, slow, good = talk.peer(), talk.peer(), talk.peer()
    number = slow.subscribe("a", "drop_oldest", queue_bytes=1 * MIB)
    good.subscribe("a", "block", queue_messages=5000)
    slow.reading = False
    for step in range(200):
        publisher.publish("a", b"%d" % step + bytes(15_000))
    payload = bytes(5 * MIB)
    for _ in range(4):
        publisher.publish_large("a", payload)
    assert len(good.delivered()) == 204
    assert good.large() == [payload] * 4
    assert slow.record.subscriptions[number].queue.waiting_bytes <= 1 * MIB
    assert slow.record.session.outbox.queued_bytes < 1000
    assert talk.state.held_bytes() <= 3 * MIB
    slow.reading = True
    talk.settle()
    assert slow.dropped(number) == 204 - len(slow.payloads()) + len(slow.all_of(Kind.STREAM_ABORT))


def test_a_block_reader_that_never_reads_costs_the_windows_of_its_publishers() -> None:
    talk = Talk(publish_window_bytes=1 * MIB)
    publishers, slow = [talk.peer(), talk.peer()], talk.peer()
    slow.subscribe("a")
    slow.reading = False
    for publisher in publishers:
        granted = 1 * MIB
        stream = publisher.open_stream("a", 100 * MIB)
        sent = 0
        while granted > sent and sent < 90 * MIB:
            publisher.chunk(stream, bytes(256 * KIB))
            sent += 256 * KIB
            granted = 1 * MIB + publisher.topic_credit("a")[1]
        assert sent <= 10 * MIB
    assert talk.state.held_bytes() <= 20 * MIB
