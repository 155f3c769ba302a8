"""Large messages on their way out of a client. Pure."""

from __future__ import annotations

from broker.buffers import Buffer, Payload, Pieces
from broker.errors import BrokerError, ConnectionClosed
from broker.limits import CHUNK_BYTES, STREAMS_PER_SESSION_MAX
from broker.protocol.bodies import Failure, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import HEADER_BYTES, Flag, Frame, Kind, Lane, encode, pack_header
from broker.protocol.session import Session
from clients.connection.signals import Signal
from clients.publishing.outgoing_topic import OutgoingTopic

_HEADER_BYTES = HEADER_BYTES
_CHUNK, _CONTROL, _LAST = int(Kind.CHUNK), int(Lane.CONTROL), int(Flag.LAST)


class StreamSource(Signal):
    """A large message on its way out; ready when its last byte was handed to the link, or it was given up.

    Attributes:
        opening: its first frame, until that has left.
        error: why it was given up.
    """

    __slots__ = (
        "_finishing", "_pieces", "_position", "_rest", "attached", "error", "lane", "number", "opening", "topic",
    )  # fmt: skip

    def __init__(self, topic: OutgoingTopic, opening: Frame, payload: Payload, finishing: list[StreamSource]) -> None:
        """Args:
        topic: to which it goes.
        opening: its first frame.
        payload: the caller's memory.
        finishing: where it puts itself with its last chunk.
        """
        super().__init__()
        self.topic = topic
        self.number = opening.stream
        self.attached = True
        self.error: BrokerError | None = None
        self._finishing = finishing
        self.opening: Frame | None = opening
        self.lane = opening.lane
        self._pieces = Pieces(payload)
        self._rest = len(payload)
        self._position = 0

    def pull(self, buffers: list[Buffer]) -> int:
        """Appends one frame; see Source."""
        topic, charged = self.topic, self.lane != _CONTROL
        if self.ready:
            self.attached = False
            return 0
        if self.opening is not None:
            opening, self.opening = self.opening, None
            if charged:
                topic.credit_messages -= 1
                topic.credit_bytes -= len(opening.body)
            return encode(opening, buffers)
        if not self._rest or (charged and topic.credit_bytes <= 0):
            self.attached = False
            return 0
        size = min(self._rest, CHUNK_BYTES)
        flags = _LAST if size == self._rest else 0
        buffers.append(pack_header(_CHUNK, flags, self.lane, 0, 0, 0, self.number, 0, 0, size, 0, self._position, 0))
        self._pieces.take(size, buffers)
        self._position += size
        self._rest -= size
        if charged:
            topic.credit_bytes -= size
        if not self._rest:
            self._finishing.append(self)
        return _HEADER_BYTES + size


class StreamsOut:
    """All large messages of one client that are under way.

    Attributes:
        finishing: those whose last chunk is with the link, which still refers to their memory.
        room: ready while the broker takes another one.
    """

    def __init__(self) -> None:
        self.finishing: list[StreamSource] = []
        self.room = Signal(ready=True)
        self._by_number: dict[int, StreamSource] = {}

    def full(self) -> Signal | None:
        """What to wait for while as many are under way as the broker takes at once; None while there are fewer."""
        if len(self._by_number) < STREAMS_PER_SESSION_MAX:
            return None
        self.room.clear()
        return self.room

    def start(self, session: Session, topic: OutgoingTopic, opening: Frame, payload: Payload) -> StreamSource:
        """Starts one; the caller has seen that no other one is under way on the topic."""
        opening.stream = session.next_stream()
        stream = topic.stream = StreamSource(topic, opening, payload, self.finishing)
        self._by_number[stream.number] = stream
        topic.stream_over.clear()
        session.attach(stream, opening.lane)
        return stream

    def give_up(self, session: Session | None, stream: StreamSource, reason: str) -> None:
        """Aborts one whose caller does not wait any longer."""
        if stream.ready:
            return
        if session is not None and stream.opening is None:
            # The link may still have to take some of the caller's memory, which is the caller's again from here on.
            session.own_unsent()
            if stream in self.finishing:
                # All of it is on its way: it arrives, and there is nothing left to abort.
                self.finishing.remove(stream)
            else:
                body = encode_body(Failure(Code.PUBLISHER_GONE, reason))
                # What was pulled of the message is ahead of every lane. In its own lane, the end could be overtaken by
                # the next large message of the topic.
                session.put(Frame(Kind.STREAM_ABORT, lane=Lane.CONTROL, stream=stream.number, body=body))
        self._end(stream, ConnectionClosed(reason))

    def link_drained(self) -> None:
        """The link has taken all that it was given: the memory of those that were finishing is the callers' again."""
        if self.finishing:
            finishing = self.finishing[:]
            self.finishing.clear()
            for stream in finishing:
                self._end(stream, None)

    def disconnected(self, error: ConnectionClosed) -> None:
        """The session is over, and so is each of them."""
        self.finishing.clear()
        for stream in list(self._by_number.values()):
            self._end(stream, error)

    def _end(self, stream: StreamSource, error: BrokerError | None) -> None:
        """It has left, or never will."""
        self._by_number.pop(stream.number, None)
        self.room.set()
        stream.error = error
        stream.set()
        if stream.topic.stream is stream:
            stream.topic.stream = None
            stream.topic.stream_over.set()
