"""The table of docs/api.md: which fault a message survives, by how it was published, and which order holds."""

from __future__ import annotations

import socket
import threading

import pytest

import clients
from tests.daemon import Daemon, Process
from tests.system.talker import TOPIC

PATIENCE_S = 60.0
END = "end"


def numbers_until_end(subscription: clients.Subscription) -> list[clients.Message]:
    messages = []
    while (message := subscription.next(PATIENCE_S)).value != END:
        messages.append(message)
    return messages


def wait_for_the_end_of(sessions: clients.Subscription, name: str) -> None:
    while (event := sessions.next(PATIENCE_S).value)["event"] != "closed" or event["name"] != name:
        pass


@pytest.mark.parametrize("level", ["none", "flush", "accepted"])
def test_what_was_confirmed_survives_the_publisher_and_what_arrives_of_the_rest_has_no_hole(
    daemon: Daemon, level: str
) -> None:
    with clients.connect(daemon.url) as bus:
        numbers, sessions = bus.subscribe(TOPIC, queue_messages=100_000), bus.subscribe("$sys/sessions")
        with Process(daemon.url, level, module="tests.system.talker") as talker:
            told = [int(talker.read_line()) for _ in range(20)]
            talker.kill()
            told += [int(line) for line in talker.read_rest().decode().split("\n")[:-1]]
        wait_for_the_end_of(sessions, "talker")
        bus.publish(TOPIC, END)
        arrived = [message.value for message in numbers_until_end(numbers)]
    assert arrived == list(range(len(arrived)))
    if level != "none":
        assert arrived[-1] >= told[-1]


def test_a_killed_subscriber_costs_others_nothing(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url) as other:
        numbers, events = bus.subscribe("a", queue_messages=10_000), bus.subscribe("$sys/sessions")
        with Process("sub", "a", "--url", daemon.url, "--count", "1") as reader:
            while (event := events.next(PATIENCE_S).value)["event"] != "opened" or event["name"] == other.name:
                pass
            for number in range(500):
                other.publish("a", number)
            reader.kill()
            for number in range(500, 1000):
                other.publish("a", number)
        other.publish("a", END)
        assert [message.value for message in numbers_until_end(numbers)] == list(range(1000))


def test_a_broker_that_is_started_again_has_nothing_and_what_has_reached_a_subscriber_stays(daemon: Daemon) -> None:
    heard = threading.Event()
    with clients.connect(daemon.url, on_reconnect=lambda event: heard.set()) as bus:
        numbers = bus.subscribe("a")
        bus.declare("a", retain=True)
        assert [bus.publish("a", number, ack="accepted") for number in range(5)] == [1, 2, 3, 4, 5]
        bus.flush(PATIENCE_S)
        assert daemon.process is not None
        daemon.process.kill()
        daemon.start()
        assert heard.wait(PATIENCE_S)
        with clients.connect(daemon.url) as newcomer:
            kept = newcomer.subscribe("a", replay="all")
            assert bus.publish("a", END, ack="accepted") == 1
            assert [message.value for message in numbers_until_end(kept)] == []
        assert [message.value for message in numbers_until_end(numbers)] == list(range(5))


def test_all_subscribers_see_a_lane_of_a_topic_in_the_same_order_whoever_publishes(daemon: Daemon) -> None:
    def publish(bus: clients.Client) -> None:
        for number in range(2000):
            bus.publish("a", [bus.name, number], lane="bulk" if number % 3 == 0 else "default", urgent=number % 7 == 0)

    with (
        clients.connect(daemon.url) as reader,
        clients.connect(daemon.url, name="x") as first,
        clients.connect(daemon.url, name="y") as second,
    ):
        subscriptions = [reader.subscribe("a", queue_messages=10_000), second.subscribe("a", queue_messages=10_000)]
        threads = [threading.Thread(target=publish, args=(bus,)) for bus in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        received = [[subscription.next(PATIENCE_S) for _ in range(4000)] for subscription in subscriptions]
    for lane in ("default", "bulk"):
        orders = [[m.sequence for m in messages if m.lane == lane] for messages in received]
        assert orders[0] == orders[1] == sorted(orders[0])
        for name in ("x", "y"):
            values = [m.value[1] for m in received[0] if m.lane == lane and m.sender == name]
            assert values == sorted(values)


def test_after_a_lost_connection_nothing_is_published_twice_and_what_came_after_is_behind(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        heard = threading.Event()
        told: list[clients.Reconnected] = []

        def on_reconnect(event: clients.Reconnected) -> None:
            told.append(event)
            heard.set()

        with clients.connect(daemon.url, name="talker", on_reconnect=on_reconnect) as talker:
            numbers = bus.subscribe("a", queue_messages=100_000)
            for number in range(3000):
                talker.publish("a", number)
                if number == 1500:
                    talker._driver._link.connection._socket.shutdown(socket.SHUT_RDWR)
                    assert heard.wait(PATIENCE_S)
            talker.flush(PATIENCE_S)
            talker.publish("a", END)
            arrived = [message.value for message in numbers_until_end(numbers)]
    assert arrived == sorted(set(arrived))
    assert 3000 - len(arrived) <= told[0].lost_messages_max
    assert arrived[-1499:] == list(range(1501, 3000))
