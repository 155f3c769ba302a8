"""What a subscription gets, when it begins, of what the topics have kept."""

from __future__ import annotations

from collections.abc import Mapping

from broker.state.delivery import Subscription
from broker.state.singles import opened
from broker.state.topics import Router, TopicRecord, offer
from broker.topics.messages import Message

Seen = tuple[int, int, int]
"""Of one topic, the last sequence that a subscription has received in each lane; 0 when none."""


def replay(router: Router, subscription: Subscription, start: int | str) -> None:
    """Queues what the rings keep for a new subscription, topic by topic in the order of their sequences.

    The last value is the last complete one; a newer one that is arriving follows it, and is not missed whether or
    not its publisher finishes it.

    Args:
        router: where the topics are.
        subscription: the new one.
        start: `latest`, `all`, or the first sequence.
    """
    for topic in _topics_of(router, subscription):
        if start == "latest":
            kept = [last for message in topic.ring.last() for last in opened(message)[-1:]]
        else:
            first = 0 if start == "all" else int(start)
            kept = [part for message in topic.ring.since(first) for part in _after(message, first - 1)]
        for message in kept:
            offer(subscription, message, opened)


def resume(
    router: Router, subscription: Subscription, moment: int, start: int | str | None, seen: Mapping[str, Seen]
) -> None:
    """Queues what a subscription has missed that was cut off, and counts as lost what the rings do not have any more.

    On a topic to which is published in several lanes, what a faster lane had overtaken and the ring has lost is not
    counted: only its publisher's lane could tell it from what was received.

    Args:
        router: where the topics are.
        subscription: the one that takes its place.
        moment: when it began; 0 when that was on another broker, and then it gets all that this one has.
        start: from where it wanted to have kept messages when it began.
        seen: what it has received, by topic.
    """
    for topic in _topics_of(router, subscription):
        floor = _floor(topic, moment, start)
        lanes = seen.get(topic.name, (0, 0, 0))
        after = [sequence or floor for sequence in lanes]
        expected = max(*lanes, 0 if any(lanes) else floor) + 1
        for message in topic.ring.since(min(after) + 1):
            _lose(subscription, topic, expected, message.sequence)
            expected = max(expected, message.sequence + message.count)
            for part in _after(message, after[message.lane]):
                offer(subscription, part, opened)
        _lose(subscription, topic, expected, topic.ring.next_sequence)
    if subscription.queue.dropped:
        subscription.tell_dropped()


def _topics_of(router: Router, subscription: Subscription) -> list[TopicRecord]:
    return [
        topic for topic in router.matching(subscription.filter) if subscription in router.routes(topic).subscriptions()
    ]


def _floor(topic: TopicRecord, moment: int, start: int | str | None) -> int:
    """The last sequence that a subscription is not to get of a topic of which it has received nothing."""
    if not moment or start == "all":
        return 0
    first = topic.marks.first_after(moment) or topic.ring.next_sequence
    if start == "latest":
        # With the value that was the last one then.
        first = max(1, first - 1)
    elif start is not None:
        first = min(first, int(start))
    return first - 1


def _lose(subscription: Subscription, topic: TopicRecord, expected: int, sequence: int) -> None:
    if expected < sequence:
        subscription.queue.miss(topic.name, expected, sequence - expected)


def _after(message: Message, sequence: int) -> list[Message]:
    """What of a message or batch comes after a sequence."""
    if message.sequence > sequence:
        return [message]
    return [part for part in opened(message) if part.sequence > sequence]
