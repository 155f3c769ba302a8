"""Tells a subscriber what it has lost: how many messages in all, and how many ahead of one of them."""

from __future__ import annotations

from broker.buffers import Buffer
from broker.protocol.frames import Frame, Kind, Lane, encode
from broker.topics.messages import Message
from broker.topics.queues import Queue


class DropNotice:
    """The number of messages that a subscription has lost: one frame, however many are lost before it leaves.

    Attributes:
        attached: whether it is in the session's outbox.
        told: the number that the subscriber knows.
    """

    __slots__ = ("_queue", "_subscription", "attached", "told")

    def __init__(self, subscription: int, queue: Queue) -> None:
        """Args:
        subscription: its number.
        queue: its messages, of which some are dropped.
        """
        self._subscription = subscription
        self._queue = queue
        self.attached = False
        self.told = 0

    def pull(self, buffers: list[Buffer]) -> int:
        """Appends one frame; see Source."""
        dropped = self._queue.dropped
        if dropped == self.told:
            self.attached = False
            return 0
        self.told = dropped
        return encode(Frame(Kind.DROPPED, lane=Lane.CONTROL, number=self._subscription, sequence=dropped), buffers)


def tell_gap(queue: Queue, subscription: int, message: Message, publication: int, buffers: list[Buffer]) -> int:
    """Tells how many messages of its topic were lost ahead of this one, if any were.

    Args:
        queue: from which they were lost.
        subscription: its number.
        message: the one that comes next.
        publication: what stands for its topic and publisher.
        buffers: get the frame.

    Returns:
        The frame's bytes.
    """
    lost = queue.gaps.take(message.topic, message.sequence) if queue.gaps is not None else 0
    if not lost:
        return 0
    return encode(Frame(Kind.GAP, lane=message.lane, number=publication, target=subscription, sequence=lost), buffers)
