"""A broker and its clients in one thread without sockets: bytes move between sessions when a test says so.

A `Talk` holds a BrokerState and does what the server does with its instructions. A `Peer` is a client's Session and
keeps every frame that it receives. Time stands still unless a test moves it.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import partial

from broker.limits import CHUNK_BYTES
from broker.protocol.batches import Batch
from broker.protocol.bodies import Failure, Hello, Subscribe, Topic, Welcome, decode_body, encode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.receiver import Deliver, Received
from broker.protocol.session import Phase, Session
from broker.protocol.sharing import Passage
from broker.security.identity import ANYBODY, Identity
from broker.state import BrokerState, Settings
from broker.state.records import SessionRecord

SECOND_NS = 1_000_000_000
QUEUE_BYTES = 64 << 20


class CountingState(BrokerState):
    """A BrokerState that knows how much of the memory that it has given out is still referred to."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.largest_allocation_bytes = 0
        self._given_out: list[tuple[weakref.ref[memoryview], int]] = []

    def _allocate(self, frame: Frame, size_bytes: int) -> memoryview:
        memory = super()._allocate(frame, size_bytes)
        self.largest_allocation_bytes = max(self.largest_allocation_bytes, size_bytes)
        self._given_out.append((weakref.ref(memory), size_bytes))
        return memory

    def held_bytes(self) -> int:
        """Bytes of payloads that somebody still refers to."""
        self._given_out = [(memory, size) for memory, size in self._given_out if memory() is not None]
        return sum(size for _, size in self._given_out)


def transfer(sender: Session, receiver: Session, deliver: Deliver, now_ns: int, most_bytes: int = 1 << 62) -> int:
    """Moves up to `most_bytes` from one session to the other, as a link would; returns how many there were."""
    moved = 0
    while moved < most_bytes and (buffers := sender.to_send()):
        data = b"".join(bytes(buffer) for buffer in buffers)[: most_bytes - moved]
        sender.sent(len(data))
        moved += len(data)
        feed(receiver, data, deliver, now_ns)
    return moved


def feed(receiver: Session, data: bytes, deliver: Deliver, now_ns: int) -> None:
    """Gives bytes to a session as fast as its buffers take them."""
    rest = memoryview(data)
    while rest:
        size = 0
        for buffer in receiver.receive_buffers():
            part = rest[: len(buffer)]
            buffer[: len(part)] = part
            rest = rest[len(part) :]
            size += len(part)
        assert size, f"{receiver} has no room for the next bytes"
        receiver.received(size, now_ns, deliver)


