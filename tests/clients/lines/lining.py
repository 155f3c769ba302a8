"""What tests of lines share: a broker to whose topics clients on this host write lines, and who has one."""

from __future__ import annotations

import clients
from broker.limits import LINE_AFTER_MESSAGES
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0
END = "end"


def begin(bus: clients.Client, topic: str = "a") -> int:
    """Publishes until the topic may have a line; returns how many messages that took."""
    for number in range(LINE_AFTER_MESSAGES):
        bus.publish(topic, number, urgent=True)
    bus.flush(PATIENCE_S)
    bus.flush(PATIENCE_S)
    return LINE_AFTER_MESSAGES


def has_line(bus: clients.Client, topic: str = "a") -> bool:
    return bus._core.outgoing.topics[topic].line is not None


def lines_of(broker: ServingThread) -> int:
    return broker.call(lambda: len(broker.server.state.router.lines))  # type: ignore[return-value]


def values(subscription: clients.Subscription, count: int) -> list[object]:
    return [subscription.next(PATIENCE_S).value for _ in range(count)]


def rest(subscription: clients.Subscription) -> list[object]:
    found = []
    while (value := subscription.next(PATIENCE_S).value) != END:
        found.append(value)
    return found
