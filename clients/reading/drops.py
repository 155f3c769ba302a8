"""Tells the broker what a client has dropped itself of what it had received, so that no loss goes uncounted there."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from broker.limits import DROPPED_TOPICS_MAX
from broker.protocol.bodies import encode_body
from broker.protocol.frames import Frame, Kind, Lane
from broker.protocol.pressure import Dropped
from broker.protocol.session import Session
from clients.reading.subscription_state import SubscriptionState


def tell_drops(subscriptions: Iterable[SubscriptionState], session: Session) -> None:
    """Sends a DROPPED for each subscription that has dropped something since it was last told; called as time passes.

    What a subscription has dropped of more than 256 topics is told at the following times.
    """
    for subscription in subscriptions:
        untold = subscription.drops_untold
        if untold:
            topics = {topic: untold.pop(topic) for topic in list(islice(untold, DROPPED_TOPICS_MAX))}
            body = encode_body(Dropped(topics))
            session.put(Frame(Kind.DROPPED, lane=Lane.CONTROL, number=subscription.number, body=body))