class Peer:
    """A client of the broker, as the wire sees it.

    Attributes:
        frames: all that was received, oldest first.
        reading: whether bytes from the broker are taken off the link.
    """

    def __init__(
        self,
        talk: Talk,
        name: str,
        passage: Passage | None = None,
        identity: Identity = ANYBODY,
        tenant: str = "",
        hello: Hello | None = None,
    ) -> None:
        self.talk = talk
        self.frames: list[Frame] = []
        self.welcome: Welcome | None = None
        self._reading = True
        self.record: SessionRecord = talk.state.connect(f"test:{name}", talk.now_ns, passage, identity)
        self.session = Session(
            hello=hello or Hello(name, tenant=tenant, shared=passage is not None),
            now_ns=talk.now_ns,
            allocate=lambda frame, size_bytes: memoryview(bytearray(size_bytes)),
            heartbeat_interval_s=5.0,
            heartbeat_timeout_s=30.0,
        )
        self._numbers: dict[str, int] = {}
        self._streams = 0
        self._subscriptions = 0

    # Out.

    def put(self, kind: Kind, flags: int = 0, body: object = None, **fields: object) -> None:
        """Sends one frame at once."""
        data = body if isinstance(body, bytes) else b"" if body is None else encode_body(body)
        self.session.put(Frame(kind, int(flags), body=data, **fields))
        self.talk.settle()

    def topic(self, name: str) -> int:
        """The number of a topic, which is announced before its first use."""
        if name not in self._numbers:
            self._numbers[name] = len(self._numbers) + 1
            self.put(Kind.TOPIC, body=Topic(name), number=self._numbers[name], lane=Lane.CONTROL)
        return self._numbers[name]

    def publish(self, topic: str, payload: bytes = b"", flags: int = 0, **fields: object) -> None:
        """Publishes one small message."""
        self.put(Kind.PUBLISH, flags, number=self.topic(topic), content=1, payload=payload, **fields)

    def publish_batch(self, topic: str, payloads: list[bytes], **fields: object) -> bytes:
        """Publishes small messages as one batch; returns its payload."""
        batch = Batch(0)
        for payload in payloads:
            batch.add(1, 7, b"", payload)
        data = batch.close()
        self.put(Kind.PUBLISH, Flag.BATCH, number=self.topic(topic), count=batch.count, payload=data, **fields)
        return data

    def open_stream(self, topic: str, total_bytes: int, flags: int = 0, **fields: object) -> int:
        """Begins a large message; returns its stream."""
        self._streams += 1
        self.put(
            Kind.PUBLISH, Flag.CHUNKED | flags, number=self.topic(topic), content=1, stream=self._streams,
            total_bytes=total_bytes, **fields,
        )  # fmt: skip
        return self._streams

    def chunk(self, stream: int, payload: bytes, *, last: bool = False, lane: int = Lane.DEFAULT) -> None:
        """Sends more of a large message."""
        self.put(Kind.CHUNK, Flag.LAST if last else 0, stream=stream, payload=payload, lane=lane)

    def publish_large(self, topic: str, payload: bytes, flags: int = 0, **fields: object) -> None:
        """Publishes one message in chunks, whatever the credit."""
        stream = self.open_stream(topic, len(payload), flags, **fields)
        lane = int(fields.get("lane", Lane.DEFAULT))
        for start in range(0, len(payload), CHUNK_BYTES):
            end = start + CHUNK_BYTES
            self.chunk(stream, payload[start:end], last=end >= len(payload), lane=lane)

    def subscribe(self, topic_filter: str, overflow: str = "block", **wishes: object) -> int:
        """Subscribes and checks that the broker has agreed; returns the subscription's number."""
        self._subscriptions += 1
        number = self._subscriptions
        reference = 10_000 + number
        body = Subscribe(topic_filter, overflow, **wishes)
        before = self.reading
        self.reading = True
        self.put(Kind.SUBSCRIBE, body=body, number=number, target=reference)
        self.reading = before
        assert [frame.kind for frame in self.frames if frame.target == reference] == [Kind.DONE], self.frames
        return number

    def credit(self, number: int, messages: int, size_bytes: int = 0) -> None:
        """Tells the broker that the application has taken messages."""
        self.put(Kind.CREDIT, number=number, count=messages, total_bytes=size_bytes, lane=Lane.CONTROL)

    # In.

    @property
    def reading(self) -> bool:
        return self._reading

    @reading.setter
    def reading(self, reading: bool) -> None:
        self._reading = reading
        if not reading and not self.record.session.has_unsent():
            # A link is full when it has not taken all of a write: here of a heartbeat's.
            self.record.session.put(Frame(Kind.PING, lane=Lane.CONTROL))
            self.record.session.to_send()

    def all_of(self, kind: Kind) -> list[Frame]:
        """What was received of a kind."""
        return [frame for frame in self.frames if frame.kind == kind]

    def delivered(self, number: int | None = None) -> list[Frame]:
        """DELIVER frames, of one subscription or of all."""
        if number is None:
            return self.all_of(Kind.DELIVER)
        return [frame for frame in self.frames if frame.kind == Kind.DELIVER and frame.target == number]

    def payloads(self, number: int | None = None) -> list[bytes]:
        """What was delivered in single frames."""
        return [bytes(frame.payload) for frame in self.delivered(number)]

    def sequences(self, number: int | None = None) -> list[int]:
        """The sequences of what was delivered."""
        return [frame.sequence for frame in self.delivered(number)]

    def dropped(self, number: int) -> int:
        """How many drops the broker has announced for a subscription, in all."""
        told = [frame.sequence for frame in self.all_of(Kind.DROPPED) if frame.number == number]
        assert told == sorted(told), f"the count went back: {told}"
        return told[-1] if told else 0

    def large(self) -> list[bytes]:
        """Large messages that have arrived completely."""
        parts: dict[int, list[bytes]] = {}
        complete = []
        for frame in self.frames:
            if frame.kind == Kind.DELIVER and frame.flags & Flag.CHUNKED:
                parts[frame.stream] = []
            elif frame.kind == Kind.STREAM_ABORT:
                del parts[frame.stream]
            elif frame.kind == Kind.CHUNK:
                assert frame.sequence == sum(map(len, parts[frame.stream])), "chunks are out of order"
                parts[frame.stream].append(bytes(frame.payload))
                if frame.flags & Flag.LAST:
                    complete.append(b"".join(parts.pop(frame.stream)))
        return complete

    def chunk_bytes(self) -> int:
        """Bytes of all chunks that were received."""
        return sum(len(frame.payload) for frame in self.all_of(Kind.CHUNK))

    def topic_credit(self, topic: str) -> tuple[int, int]:
        """Messages and bytes that the broker has granted for a topic beyond the first window."""
        grants = [
            frame
            for frame in self.all_of(Kind.CREDIT)
            if frame.flags & Flag.TOPIC_CREDIT and frame.number == self._numbers[topic]
        ]
        return sum(frame.count for frame in grants), sum(frame.total_bytes for frame in grants)

    def names(self) -> dict[int, Topic]:
        """Topics by the broker's numbers."""
        return {frame.number: decode_body(frame.body, Topic) for frame in self.all_of(Kind.TOPIC)}

    def failures(self, kind: Kind = Kind.ERROR) -> list[Failure]:
        """The bodies of ERROR, STREAM_ABORT or CLOSE frames."""
        return [decode_body(frame.body, Failure) for frame in self.all_of(kind)]

    @property
    def is_open(self) -> bool:
        """Whether the broker has the session open."""
        return self.record.id in self.talk.state.sessions and self.record.session.phase is Phase.OPEN

    def deliver(self, received: Received, now_ns: int) -> None:
        """Takes note of what was received."""
        if isinstance(received, Frame):
            self.frames.append(received)
        elif isinstance(received, Welcome):
            self.welcome = received

    def send_some(self, most_bytes: int = 1 << 62) -> int:
        """Moves bytes from the client to the broker; the broker does not answer yet."""
        if self.session.phase is Phase.OPEN and not self.session.has_unsent():
            return 0
        state, record = self.talk.state, self.record
        if record.id not in state.sessions or record.session.phase is Phase.CLOSED:
            return 0
        return transfer(self.session, record.session, partial(state.receive, record), self.talk.now_ns, most_bytes)

    def receive_some(self, most_bytes: int = 1 << 62) -> int:
        """Moves bytes from the broker to the client."""
        if self.session.phase is Phase.CLOSED:
            return 0
        return transfer(self.record.session, self.session, self.deliver, self.talk.now_ns, most_bytes)

    def inject(self, data: bytes) -> None:
        """Puts raw bytes on the link to the broker, as a faulty client would."""
        record, state = self.record, self.talk.state

        feed(record.session, data, partial(state.receive, record), self.talk.now_ns)
        self.talk.settle()

    def die(self) -> None:
        """The process is killed: the broker sees the connection end."""
        self.talk.state.disconnect(self.record.id, self.talk.now_ns)
        self.session.lost(self.record.session.failure)
        self.talk.settle()


