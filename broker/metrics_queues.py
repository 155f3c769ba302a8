"""Metrics of what waits, and of the room that is left: one pass over all subscriptions and publishers."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from broker.metrics_families import gauge
from broker.state import BrokerState
from broker.topics.queues import UNLIMITED


def queues(state: BrokerState) -> Iterator[Metric]:
    """Queues of subscriptions, and credit of both sides."""
    messages = size_bytes = deepest = room_messages = room_bytes = without = blocking = 0
    used = 0.0
    window_messages, window_bytes = state.settings.publish_window_messages, state.settings.publish_window_bytes
    for record in state.sessions.values():
        for number, subscription in record.subscriptions.items():
            queue = subscription.queue
            messages += queue.waiting_messages
            size_bytes += queue.waiting_bytes
            deepest = max(deepest, queue.waiting_messages)
            blocking += any(topic.held_back for topic in subscription.blocking)
            if number:
                room_bytes += max(0, queue.credit_bytes)
                if queue.credit_messages_max < UNLIMITED:
                    room_messages += max(0, queue.credit_messages)
                without += queue.credit_messages <= 0 or queue.credit_bytes <= 0
        for publisher in record.publishers.values():
            used = max(used, publisher.used_messages / window_messages, publisher.used_bytes / window_bytes)
    yield gauge("waiting_messages", "Messages that wait for subscribers.", messages)
    yield gauge("waiting_bytes", "Their bytes, of large ones what they will have when complete.", size_bytes)
    yield gauge("deepest_queue_messages", "Messages that wait for the one subscription with most of them.", deepest)
    yield gauge("subscriptions_blocking", "Subscriptions for which publishers wait.", blocking)
    yield gauge(
        "subscriber_credit_messages",
        "Messages that subscribers have room for, all together; drop_oldest, which always has room, left out.",
        room_messages,
    )
    yield gauge("subscriber_credit_bytes", "Bytes that subscribers have room for, all together.", room_bytes)
    yield gauge("subscriptions_without_credit", "Subscriptions whose readers have no room.", without)
    yield gauge(
        "publisher_credit_ratio",
        "The share of its window that is left to the publisher with the least, from 0 to 1, of each of its topics.",
        max(0.0, 1.0 - used),
    )
