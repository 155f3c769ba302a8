"""What a client publishes: topic numbers, credit, batches and large messages. Pure: time is an argument.

A payload below 16 KiB goes out as one frame, or, when messages of a topic follow each other closely, as part of a
batch:

    gap to the topic's previous message > 50 us   -> leaves at once
    the 8th in close succession                   -> opens a batch
    64 KiB, 200 us, or something that must not overtake -> the batch leaves

Where the broker has offered a line for a topic, single messages and batches are written there, for the readers to
take; whatever goes by the socket instead ends that.

A topic's policy may set other bounds of its batches, the lane of messages that name none, and the longest message.

A longer payload is a StreamSource, from which the outbox pulls chunks as link and credit allow. It refers to the
caller's memory, so the caller waits until the last chunk has been handed to the link.
"""

from __future__ import annotations

from typing import Final

from broker.buffers import Payload
from broker.errors import ConnectionClosed, LimitExceeded, ProtocolError
from broker.limits import (
    BATCH_GAP_NS,
    BATCH_MESSAGES_MAX,
    BATCH_WINDOW_NS,
    BATCHED_BYTES_MAX,
    CONTROL_QUEUE_BYTES_MAX,
    TOPICS_PER_SESSION_MAX,
)
from broker.protocol.batches import ENTRY_BODY_BYTES_MAX, Batch
from broker.protocol.bodies import Failure, PublishPolicy, Topic, decode_body, encode_body
from broker.protocol.codes import error_for
from broker.protocol.frames import HEADER_BYTES, Flag, Frame, Kind, Lane, pack_header
from broker.protocol.places import renamed
from broker.protocol.session import Session
from broker.topics.names import check_topic
from clients.connection.signals import Signal
from clients.publishing.line_out import LinesOut, decline
from clients.publishing.outgoing_topic import OutgoingTopic
from clients.publishing.streaming import StreamSource, StreamsOut

_HEADER_BYTES = HEADER_BYTES
_PUBLISH = int(Kind.PUBLISH)
_CONTROL, _DEFAULT = int(Lane.CONTROL), int(Lane.DEFAULT)
_BATCH, _ACKNOWLEDGE, _SHARED = int(Flag.BATCH), int(Flag.ACKNOWLEDGE), int(Flag.SHARED)
_BATCHED_BYTES_MAX, _ENTRY_BODY_BYTES_MAX, _BATCH_GAP_NS = BATCHED_BYTES_MAX, ENTRY_BODY_BYTES_MAX, BATCH_GAP_NS
_LOW_PARTS, _LOW_PARTS_SHARED = 2, 4
"""The broker is told to look at a line when less of a topic's credit than this part is left: a half, or a fourth where
messages lie in shared memory, as the broker gives credit by itself when their readers do."""
SENT: Final = Signal(ready=True)
"""What publishing returns when a frame is queued and the link is to be given what waits."""
_SENT = SENT
BATCHED: Final = Signal(ready=True)
"""What it returns when there is nothing else to do."""
BATCH_OPENED: Final = Signal(ready=True)
"""What it returns when somebody has to see to it that a batch leaves in time."""


