"""What one tenant may have of a broker that it shares with others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Quotas:
    """The bounds of one tenant; None is the broker's own.

    Attributes:
        sessions_max: open at once.
        subscriptions_max: of all its sessions, without their inboxes.
        topics_max: that are there at once; a topic is there until its place is needed and nobody publishes to it.
        held_bytes_max: of messages that are kept for replay or wait for subscribers. What is kept makes room; when
            what waits is over it alone, publishers get no more credit.
        bytes_per_second_max: that come from its sessions, on the average of a second. Over it, publishers get no more
            credit until the time has made up for it.
    """

    sessions_max: int | None = None
    subscriptions_max: int | None = None
    topics_max: int | None = None
    held_bytes_max: int | None = None
    bytes_per_second_max: int | None = None


UNBOUNDED: Final = Quotas()
EVERY_OTHER: Final = "*"
"""In a configuration, the tenants that have no quotas of their own."""


def quotas_of(quotas: Mapping[str, Quotas], tenant: str) -> Quotas:
    """The quotas of one tenant."""
    return quotas.get(tenant) or quotas.get(EVERY_OTHER) or UNBOUNDED
