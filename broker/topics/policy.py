"""What holds for one topic: what it keeps, how it overflows, how its messages travel, what its work queues do."""

from __future__ import annotations

from dataclasses import dataclass

from broker.limits import BATCH_BYTES, BATCH_WINDOW_NS, DELIVERIES_MAX, LEASE_S, RING_BYTES, RING_MESSAGES


@dataclass(frozen=True, slots=True)
class TopicPolicy:
    """The settings of one topic, each with its value.

    Attributes:
        ring_messages: messages that are kept for replay.
        ring_bytes: bytes that are kept for replay.
        retain: True keeps the newest message however long it is; False keeps nothing; None keeps what the ring's bounds
            allow.
        overflow: the policy of subscriptions that name none.
        batch_bytes: a batch leaves when it holds so much; 0 never batches.
        batch_window_us: a batch leaves when its first message is so old, in microseconds.
        lane: of messages that name none.
        max_message_bytes: longer messages are refused; None takes any.
        acknowledge: whether members of a queue group acknowledge each message, so that what a member does not finish is
            given to another.
        lease_s: how long a member may take for a message, in seconds.
        max_deliveries: deliveries of one message before it goes to the dead-letter topic; 0 sets no bound.
        dead_letter: the topic for messages that were delivered too often; empty for `$dead/` and the topic's name.
    """

    ring_messages: int = RING_MESSAGES
    ring_bytes: int = RING_BYTES
    retain: bool | None = None
    overflow: str = "block"
    batch_bytes: int = BATCH_BYTES
    batch_window_us: int = BATCH_WINDOW_NS // 1000
    lane: str = "default"
    max_message_bytes: int | None = None
    acknowledge: bool = False
    lease_s: float = LEASE_S
    max_deliveries: int = DELIVERIES_MAX
    dead_letter: str = ""