class Outgoing:
    """All that one client publishes.

    Attributes:
        session: where it goes; None while there is no connection.
        open_batches: topics with a batch that has not left.
        filling: of these, by name, the batches to which a message may be added without looking at anything else.
        streams: large messages that are under way.
        last_sent: the topic of the last message that went alone.
        shortest_window_ns: no topic's batches leave sooner than this after they were opened.
        unconfirmed: messages that have left, or are about to, since the broker last confirmed that it has all.
    """

    def __init__(self) -> None:
        self.session: Session | None = None
        self.topics: dict[str, OutgoingTopic] = {}
        self.open_batches: list[OutgoingTopic] = []
        self.filling: dict[str, Batch] = {}
        self.last_sent: OutgoingTopic | None = None
        self.shortest_window_ns = BATCH_WINDOW_NS
        self.unconfirmed = 0
        self.lines = LinesOut()
        self.streams = StreamsOut()
        self._by_number: list[OutgoingTopic] = []
        self.link_room = Signal(ready=True)
        self._window_messages = 0
        self._window_bytes = 0

    def connected(self, session: Session, window_messages: int, window_bytes: int) -> None:
        """A session is open: every topic has its whole window."""
        self.session = session
        self._window_messages, self._window_bytes = window_messages, window_bytes
        for topic in self._by_number:
            # This broker says it again, if it holds there.
            topic.follow(PublishPolicy())
            self._announce(topic)

    def disconnected(self, error: ConnectionClosed) -> int:
        """The session is over; returns how many messages may be lost."""
        self.session = None
        for topic in self.open_batches:
            if topic.batch is not None:
                self.unconfirmed += topic.batch.count
            topic.batch = None
        self.open_batches.clear()
        self.filling.clear()
        for topic in self._by_number:
            topic.line = None
        self.lines.lends = False
        self.streams.disconnected(error)
        # What was queued is gone with the session; and there may be no other one to empty it.
        self.link_room.set()
        lost, self.unconfirmed = self.unconfirmed, 0
        return lost

    def topic(self, name: str) -> OutgoingTopic:
        """The topic of a name, which is announced to the broker when it is first used.

        Raises:
            InvalidValue: the name is not a topic, or is the broker's own.
        """
        topic = self.topics.get(name)
        if topic is None:
            check_topic(name, reserved=type(name) is str and name.startswith("$inbox/"))
            topic = self._new_topic(name)
            if self.session is not None:
                self._announce(topic)
        return topic

    def _new_topic(self, name: str) -> OutgoingTopic:
        number = len(self._by_number) + 1
        if number > TOPICS_PER_SESSION_MAX:
            # A responder answers ever new sessions; whose inbox was used longest ago is the one to forget.
            oldest = next((known for known in self.topics if known.startswith("$inbox/")), None)
            if oldest is None or self.topics[oldest].stream is not None:
                raise LimitExceeded(
                    "topics_per_session_max", number, TOPICS_PER_SESSION_MAX, "put what varies into the value"
                )
            forgotten = self.topics.pop(oldest)
            # Its number is another one's from here on, whoever still has it.
            forgotten.line, number = None, forgotten.number
            self.last_sent = None
            topic = self._by_number[number - 1] = OutgoingTopic(name, number)
        else:
            topic = OutgoingTopic(name, number)
            self._by_number.append(topic)
        self.topics[name] = topic
        return topic

    def _announce(self, topic: OutgoingTopic) -> None:
        assert self.session is not None
        body = encode_body(Topic(topic.name))
        self.session.put(Frame(Kind.TOPIC, lane=Lane.CONTROL, number=topic.number, body=body))
        topic.credit_messages, topic.credit_bytes = self._window_messages, self._window_bytes
        topic.credit.set()

    def granted(self, frame: Frame) -> None:
        """CREDIT for a topic."""
        topic = self._named(frame)
        topic.credit_messages += frame.count
        topic.credit_bytes += frame.total_bytes
        stream = topic.stream
        if stream is not None and not stream.attached and not stream.ready and self.session is not None:
            stream.attached = True
            self.session.attach(stream, stream.lane)
        topic.credit.set()

    def _named(self, frame: Frame) -> OutgoingTopic:
        if not 0 < frame.number <= len(self._by_number):
            name = Kind(frame.kind).name
            raise ProtocolError(f"{name} for topic number {frame.number}, which this client has not named")
        return self._by_number[frame.number - 1]

    def policy(self, frame: Frame) -> None:
        """POLICY: what to know about the messages of a topic."""
        topic = self._named(frame)
        topic.follow(decode_body(frame.body, PublishPolicy))
        self.filling.pop(topic.name, None)
        if topic.batch is not None:
            topic.batch.size_max = topic.batch_bytes
        self.shortest_window_ns = min(self.shortest_window_ns, max(topic.batch_window_ns, BATCH_GAP_NS))

    def refused(self, frame: Frame, failure: Failure) -> None:
        """ERROR that answers nobody: a message on a topic was refused."""
        topic = self._named(frame)
        topic.refuse(error_for(failure, topic.name))
        self.filling.pop(topic.name, None)

    def take_refusal(self) -> None:
        """Raises, once, what the broker has said about an earlier message on any topic."""
        for topic in self._by_number:
            if topic.refused is not None:
                topic.take_refusal()

    def publish_plain(
        self, name: str, lane: int, content: int, payload: bytes, now_ns: int, wall_ns: int, urgent: bool
    ) -> Signal | None:
        """Publishes a small message without a body, if nothing stands in its way: most messages, by the shortest way.

        Returns:
            SENT when it is queued, BATCHED or BATCH_OPENED; None when it has to go the long way.
        """
        session, topic = self.session, self.last_sent
        if topic is None or topic.name is not name:
            topic = self.topics.get(name)
        if session is None or topic is None or topic.special:
            return None
        if lane != _CONTROL:
            if topic.credit_messages <= 0 or topic.credit_bytes <= 0:
                return None
            if not urgent and lane == _DEFAULT:
                batched = self.offer_to_batch(topic, content, b"", payload, wall_ns, now_ns)
                if batched is not None:
                    return batched
            if topic.batch is not None:
                self.send_batch(topic)
            topic.credit_messages -= 1
            topic.credit_bytes -= len(payload)
            if topic.line is not None and lane == _DEFAULT:
                size = len(payload)
                header = pack_header(_PUBLISH, 0, lane, content, topic.number, 0, 0, 0, 0, size, 0, 0, wall_ns)
                if self._on_line(topic, header, b"", payload, False):
                    self.unconfirmed += 1
                    self.last_sent = topic
                    return _SENT
        elif session.outbox.control_bytes > CONTROL_QUEUE_BYTES_MAX:
            return None
        topic.line = None
        self.unconfirmed += 1
        self.last_sent = topic
        if session.unsent_bytes or session.outbox.waiting:
            session.put(Frame(Kind.PUBLISH, 0, lane, content, number=topic.number, time_ns=wall_ns, payload=payload))
            return _SENT
        size = len(payload)
        session.unsent.append(pack_header(_PUBLISH, 0, lane, content, topic.number, 0, 0, 0, 0, size, 0, 0, wall_ns))
        if size:
            session.unsent.append(payload)
        session.unsent_bytes = _HEADER_BYTES + size
        return _SENT

    def _on_line(
        self, topic: OutgoingTopic, header: bytes, body: bytes, payload: bytes, acknowledge: bool, shared_bytes: int = 0
    ) -> bool:
        """Writes a message, or the place of so many bytes, on a topic's line, which is over if it says no."""
        line = topic.line
        if line is None or not line.write(header, body, payload, shared_bytes):
            topic.line = None
            return False
        parts = _LOW_PARTS_SHARED if shared_bytes else _LOW_PARTS
        low = topic.credit_messages < self._window_messages // parts or topic.credit_bytes < self._window_bytes // parts
        low = low or (shared_bytes > 0 and line.gives_back(shared_bytes))
        if line.tells(acknowledge, low) and self.session is not None:
            self.session.put(Frame(Kind.DRAIN, lane=Lane.CONTROL, number=topic.number, stream=line.number))
        return True

    def is_low(self, topic: OutgoingTopic | None) -> bool:
        """Whether the next message in shared memory on a topic's line asks for credit, which may have come already."""
        if topic is None or topic.line is None:
            return False
        messages, size_bytes = self._window_messages // _LOW_PARTS_SHARED, self._window_bytes // _LOW_PARTS_SHARED
        return topic.credit_messages < messages or topic.credit_bytes < size_bytes

    def offered(self, frame: Frame) -> None:
        """LINE: the broker offers a line for a topic, or has ended one."""
        session = self.session
        if frame.flags & Flag.LAST:
            for topic in self._by_number:
                if topic.line is not None and topic.line.number == frame.stream:
                    topic.line = None
            return
        topic = self._named(frame)
        if session is None:
            return
        if topic.stream is not None or topic.special:
            decline(session, frame.stream)
            return
        line = self.lines.accept(session, frame, topic.name)
        if line is not None:
            # Behind all that was published so far. A batch that is open leaves by the line, when it is due.
            session.put(Frame(Kind.DRAIN, number=topic.number, stream=line.number, count=1))
            topic.line = line

    def publish_small(self, topic: OutgoingTopic, frame: Frame, charged_bytes: int | None = None) -> Signal:
        """Sends one message in one frame at once. The caller has seen to credit.

        Args:
            topic: its topic.
            frame: the message.
            charged_bytes: what it takes of the credit besides its body; None is its payload.
        """
        session = self.session
        assert session is not None
        self.unconfirmed += 1
        if frame.lane != _CONTROL:
            if topic.batch is not None:
                self.send_batch(topic)
            topic.credit_messages -= 1
            topic.credit_bytes -= len(frame.body) + (len(frame.payload) if charged_bytes is None else charged_bytes)
        topic.line = None
        self.last_sent = topic
        session.put(frame)
        return SENT

    def publish_shared(self, topic: OutgoingTopic, frame: Frame, charged_bytes: int, name: int) -> Signal:
        """As `publish_small`, of a message in shared memory, in an arena that others know by this number."""
        line = topic.line
        if line is None or not line.carries(frame, name):
            return self.publish_small(topic, frame, charged_bytes)
        if topic.batch is not None:
            self.send_batch(topic)
        place = renamed(bytes(frame.payload), name)
        if self.publish_place(
            topic, frame.flags, frame.content, frame.target, frame.body, place, frame.total_bytes, charged_bytes,
            frame.time_ns,
        ):  # fmt: skip
            return SENT
        return self.publish_small(topic, frame, charged_bytes)

    def can_place(self, topic: OutgoingTopic, size_bytes: int) -> bool:
        """Whether a message of so many bytes in shared memory can be written to a topic's line now, with nothing to be
        seen to before, if its readers have the arena."""
        line = topic.line
        return (
            line is not None
            and not topic.special
            and topic.batch is None
            and topic.credit_messages > 0
            and topic.credit_bytes > 0
            and size_bytes <= line.shared_bytes_max
        )

    def publish_place(
        self, topic: OutgoingTopic, flags: int, content: int, reference: int, body: bytes, place: bytes,
        size_bytes: int, charged_bytes: int, time_ns: int,
    ) -> bool:  # fmt: skip
        """Writes where a message lies to its topic's line; says whether it has, else the line is over."""
        taken_bytes = len(body) + charged_bytes
        topic.credit_messages -= 1
        topic.credit_bytes -= taken_bytes
        header = pack_header(
            _PUBLISH, flags | _SHARED, _DEFAULT, content, topic.number, reference, 0, 0, len(body), len(place),
            size_bytes, 0, time_ns,
        )  # fmt: skip
        if self._on_line(topic, header, body, place, flags & _ACKNOWLEDGE != 0, size_bytes):
            self.unconfirmed += 1
            self.last_sent = topic
            return True
        topic.credit_messages += 1
        topic.credit_bytes += taken_bytes
        return False

    def publish_one(
        self, topic: OutgoingTopic, flags: int, lane: int, content: int, reference: int, priority: int, request: int,
        wall_ns: int, body: bytes, payload: bytes,
    ) -> Signal:  # fmt: skip
        """As `publish_small`, without a frame where none has to wait."""
        session = self.session
        assert session is not None
        size, body_bytes = len(payload), len(body)
        line = topic.line
        if line is not None and lane == _DEFAULT and not priority and (not flags & ~_ACKNOWLEDGE or flags == line.asks):
            if topic.batch is not None:
                self.send_batch(topic)
            topic.credit_messages -= 1
            topic.credit_bytes -= body_bytes + size
            header = pack_header(
                _PUBLISH, flags, lane, content, topic.number, reference, 0, 0, body_bytes, size, 0,
                request if line.asks else 0, wall_ns,
            )  # fmt: skip
            if self._on_line(topic, header, body, payload, flags & _ACKNOWLEDGE != 0):
                self.unconfirmed += 1
                self.last_sent = topic
                return SENT
            topic.credit_messages += 1
            topic.credit_bytes += body_bytes + size
        topic.line = None
        if session.unsent_bytes or session.outbox.waiting or topic.batch is not None:
            frame = Frame(
                _PUBLISH, flags, lane, content, topic.number, reference, 0, priority, 0, request, wall_ns, body, payload
            )
            return self.publish_small(topic, frame)
        self.unconfirmed += 1
        if lane != _CONTROL:
            topic.credit_messages -= 1
            topic.credit_bytes -= body_bytes + size
        self.last_sent = topic
        header = pack_header(
            _PUBLISH, flags, lane, content, topic.number, reference, 0, priority, body_bytes, size, 0, request, wall_ns
        )
        session.unsent.append(header + body if body_bytes else header)
        if size:
            session.unsent.append(payload)
        session.unsent_bytes = _HEADER_BYTES + body_bytes + size
        return SENT

    def has_left(self, now_ns: int) -> None:
        """The last message has been handed to the link: how soon the next one follows is counted from here."""
        if self.last_sent is not None:
            self.last_sent.last_ns = now_ns

    def offer_to_batch(
        self, topic: OutgoingTopic, content: int, body: bytes, payload: bytes, time_ns: int, now_ns: int
    ) -> Signal | None:
        """Puts a small message into a batch if messages of its topic follow each other so closely that it pays.

        Returns:
            BATCHED, BATCH_OPENED or SENT; None when the message is to go alone.
        """
        if len(payload) > _BATCHED_BYTES_MAX or len(body) > _ENTRY_BODY_BYTES_MAX:
            return None
        gap_ns, topic.last_ns = now_ns - topic.last_ns, now_ns
        if topic.batch is None:
            topic.rapid = 0 if gap_ns > _BATCH_GAP_NS else topic.rapid + 1
            if topic.rapid < topic.burst_messages:
                return None
        return self._add_to_batch(topic, content, body, payload, time_ns, now_ns)

    def _add_to_batch(
        self, topic: OutgoingTopic, content: int, body: bytes, payload: bytes, time_ns: int, now_ns: int
    ) -> Signal:
        """Puts one small message into the topic's batch.

        Returns:
            BATCH_OPENED, BATCHED, or SENT when the batch was queued.
        """
        batch = topic.batch
        opened = batch is None
        if batch is None:
            batch = topic.batch = Batch(
                now_ns + topic.batch_window_ns, wall_offset_ns=time_ns - now_ns, size_max=topic.batch_bytes
            )
            batch.count_max = min(BATCH_MESSAGES_MAX, topic.credit_messages)
            self.open_batches.append(topic)
            if not topic.special:
                self.filling[topic.name] = batch
        batch.last_ns = now_ns
        batch.add(content, time_ns, body, payload)
        if batch.is_full or now_ns >= batch.due_ns:
            self.send_batch(topic)
            return SENT
        return BATCH_OPENED if opened else BATCHED

    def send_batch(self, topic: OutgoingTopic) -> None:
        """Lets a topic's batch leave."""
        batch, topic.batch = topic.batch, None
        if batch is None or self.session is None:
            return
        self.open_batches.remove(topic)
        self.filling.pop(topic.name, None)
        payload = batch.close()
        topic.last_ns = max(topic.last_ns, batch.last_ns)
        topic.credit_messages -= batch.count
        topic.credit_bytes -= len(payload)
        self.unconfirmed += batch.count
        if topic.line is not None:
            size = len(payload)
            header = pack_header(_PUBLISH, _BATCH, _DEFAULT, 0, topic.number, 0, 0, batch.count, 0, size, 0, 0, 0)
            if self._on_line(topic, header, b"", payload, False):
                return
        self.session.put(
            Frame(Kind.PUBLISH, Flag.BATCH, Lane.DEFAULT, number=topic.number, count=batch.count, payload=payload)
        )

    def batches_due_ns(self) -> int | None:
        """When the first of the open batches has to leave, or None. May be called without the client's lock."""
        due_ns = None
        for topic in list(self.open_batches):
            batch = topic.batch
            if batch is not None and (due_ns is None or batch.due_ns < due_ns):
                due_ns = batch.due_ns
        return due_ns

    def send_batches(self, due_before_ns: int | None = None) -> None:
        """Lets all batches leave, or those that are due by a time."""
        for topic in list(self.open_batches):
            if due_before_ns is None or (topic.batch is not None and topic.batch.due_ns <= due_before_ns):
                self.send_batch(topic)

    def start_stream(self, topic: OutgoingTopic, opening: Frame, payload: Payload) -> StreamSource:
        """Starts a large message; the caller has seen that no other one is under way on the topic."""
        session = self.session
        assert session is not None
        if topic.batch is not None:
            self.send_batch(topic)
        topic.line = None
        self.unconfirmed += 1
        return self.streams.start(session, topic, opening, payload)

    def link_drained(self) -> None:
        """The link has taken all that it was given: the memory of finished messages is the callers' again."""
        self.link_room.set()
        self.streams.link_drained()
