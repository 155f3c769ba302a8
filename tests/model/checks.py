"""What must hold between a broker, its clients and the reference, whatever was done: rings, bounds and credit."""

from __future__ import annotations

from clients.reading.subscription_state import SubscriptionState
from tests.model.choices import CHUNK_BYTES
from tests.model.reference import Reference
from tests.model.world import Client, World


def check_rings(world: World, reference: Reference) -> None:
    """Each topic keeps what it is to keep."""
    topics = world.state.router.topics
    for name, log in reference.topics.items():
        ring = topics[name].ring
        seen = ring.next_sequence, ring.oldest_sequence, ring.held_messages, ring.held_bytes
        wanted = log.next_sequence, log.oldest_sequence, log.kept_messages, log.kept_bytes
        assert seen == wanted, f"{name!r} keeps {seen}, not {wanted}"


def check_bounds(world: World, reference: Reference) -> None:
    """Credit falls below zero by one frame at most; what waits is bounded."""
    for client in world.clients:
        for topic in client.core.outgoing.topics.values():
            assert topic.credit_messages >= -1, f"{client} is {topic.credit_messages} messages over on {topic.name!r}"
            assert topic.credit_bytes > -CHUNK_BYTES - 17_000, f"{client}: {topic.credit_bytes} on {topic.name!r}"
        for number, subscription in client.record.subscriptions.items():
            queue = subscription.queue
            assert queue.waiting_messages >= 0
            assert queue.waiting_bytes >= 0
            assert queue.credit_messages <= queue.credit_messages_max
            assert queue.credit_bytes <= queue.bytes_max
            if number and queue.overflow.value != "block":
                assert queue.waiting_messages <= queue.messages_max, f"{subscription}"
        for subscription in client.subscriptions.values():
            expected = reference.subscriptions[client.name, subscription.number]
            if expected.overflow == "drop_oldest":
                assert subscription.pending <= expected.messages_max


def check_credit(world: World, reference: Reference) -> None:
    """Nothing is under way: both ends count the same, and nobody is held back."""
    for client in world.clients:
        for publisher in client.record.publishers.values():
            topic = client.core.outgoing.topics[publisher.topic.name]
            publishing = world.state.publishing
            theirs = (
                publishing.window_messages - publisher.used_messages,
                publishing.window_bytes - publisher.used_bytes,
            )
            assert (topic.credit_messages, topic.credit_bytes) == theirs, f"{client} on {topic.name!r}: {theirs}"
            assert topic.credit_messages > 0
            assert topic.credit_bytes > 0
            assert not publisher.held_back
        for number, subscription in client.subscriptions.items():
            queue = client.record.subscriptions[number].queue
            assert not queue.waiting_messages
            assert not queue.waiting_bytes
            if not subscription.is_latest:
                _check_subscription_credit(client, subscription, number)
    kept = sum(log.kept_bytes for log in reference.topics.values())
    assert world.state.held_bytes() <= kept, f"{world.state.held_bytes()} held, {kept} kept"


def _check_subscription_credit(client: Client, subscription: SubscriptionState, number: int) -> None:
    queue = client.record.subscriptions[number].queue
    owed = subscription._owed_messages, subscription._owed_bytes
    lacking = queue.credit_messages_max - queue.credit_messages, queue.bytes_max - queue.credit_bytes
    if subscription.wishes.overflow == "drop_oldest":
        assert lacking[1] == owed[1], f"{queue} lacks {lacking}, {client} owes {owed}"
    else:
        assert lacking == owed, f"{queue} lacks {lacking}, {client} owes {owed}"
