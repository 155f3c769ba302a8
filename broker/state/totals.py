"""What has ended still counts: totals that do not fall when a session, a subscription or a topic goes.

Whatever counts, counts for itself while it lives; that costs the hot path one addition. At its end its counts are added
here, once. The broker's total of anything is thus what is here and what is counted by those that live.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.topics.policy import Overflow

if TYPE_CHECKING:
    from broker.protocol.session import Session
    from broker.state.delivery import Subscription
    from broker.state.topics import TopicRecord
    from broker.state.works import Work

SYSTEM_TOPICS: Final = ("$sys/", "$dead/")
"""What the broker itself publishes is not counted as published, or a silent bus would seem busy."""


class Totals:
    """Counts of messages and bytes, summed over some sessions, subscriptions and topics."""

    __slots__ = (
        "dead_messages",
        "delivered_messages",
        "dropped_messages",
        "published_bytes",
        "published_messages",
        "received_bytes",
        "redelivered_messages",
        "refused_messages",
        "sent_bytes",
    )

    def __init__(self) -> None:
        self.published_messages = 0
        self.published_bytes = 0
        self.refused_messages = 0
        self.delivered_messages = 0
        self.dropped_messages = dict.fromkeys(Overflow, 0)
        self.redelivered_messages = 0
        self.dead_messages = 0
        self.received_bytes = 0
        self.sent_bytes = 0

    def add_topic(self, topic: TopicRecord) -> None:
        """Adds what was published to a topic, unless it is one of the broker's own, and what became of its jobs."""
        if not topic.name.startswith(SYSTEM_TOPICS):
            self.published_messages += topic.published
            self.published_bytes += topic.published_bytes
            self.refused_messages += topic.refused
        for work in topic.works.values():
            self.add_work(work)

    def add_work(self, work: Work) -> None:
        """Adds what became of a queue group's jobs."""
        self.redelivered_messages += work.queue.redelivered
        self.dead_messages += work.queue.dead

    def add_subscription(self, subscription: Subscription) -> None:
        """Adds what was delivered to a subscription, and what it has lost."""
        self.delivered_messages += subscription.delivered
        self.dropped_messages[subscription.queue.overflow] += subscription.dropped

    def add_session(self, session: Session) -> None:
        """Adds the bytes of a session's link."""
        self.received_bytes += session.received_bytes
        self.sent_bytes += session.sent_bytes

    def add(self, other: Totals) -> None:
        """Adds other totals."""
        for name in self.__slots__:
            if name != "dropped_messages":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        for overflow, count in other.dropped_messages.items():
            self.dropped_messages[overflow] += count

    def __repr__(self) -> str:
        return (
            f"<Totals published={self.published_messages} delivered={self.delivered_messages} "
            f"dropped={sum(self.dropped_messages.values())}>"
        )
