"""The queue of one subscription: bound, credit and overflow policy.

    offer() -->  [ lane 0 | lane 1 | lane 2 ]  --> take(lane)
                 at most queue_messages wait       as the reader's credit allows

Credit is what the reader has room for: `take` uses it up, `grant` adds to it. Unread messages are those that wait here
and those that were sent and not yet taken by the application, which is what the credit is short of. The policies:

    block        everything is queued; `over_limit` tells the topic to stop crediting its publishers
    drop_newest  what would make more than queue_messages unread is dropped
    drop_oldest  the oldest waiting ones, of the least urgent lane first, make room; the reader does the same with those
                 that have reached it
    latest       one message waits, the newest; the reader asks for each one
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from broker.topics.gaps import Gaps
from broker.topics.messages import Message
from broker.topics.policy import Overflow

LANES: Final = 3
CONTROL: Final = 0
_CONTROL = CONTROL
UNLIMITED: Final = 1 << 60
CONTROL_WAITING_MAX: Final = 65_536
"""Control messages need no credit; a subscription that has left this many waiting, or its bound in bytes of them,
loses the next ones."""
BLOCKED_BYTES_MAX: Final = 8 << 20
"""What a `block` subscription lets wait in the broker before its publishers are held back: enough for the link, little
enough to stay in the processor's cache."""
_EMPTY: Final[deque[Message]] = deque(maxlen=0)
"""Stands for every lane in which nothing has waited yet: a deque of its own takes 760 bytes."""
_EMPTY_LANES: Final = (_EMPTY,) * LANES
_NEVER: Final[dict[str, deque[Message]]] = {}
"""Stands for what is recent in a queue without max_lag."""


Split = Callable[[Message], Sequence[Message]]


# To look a member up in its class takes longer than all the rest of `has_room`.
_BLOCK, _LATEST, _DROP_OLDEST, _DROP_NEWEST = (
    Overflow.BLOCK, Overflow.LATEST, Overflow.DROP_OLDEST, Overflow.DROP_NEWEST,
)  # fmt: skip


def ignore_loss(topic: str, count: int) -> None:
    """Nobody is to be told."""


