"""A subscription goes on where it was when the connection was lost: with both kinds of client, over every transport."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import clients
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0


class Reader:
    """A client with a subscription, whose connection is cut.

    Attributes:
        bus: the client.
    """

    def __init__(self, broker: ServingThread, connect: Connect) -> None:
        self._broker = broker
        self._reconnected = threading.Semaphore(0)
        self.bus = connect("reader", on_reconnect=lambda event: self._reconnected.release())

    def cut_off(self) -> None:
        """Cuts the connection and does not wait for the next one."""
        self._broker.cut_off("reader")

    def wait(self) -> None:
        """Waits for the next connection, on which the subscription has been asked for again."""
        assert self._reconnected.acquire(timeout=PATIENCE_S)
        self.bus.flush(PATIENCE_S)


@pytest.fixture
def reader(broker: ServingThread, connect: Connect) -> Reader:
    return Reader(broker, connect)


def values(subscription: clients.Subscription, count: int) -> list[object]:
    return [subscription.next(PATIENCE_S).value for _ in range(count)]


def test_every_message_comes_once_and_in_order_however_often_the_connection_is_cut(
    reader: Reader, bus: clients.Client
) -> None:
    subscription = reader.bus.subscribe("numbers/+")
    number = 0
    for cut in range(12):
        for _ in range(40):
            bus.publish(f"numbers/{number % 3}", number, urgent=number % 7 == 0)
            number += 1
            if number % 40 == 20:
                bus.publish("numbers/large", np.full(50_000, number))
        if cut % 2:
            bus.flush(PATIENCE_S)
        reader.cut_off()
        for _ in range(10):
            bus.publish(f"numbers/{number % 3}", number)
            number += 1
        reader.wait()
    bus.flush(PATIENCE_S)
    messages = [subscription.next(PATIENCE_S) for _ in range(number + 12)]
    assert sorted(message.value for message in messages if message.topic != "numbers/large") == list(range(number))
    for topic in ("numbers/0", "numbers/1", "numbers/2", "numbers/large"):
        sequences = [message.sequence for message in messages if message.topic == topic]
        assert sequences == list(range(1, len(sequences) + 1))
    assert [message.gap for message in messages] == [0] * len(messages)
    assert (subscription.pending, subscription.dropped) == (0, 0)


def test_what_the_ring_has_lost_meanwhile_is_a_gap_of_just_so_many(reader: Reader, bus: clients.Client) -> None:
    bus.declare("numbers", ring_messages=5)
    subscription = reader.bus.subscribe("numbers")
    bus.publish("numbers", -1, ack="accepted")
    assert values(subscription, 1) == [-1]
    cut_while_publishing(reader, bus, 20)
    message = subscription.next(PATIENCE_S)
    assert message.gap == message.sequence - 2
    rest = values(subscription, 19 - message.value)
    assert (message.value, *rest) == tuple(range(message.value, 20))
    assert subscription.dropped == message.gap


def cut_while_publishing(reader: Reader, bus: clients.Client, count: int) -> None:
    """Publishes while the reader has no connection, or none yet: one after the other, all of them accepted."""
    done = threading.Event()

    def publish() -> None:
        for number in range(count):
            bus.publish("numbers", number, ack="accepted")
        done.set()

    reader.cut_off()
    thread = threading.Thread(target=publish)
    thread.start()
    assert done.wait(PATIENCE_S)
    thread.join()
    reader.wait()


def test_what_had_come_and_was_not_taken_stays_and_does_not_come_again(reader: Reader, bus: clients.Client) -> None:
    subscription = reader.bus.subscribe("numbers", queue_messages=10)
    for number in range(8):
        bus.publish("numbers", number, ack="accepted")
    reader.bus.flush(PATIENCE_S)
    reader.cut_off()
    reader.wait()
    bus.publish("numbers", 8, ack="accepted")
    assert values(subscription, 9) == list(range(9))
    assert subscription.pending == 0


def test_handlers_get_what_was_missed(reader: Reader, bus: clients.Client) -> None:
    got: list[object] = []
    complete = threading.Event()

    def handle(message: clients.Message) -> None:
        got.append(message.value)
        if message.value == 99:
            complete.set()

    reader.bus.subscribe("numbers", handler=handle)
    for number in range(100):
        if number == 50:
            reader.cut_off()
        bus.publish("numbers", number, ack="accepted")
    assert complete.wait(PATIENCE_S)
    assert got == list(range(100))


def test_the_last_value_does_not_come_a_second_time(reader: Reader, bus: clients.Client) -> None:
    bus.publish("state", "first", ack="accepted")
    subscription = reader.bus.subscribe("state", replay="latest")
    assert values(subscription, 1) == ["first"]
    reader.cut_off()
    reader.wait()
    bus.publish("state", "second", ack="accepted")
    assert values(subscription, 1) == ["second"]


def test_what_a_losing_policy_had_dropped_comes_after_all_and_is_counted_no_more(
    reader: Reader, bus: clients.Client
) -> None:
    subscription = reader.bus.subscribe("numbers", overflow="drop_newest", queue_messages=4)
    for number in range(6):
        bus.publish("numbers", number, ack="accepted")
    reader.bus.flush(PATIENCE_S)
    assert subscription.dropped == 2
    taken = values(subscription, 4)
    reader.cut_off()
    reader.wait()
    assert taken + values(subscription, 2) == list(range(6))
    assert subscription.dropped == 0


def test_a_member_of_a_queue_group_is_not_sent_what_others_have_got(reader: Reader, bus: clients.Client) -> None:
    subscription = reader.bus.subscribe("numbers", queue_group="g")
    bus.publish("numbers", 1, ack="accepted")
    assert values(subscription, 1) == [1]
    other = bus.subscribe("numbers", queue_group="g")
    reader.cut_off()
    bus.publish("numbers", 2, ack="accepted")
    assert values(other, 1) == [2]
    reader.wait()
    other.close()
    bus.publish("numbers", 3, ack="accepted")
    assert values(subscription, 1) == [3]


def test_more_topics_than_are_kept_in_mind_end_the_going_on_and_nothing_else(
    reader: Reader, bus: clients.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("clients.reading.seen.SEEN_TOPICS_MAX", 10)
    subscription = reader.bus.subscribe("many/+")
    for number in range(15):
        bus.publish(f"many/{number}", number, ack="accepted")
    assert values(subscription, 15) == list(range(15))
    assert caplog.text.count("subscription.does_not_resume filter='many/+'") == 1
    reader.cut_off()
    reader.wait()
    bus.publish("many/0", "live", ack="accepted")
    assert values(subscription, 1) == ["live"]
