"""From a subscription's queue to frames on its session.

A subscription is in its session's outbox once per lane, as a LaneSource, as long as it has something to send and credit
for it. A LaneSource sends one message after the other; a large one chunk by chunk as it arrives (cut-through).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from broker.buffers import Buffer
from broker.ids import SubscriptionNumber
from broker.limits import CHUNK_BYTES, FRAME_PAYLOAD_BYTES_MAX, STREAM_LAG_BYTES_MAX
from broker.protocol.batches import ENTRY_BYTES
from broker.protocol.bodies import Failure, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import HEADER_BYTES, Flag, Frame, Kind, encode, pack_header, payload_bytes
from broker.state.announcing import announce
from broker.state.losses import DropNotice, tell_gap
from broker.state.records import Ready
from broker.state.sharing import Loan
from broker.topics.messages import Assignment, Chunk, Message, Stream
from broker.topics.policy import Overflow
from broker.topics.queues import BLOCKED_BYTES_MAX, CONTROL, Queue, ignore_loss

if TYPE_CHECKING:
    from broker.security.rules import Rules
    from broker.state.records import SessionRecord
    from broker.state.topics import TopicRecord
    from broker.state.works import Worker

_HEADER_BYTES, _BLOCK = HEADER_BYTES, Overflow.BLOCK
_DELIVER, _CHUNK = int(Kind.DELIVER), int(Kind.CHUNK)
_BATCH, _CHUNKED, _SHARED, _LAST = int(Flag.BATCH), int(Flag.CHUNKED), int(Flag.SHARED), int(Flag.LAST)
_KEPT_FLAGS = int(Flag.BATCH | Flag.CHUNKED | Flag.REQUEST | Flag.TRACKED)

BEGUN_WITH_BYTES_MAX: Final = 2 * CHUNK_BYTES
"""A large message up to this length leaves with its first chunk, and not before. Far less than what a subscription lets
wait, so its own length never holds its publisher back."""
_BEGUN_WITH_BYTES_MAX = BEGUN_WITH_BYTES_MAX
_NO_SOURCES: Final[dict[int, LaneSource]] = {}
"""Of all subscriptions that have got nothing yet."""


class Subscription:
    """One subscription of one session.

    Attributes:
        conversation: the session itself, of which `session` is the record.
        blocking: topics whose publishers get no credit because this subscription is over its limit.
        sources: one for each lane in which there was something to send.
        delivered: messages that were handed to the session, ever.
        evicted: of these, the ones that the subscriber has dropped, as it says.
        worker: as a member of a queue group.
        rules: of the topics that its filter matches, which it may have; None is all.
    """

    __slots__ = (
        "_newest",
        "_ready",
        "blocking",
        "conversation",
        "delivered",
        "evicted",
        "filter",
        "flush",
        "lost",
        "notice",
        "number",
        "queue",
        "queue_group",
        "responder",
        "rules",
        "session",
        "sources",
        "unblock",
        "worker",
    )

    def __init__(
        self,
        session: SessionRecord,
        number: SubscriptionNumber,
        topic_filter: str,
        queue: Queue,
        *,
        queue_group: str,
        responder: bool,
        flush: Callable[[SessionRecord], None],
        unblock: Callable[[Subscription], None],
        lost: Callable[[Subscription, str, int], None],
    ) -> None:
        """Args:
        flush: called when the session has something to send.
        unblock: called when `blocking` is not empty and the subscription is under its limit again.
        lost: called with a topic and how many of its messages the subscription has lost.
        """
        self.session = session
        self.conversation = session.session
        self.number = number
        self.filter = topic_filter
        self.queue = queue
        self.queue_group = queue_group
        self.responder = responder
        self.flush = flush
        self._ready = flush if isinstance(flush, Ready) else None
        self.unblock = unblock
        self.lost = lost
        queue.on_loss = self._lose
        self.sources = _NO_SOURCES
        self._newest: LaneSource | None = None
        self.notice = DropNotice(number, queue)
        self.blocking: dict[TopicRecord, None] = {}
        self.delivered = 0
        self.evicted = 0
        self.worker: Worker | None = None
        self.rules: Rules | None = None

    def offer(self, message: Message) -> None:
        """Sends a message, or queues it by the subscription's policy, and wakes the session."""
        source = self._newest
        if source is None or source.lane != message.lane:
            source = self.sources.get(message.lane)
            if source is None:
                source = LaneSource(self, message.lane)
                self.sources = {**self.sources, message.lane: source}
            self._newest = source
        session, queue = self.conversation, self.queue
        if (
            not session.unsent_bytes
            and not session.outbox.waiting
            and source.message is None
            and message.stream is None
            and not queue.waiting_messages
            and queue.credit_messages > 0
            and queue.credit_bytes > 0
        ):
            # Nothing waits anywhere on its way: it goes into the next write itself.
            queue.credit_messages -= message.count
            session.unsent_bytes += source.send(message, session.unsent)
            if self._ready is not None:
                self._ready.add(self.session)
            else:
                self.flush(self.session)
            return
        if self.queue.offer(message):
            stream = message.stream
            arriving = stream is not None and not stream.complete
            if not source.attached:
                short = message.size_bytes <= _BEGUN_WITH_BYTES_MAX
                if stream is not None and arriving and short and not stream.received_bytes:
                    # Its beginning alone would wake the reader for nothing.
                    stream.waiters.append(source)
                else:
                    source.attach()
            # Nothing holds back the publisher of a control message, so even a `block` subscription may give one up.
            if stream is not None and arriving and (queue.overflow is not _BLOCK or message.lane == CONTROL):
                stream.watchers.append(self)
        if self.queue.dropped != self.notice.told:
            self.tell_dropped()

    def passed(self, message: Message) -> None:
        """A message has gone to the subscriber on a line: it counts as sent."""
        queue = self.queue
        queue.credit_messages -= message.count
        queue.credit_bytes -= _charge(message)
        self.delivered += message.count

    def take_back(self, message: Message) -> None:
        """A message that had gone on a line was not read there, and is about to be offered."""
        self.delivered -= message.count
        self.queue.grant(message.count, _charge(message))

    def _lose(self, topic: str, count: int) -> None:
        self.lost(self, topic, count)

    @property
    def dropped(self) -> int:
        """Messages that were dropped here or by the subscriber, ever."""
        return self.queue.dropped + self.evicted

    def tell_dropped(self) -> None:
        """Tells the subscriber how many messages it has lost, in all."""
        if not self.notice.attached:
            self.notice.attached = True
            self.conversation.attach(self.notice, CONTROL)
            self.flush(self.session)

    def grant(self, messages: int, size_bytes: int) -> None:
        """The subscriber has room again."""
        self._restore(messages, size_bytes)
        self.check_blocking()
        if self.worker is not None:
            self.worker.look_for_jobs()

    def refund(self, messages: int, size_bytes: int) -> None:
        """What was taken of the credit comes to nothing: other lanes may have stopped for want of it.

        It is called while the session's frames are being pulled, when nothing may be offered to the subscription.
        """
        self._restore(messages, size_bytes)
        if self.worker is not None:
            self.worker.look_for_jobs_later()

    def _restore(self, messages: int, size_bytes: int) -> None:
        self.queue.grant(messages, size_bytes)
        for source in self.sources.values():
            if not source.attached and (source.message is not None or self.queue.has_waiting(source.lane)):
                source.attach()

    def check_blocking(self) -> None:
        """Lets publishers go on that were held back and need not be any more: all, or those of messages under way."""
        if self.blocking and (not self.queue.over_limit or any(source.keeps_up for source in self.sources.values())):
            self.unblock(self)

    def holds_back(self, message: Message | None) -> bool:
        """Whether a publisher has to wait for this subscription.

        Args:
            message: the large message that the publisher is sending. While this subscription is sending it on, only its
                lag counts: what waits behind it can do nothing before it has passed. While it is sending another one
                on, what waits can do nothing either; a message that is not among it goes on, or two publishers could
                wait for each other.
        """
        if self.queue.overflow is not _BLOCK:
            return False
        if message is not None:
            source = self.sources.get(message.lane)
            if source is not None and source.message is message:
                return source.lag_bytes > BLOCKED_BYTES_MAX
            if any(each.keeps_up for each in self.sources.values()) and not self.queue.holds(message):
                return False
        return self.queue.over_limit

    def watch(self, message: Message) -> bool:
        """Gives up a large message that this subscription is too slow for; says whether it still wants it."""
        stream = message.stream
        source = self.sources.get(message.lane)
        if stream is None:
            return False
        if stream.complete:
            self.queue.drop_stale(message)
            if self.queue.dropped != self.notice.told:
                self.tell_dropped()
        # Not the subscription's own bound alone, or a reader with a small one would get no large message at all.
        allowed_bytes = max(self.queue.bytes_max, STREAM_LAG_BYTES_MAX)
        if source is not None and source.message is message:
            if source.lag_bytes <= allowed_bytes:
                return True
            source.give_up()
        elif stream.received_bytes <= allowed_bytes:
            return True
        elif self.queue.remove(message):
            self.tell_dropped()
        return False

    def end(self) -> None:
        """The subscriber wants no more: large messages that are under way are given up, which harms nobody."""
        self.queue.on_loss = ignore_loss
        for source in self.sources.values():
            if source.message is not None:
                source.give_up()

    @property
    def is_under_way(self) -> bool:
        """Whether a large message is being sent, or its end."""
        return any(source.message is not None for source in self.sources.values())

    def forget(self) -> None:
        """The session is gone: lets go of what was under way, which would otherwise be held to the message's end."""
        for source in self.sources.values():
            source.let_go()

    def __repr__(self) -> str:
        return f"<Subscription {self.number} {self.filter!r} of {self.session.name!r} {self.queue!r}>"