class Talk:
    """A broker and its clients.

    Attributes:
        now_ns: the time, which moves by `tick` alone.
    """

    def __init__(self, **settings: object) -> None:
        self.now_ns = SECOND_NS
        self.state = CountingState(replace(Settings(), **settings))
        self.peers: list[Peer] = []

    def peer(
        self,
        name: str = "peer",
        passage: Passage | None = None,
        identity: Identity = ANYBODY,
        tenant: str = "",
        hello: Hello | None = None,
    ) -> Peer:
        """A client that has said hello; with a passage it shares memory."""
        peer = Peer(self, name, passage, identity, tenant, hello)
        self.peers.append(peer)
        self.settle()
        return peer

    def settle(self) -> None:
        """Moves bytes until nothing moves; from the broker only to peers that read."""
        moved = True
        while moved:
            moved = False
            for peer in self.peers:
                moved |= peer.send_some() > 0
            for record in self.state.take_ready():
                peer = next((each for each in self.peers if each.record is record), None)
                moved |= peer is not None and peer.reading and peer.receive_some() > 0
            for peer in self.peers:
                moved |= peer.reading and peer.receive_some() > 0
            self._close_sessions()
            if self.state.has_more():
                self.state.go_on(self.now_ns)
                moved = True

    def _close_sessions(self) -> None:
        for record in list(self.state.sessions.values()):
            if record.session.phase is Phase.CLOSED:
                self.state.disconnect(record.id, self.now_ns)

    def tick(self, seconds: float) -> None:
        """Lets time pass in steps of the server's tick."""
        end_ns = self.now_ns + int(seconds * SECOND_NS)
        while self.now_ns < end_ns:
            self.now_ns = min(end_ns, self.now_ns + SECOND_NS // 10)
            self.state.tick(self.now_ns)
            for peer in self.peers:
                peer.session.tick(self.now_ns)
            self.settle()
