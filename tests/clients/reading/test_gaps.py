"""A subscriber sees a gap as a gap: with both kinds of client, over every transport."""

from __future__ import annotations

import pytest

import clients

PATIENCE_S = 60.0
LOSING = pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "latest"])


@LOSING
@pytest.mark.parametrize("urgent", [True, False], ids=["one by one", "in batches"])
def test_every_hole_in_the_sequences_is_a_gap_and_all_gaps_are_what_was_dropped(
    bus: clients.Client, other: clients.Client, overflow: str, urgent: bool
) -> None:
    subscription = other.subscribe("numbers", overflow=overflow, queue_messages=5)
    told = expected = 0
    for burst in range(1, 12):
        for number in range(burst * 3):
            bus.publish("numbers", number, urgent=urgent)
        bus.flush(PATIENCE_S)
        other.flush(PATIENCE_S)
        for _ in range(1 if overflow == "latest" else min(burst, 3)):
            message = subscription.next(PATIENCE_S)
            assert message.gap == message.sequence - expected - 1
            expected = message.sequence
            told += message.gap
    assert told > 0
    assert told <= subscription.dropped


def test_a_subscriber_that_keeps_up_sees_no_gap(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("numbers", overflow="drop_oldest", queue_messages=1000)
    for number in range(500):
        bus.publish("numbers", number)
    bus.flush(PATIENCE_S)
    assert [subscription.next(PATIENCE_S).gap for _ in range(500)] == [0] * 500


def test_gaps_of_one_topic_do_not_show_on_another(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("at/+", overflow="drop_newest", queue_messages=2)
    for number in range(5):
        bus.publish("at/a", number, urgent=True)
    bus.flush(PATIENCE_S)
    first = [subscription.next(PATIENCE_S) for _ in range(2)]
    other.flush(PATIENCE_S)
    bus.publish("at/b", 0, ack="accepted")
    bus.publish("at/a", 5, ack="accepted")
    rest = [subscription.next(PATIENCE_S) for _ in range(2)]
    assert [(message.topic, message.gap) for message in first + rest] == [
        ("at/a", 0), ("at/a", 0), ("at/b", 0), ("at/a", 3),
    ]  # fmt: skip
