"""What happens to messages that nobody takes, with both kinds of client, over every transport."""

from __future__ import annotations

import numpy as np
import pytest

import clients

PATIENCE_S = 60.0


def drain(subscription: clients.Subscription, count: int) -> list[object]:
    """So many messages, after which no more come."""
    values = [subscription.next(PATIENCE_S).value for _ in range(count)]
    with pytest.raises(clients.TimeoutError):
        subscription.next(0.3)
    return values


def publish(bus: clients.Client, topic: str, numbers: range) -> None:
    for number in numbers:
        bus.publish(topic, number, urgent=True)
    bus.flush(PATIENCE_S)


def test_drop_newest_keeps_the_oldest_and_counts_the_rest(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("policy", overflow="drop_newest", queue_messages=4)
    publish(bus, "policy", range(10))
    assert drain(subscription, 4) == [0, 1, 2, 3]
    assert subscription.dropped == 6


def test_drop_oldest_keeps_the_newest_and_counts_the_rest(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("policy", overflow="drop_oldest", queue_messages=4)
    publish(bus, "policy", range(10))
    other.flush(PATIENCE_S)
    assert drain(subscription, 4) == [6, 7, 8, 9]
    assert subscription.dropped == 6


def test_latest_gives_the_newest_at_the_moment_of_asking(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("policy", overflow="latest")
    publish(bus, "policy", range(10))
    assert subscription.next(PATIENCE_S).value == 9
    assert subscription.dropped == 9
    publish(bus, "policy", range(10, 12))
    assert drain(subscription, 1) == [11]


def test_latest_of_arrays_longer_than_the_queue_goes_on(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("weights", overflow="latest", queue_bytes=1 << 20)
    for step in range(3):
        bus.publish("weights", np.full(1_000_000, step))
        assert subscription.next(PATIENCE_S).value[-1] == step


def test_block_holds_the_publisher_back_and_loses_nothing(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("policy", overflow="block", queue_messages=4)
    published, filler = 0, bytes(4000)

    def publish_for_ever() -> None:
        nonlocal published
        while True:
            bus.publish("policy", [published, filler], urgent=True, timeout_s=0.2)
            published += 1

    with pytest.raises(clients.TimeoutError, match="does not keep up"):
        publish_for_ever()
    bus.publish("elsewhere", "other topics go on", timeout_s=PATIENCE_S)
    received = []
    while len(received) < published:
        number, value = subscription.next(PATIENCE_S).value
        assert value == filler
        received.append(number)
    assert received == list(range(published))
    bus.publish("policy", "again", timeout_s=PATIENCE_S)
    assert subscription.next(PATIENCE_S).value == "again"
    assert subscription.dropped == 0


def test_a_control_message_passes_a_full_queue(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("jobs/#", queue_messages=2)
    for number in range(10):
        bus.publish("jobs/work", number, urgent=True)
    bus.publish("jobs/stop", "stop", lane="control")
    bus.flush(PATIENCE_S)
    values = [subscription.next(PATIENCE_S).value for _ in range(11)]
    assert values.index("stop") < 4
    assert [value for value in values if value != "stop"] == list(range(10))


def test_a_large_message_to_a_reader_with_a_small_queue_arrives(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("large", queue_bytes=1 << 20)
    for step in range(3):
        bus.publish("large", np.full(3_000_000, step, np.int32))
        assert (subscription.next(PATIENCE_S).value == step).all()
