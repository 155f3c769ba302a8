"""Losses and waits as applications see them, with both kinds of client, over every transport."""

from __future__ import annotations

import pytest

import clients
from broker.topics.policy import Overflow
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread
from tests.holding_back import publish_until_held_back

PATIENCE_S = 60.0
TOPIC = "$sys/pressure"


def publish(bus: clients.Client, topic: str, messages: int) -> None:
    for number in range(messages):
        bus.publish(topic, number, urgent=True)
    bus.flush(PATIENCE_S)


def losses(watch: clients.Subscription, expected: int) -> list[dict[str, object]]:
    """The announcements of so many lost messages."""
    told: list[dict[str, object]] = []
    while sum(event["dropped"] for event in told) < expected:
        event = watch.next(PATIENCE_S).value
        assert event["event"] == "dropped"
        told.append(event)
    return told


@pytest.mark.parametrize(("overflow", "dropped"), [("drop_oldest", 46), ("drop_newest", 46), ("latest", 49)])
def test_every_loss_is_counted_announced_and_told_to_who_asks(
    broker: ServingThread, bus: clients.Client, other: clients.Client, overflow: str, dropped: int
) -> None:
    watch = bus.subscribe(TOPIC)
    subscription = other.subscribe("frames/+", overflow=overflow, queue_messages=4)
    publish(bus, "frames/1", 50)
    told = losses(watch, dropped)
    assert sum(event["dropped"] for event in told) == dropped
    last = told[-1]
    assert (last["topic"], last["subscriber"], last["policy"], last["filter"], last["dropped_total"]) == (
        "frames/1", "second", overflow, "frames/+", dropped,
    )  # fmt: skip
    assert last["unread_messages"] == 50 - dropped
    (found,) = bus.pressure("frames/1").subscriptions
    assert (found.subscriber, found.policy, found.dropped_messages) == ("second", overflow, dropped)
    assert broker.call(broker.server.state.totals).dropped_messages[Overflow(overflow)] == dropped
    other.flush(PATIENCE_S)
    assert subscription.next(PATIENCE_S).value == {"drop_newest": 0, "drop_oldest": 46, "latest": 49}[overflow]
    assert subscription.dropped == dropped


def test_what_a_closed_subscription_had_dropped_itself_is_counted(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("frames", overflow="drop_oldest", queue_messages=4)
    publish(bus, "frames", 50)
    other.flush(PATIENCE_S)
    subscription.close()
    assert broker.call(broker.server.state.totals).dropped_messages[Overflow.DROP_OLDEST] == 46


def test_a_publisher_learns_who_holds_it_back_and_when_it_may_go_on(
    bus: clients.Client, other: clients.Client, connect: Connect
) -> None:
    watcher = connect("watcher")
    watch = watcher.subscribe(TOPIC)
    slow = other.subscribe("work/#", queue_messages=4)
    publish_until_held_back(bus, "work/1", urgent=True)
    event = watch.next(PATIENCE_S).value
    assert (event["event"], event["topic"], event["subscriber"], event["filter"], event["blocked_publishers"]) == (
        "blocked", "work/1", "second", "work/#", 1,
    )  # fmt: skip
    found = watcher.pressure("work/1")
    assert (found.topic, found.publishers, found.blocked_publishers, found.subscribers) == ("work/1", 1, 1, 1)
    (holding,) = found.holding_back
    assert (holding.subscriber, holding.policy, holding.holds_back) == ("second", "block", True)
    assert holding.unread_messages >= holding.waiting_messages > 0
    slow.close()
    event = watch.next(PATIENCE_S).value
    assert (event["event"], event["topic"], event["subscriber"]) == ("unblocked", "work/1", "second")
    assert watcher.pressure("work/1").blocked_publishers == 0
    bus.publish("work/1", "goes on", timeout_s=PATIENCE_S)


def test_of_an_unknown_topic_there_is_nothing_to_tell(bus: clients.Client) -> None:
    assert bus.pressure("nobody/knows") == clients.Pressure("nobody/knows")


@pytest.mark.parametrize("topic", ["a/+", "", "a//b", 7])
def test_what_is_no_topic_is_refused(bus: clients.Client, topic: object) -> None:
    with pytest.raises(clients.InvalidValue, match="topic"):
        bus.pressure(topic)
    with pytest.raises(clients.InvalidValue, match="timeout_s"):
        bus.pressure("a", timeout_s=-1.0)


def test_inboxes_are_their_clients_business(bus: clients.Client) -> None:
    with pytest.raises(clients.PermissionDenied, match="inbox"):
        bus.pressure("$inbox/1")


def test_a_closed_client_cannot_ask(bus: clients.Client) -> None:
    bus.close()
    with pytest.raises(clients.ConnectionClosed):
        bus.pressure("a")


def test_a_watcher_that_does_not_read_loses_the_oldest_and_starts_no_loop(
    bus: clients.Client, other: clients.Client
) -> None:
    idle = bus.subscribe(TOPIC, queue_messages=1)
    watch = other.subscribe("$sys/#", queue_messages=100, overflow="drop_oldest")
    dropping = [other.subscribe(topic, overflow="drop_newest", queue_messages=1) for topic in ("a", "end")]
    told = []
    for topic in ("a", "a", "a", "a", "end"):
        publish(bus, topic, 10)
        while not told or told[-1] != topic:
            message = watch.next(PATIENCE_S)
            if message.topic == TOPIC:
                told.append(message.value["topic"])
        told.append("")
    assert set(told) == {"a", "end", ""}
    bus.flush(PATIENCE_S)
    assert idle.pending == 1
    assert idle.dropped >= 4
    for each in dropping:
        each.close()
