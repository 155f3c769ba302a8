"""What a client receives: subscriptions, their local queues and credit, and large messages as they arrive. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from broker.devices import host_memory
from broker.errors import ProtocolError
from broker.limits import MIB
from broker.protocol.batches import ENTRY_BYTES
from broker.protocol.bodies import Failure, MessageBody, Subscribe, Topic, decode_body
from broker.protocol.codes import error_for
from broker.protocol.frames import Flag, Frame, Kind
from broker.protocol.pool import BufferPool
from broker.protocol.session import Session
from clients.reading.latencies import Latencies
from clients.reading.leases import Leases
from clients.reading.messages import Delivery, Message, Publication, Reply, Settle, unpack_batch
from clients.reading.subscription_state import SubscriptionState

log = logging.getLogger(__name__)

POOL_BYTES_MAX: Final = 512 * MIB
"""Message buffers that a client keeps for reuse once the application has let go of them."""
INBOX: Final = 0
# Plain numbers: an operation with a flag, and the look-up of one in its class, take longer than the rest of a chunk.
_BATCH, _CHUNKED, _TRACKED, _SHARED, _LAST = (
    int(flag) for flag in (Flag.BATCH, Flag.CHUNKED, Flag.TRACKED, Flag.SHARED, Flag.LAST)
)
_CHUNK = int(Kind.CHUNK)


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
        self.leases = Leases()
        self.latencies = Latencies()
        self.assembled = 0
        """Large messages that have come whole, or whose end has come."""
        self._reply = reply
        self._on_reply = on_reply
        self._settle = settle
        self._on_reply_aborted = on_reply_aborted
        self._publications: dict[int, Publication] = {}
        self._assemblies: dict[int, _Assembly] = {}
        self._inbox = SubscriptionState(INBOX, Subscribe("$inbox"))
        self._life = 0
        # Those of the last message, by their numbers: most following ones have the same.
        self._last_target = INBOX
        self._last_subscription = self._inbox
        self._last_number = 0
        self._last_publication: Publication | None = None

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
        self._last_publication = None
        self._assemblies.clear()
        for subscription in (self._inbox, *self.subscriptions.values()):
            subscription.reconnected()
        self._inbox.began_ns = 0

    def disconnected(self) -> None:
        """The session is over: what had not arrived completely never will."""
        self.session = None
        self._assemblies.clear()
        self.leases.disconnected()
        for subscription in self.subscriptions.values():
            subscription.forget_jobs()

    def allocate(self, frame: Frame, size_bytes: int) -> memoryview:
        """Memory for a payload that is about to be received: its place in the message that it is a part of."""
        if frame.kind == _CHUNK:
            assembly = self._assemblies.get(frame.stream)
            if assembly is not None and assembly.memory is not None:
                start = assembly.arrived_bytes
                if frame.sequence == start and size_bytes <= len(assembly.memory) - start:
                    return assembly.memory[start : start + size_bytes]
        return self.pool.acquire(size_bytes).data

    def topic(self, frame: Frame) -> None:
        """TOPIC: the broker gives a number to a topic and its publisher."""
        body = decode_body(frame.body, Topic)
        self._publications[frame.number] = Publication(body.name, body.sender)
        self._last_publication = None

    def began(self, frame: Frame) -> None:
        """DONE: a subscription has begun."""
        subscription = self.subscriptions.get(frame.number)
        if subscription is not None:
            subscription.seen.began(frame.sequence)
            # What its topics retain, which follows, is old and not late.
            subscription.began_ns = self.latencies.wall_ns

    def ended(self, frame: Frame) -> None:
        """UNSUBSCRIBE: a subscription may not be any more, and has ended."""
        subscription = self.subscriptions.pop(frame.number, None)
        if subscription is not None:
            failure = decode_body(frame.body, Failure)
            log.warning("subscription.ended filter=%r reason=%s", subscription.wishes.filter, failure.reason)
            subscription.close(error_for(failure, subscription.wishes.filter))

    def subscription(self, number: int) -> SubscriptionState | None:
        """The one of a number, or the inbox; None when it has ended."""
        return self.subscriptions.get(number) if number else self._inbox

    def deliver(self, frame: Frame) -> None:
        """DELIVER: a message, a batch, or the start of a large message."""
        subscription: SubscriptionState | None = self._last_subscription
        if frame.target != self._last_target or self._last_subscription.closed is not None:
            subscription = self.subscriptions.get(frame.target) if frame.target else self._inbox
            if subscription is not None:
                self._last_target, self._last_subscription = frame.target, subscription
        flags = frame.flags
        if flags & _CHUNKED:
            self._open(subscription, frame)
            return
        if flags & _SHARED:
            frame.payload = self.leases.payload(frame)
        # Messages can be on their way when a subscription ends.
        if subscription is None:
            return
        if flags & _BATCH:
            self._open_batch(subscription, frame, self.publication(frame))
        else:
            self._complete(subscription, frame)
        if subscription.credit_due and subscription.evicts:
            self.give_credit(subscription)

    def passed(self, subscription: SubscriptionState, frame: Frame, publication: Publication) -> None:
        """A message or a batch has come on a line, with its sequence."""
        if subscription.closed is not None:
            return
        subscription.held_bytes += len(frame.body) + len(frame.payload)
        if frame.flags & _BATCH:
            self._open_batch(subscription, frame, publication)
        else:
            message = Message.__new__(Message)
            message.fill(
                publication, frame.sequence, frame.time_ns, frame.lane, frame.content, frame.body, frame.payload,
                self._reply,
            )  # fmt: skip
            self.latencies.arrived(frame.lane, frame.time_ns, subscription.began_ns)
            self._hand_out(subscription, message)
        if subscription.credit_due and subscription.evicts:
            self.give_credit(subscription)

    def _open(self, subscription: SubscriptionState | None, frame: Frame) -> None:
        if subscription is None:
            # It has ended; what was under way comes all the same, and goes nowhere.
            self._assemblies[frame.stream] = _Assembly(None, frame, None)
            return
        try:
            pinned = subscription.device is not None
            memory = host_memory(frame.total_bytes).data if pinned else self.pool.acquire(frame.total_bytes).data
        except (MemoryError, ValueError, OverflowError):
            # What a publisher announces, this machine need not have. The chunks come all the same, and go nowhere.
            log.error("message.too_large stream=%d bytes=%d", frame.stream, frame.total_bytes)
            subscription.skip(self.publication(frame).topic, frame, 1, len(frame.body))
            self._assemblies[frame.stream] = _Assembly(subscription, frame, None)
            return
        self._assemblies[frame.stream] = _Assembly(subscription, frame, memory)

    def _open_batch(self, subscription: SubscriptionState, frame: Frame, publication: Publication) -> None:
        try:
            messages = unpack_batch(
                bytes(frame.payload), frame.count, publication, frame.sequence, frame.lane, self._reply
            )
        except ProtocolError:
            # Its publisher is at fault, and this session need not end for that.
            log.exception("batch.unreadable topic=%r sender=%r", publication.topic, publication.sender)
            size_bytes = max(0, len(frame.payload) - ENTRY_BYTES * frame.count)
            subscription.skip(publication.topic, frame, frame.count, size_bytes)
            self.give_credit(subscription)
            return
        self.latencies.batch_arrived(messages, subscription.began_ns)
        if subscription is self._inbox:
            for message in messages:
                self._hand_out(subscription, message)
        else:
            subscription.extend(messages)

    def publication(self, frame: Frame) -> Publication:
        """Which topic, and whose, a number in a frame means.

        Raises:
            ProtocolError: the broker has not said.
        """
        publication = self._last_publication
        if publication is None or frame.number != self._last_number:
            publication = self._publications.get(frame.number)
            if publication is None:
                raise ProtocolError(f"DELIVER of topic number {frame.number}, which no TOPIC has named")
            self._last_number, self._last_publication = frame.number, publication
        return publication

    def _complete(self, subscription: SubscriptionState, frame: Frame) -> None:
        publication = self.publication(frame)
        message = Message.__new__(Message)
        message.fill(
            publication, frame.sequence, frame.time_ns, frame.lane, frame.content, frame.body, frame.payload,
            self._reply,
        )  # fmt: skip
        if not frame.flags & _TRACKED or frame.count <= 1:
            self.latencies.arrived(frame.lane, frame.time_ns, subscription.began_ns)
        if frame.flags & _TRACKED:
            message._delivery = Delivery(subscription.number, frame.stream, frame.count, self.session, self._settle)
        self._hand_out(subscription, message)

    def _hand_out(self, subscription: SubscriptionState, message: Message) -> None:
        if subscription is self._inbox:
            subscription.taken(message)
            self._on_reply(message)
        else:
            subscription.append(message)

    def chunk(self, frame: Frame) -> None:
        """CHUNK: more of a large message."""
        if frame.stream not in self._assemblies:
            raise ProtocolError(f"CHUNK of stream {frame.stream}, which no DELIVER has opened")
        assembly = self._assemblies[frame.stream]
        size = len(frame.payload)
        last = frame.flags & _LAST != 0
        if last:
            self.assembled += 1
        if assembly.memory is None:
            if last:
                del self._assemblies[frame.stream]
            if assembly.subscription is not None:
                assembly.subscription.chunk_arrived(size)
                self.give_credit(assembly.subscription)
            return
        start, end = assembly.arrived_bytes, assembly.arrived_bytes + size
        if frame.sequence != start or end > len(assembly.memory):
            raise ProtocolError(f"CHUNK of stream {frame.stream} at {frame.sequence}, expected {start}")
        payload = frame.payload
        if size and not (isinstance(payload, memoryview) and payload.obj is assembly.memory.obj):
            assembly.memory[start:end] = frame.payload
        assembly.arrived_bytes = end
        subscription = assembly.subscription
        if subscription is not None:
            subscription.chunk_arrived(size)
        if last:
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
            log.exception("reply.unreadable sender=%r", self.publication(opening).sender)
            return
        self._on_reply_aborted(number, reason)

    def gap(self, frame: Frame) -> None:
        """GAP: how many messages are missing ahead of the next one of a topic."""
        subscription = self.subscriptions.get(frame.target)
        if subscription is not None:
            subscription.lost(self.publication(frame).topic, frame.sequence)

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
        self.leases.give_back(self.session)
        self.session.put(frame)
        return True

    def give_inbox_credit(self) -> bool:
        """As `give_credit`, for replies."""
        return self.give_credit(self._inbox)
