"""Policies of topics, with both kinds of client, over every transport."""

from __future__ import annotations

import time

import numpy as np
import pytest

import clients
from broker.limits import MIB
from broker.state.topics import TopicRecord
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0
KIB = 1024


def policy_of(broker: ServingThread, topic: str) -> TopicRecord:
    return broker.call(broker.server.state.router.topic, topic).policy


def test_a_declaration_holds_when_the_call_returns(broker: ServingThread, bus: clients.Client) -> None:
    bus.declare(
        "jobs/#", ring_messages=np.int64(3), ring_bytes=9, retain=True, overflow="drop_newest", batch_bytes=1,
        batch_window_us=2, lane="bulk", max_message_bytes=4, acknowledge=True, lease_s=1, max_deliveries=2,
        dead_letter="graveyard",
    )  # fmt: skip
    policy = policy_of(broker, "jobs/1")
    assert (policy.ring_messages, policy.ring_bytes, policy.retain, policy.overflow) == (3, 9, True, "drop_newest")
    assert (policy.batch_bytes, policy.batch_window_us, policy.lane, policy.max_message_bytes) == (1, 2, "bulk", 4)
    assert (policy.acknowledge, policy.lease_s, policy.max_deliveries, policy.dead_letter) == (
        True,
        1.0,
        2,
        "graveyard",
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ring_messages": -1}, "ring_messages -1: must be a number of messages"),
        ({"ring_messages": True}, "ring_messages True: must be a number of messages"),
        ({"ring_messages": "many"}, "ring_messages 'many': must be a whole number"),
        ({"retain": "yes"}, "retain 'yes': must be True or False"),
        ({"overflow": "drop"}, "overflow 'drop': must be one of block"),
        ({"lane": "fast"}, "lane 'fast': must be one of control"),
        ({"lease_s": float("inf")}, "lease_s inf: must be a number of seconds"),
        ({"dead_letter": "a/+"}, "dead_letter 'a/\\+': must be a topic"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_where_it_is_declared(
    bus: clients.Client, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(clients.InvalidValue, match=words):
        bus.declare("a", **settings)
    with pytest.raises(clients.InvalidValue, match="topic filter"):
        bus.declare("$sys/#", ring_messages=1)


def test_the_last_declaration_of_a_filter_wins(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    bus.declare("a", ring_messages=1, lane="bulk")
    other.declare("a", ring_messages=2)
    policy = policy_of(broker, "a")
    assert (policy.ring_messages, policy.lane) == (2, "default")
    bus.declare("a")
    assert policy_of(broker, "a").ring_messages == 1024


def test_a_newcomer_gets_the_retained_value_however_long(bus: clients.Client, other: clients.Client) -> None:
    bus.declare("weights", retain=True, ring_bytes=KIB)
    for step in range(2):
        bus.publish("weights", np.full(2_000_000, step, np.int64))
    bus.flush(PATIENCE_S)
    value = other.subscribe("weights", replay="latest").next(PATIENCE_S).value
    assert (value == 1).all()


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "latest"])
def test_a_subscription_without_overflow_follows_the_declaration(
    bus: clients.Client, other: clients.Client, overflow: str
) -> None:
    bus.declare("a/#", overflow=overflow)
    subscription = other.subscribe("a/+", queue_messages=2)
    for number in range(6):
        bus.publish("a/b", number, urgent=True)
    bus.flush(PATIENCE_S)
    other.flush(PATIENCE_S)
    expected = {"drop_oldest": [4, 5], "drop_newest": [0, 1], "latest": [5]}[overflow]
    assert [subscription.next(PATIENCE_S).value for _ in expected] == expected
    with pytest.raises(clients.TimeoutError):
        subscription.next(0.2)
    assert subscription.dropped == 6 - len(expected)


def test_a_subscription_that_names_its_overflow_keeps_it(bus: clients.Client, other: clients.Client) -> None:
    bus.declare("a", overflow="latest")
    subscription = other.subscribe("a", overflow="block")
    for number in range(6):
        bus.publish("a", number)
    assert [subscription.next(PATIENCE_S).value for _ in range(6)] == list(range(6))


def test_a_publish_without_a_lane_takes_the_topics(bus: clients.Client, other: clients.Client) -> None:
    bus.declare("a", lane="bulk")
    subscription = other.subscribe("a")
    bus.publish("a", 1)
    bus.flush(PATIENCE_S)
    bus.publish("a", 2)
    bus.publish("a", np.zeros(100_000))
    bus.publish("a", 3, lane="control")
    lanes = [subscription.next(PATIENCE_S).lane for _ in range(4)]
    assert sorted(lanes) == ["bulk", "bulk", "bulk", "control"]


@pytest.mark.parametrize("size", [100, 100_000, MIB])
def test_a_message_longer_than_declared_is_refused_at_the_publisher(
    broker: ServingThread, bus: clients.Client, other: clients.Client, size: int
) -> None:
    bus.declare("a", max_message_bytes=50)
    subscription = other.subscribe("a")
    bus.publish("a", b"short")
    bus.flush(PATIENCE_S)
    for ack in (None, "accepted"):
        with pytest.raises(clients.LimitExceeded, match="the policy of topic 'a'") as error:
            bus.publish("a", b"x" * size, ack=ack)
        assert (error.value.limit, error.value.value, error.value.maximum) == ("max_message_bytes", size, 50)
    bus.publish("a", b"after")
    assert [subscription.next(PATIENCE_S).value for _ in range(2)] == [b"short", b"after"]
    assert broker.call(broker.server.state.router.topic, "a").refused == 0


@pytest.mark.parametrize("size", [100, 100_000])
def test_the_first_message_of_a_publisher_that_knows_nothing_is_refused_by_the_broker(
    broker: ServingThread, connect: Connect, bus: clients.Client, size: int
) -> None:
    bus.declare("a/#", max_message_bytes=50)
    # One that shares memory waits for the broker first, and so has heard of the policy.
    newcomer = connect("newcomer", shared_memory=False)
    with pytest.raises(clients.LimitExceeded, match="max_message_bytes"):
        newcomer.publish("a/1", b"x" * size, ack="accepted")
    newcomer.publish("a/2", b"x" * size)
    with pytest.raises(clients.LimitExceeded, match="a/2"):
        newcomer.flush(PATIENCE_S)
    newcomer.flush(PATIENCE_S)
    newcomer.publish("a/2", b"short", ack="accepted")
    assert broker.call(broker.server.state.totals).refused_messages == 2


def test_a_request_that_is_too_long_is_refused(bus: clients.Client, connect: Connect) -> None:
    bus.declare("ask", max_message_bytes=50)
    newcomer = connect("newcomer")
    for _ in range(2):
        with pytest.raises(clients.LimitExceeded):
            newcomer.request("ask", b"x" * 100)


def test_batches_that_leave_late_hold_up_no_others(bus: clients.Client, other: clients.Client) -> None:
    bus.declare("slow", batch_window_us=1_000_000, batch_bytes=512 * KIB)
    both = other.subscribe("+")
    for topic in ("slow", "prompt"):
        bus.publish(topic, -1)
    bus.flush(PATIENCE_S)
    assert [both.next(PATIENCE_S).value for _ in range(2)] == [-1, -1]

    def are_held_up() -> bool:
        for number in range(100):
            bus.publish("slow", number)
        late = bool(bus._core.outgoing.open_batches)
        for number in range(100):
            bus.publish("prompt", number)
        came = [both.next(PATIENCE_S) for _ in range(200)]
        for topic in ("slow", "prompt"):
            assert [message.value for message in came if message.topic == topic] == list(range(100))
        return late and came[-1].topic == "prompt"

    # A busy machine may come to the prompt ones when the window of the slow ones is over, but not each time.
    assert not all(are_held_up() for _ in range(20))


def test_without_settings_a_declaration_is_an_empty_one(broker: ServingThread, bus: clients.Client) -> None:
    bus.declare("never/declared")
    assert broker.call(len, broker.server.state.router.policies) == 0


def test_a_batch_waits_for_the_whole_of_its_window_and_no_longer(broker: ServingThread) -> None:
    """Only with the synchronous client, whose messages follow each other closely enough on any machine.

    "No longer" is what PATIENCE_S allows: a busy machine may add as much as the window.
    """
    window_s = 0.3
    with clients.connect(broker.url) as bus, clients.connect(broker.url) as other:
        bus.declare("slow", batch_window_us=int(window_s * 1e6), batch_bytes=512 * KIB)
        subscription = other.subscribe("slow")
        bus.publish("slow", b"")
        bus.flush(PATIENCE_S)
        published, before = 1, 0.0
        while not bus._core.outgoing.open_batches:
            before = time.monotonic()
            bus.publish("slow", b"")
            published += 1
        for _ in range(published):
            subscription.next(PATIENCE_S)
        assert window_s <= time.monotonic() - before
