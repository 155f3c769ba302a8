"""What a client receives: subscriptions, their local queues and credit, and large messages as they arrive. Pure.

The broker sends what it has credit for. A subscription gives credit back as the application takes messages; of a large
message, chunk by chunk as they arrive in its final buffer, and then owes its whole length until the application has
taken it. So a subscription holds at most queue_bytes, plus the one message that reached over it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from broker.errors import BrokerError, ProtocolError
from broker.limits import MIB
from broker.protocol.batches import ENTRY_BYTES, split_batch
from broker.protocol.bodies import Failure, MessageBody, Subscribe, Subscribed, Topic, decode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.pool import BufferPool
from broker.protocol.session import Session
from clients.messages import Delivery, Message, Publication, Reply, Settle
from clients.seen import Seen
from clients.signals import Signal

log = logging.getLogger(__name__)

POOL_BYTES_MAX: Final = 512 * MIB
"""Message buffers that a client keeps for reuse once the application has let go of them."""
INBOX: Final = 0
_BATCH: Final = Flag.BATCH
_CHUNKED: Final = Flag.CHUNKED
_TRACKED: Final = Flag.TRACKED


class SubscriptionState(Signal):
    """One subscription; ready while it has a message or is closed.

    Attributes:
        wishes: as the broker was asked.
        what: what a reader waits for, in words.
        is_latest: whether it asks for each message.
        pending: messages that wait in this process.
        dropped: messages that were dropped by the overflow policy, here or in the broker.
        credit_due: whether enough was taken that the broker is to be told.
        readers: threads that wait for a message.
        seen: what has arrived, so that a later session goes on behind it.
        closed: why it will get no more messages, once it will not.
    """

    __slots__ = (
        "_bytes_threshold", "_dropped_before", "_dropped_here", "_dropped_there", "_gaps_ahead",
        "_gaps_evicted", "_gaps_skipped", "_gaps_told", "_messages", "_owed_bytes",
        "_owed_messages", "_evicts", "_threshold", "asked", "closed", "credit_due", "is_latest", "number", "on_message",
        "readers", "seen", "what", "wishes",
    )  # fmt: skip

    def __init__(self, number: int, wishes: Subscribe) -> None:
        super().__init__()
        self.number = number
        self.wishes = wishes
        self.seen = Seen(wishes)
        self.what = f"a message on {wishes.filter!r}"
        self.closed: BrokerError | None = None
        self.on_message: Callable[[], None] | None = None
        self.asked = False
        self._messages: deque[Message] = deque()
        self._owed_messages = 0
        self._owed_bytes = 0
        self._dropped_here = self._dropped_there = self._dropped_before = self._gaps_told = 0
        self._gaps_ahead: dict[str, int] = {}
        self._gaps_skipped: dict[str, int] = {}
        self._gaps_evicted: dict[str, int] = {}
        self._bytes_threshold = wishes.queue_bytes // 8
        self._follow(wishes.overflow or "block")
        self.credit_due = False
        self.readers = 0

    def decided(self, frame: Frame) -> None:
        """DONE, where the broker was to decide about the overflow: it stays so for the subscription's life."""
        self.wishes.overflow = decode_body(frame.body, Subscribed).overflow
        self._follow(self.wishes.overflow)

    def _follow(self, overflow: str) -> None:
        self._evicts = overflow == "drop_oldest"
        self.is_latest = overflow == "latest"
        bound = 1 if self.is_latest else self.wishes.queue_messages
        # A small queue is credited message by message, so that the broker's count of unread messages is exact.
        self._threshold = 1 if bound <= 16 else bound // 4

    @property
    def pending(self) -> int:
        """Messages that wait in this process."""
        return len(self._messages)

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
        self.saw(topic, message._lane, message.sequence)
        self._messages.append(message)
        self._arrived()

    def extend(self, messages: Sequence[Message]) -> None:
        """Messages of a topic and a lane have arrived together."""
        topic, last = messages[0].topic, messages[-1]
        if self._gaps_ahead or self._gaps_skipped:
            messages[0].gap = self._gap_ahead(topic)
        self.saw(topic, last._lane, last.sequence)
        self._messages.extend(messages)
        self._arrived()

    def saw(self, topic: str, lane: int, sequence: int) -> None:
        """Another session need not send a topic's messages up to this one."""
        seen = self.seen.lanes[lane]
        if topic not in seen:
            self.seen.first_of(topic, lane)
        seen[topic] = sequence

    def _gap_ahead(self, topic: str) -> int:
        told = self._gaps_ahead.pop(topic, 0)
        self._gaps_told += told
        return told + self._gaps_skipped.pop(topic, 0)

    def _arrived(self) -> None:
        if self._evicts:
            messages = self._messages
            while len(messages) > self.wishes.queue_messages:
                self._dropped_here += 1
                evicted = messages.popleft()
                self._gaps_evicted[evicted.topic] = self._gaps_evicted.get(evicted.topic, 0) + 1 + evicted.gap
                self._taken(evicted)
                self.credit_due = True
        self.asked = False
        self.ready = True
        if self.callbacks:
            self.set()
        if self.on_message is not None:
            self.on_message()

    def take(self) -> Message | None:
        """The next message, if there is one."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        if not self._messages and self.closed is None:
            self.ready = False
        if self._gaps_evicted:
            message.gap += self._gaps_evicted.pop(message.topic, 0)
        self._owed_messages += 1
        self._owed_bytes += message.size_bytes
        if self._owed_messages >= self._threshold or self._owed_bytes >= self._bytes_threshold:
            self.credit_due = True
        return message

    def _taken(self, message: Message) -> None:
        self._owed_messages += 1
        self._owed_bytes += message.size_bytes

    def lost(self, topic: str, messages: int) -> None:
        """Messages are missing ahead of the topic's next one."""
        self._gaps_ahead[topic] = self._gaps_ahead.get(topic, 0) + messages

    def skip(self, topic: str, frame: Frame, messages: int, size_bytes: int) -> None:
        """Messages have arrived that cannot be read: they count as dropped."""
        self._dropped_here += messages
        self._gaps_skipped[topic] = self._gaps_skipped.get(topic, 0) + messages
        self.saw(topic, frame.lane, frame.sequence + messages - 1)
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
        if not self.is_latest or self.asked or self._messages:
            return None
        self.asked = True
        return Frame(Kind.CREDIT, lane=Lane.CONTROL, number=self.number, count=1, total_bytes=self.wishes.queue_bytes)

    def broker_dropped(self, total: int) -> None:
        """DROPPED: what the broker has dropped in this session."""
        self._dropped_there = total

    def reconnected(self) -> None:
        """A new session knows nothing of what was owed.

        Nor of what the broker had dropped and not told of as a gap: that comes after all, or is told again.
        """
        self._dropped_before += self._gaps_told if self.seen.moment is not None else self._dropped_there
        self._dropped_there = self._gaps_told = 0
        self.asked = False
        self._gaps_ahead.clear()
        self._owed_messages = -len(self._messages)
        self._owed_bytes = -sum(message.size_bytes for message in self._messages)

    def forget_jobs(self) -> None:
        """The session is over: what it had not taken of its jobs goes to others, or comes again."""
        rest = [message for message in self._messages if not message.is_job]
        if len(rest) < len(self._messages):
            self._messages = deque(rest)
            self.ready = bool(rest) or self.closed is not None

    def close(self, error: BrokerError) -> None:
        """No more messages will come; those that are here can still be taken."""
        if self.closed is None:
            self.closed = error
            self.set()
            if self.on_message is not None:
                self.on_message()


