"""Bodies of questions to the broker, and of frames that tell who is too slow (docs/wire.md sections 3 and 9)."""

from __future__ import annotations

import msgspec


class Query(msgspec.Struct, omit_defaults=True):
    """QUERY: how does a topic fare? Or, with a view, what does the broker know?"""

    topic: str | None = None
    view: str = ""
    """`server`, `sessions`, `topics` or `groups`: what is to be shown, in place of one topic."""
    filter: str = "#"
    """Of the view `topics`: which."""
    after: int = 0
    """How many of the view's things to pass over: those that earlier answers had."""


class View(msgspec.Struct):
    """DONE, of a QUERY with a view: some of what is to be shown.

    Attributes:
        items: maps, whose keys are those of the HTTP interface.
        more: whether there are more behind these.
    """

    items: list[msgspec.Raw]
    more: bool = False


class Dropped(msgspec.Struct):
    """DROPPED, from a client: what it has dropped itself of what it had received."""

    topics: dict[str, int]
    """Messages of each topic since it last said so."""


class SubscriptionPressure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One subscription, or one queue group with acknowledgement, to which messages of a topic go.

    Attributes:
        subscriber: the name of the client; empty for a queue group, whose jobs wait for any of its members.
        session: the number of the client's session; 0 for a queue group.
        subscription: the number within the session; 0 for a queue group.
        filter: what was subscribed to.
        queue_group: empty when it is in none.
        policy: what happens when it has no room: `block`, `drop_oldest`, `drop_newest` or `latest`.
        waiting_messages: that wait for it in the broker, of all topics of its filter; of a queue group its jobs.
        waiting_bytes: their bytes.
        unread_messages: that its application has not taken, of all topics of its filter: those that wait, and those
            that were sent to it. Of a queue group its jobs that are not done.
        dropped_messages: that it has lost since it began, of all topics of its filter.
        holds_back: whether publishers of the topic wait for it.
    """

    subscriber: str = ""
    session: int = 0
    subscription: int = 0
    filter: str = ""
    queue_group: str = ""
    policy: str = "block"
    waiting_messages: int = 0
    waiting_bytes: int = 0
    unread_messages: int = 0
    dropped_messages: int = 0
    holds_back: bool = False


class Pressure(msgspec.Struct, frozen=True, omit_defaults=True):
    """DONE, of a QUERY: how a topic fares at the moment in which the broker answers.

    Attributes:
        topic: its name.
        publishers: sessions that have published to it and are there.
        blocked_publishers: of these, the ones that wait because a subscription with overflow `block` is over its limit.
        subscribers: how many subscriptions and queue groups its messages go to.
        subscriptions: these; of more than 64 the ones that hold publishers back or are in the greatest trouble.
    """

    topic: str
    publishers: int = 0
    blocked_publishers: int = 0
    subscribers: int = 0
    subscriptions: tuple[SubscriptionPressure, ...] = ()

    @property
    def holding_back(self) -> tuple[SubscriptionPressure, ...]:
        """Those for which publishers wait."""
        return tuple(subscription for subscription in self.subscriptions if subscription.holds_back)
