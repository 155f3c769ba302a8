"""A publisher that is held back, for tests of what is told of it."""

from __future__ import annotations

import clients

GLANCE_S = 0.2
"""How long a publish waits before the broker is asked why."""


def publish_until_held_back(bus: clients.Client, topic: str, value: object = 1, *, urgent: bool = False) -> int:
    """Publishes until the broker says that somebody holds the topic's publishers back.

    That no room came in time is not enough: the broker may have had no processor meanwhile.

    Returns:
        How many messages were published.
    """
    published, why, held_back = 0, "", False
    while not held_back:
        try:
            bus.publish(topic, value, urgent=urgent, timeout_s=GLANCE_S)
            published += 1
        except clients.TimeoutError as error:
            why = str(error)
            # Only now: somebody may be held back for a moment also where all keep up.
            held_back = bus.pressure(topic).blocked_publishers > 0
    assert "does not keep up" in why
    return published
