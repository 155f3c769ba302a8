"""What an audit log records: who connected, was refused, was denied, changed what. Pure; who runs the broker says where
events go (broker/security/journal.py).

No event carries a secret: a token or a certificate is named by its number, as in `Identity.credential`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from broker.security.identity import ANYBODY, Identity


class AuditKind(StrEnum):
    """What happened."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    REFUSED = "refused"
    """Somebody did not get in."""
    DENIED = "denied"
    """Somebody who is in may not do something."""
    CHANGED = "changed"
    """Something that holds for others as well is different now."""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One line of the audit log.

    Attributes:
        kind: what happened.
        identity: who, as far as it was proven.
        peer: the address from which.
        session: the session's number; 0 where there is none.
        name: what the client calls itself.
        action: what was done or asked for, in a word: `publish`, `subscribe`, `declare`, `reload`.
        target: to what: a topic, a filter, a group, a file.
        detail: why, or what is different now, in words.
    """

    kind: AuditKind
    identity: Identity = ANYBODY
    peer: str = ""
    session: int = 0
    name: str = ""
    action: str = ""
    target: str = ""
    detail: str = ""


Audit = Callable[[AuditEvent], None]
"""Where events go. It does not raise, and bounds what it writes."""


def unrecorded(event: AuditEvent) -> None:
    """Where events go when nobody wants them."""