class LaneSource:
    """The frames of one lane of a subscription, as the outbox asks for them.

    Attributes:
        message: the large message that is being sent, if one is.
    """

    __slots__ = (
        "_chunk", "_chunk_sent_bytes", "_given_up", "_publication", "_renumbered", "_sender", "_sent_bytes",
        "_stream_number", "_topic", "attached", "lane", "message", "subscription",
    )  # fmt: skip

    def __init__(self, subscription: Subscription, lane: int) -> None:
        self.subscription = subscription
        self.lane = lane
        self.attached = False
        self.message: Message | None = None
        self._chunk: Chunk | None = None
        self._chunk_sent_bytes = 0
        self._sent_bytes = 0
        self._stream_number = 0
        self._given_up = False
        # Of the last message: which number of the session stands for its topic and publisher.
        self._topic: str | None = None
        self._sender: str | None = None
        self._publication = 0
        self._renumbered = 0

    @property
    def lag_bytes(self) -> int:
        """Of the message that is being sent: what has arrived and was not sent."""
        if self.message is None or self.message.stream is None:
            return 0
        return self.message.stream.received_bytes - self._sent_bytes

    @property
    def keeps_up(self) -> bool:
        """Whether a large message is being sent and its publisher need not wait."""
        return self.message is not None and self.lag_bytes <= BLOCKED_BYTES_MAX

    def attach(self) -> None:
        """Puts the source into its session's outbox."""
        self.attached = True
        self.subscription.conversation.attach(self, self.lane)
        self.subscription.flush(self.subscription.session)

    def answered(self) -> None:
        """The session has said whether it can read the memory in which the next message lies."""
        if not self.attached:
            self.attach()

    def resume(self) -> None:
        """The stream has more, or what waits here has begun to come."""
        if not self.attached and (self.message is not None or self.subscription.queue.has_waiting(self.lane)):
            self.attach()

    def give_up(self) -> None:
        """Stops in the middle of a message because the subscriber is too slow for it, or does not want it any more."""
        if self._given_up:
            return
        self._given_up = True
        self._chunk = None
        if self.message is not None:
            self.subscription.queue.lose(self.message, 1)
        self.resume()
        self.subscription.tell_dropped()

    def let_go(self) -> None:
        """Forgets the message that is being sent."""
        self.message = self._chunk = None

    def pull(self, buffers: list[Buffer]) -> int:
        """Appends one frame; see Source."""
        size = self._next_message(buffers) if self.message is None else self._next_chunk(self.message, buffers)
        self.attached = size > 0
        if self.subscription.blocking:
            self.subscription.check_blocking()
        return size

    def _next_message(self, buffers: list[Buffer]) -> int:
        subscription = self.subscription
        queue = subscription.queue
        if subscription.session.shares is not None and self._waits_for_arena():
            return 0
        message = queue.take(self.lane)
        while message is not None and message.stream is not None and message.stream.aborted is not None:
            # Of a reply the requester hears otherwise.
            if subscription.number:
                queue.lose(message, message.count)
            message.release()
            subscription.refund(message.count, 0)
            message = queue.take(self.lane)
        if queue.dropped != subscription.notice.told:
            subscription.tell_dropped()
        if message is None:
            return 0
        size = self.send(message, buffers)
        message.release()
        return size

    def _waits_for_arena(self) -> bool:
        """Whether the next message lies in memory of which the session has not said if it can read it."""
        message, shares = self.subscription.queue.first(self.lane), self.subscription.session.shares
        if message is None or message.stream is None or shares is None:
            return False
        loan = message.stream.loan
        return isinstance(loan, Loan) and not shares.knows(loan.arena, self)

    def send(self, message: Message, buffers: list[Buffer]) -> int:
        """Appends the frame of a message, or the first one of a large message."""
        subscription = self.subscription
        queue, session = subscription.queue, subscription.session
        size = 0
        # Most messages are of the same topic and publisher as the one before.
        if message.topic is self._topic and message.sender is self._sender and session.renumbered == self._renumbered:
            publication = self._publication
        else:
            known = session.announced.get((message.topic, message.sender))
            if known is None:
                known, size = announce(session, message, buffers)
            publication = self._publication = known
            self._topic, self._sender, self._renumbered = message.topic, message.sender, session.renumbered
        if queue.gaps:
            size += tell_gap(queue, subscription.number, message, publication, buffers)
        flags, count, stream_number = message.flags & _KEPT_FLAGS, message.count, 0
        body, payload = message.body, message.payload
        body_bytes, payload_size = len(body), payload_bytes(payload)
        queue.credit_bytes -= body_bytes + payload_size
        if message.stream is not None and (place := _lent(session, message.stream)):
            flags ^= _CHUNKED | _SHARED
            queue.credit_bytes -= message.size_bytes - body_bytes
            payload, payload_size = place, len(place)
        elif message.stream is not None:
            self.message, self._chunk, self._sent_bytes, self._given_up = message, message.first, 0, False
            self._chunk_sent_bytes = 0
            stream_number = self._stream_number = subscription.conversation.next_stream()
        subscription.delivered += count
        if flags:
            if flags & _BATCH:
                # The reader credits bodies and payloads, and knows nothing of a batch any more.
                queue.credit_bytes += ENTRY_BYTES * count
            elif isinstance(message, Assignment):
                assignment = message
                count, stream_number = assignment.deliveries, assignment.delivery
                self._stream_number = stream_number
        header = pack_header(
            _DELIVER, flags, message.lane, message.content, publication, subscription.number, stream_number, count,
            body_bytes, payload_size, message.size_bytes - body_bytes, message.sequence, message.time_ns,
        )  # fmt: skip
        buffers.append(header + body if body_bytes else header)
        if payload_size:
            buffers.append(payload)
        if message.trace is not None:
            message.trace.delivered(subscription.session.name, subscription.queue_group)
        return size + _HEADER_BYTES + body_bytes + payload_size

    def _next_chunk(self, message: Message, buffers: list[Buffer]) -> int:
        stream, chunk = message.stream, self._chunk
        if stream is None:
            return 0
        if self._given_up or stream.aborted is not None:
            return self._abort(message, stream.aborted or "", buffers)
        if chunk is None:
            return 0
        following = chunk.following
        if following is None:
            if self not in stream.waiters:
                stream.waiters.append(self)
            return 0
        if self.lane != CONTROL and self.subscription.queue.credit_bytes <= 0:
            return 0
        payload, start = following.data(), self._chunk_sent_bytes
        if len(payload) - start > FRAME_PAYLOAD_BYTES_MAX:
            # The whole of a message that lies in shared memory.
            payload = memoryview(payload)[start : start + CHUNK_BYTES]
            self._chunk_sent_bytes += CHUNK_BYTES
        else:
            payload = memoryview(payload)[start:] if start else payload
            self._chunk, self._chunk_sent_bytes = following, 0
        size = len(payload)
        last = stream.complete and self._chunk is following and following.following is None
        flags = _LAST if last else 0
        buffers.append(
            pack_header(_CHUNK, flags, self.lane, 0, 0, 0, self._stream_number, 0, 0, size, 0, self._sent_bytes, 0)
        )
        if size:
            buffers.append(payload)
        self._sent_bytes += size
        self.subscription.queue.credit_bytes -= size
        if last:
            self.message = self._chunk = None
        return _HEADER_BYTES + size

    def _abort(self, message: Message, reason: str, buffers: list[Buffer]) -> int:
        """Tells the subscriber that the rest of a message will not come. It counts as one that was taken."""
        code = Code.PUBLISHER_GONE
        if self._given_up:
            code, reason = Code.DROPPED, "the subscriber is too slow for it"
        elif self.subscription.number:
            self.subscription.queue.lose(message, 1)
            self.subscription.tell_dropped()
        self.let_go()
        self.subscription.refund(message.count, len(message.body))
        body = encode_body(Failure(code, reason))
        return encode(Frame(Kind.STREAM_ABORT, lane=self.lane, stream=self._stream_number, body=body), buffers)


def _charge(message: Message) -> int:
    """What a small message or a batch takes of its reader's credit, in bytes."""
    size_bytes = message.size_bytes
    return size_bytes - ENTRY_BYTES * message.count if message.flags & _BATCH else size_bytes


def _lent(session: SessionRecord, stream: Stream) -> bytes | None:
    """Where a message lies in memory that the session can read; None when it has to get the bytes."""
    if session.shares is None or not isinstance(stream.loan, Loan):
        return None
    return session.shares.lend(stream.loan)