class Queue:
    """Messages on their way to one subscription.

    Attributes:
        waiting_messages: how many wait here.
        waiting_bytes: their bytes, of large ones what they will have when they are complete.
        dropped: messages that were dropped here, ever.
        gaps: those of them that the reader has not been told of.
        on_loss: called with the topic and the number of messages that were dropped.
    """

    __slots__ = (
        "_control_bytes",
        "_lanes",
        "_recent",
        "_split",
        "bytes_max",
        "credit_bytes",
        "credit_messages",
        "credit_messages_max",
        "dropped",
        "gaps",
        "max_lag",
        "messages_max",
        "on_loss",
        "overflow",
        "waiting_bytes",
        "waiting_messages",
    )

    def __init__(
        self,
        overflow: Overflow,
        messages_max: int,
        bytes_max: int,
        split: Split = lambda _: [],
        max_lag: int | None = None,
    ) -> None:
        """Args:
        overflow: the policy.
        messages_max: the bound in messages; `latest` has 1.
        bytes_max: the bound in bytes; a single longer message is still taken when nothing else waits.
        split: opens a batch of which the oldest messages have to go; empty when it cannot, and then all of it goes.
        max_lag: how far a message may be behind its topic's newest complete one; with it, batches come opened.
        """
        self.overflow = overflow
        self.messages_max = 1 if overflow is _LATEST else messages_max
        self.bytes_max = bytes_max
        self.credit_messages_max = UNLIMITED if overflow is _DROP_OLDEST else self.messages_max
        self.credit_messages = 0 if overflow is _LATEST else self.credit_messages_max
        self.credit_bytes = bytes_max
        self.waiting_messages = 0
        self.waiting_bytes = 0
        self._control_bytes = 0
        self.dropped = 0
        self.gaps: Gaps | None = None
        self.on_loss: Callable[[str, int], None] = ignore_loss
        self._split = split
        self.max_lag = max_lag
        self._recent: dict[str, deque[Message]] = _NEVER if max_lag is None else {}
        self._lanes: tuple[deque[Message], ...] = _EMPTY_LANES

    @property
    def unread_messages(self) -> int:
        """Messages that the application has not taken: waiting here, or sent and not credited."""
        return self.waiting_messages + self.credit_messages_max - self.credit_messages

    @property
    def over_limit(self) -> bool:
        """Whether publishers to a `block` subscription have to wait."""
        return self.overflow is _BLOCK and (
            self.waiting_messages > self.credit_messages or self.waiting_bytes > BLOCKED_BYTES_MAX
        )

    def has_room(self, message: Message) -> bool:
        """Whether all of a message (or batch) fits without a drop."""
        overflow = self.overflow
        if overflow is _BLOCK:
            return message.lane != _CONTROL or (
                len(self._lanes[CONTROL]) < CONTROL_WAITING_MAX
                and (not self._control_bytes or self._control_bytes + message.size_bytes <= self.bytes_max)
            )
        if overflow is _LATEST:
            return message.count == 1 and not self.waiting_messages
        waiting = self.waiting_messages if overflow is _DROP_OLDEST else self.unread_messages
        if waiting + message.count > self.messages_max:
            return False
        return not waiting or self.waiting_bytes + message.size_bytes <= self.bytes_max

    def offer(self, message: Message) -> bool:
        """Queues a message, dropping by policy what there is no room for.

        Returns:
            Whether the message itself was queued.
        """
        if not self.has_room(message):
            if self.overflow is _DROP_NEWEST or self.overflow is _BLOCK:
                self.lose(message, message.count)
                return False
            while self.waiting_messages and not self.has_room(message):
                self._drop_oldest()
        lane = self._lanes[message.lane]
        if lane is _EMPTY:
            lane = deque()
            self._lanes = (*self._lanes[: message.lane], lane, *self._lanes[message.lane + 1 :])
        lane.append(message)
        self._count_in(message)
        if self.max_lag is not None:
            self._recent.setdefault(message.topic, deque()).append(message)
            if message.stream is None or message.stream.complete:
                self.drop_stale(message)
        return True

    def drop_stale(self, newest: Message) -> None:
        """Drops what a message that is complete has left more than max_lag behind, if there is such a bound."""
        if self.max_lag is not None:
            recent = self._recent.get(newest.topic, ())
            while recent and recent[0].sequence < newest.sequence - self.max_lag:
                self.remove(recent[0])

    def lose(self, message: Message, count: int) -> None:
        """Counts messages as dropped: the first `count` of a message or batch."""
        self.miss(message.topic, message.sequence, count)

    def miss(self, topic: str, sequence: int, count: int) -> None:
        """Counts as dropped what never came here: so many messages of a topic, from a sequence on."""
        self.dropped += count
        if self.gaps is None:
            self.gaps = Gaps()
        self.gaps.add(topic, sequence, count)
        self.on_loss(topic, count)

    def _count_in(self, message: Message) -> None:
        message.holders += 1
        self.waiting_messages += message.count
        self.waiting_bytes += message.size_bytes
        if message.lane == _CONTROL:
            self._control_bytes += message.size_bytes

    def _count_out(self, message: Message) -> None:
        self.waiting_messages -= message.count
        self.waiting_bytes -= message.size_bytes
        if message.lane == _CONTROL:
            self._control_bytes -= message.size_bytes
        if self._recent:
            recent = self._recent[message.topic]
            recent.remove(message)
            if not recent:
                del self._recent[message.topic]

    def _drop_oldest(self) -> None:
        """Drops the oldest message of the least urgent lane."""
        lane = next(lane for lane in reversed(self._lanes) if lane)
        oldest = lane.popleft()
        self._count_out(oldest)
        parts = self._split(oldest) if oldest.count > 1 else ()
        for part in reversed(parts[1:]):
            lane.appendleft(part)
            self._count_in(part)
        self.lose(oldest, oldest.count - len(parts[1:]))
        oldest.release()

    def take(self, lane: int) -> Message | None:
        """The next message of a lane, if there is one and credit for it. Control messages need no credit, but for those
        of `latest`, which are asked for as all others are.

        The caller has taken over a hold on the message and releases it.
        """
        queue = self._lanes[lane]
        if not queue:
            return None
        message = queue[0]
        # Whatever credit is left is enough: else a message longer than the reader's bound would never go.
        if (self.credit_messages <= 0 or self.credit_bytes <= 0) and (lane != _CONTROL or self.overflow is _LATEST):
            return None
        queue.popleft()
        self._count_out(message)
        self.credit_messages -= message.count
        return message

    def grant(self, messages: int, size_bytes: int) -> None:
        """The application took messages; the reader has room for as many more."""
        self.credit_messages = min(self.credit_messages_max, self.credit_messages + messages)
        self.credit_bytes = min(self.bytes_max, self.credit_bytes + size_bytes)

    def drain(self) -> list[Message]:
        """Empties the queue; the caller releases the messages."""
        waiting = [message for lane in self._lanes for message in lane]
        for lane in self._lanes:
            lane.clear()
        self.waiting_messages = self.waiting_bytes = self._control_bytes = 0
        self._recent.clear()
        return waiting

    def remove(self, message: Message) -> bool:
        """Drops one waiting message; says whether it waited here."""
        lane = self._lanes[message.lane]
        if message not in lane:
            return False
        lane.remove(message)
        self._count_out(message)
        self.lose(message, message.count)
        message.release()
        return True

    def holds(self, message: Message) -> bool:
        """Whether a message waits here."""
        return message in self._lanes[message.lane]

    def first(self, lane: int) -> Message | None:
        """The message of a lane that `take` would give, credit or not."""
        return self._lanes[lane][0] if self._lanes[lane] else None

    def has_waiting(self, lane: int) -> bool:
        """Whether a lane holds anything."""
        return bool(self._lanes[lane])

    def __repr__(self) -> str:
        return (
            f"<Queue {self.overflow.value} waiting={self.waiting_messages} credit={self.credit_messages} "
            f"credit_bytes={self.credit_bytes} dropped={self.dropped}>"
        )
