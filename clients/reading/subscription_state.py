"""One subscription in the client: what waits to be taken, what the broker is owed for it, what was lost. Pure.

The broker sends what it has credit for. A subscription gives credit back as the application takes messages; of a large
message, chunk by chunk as they arrive in its final buffer, and then owes its whole length until the application has
taken it. So a subscription holds at most queue_bytes, plus the one message that reached over it.

What waits is taken lane by lane, as it travels. With max_lag, what a newer message leaves too far behind goes at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final
from weakref import ref

from broker.devices import Device
from broker.errors import BrokerError
from broker.limits import PLACED_BYTES_MIN
from broker.protocol.bodies import Subscribe, Subscribed, decode_body
from broker.protocol.frames import LANES, Frame, Kind, Lane
from clients.connection.signals import Signal
from clients.reading.messages import Delivery, Message
from clients.reading.readers import Reader
from clients.reading.seen import Seen

CREDIT_PARTS: Final = 8
"""Credit is due when such a part of queue_bytes was taken."""
LINE_CREDIT_PARTS: Final = 2
"""The same of what comes on a line, where the broker is woken for it and has to drain. Until then a burst finds as much
less room, though nothing waits."""
NEVER_NS: Final = (1 << 63) - 1


class SubscriptionState(Signal):
    """One subscription; ready while it has a message or is closed.

    Attributes:
        wishes: as the broker was asked.
        device: where arrays are to be when they are read; None is host memory.
        what: what a reader waits for, in words.
        has_max_lag: whether a message may be too old by the time it is taken.
        is_latest: whether it asks for each message.
        is_special: whether there is more to taking a message than credit.
        held_bytes: what has come on lines, less what was taken since.
        evicts: whether messages that wait here make room for newer ones.
        pending: messages that wait in this process.
        dropped: messages that were dropped by the overflow policy, here or in the broker.
        credit_due: whether enough was taken that the broker is to be told.
        drops_untold: messages by topic that were dropped here and that the broker has not been told of.
        reader: what the program has to read it with, while it has; None with a handler.
        readers: threads that wait for a message.
        began_ns: when it began in this session, by the wall clock; NEVER_NS before that.
        seen: what has arrived, so that a later session goes on behind it.
        closed: why it will get no more messages, once it will not.
    """

    __slots__ = (
        "_alone", "_bytes_threshold", "_dropped_before", "_dropped_here", "_dropped_there", "_gaps_ahead",
        "_gaps_evicted", "_gaps_skipped", "_gaps_told", "_lanes", "_owed_bytes", "_owed_messages",
        "_queue_bytes", "_queue_messages", "_recent", "_threshold", "asked",
        "began_ns", "closed", "credit_due", "device", "drops_untold", "evicts", "has_max_lag", "held_bytes",
        "is_latest", "is_special", "number", "on_message", "pending", "reader", "readers", "seen", "what", "wishes",
    )  # fmt: skip

    def __init__(self, number: int, wishes: Subscribe, device: Device | None = None) -> None:
        super().__init__()
        self.number = number
        self.wishes = wishes
        self.device = device
        self.seen = Seen(wishes)
        self.what = f"a message on {wishes.filter!r}"
        self.closed: BrokerError | None = None
        self.on_message: Callable[[], None] | None = None
        self.asked = False
        self._lanes: tuple[deque[Message], ...] = tuple(deque() for _ in range(LANES))
        # The only message that waits, as long as it is: most are taken before the next one comes.
        self._alone: Message | None = None
        self._recent: dict[str, dict[int, Message]] = {}
        self.pending = 0
        self.held_bytes = 0
        self._owed_messages = 0
        self._owed_bytes = 0
        self._dropped_here = self._dropped_there = self._dropped_before = self._gaps_told = 0
        self._gaps_ahead: dict[str, int] = {}
        self._gaps_skipped: dict[str, int] = {}
        self._gaps_evicted: dict[str, int] = {}
        self.drops_untold: dict[str, int] = {}
        self._queue_bytes, self._queue_messages = wishes.queue_bytes, wishes.queue_messages
        self._bytes_threshold = wishes.queue_bytes // CREDIT_PARTS
        self._follow(wishes.overflow or "block")
        self.credit_due = False
        self.reader: ref[Reader] | None = None
        self.readers = 0
        self.began_ns = NEVER_NS

    def keep(self, unread: dict[SubscriptionState, object]) -> Reader:
        """What the program is to have as long as it reads: when it goes, this is put into `unread`, where the client
        looks on its tick."""
        reader = Reader()
        self.reader = ref(reader, partial(unread.__setitem__, self))
        return reader

    def lined(self, *, lined: bool) -> None:
        """Its messages come on a line, or not any more: the broker drains that for each credit, and need not often."""
        self._bytes_threshold = self.wishes.queue_bytes // (LINE_CREDIT_PARTS if lined else CREDIT_PARTS)

    def decided(self, frame: Frame) -> None:
        """DONE, where the broker was to decide about the overflow: it stays so for the subscription's life."""
        self.wishes.overflow = decode_body(frame.body, Subscribed).overflow
        self._follow(self.wishes.overflow)

    def _follow(self, overflow: str) -> None:
        self.evicts = overflow == "drop_oldest"
        self.is_latest = overflow == "latest"
        self.has_max_lag = self.wishes.max_lag is not None
        self.is_special = self.is_latest or self.has_max_lag or self.device is not None
        bound = 1 if self.is_latest else self.wishes.queue_messages
        # A small queue is credited message by message, so that the broker's count of unread messages is exact.
        self._threshold = 1 if bound <= 16 else bound // 4

    @property
    def dropped(self) -> int:
        """Messages that were dropped, here or in the broker.

        A gap may be told before the broker's count, which comes by itself.
        """
        return self._dropped_here + max(self._dropped_there, self._gaps_told) + self._dropped_before

    def append(self, message: Message) -> None:
        """A message has arrived."""
        topic = message._publication.topic
        if self._gaps_ahead or self._gaps_skipped:
            message.gap = self._gap_ahead(topic)
        self.seen.saw(topic, message._lane, message.sequence)
        if not self.pending and not self.evicts:
            self._alone = message
        else:
            self._join()
            self._lanes[message._lane].append(message)
        self.pending += 1
        if self.evicts:
            self._make_room((message,))
        self._arrived()

    def extend(self, messages: Sequence[Message]) -> None:
        """Messages of a topic and a lane have arrived together."""
        topic, last = messages[0].topic, messages[-1]
        if self._gaps_ahead or self._gaps_skipped:
            messages[0].gap = self._gap_ahead(topic)
        self.seen.saw(topic, last._lane, last.sequence)
        self._join()
        self._lanes[last._lane].extend(messages)
        self.pending += len(messages)
        if self.evicts:
            self._make_room(messages)
        self._arrived()

    def _join(self) -> None:
        """The message that has waited alone is about to have company."""
        if self._alone is not None:
            self._lanes[self._alone._lane].append(self._alone)
            self._alone = None

    def _gap_ahead(self, topic: str) -> int:
        told = self._gaps_ahead.pop(topic, 0)
        self._gaps_told += told
        return told + self._gaps_skipped.pop(topic, 0)

    def _make_room(self, messages: Sequence[Message]) -> None:
        if self.wishes.max_lag is not None:
            self._drop_stale(messages, self.wishes.max_lag)
        while self.pending > self.wishes.queue_messages:
            lane = next(lane for lane in reversed(self._lanes) if lane)
            self._evict(lane[0])

    def _arrived(self) -> None:
        self.asked = False
        self.ready = True
        if self.callbacks:
            self.set()
        if self.on_message is not None:
            self.on_message()

    def _drop_stale(self, messages: Sequence[Message], max_lag: int) -> None:
        """Evicts what is more than max_lag sequences behind the newest message of a topic, of which some have arrived.

        In a slower lane, what arrives may be too old itself. What has a higher sequence came from an earlier broker.
        """
        topic = messages[0].topic
        newest = max(seen.get(topic, 0) for seen in self.seen.lanes)
        recent = self._recent.setdefault(topic, {})
        recent.update((message.sequence, message) for message in messages)
        while recent:
            first = next(iter(recent.values()))
            if newest - max_lag <= first.sequence <= newest:
                break
            self._evict(first)
        for message in messages:
            if message.sequence < newest - max_lag and message.sequence in recent:
                self._evict(message)

    def _evict(self, message: Message) -> None:
        self._lanes[message._lane].remove(message)
        self.pending -= 1
        self._forget(message)
        self._drop(message.topic, 1)
        self.held_bytes -= message.size_bytes
        self._gaps_evicted[message.topic] = self._gaps_evicted.get(message.topic, 0) + 1 + message.gap
        self.taken(message)
        self.credit_due = True

    def _drop(self, topic: str, messages: int) -> None:
        self._dropped_here += messages
        self.drops_untold[topic] = self.drops_untold.get(topic, 0) + messages

    def _forget(self, message: Message) -> None:
        recent = self._recent.get(message.topic)
        if recent is not None:
            recent.pop(message.sequence, None)
            if not recent:
                del self._recent[message.topic]

    def has_room(self) -> bool:
        """Whether it takes another message from a line: what was taken from there and the socket, and not credited, is
        within the queue's bounds."""
        if self.closed is not None:
            return True
        if not self.pending or self.held_bytes < 0:
            self.held_bytes = 0
        return self.held_bytes < self._queue_bytes and (
            self.evicts or self.pending + self._owed_messages < self._queue_messages
        )

    def take_plain(self) -> Message | None:
        """The next message, if it is small, and taking it leaves nothing else to do: no credit is due, nothing is told.

        None says nothing of whether there is one: `take` does.
        """
        if self.is_special or self._gaps_evicted or self.pending < 2 or self._owed_messages + 1 >= self._threshold:
            return None
        for lane in self._lanes:
            if lane:
                message = lane[0]
                size = message._size()
                if size > PLACED_BYTES_MIN or self._owed_bytes + size >= self._bytes_threshold:
                    return None
                lane.popleft()
                self.pending -= 1
                self._owed_messages += 1
                self._owed_bytes += size
                self.held_bytes -= size
                if message._delivery is not None:
                    self._keep_for(message._delivery)
                return message
        return None

    def take(self) -> Message | None:
        """The next message of the most urgent lane that has one."""
        if not self.pending:
            return None
        message = self._alone
        if message is not None:
            self._alone = None
        else:
            for lane in self._lanes:
                if lane:
                    message = lane.popleft()
                    break
        assert message is not None
        self.pending -= 1
        if self._recent:
            self._forget(message)
        if not self.pending and self.closed is None:
            self.ready = False
        if self._gaps_evicted:
            message.gap += self._gaps_evicted.pop(message.topic, 0)
        size = message._size()
        self._owed_messages += 1
        self._owed_bytes += size
        self.held_bytes -= size
        if self._owed_messages >= self._threshold or self._owed_bytes >= self._bytes_threshold:
            self.credit_due = True
        if self.device is not None:
            message._device = self.device
        if message._delivery is not None:
            self._keep_for(message._delivery)
        return message

    def _keep_for(self, delivery: Delivery) -> None:
        """A job was taken: until it is settled or dropped the subscription stays, or it would go to somebody else."""
        if self.reader is not None:
            delivery.reader = self.reader()

    def taken(self, message: Message) -> None:
        """A message is not here any more, and what it took of the broker's credit is owed."""
        self._owed_messages += 1
        self._owed_bytes += message.size_bytes

    def lost(self, topic: str, messages: int) -> None:
        """Messages are missing ahead of the topic's next one."""
        self._gaps_ahead[topic] = self._gaps_ahead.get(topic, 0) + messages

    def skip(self, topic: str, frame: Frame, messages: int, size_bytes: int) -> None:
        """Messages have arrived that cannot be read: they count as dropped."""
        self._drop(topic, messages)
        self._gaps_skipped[topic] = self._gaps_skipped.get(topic, 0) + messages
        self.seen.saw(topic, frame.lane, frame.sequence + messages - 1)
        self._owed_messages += messages
        self._owed_bytes += size_bytes

    def chunk_arrived(self, size_bytes: int) -> None:
        """Part of a large message is in its final buffer."""
        self._owed_bytes += size_bytes

    def stream_complete(self, size_bytes: int) -> None:
        """A large message is complete and counts until it is taken."""
        self._owed_bytes -= size_bytes

    def credit(self) -> Frame | None:
        """The CREDIT that is due, if one is."""
        messages, size_bytes = self._owed_messages, self._owed_bytes
        if self.is_latest:
            # Messages are asked for one by one; of a large one the bytes are credited as they arrive.
            messages = 0
        self.credit_due = False
        if (not messages or messages < self._threshold) and size_bytes < self._bytes_threshold:
            return None
        # Either may be below zero: what waits from an earlier session was never charged to this one.
        messages, size_bytes = max(0, messages), max(0, size_bytes)
        self._owed_messages -= messages
        self._owed_bytes -= size_bytes
        return Frame(Kind.CREDIT, lane=Lane.CONTROL, number=self.number, count=messages, total_bytes=size_bytes)

    def ask(self) -> Frame | None:
        """Of a `latest` subscription: the CREDIT for one message, if it waits and has not asked."""
        if not self.is_latest or self.asked or self.pending:
            return None
        self.asked = True
        owed_bytes, self._owed_bytes = max(0, self._owed_bytes), min(0, self._owed_bytes)
        size_bytes = self.wishes.queue_bytes + owed_bytes
        return Frame(Kind.CREDIT, lane=Lane.CONTROL, number=self.number, count=1, total_bytes=size_bytes)

    def broker_dropped(self, total: int) -> None:
        """DROPPED: what the broker has dropped in this session."""
        self._dropped_there = total

    def reconnected(self) -> None:
        """A new session knows nothing of what was owed.

        Nor of what the broker had dropped and not told of as a gap: that comes after all, or is told again.
        """
        goes_on = self.seen.moment is not None
        self._dropped_before += self._gaps_told if goes_on else max(self._dropped_there, self._gaps_told)
        self._dropped_there = self._gaps_told = 0
        self.asked = False
        self.began_ns = NEVER_NS
        self.drops_untold.clear()
        self._gaps_ahead.clear()
        self._owed_messages = -self.pending
        self._owed_bytes = -sum(message.size_bytes for message in self._waiting())

    def forget_jobs(self) -> None:
        """The session is over: what it had not taken of its jobs goes to others, or comes again."""
        self._join()
        for message in [message for message in self._waiting() if message.is_job]:
            self._lanes[message._lane].remove(message)
            self.pending -= 1
        self.ready = bool(self.pending) or self.closed is not None

    def _waiting(self) -> Iterator[Message]:
        self._join()
        return (message for lane in self._lanes for message in lane)

    def close(self, error: BrokerError) -> None:
        """No more messages will come; those that are here can still be taken."""
        if self.closed is None:
            self.closed = error
            self.set()
            if self.on_message is not None:
                self.on_message()
