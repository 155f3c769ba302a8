"""Staleness as a setting, and lanes up to the hand of the application: both kinds of client, over every transport."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import clients

PATIENCE_S = 60.0


def publish(bus: clients.Client, other: clients.Client, topic: str, numbers: range, **options: object) -> None:
    """Publishes numbers; when this returns, all that was sent to the other client lies at its door."""
    for number in numbers:
        bus.publish(topic, number, **options)
    bus.flush(PATIENCE_S)
    other.flush(PATIENCE_S)


def nothing_left(subscription: clients.Subscription) -> bool:
    try:
        subscription.next(timeout_s=0)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("urgent", [True, False], ids=["one by one", "in batches"])
@pytest.mark.parametrize("max_lag", [0, 1, 7])
def test_no_message_is_further_behind_the_newest(
    bus: clients.Client, other: clients.Client, max_lag: int, urgent: bool
) -> None:
    subscription = other.subscribe("numbers", max_lag=max_lag)
    last = 0
    for burst in range(1, 12):
        publish(bus, other, "numbers", range(burst * 2), urgent=urgent)
        newest = burst * (burst + 1)
        expected = range(max(last + 1, newest - max_lag), newest + 1)
        messages = [subscription.next(PATIENCE_S) for _ in expected]
        assert [message.sequence for message in messages] == list(expected)
        assert [message.gap for message in messages] == [expected[0] - last - 1, *[0] * (len(expected) - 1)]
        assert nothing_left(subscription)
        last = newest
    assert (subscription.pending, subscription.dropped) == (0, 132 - sum(min(2 * n, max_lag + 1) for n in range(1, 12)))


def test_the_newest_of_each_topic_counts_for_itself(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("at/+", max_lag=0)
    publish(bus, other, "at/a", range(5), urgent=True)
    publish(bus, other, "at/b", range(3), urgent=True)
    publish(bus, other, "at/a", range(5, 7), urgent=True)
    got = [subscription.next(PATIENCE_S) for _ in range(2)]
    assert [(message.topic, message.value, message.gap) for message in got] == [("at/b", 2, 2), ("at/a", 6, 6)]
    assert nothing_left(subscription)


def test_a_slow_reader_of_large_messages_gets_the_newest_that_is_complete(
    bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("weights", max_lag=0, queue_bytes=1 << 20)
    for version in range(20):
        bus.publish("weights", np.full(100_000, version), ack="accepted", timeout_s=PATIENCE_S)
    last = 0
    while last < 20:
        message = subscription.next(PATIENCE_S)
        assert message.sequence > last
        assert message.gap == message.sequence - last - 1
        assert (message.value == message.sequence - 1).all()
        last = message.sequence
    assert nothing_left(subscription)


def test_what_came_while_nobody_asked_is_dropped_when_it_is_too_old(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("numbers", max_lag=0)
    assert nothing_left(subscription)
    publish(bus, other, "numbers", range(3), urgent=True)
    publish(bus, other, "numbers", range(3, 9), urgent=True)
    assert subscription.next(timeout_s=0).value == 8
    assert subscription.dropped == 8


def test_a_faster_lane_makes_a_slower_one_old(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("numbers", max_lag=1)
    publish(bus, other, "numbers", range(3), urgent=True, lane="bulk")
    publish(bus, other, "numbers", range(3, 5), lane="control")
    assert [subscription.next(PATIENCE_S).value for _ in range(2)] == [3, 4]
    assert nothing_left(subscription)


def test_handlers_get_no_old_message(bus: clients.Client, other: clients.Client) -> None:
    complete = threading.Event()
    got: list[int] = []

    def handle(message: clients.Message) -> None:
        got.append(message.sequence)
        if message.value == 99:
            complete.set()

    other.subscribe("numbers", max_lag=0, handler=handle)
    publish(bus, other, "numbers", range(100))
    assert complete.wait(PATIENCE_S)
    assert got == sorted(set(got))


@pytest.mark.parametrize(
    "options",
    [
        {"max_lag": -1},
        {"max_lag": 1.5},
        {"max_lag": True},
        {"max_lag": "1"},
        {"max_lag": 1 << 63},
        {"max_lag": 1, "overflow": "block"},
        {"max_lag": 1, "overflow": "latest"},
        {"max_lag": 1, "queue_group": "g"},
    ],
)
def test_what_cannot_be_is_refused(bus: clients.Client, options: dict[str, object]) -> None:
    with pytest.raises(clients.InvalidValue, match="max_lag"):
        bus.subscribe("numbers", **options)


def test_a_control_message_is_handed_over_before_what_waits_here(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("at/#")
    publish(bus, other, "at/bulk", range(5), urgent=True, lane="bulk")
    publish(bus, other, "at/default", range(5))
    publish(bus, other, "at/stop", range(1), lane="control")
    other.flush(PATIENCE_S)
    order = [subscription.next(PATIENCE_S) for _ in range(11)]
    assert [message.lane for message in order] == ["control", *["default"] * 5, *["bulk"] * 5]
    assert [message.value for message in order] == [0, *range(5), *range(5)]
    assert [message.gap for message in order] == [0] * 11


def test_the_least_urgent_lane_makes_room_first(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("at/#", overflow="drop_oldest", queue_messages=4)
    publish(bus, other, "at/bulk", range(4), urgent=True, lane="bulk")
    publish(bus, other, "at/stop", range(3), lane="control")
    got = [subscription.next(PATIENCE_S) for _ in range(4)]
    assert [(message.topic, message.value, message.gap) for message in got] == [
        ("at/stop", 0, 0), ("at/stop", 1, 0), ("at/stop", 2, 0), ("at/bulk", 3, 3),
    ]  # fmt: skip