class _Assembly:
    """A large message that is arriving."""

    __slots__ = ("arrived_bytes", "frame", "memory", "subscription")

    def __init__(self, subscription: SubscriptionState | None, frame: Frame, memory: memoryview | None) -> None:
        self.subscription = subscription
        self.frame = frame
        self.memory = memory
        self.arrived_bytes = 0


class Incoming:
    """All that one client receives, but for collectives."""

    def __init__(
        self,
        reply: Reply,
        on_reply: Callable[[Message], None],
        settle: Settle,
        on_reply_aborted: Callable[[int, str], None] = lambda number, reason: None,
    ) -> None:
        """Args:
        reply: publishes the answer to a request.
        settle: tells the broker what has become of a job.
        on_reply: called with every message that comes to this client's inbox.
        on_reply_aborted: called with the request's number and a reason when a large one will not be completed.
        """
        self.session: Session | None = None
        self.subscriptions: dict[int, SubscriptionState] = {}
        self.pool = BufferPool(POOL_BYTES_MAX)
        self._reply = reply
        self._on_reply = on_reply
        self._settle = settle
        self._on_reply_aborted = on_reply_aborted
        self._publications: dict[int, Publication] = {}
        self._assemblies: dict[int, _Assembly] = {}
        self._inbox = SubscriptionState(INBOX, Subscribe("$inbox"))
        self._life = 0

    def connected(self, session: Session, life: int) -> None:
        """A session is open; nothing is known in it yet.

        Args:
            session: the new one.
            life: of the broker, as its welcome tells.
        """
        self.session = session
        if life != self._life:
            self._life = life
            for subscription in self.subscriptions.values():
                subscription.seen.other_broker()
        self._publications.clear()
        self._assemblies.clear()
        for subscription in (self._inbox, *self.subscriptions.values()):
            subscription.reconnected()

    def disconnected(self) -> None:
        """The session is over: what had not arrived completely never will."""
        self.session = None
        self._assemblies.clear()
        for subscription in self.subscriptions.values():
            subscription.forget_jobs()

    def allocate(self, frame: Frame, size_bytes: int) -> memoryview:
        """Memory for a payload that is about to be received: its place in the message that it is a part of."""
        if frame.kind == Kind.CHUNK:
            assembly = self._assemblies.get(frame.stream)
            if (
                assembly is not None
                and assembly.memory is not None
                and frame.sequence + size_bytes <= len(assembly.memory)
            ):
                return assembly.memory[frame.sequence : frame.sequence + size_bytes]
        return self.pool.acquire(size_bytes).data

    def topic(self, frame: Frame) -> None:
        """TOPIC: the broker gives a number to a topic and its publisher."""
        body = decode_body(frame.body, Topic)
        self._publications[frame.number] = Publication(body.name, body.sender)

    def began(self, frame: Frame) -> None:
        """DONE: a subscription has begun."""
        subscription = self.subscriptions.get(frame.number)
        if subscription is not None:
            subscription.seen.began(frame.sequence)

    def deliver(self, frame: Frame) -> None:
        """DELIVER: a message, a batch, or the start of a large message."""
        subscription = self.subscriptions.get(frame.target) if frame.target else self._inbox
        flags = frame.flags
        if flags & _CHUNKED:
            self._open(subscription, frame)
            return
        # Messages can be on their way when a subscription ends.
        if subscription is None:
            return
        if flags & _BATCH:
            self._open_batch(subscription, frame)
        else:
            self._complete(subscription, frame)
        if subscription.credit_due and subscription._evicts:
            self.give_credit(subscription)

    def _open(self, subscription: SubscriptionState | None, frame: Frame) -> None:
        if subscription is None:
            # It has ended; what was under way comes all the same, and goes nowhere.
            self._assemblies[frame.stream] = _Assembly(None, frame, None)
            return
        try:
            memory = self.pool.acquire(frame.total_bytes).data
        except (MemoryError, ValueError, OverflowError):
            # What a publisher announces, this machine need not have. The chunks come all the same, and go nowhere.
            log.error("message.too_large stream=%d bytes=%d", frame.stream, frame.total_bytes)
            subscription.skip(self._publication(frame).topic, frame, 1, len(frame.body))
            self._assemblies[frame.stream] = _Assembly(subscription, frame, None)
            return
        self._assemblies[frame.stream] = _Assembly(subscription, frame, memory)

    def _open_batch(self, subscription: SubscriptionState, frame: Frame) -> None:
        publication = self._publication(frame)
        try:
            entries = split_batch(bytes(frame.payload), frame.count)
        except ProtocolError:
            # Its publisher is at fault, and this session need not end for that.
            log.exception("batch.unreadable topic=%r sender=%r", publication.topic, publication.sender)
            size_bytes = max(0, len(frame.payload) - ENTRY_BYTES * frame.count)
            subscription.skip(publication.topic, frame, frame.count, size_bytes)
            self.give_credit(subscription)
            return
        lane, reply = frame.lane, self._reply
        messages = [
            Message(publication, sequence, time_ns, lane, content, body, payload, reply)
            for sequence, (content, time_ns, body, payload) in enumerate(entries, frame.sequence)
        ]
        if subscription is self._inbox:
            for message in messages:
                self._hand_out(subscription, message)
        else:
            subscription.extend(messages)

    def _publication(self, frame: Frame) -> Publication:
        publication = self._publications.get(frame.number)
        if publication is None:
            raise ProtocolError(f"DELIVER of topic number {frame.number}, which no TOPIC has named")
        return publication

    def _complete(self, subscription: SubscriptionState, frame: Frame) -> None:
        publication = self._publications.get(frame.number) or self._publication(frame)
        message = Message(
            publication,
            frame.sequence,
            frame.time_ns,
            frame.lane,
            frame.content,
            frame.body,
            frame.payload,
            self._reply,
        )
        if frame.flags & _TRACKED:
            message._delivery = Delivery(subscription.number, frame.stream, frame.count, self.session, self._settle)
        self._hand_out(subscription, message)

    def _hand_out(self, subscription: SubscriptionState, message: Message) -> None:
        if subscription is self._inbox:
            subscription._taken(message)
            self._on_reply(message)
        else:
            subscription.append(message)

    def chunk(self, frame: Frame) -> None:
        """CHUNK: more of a large message."""
        if frame.stream not in self._assemblies:
            raise ProtocolError(f"CHUNK of stream {frame.stream}, which no DELIVER has opened")
        assembly = self._assemblies[frame.stream]
        size = len(frame.payload)
        if assembly.memory is None:
            if frame.flags & Flag.LAST:
                del self._assemblies[frame.stream]
            if assembly.subscription is not None:
                assembly.subscription.chunk_arrived(size)
                self.give_credit(assembly.subscription)
            return
        end = frame.sequence + size
        if frame.sequence != assembly.arrived_bytes or end > len(assembly.memory):
            raise ProtocolError(
                f"CHUNK of stream {frame.stream} at {frame.sequence}, expected {assembly.arrived_bytes}"
            )
        payload = frame.payload
        if size and not (isinstance(payload, memoryview) and payload.obj is assembly.memory.obj):
            assembly.memory[frame.sequence : end] = frame.payload
        assembly.arrived_bytes = end
        subscription = assembly.subscription
        if subscription is not None:
            subscription.chunk_arrived(size)
        if frame.flags & Flag.LAST:
            if end != len(assembly.memory):
                raise ProtocolError(f"stream {frame.stream} ended after {end} of {len(assembly.memory)} bytes")
            del self._assemblies[frame.stream]
            if subscription is not None:
                subscription.stream_complete(end)
                assembly.frame.payload = assembly.memory
                self._complete(subscription, assembly.frame)
        if subscription is not None:
            self.give_credit(subscription)

    def abort(self, frame: Frame) -> None:
        """STREAM_ABORT: a large message will not be completed; the broker has counted it as dropped."""
        assembly = self._assemblies.pop(frame.stream, None)
        if assembly is not None and assembly.subscription is self._inbox:
            self._reply_aborted(assembly.frame, decode_body(frame.body, Failure).reason)

    def _reply_aborted(self, opening: Frame, reason: str) -> None:
        try:
            number = decode_body(opening.body, MessageBody).request
        except ProtocolError:
            log.exception("reply.unreadable sender=%r", self._publication(opening).sender)
            return
        self._on_reply_aborted(number, reason)

    def gap(self, frame: Frame) -> None:
        """GAP: how many messages are missing ahead of the next one of a topic."""
        subscription = self.subscriptions.get(frame.target)
        if subscription is not None:
            subscription.lost(self._publication(frame).topic, frame.sequence)

    def dropped(self, frame: Frame) -> None:
        """DROPPED: how many messages the broker has dropped for a subscription."""
        subscription = self.subscriptions.get(frame.number)
        if subscription is not None:
            subscription.broker_dropped(frame.sequence)

    def give_credit(self, subscription: SubscriptionState) -> bool:
        """Sends the credit that is due; says whether some was."""
        frame = subscription.credit()
        if frame is None or self.session is None:
            return False
        self.session.put(frame)
        return True

    def give_inbox_credit(self) -> bool:
        """As `give_credit`, for replies."""
        return self.give_credit(self._inbox)
