"""What becomes of a client whose connection was lost, and that has found a broker again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reconnected:
    """What a client says after it has found a broker again.

    Attributes:
        lost_messages_max: published messages of which the old connection had not confirmed the arrival: at most so many
            are lost. Call flush, or publish with ack="accepted", to know more closely.
        cause: why the old connection ended.
        subscriptions: filters that were subscribed again. They get what was published meanwhile as far as the broker
            has kept it, and `message.gap` says what it has not; those of queue groups and responders do not.
    """

    lost_messages_max: int
    cause: str
    subscriptions: tuple[str, ...]
