"""A session: one conversation between a client and the broker, with no input or output of its own.

Bytes go in with `received`, frames come out; frames go in with `put` and `attach`, buffers for the link come out with
`to_send`. Both ends use this class. The states and what moves them (docs/wire.md section 1.3):

    AWAIT_HELLO --opened--> OPEN --close--> CLOSING --sent--> CLOSED
         |                   |  \\--peer closed / lost---------^
         \\------ failed ------+--> CLOSING (a last CLOSE is on its way)

A remote fault never raises: it puts the session into CLOSING with `failure` as the cause.

The link writes into a scratch that all sessions of a thread share. Between two reads a session keeps nothing of it but
the bytes of a frame of which more has to come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final

import numpy as np

from broker.buffers import Buffer
from broker.errors import BrokerError, ConnectionClosed, ProtocolError, without_frames
from broker.limits import (
    CHUNK_BYTES,
    CONTROL_QUEUE_BYTES_MAX,
    FRAME_BODY_BYTES_MAX,
    HELLO_TIMEOUT_S,
    MESSAGE_BYTES_MAX,
    PLACED_BYTES_MIN,
    QUEUED_BYTES_MAX,
    SCRATCH_BYTES,
)
from broker.protocol import handshake
from broker.protocol.bodies import Failure, Hello, Refusal, Welcome, decode_body, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import EMPTY, HEADER, HEADER_BYTES, KIND_MAX, LANES, Flag, Frame, Kind, Lane, check_header
from broker.protocol.outbox import Outbox, Source
from broker.protocol.receiver import CallingReceiver, Deliver, Receiver
from broker.wires import CallingWire, Wire

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

if TYPE_CHECKING:
    from broker.protocol.sharing import Passage


class Phase(Enum):
    """Where a session is."""

    AWAIT_HELLO = "awaiting hello"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Event(Enum):
    """What moves a session."""

    OPENED = "opened"
    CLOSE = "close"
    FAILED = "failed"
    SENT = "sent"
    PEER_CLOSED = "peer closed"


TRANSITIONS: Final = {
    (Phase.AWAIT_HELLO, Event.OPENED): Phase.OPEN,
    (Phase.AWAIT_HELLO, Event.CLOSE): Phase.CLOSING,
    (Phase.AWAIT_HELLO, Event.FAILED): Phase.CLOSING,
    (Phase.OPEN, Event.CLOSE): Phase.CLOSING,
    (Phase.OPEN, Event.FAILED): Phase.CLOSING,
    (Phase.CLOSING, Event.SENT): Phase.CLOSED,
    **{(phase, Event.PEER_CLOSED): Phase.CLOSED for phase in Phase},
}

Allocate = Callable[[Frame, int], memoryview]

_AWAIT_HELLO, _OPEN, _CLOSING, _CLOSED = Phase
_HEADER_BYTES, _KIND_MAX, _LANES = HEADER_BYTES, KIND_MAX, LANES
_PLACED_BYTES_MIN, _MESSAGE_BYTES_MAX = PLACED_BYTES_MIN, MESSAGE_BYTES_MAX
_PING, _PONG, _CLOSE, _CHUNK, _LAST = int(Kind.PING), int(Kind.PONG), int(Kind.CLOSE), int(Kind.CHUNK), int(Flag.LAST)
_NO_BYTES: Final = memoryview(b"")
_EMPTY = EMPTY
_OVERRUN_BYTES: Final = 4096
"""While a placed payload is under way: room for what follows it, small because it has to be copied. Also where the next
chunk of a large message is awaited."""
_UNPLACED_BYTES_MAX: Final = HEADER_BYTES + FRAME_BODY_BYTES_MAX + PLACED_BYTES_MIN
"""What is kept of a frame, or of a greeting, until the rest of it comes."""


def make_scratch() -> memoryview:
    """Memory for what links receive: room for a read behind the longest incomplete frame. Only what is used of it
    becomes resident."""
    return np.empty(_UNPLACED_BYTES_MAX + SCRATCH_BYTES, np.uint8).data


class Session:
    """One end of a conversation. One thread at a time may call, also of all sessions that share a scratch.

    Attributes:
        phase: where it is.
        failure: why it is not open any more, once it is not.
        refusal: of a client's end, the broker's refusal.
        is_client: which end this is.
        passage: how shared memory passes to the other end; None where it cannot.
        lend: gives the memory in which so many bytes, the next ones, lie already; see Connection.lend.
        unsent: the buffers of the next write. When there are none, and nothing waits in the outbox, a frame may be
            appended to them at once, and its bytes added to `unsent_bytes`: it need not pass the outbox.
    """

    def __init__(
        self,
        *,
        hello: Hello | None,
        now_ns: int,
        allocate: Allocate,
        heartbeat_interval_s: float,
        heartbeat_timeout_s: float,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
        passage: Passage | None = None,
        scratch: memoryview | None = None,
    ) -> None:
        """Args:
        hello: what the client's end says first; None makes this the broker's end.
        now_ns: the monotonic time.
        allocate: gives the memory for the payload of a frame whose header and body have come, of so many bytes.
        heartbeat_interval_s: silence after which a PING is sent.
        heartbeat_timeout_s: silence after which the peer counts as gone.
        hello_timeout_s: how long the greeting may take.
        passage: how shared memory passes over the link, if it can.
        scratch: what `make_scratch` has made for several sessions; None makes one for this session alone.
        """
        self.phase = _AWAIT_HELLO
        self.failure: BrokerError | None = None
        self.refusal: Refusal | None = None
        self.is_client = hello is not None
        self.passage = passage
        self.outbox = Outbox()
        self._hello_timeout_s = hello_timeout_s
        self.opened_ns = now_ns
        self.last_received_ns = now_ns
        self.received_bytes = 0
        self.sent_bytes = 0
        self.set_heartbeat(heartbeat_interval_s, heartbeat_timeout_s)
        self._last_ping_ns = now_ns
        self._allocate = allocate
        self.lend: Callable[[int], memoryview | None] | None = None
        self._scratch = make_scratch() if scratch is None else scratch
        if cython.compiled:
            self._data = _address(self._scratch)
        self._whole = [self._scratch[:SCRATCH_BYTES]]
        self._rest = b""
        self._placed: Frame | None = None
        self._placed_rest = _NO_BYTES
        self.unsent: list[Buffer] = []
        self.unsent_bytes = 0
        self._farewell: Frame | None = None
        # After a fault, or the peer's CLOSE, what still comes in means nothing any more.
        self._deaf = False
        self._amid = False
        self._last_stream = 0
        if hello is not None:
            self._send_raw(handshake.encode_greeting(hello))

    def set_heartbeat(self, interval_s: float, timeout_s: float) -> None:
        """Changes the heartbeat, as the Welcome says."""
        self.heartbeat_interval_ns = int(interval_s * 1e9)
        self.heartbeat_timeout_ns = int(timeout_s * 1e9)

    # Bytes in.

    def receive_buffers(self) -> list[memoryview]:
        """Where the next bytes of the link belong, for one scattered read. There is always room for some.

        They have to be `received` before another session that shares the scratch is asked.
        """
        placed = self._placed
        if placed is not None and not self._deaf:
            if self.is_client and placed.kind == _CHUNK and placed.flags & _LAST:
                # The next message had better begin when this one has been taken, and may have its memory.
                return [self._placed_rest]
            return [self._placed_rest, self._scratch[:_OVERRUN_BYTES]]
        kept = len(self._rest)
        if not kept:
            return [self._scratch[:_OVERRUN_BYTES]] if self._amid else self._whole
        self._scratch[:kept] = self._rest
        return [self._scratch[kept : kept + SCRATCH_BYTES]]

    def received(self, size: int, now_ns: int, deliver: Deliver) -> None:
        """Takes note of `size` bytes in the receive buffers.

        Args:
            size: what the link has put there.
            now_ns: the monotonic time.
            deliver: gets each thing that is complete now, before the next one is looked at, so that memory for a
                payload can depend on the frames before it. When it raises ProtocolError the session fails.
        """
        receiver = deliver if isinstance(deliver, Receiver) else CallingReceiver(deliver)
        self.last_received_ns = now_ns
        self.received_bytes += size
        if self._deaf:
            return
        placed = self._placed
        if placed is not None:
            rest = len(self._placed_rest)
            if size < rest:
                self._placed_rest = self._placed_rest[size:]
                return
            size -= rest
        start, end = 0, len(self._rest) + size
        try:
            if placed is not None:
                self._placed, self._placed_rest = None, _NO_BYTES
                self._amid = placed.kind == _CHUNK
                self._take(placed, now_ns, receiver)
            else:
                self._amid = False
            if self.phase is _AWAIT_HELLO:
                start = self._read_greeting(end, now_ns, receiver)
            if self.phase is not _AWAIT_HELLO and not self._deaf:
                start = self._read_frames(start, end, now_ns, receiver)
            self._rest = bytes(self._scratch[start:end]) if start < end and not self._deaf else b""
        except ProtocolError as error:
            self.fail(error)
        if self.outbox.queued_bytes and not self.is_client:
            self.check_queued()

    def _read_greeting(self, end: int, now_ns: int, receiver: Receiver) -> int:
        """Reads what is in the scratch up to `end`; returns where it has come to."""
        data = self._scratch[:end]
        try:
            greeting = handshake.decode_greeting(data)
        except ProtocolError as error:
            if self.is_client:
                raise
            self._move(Event.FAILED, error)
            self._send_raw(handshake.answer_to(error, bytes(data[:16])))
            return end
        if greeting is None:
            return 0
        body, _, _, used = greeting
        if isinstance(body, Refusal) and self.is_client:
            self.refusal = body
            self._move(Event.PEER_CLOSED, ConnectionClosed(body.reason, body.code))
        elif isinstance(body, Welcome if self.is_client else Hello):
            self._move(Event.OPENED, None)
            receiver.receive(body, now_ns)
        else:
            raise ProtocolError(f"a {type(body).__name__} from the wrong side")
        return used

    def _read_frames(self, start: int, end: int, now_ns: int, receiver: Receiver) -> int:
        """Reads what is in the scratch from `start` to `end`; returns where it has come to."""
        while end - start >= _HEADER_BYTES:
            frame = Frame.__new__(Frame)
            body_bytes, size = self._read_header(frame, start)
            kind, lane = frame.kind, frame.lane
            placed = size >= _PLACED_BYTES_MIN
            strange = not 0 < kind <= _KIND_MAX or lane >= _LANES or frame.total_bytes > _MESSAGE_BYTES_MAX
            if strange or body_bytes or placed:
                check_header(kind, lane, body_bytes, size, frame.total_bytes)
            body_start = start + _HEADER_BYTES
            payload_start = body_start + body_bytes
            frame_end = payload_start if placed else payload_start + size
            if frame_end > end:
                break
            frame.body = self._copied(body_start, body_bytes) if body_bytes else _EMPTY
            frame.payload = self._copied(payload_start, size) if size and not placed else _EMPTY
            start = frame_end
            if placed:
                have = min(size, end - start)
                memory = self.lend(size) if self.lend is not None and kind == _CHUNK and not have else None
                if memory is None:
                    memory = self._allocate(frame, size)
                    memory[:have] = self._scratch[start : start + have]
                frame.payload = memory
                start += have
                if have < size:
                    self._placed, self._placed_rest = frame, memory[have:]
                    break
            if kind in (_PING, _PONG, _CLOSE):
                self._take(frame, now_ns, receiver)
            else:
                receiver.receive(frame, now_ns)
            if self._deaf:
                break
        return start

    def _read_header(self, frame: Frame, start: int) -> tuple[int, int]:
        """Fills a frame from the header at a place in the scratch; returns the lengths of its body and its payload."""
        if not cython.compiled:
            (
                frame.kind, frame.flags, frame.lane, frame.content, frame.number, frame.target, frame.stream,
                frame.count, body_bytes, size, frame.total_bytes, frame.sequence, frame.time_ns,
            ) = HEADER.unpack_from(self._scratch, start)  # fmt: skip
            return body_bytes, size
        header = cython.cast(cython.pointer(Header), self._data + start)  # type: ignore[name-defined]  # noqa: F821
        frame.kind, frame.flags, frame.lane, frame.content = header.kind, header.flags, header.lane, header.content
        frame.number, frame.target, frame.stream = header.number, header.target, header.stream
        frame.count, frame.total_bytes, frame.sequence = header.count, header.total_bytes, header.sequence
        frame.time_ns = header.time_ns
        return header.body_bytes, header.payload_bytes

    def _copied(self, start: int, size: int) -> bytes:
        """Bytes of the scratch."""
        if not cython.compiled:
            return bytes(self._scratch[start : start + size])
        return cython.cast(cython.p_char, self._data + start)[:size]  # type: ignore[no-any-return]

    def _take(self, frame: Frame, now_ns: int, receiver: Receiver) -> None:
        """Session frames are dealt with here, all others handed out."""
        kind = frame.kind
        if kind == _PING:
            self.put(Frame(Kind.PONG, lane=Lane.CONTROL, sequence=frame.sequence, time_ns=frame.time_ns))
        elif kind == _CLOSE:
            failure = decode_body(frame.body, Failure)
            self._move(Event.PEER_CLOSED, ConnectionClosed(failure.reason, failure.code))
        elif kind != _PONG:
            receiver.receive(frame, now_ns)

    # Bytes out.

    def check_queued(self) -> None:
        """The broker's end: fails when the client does not read the answers that it asks for."""
        outbox = self.outbox
        if outbox.control_bytes > CONTROL_QUEUE_BYTES_MAX:
            problem = f"answers of {outbox.control_bytes} bytes are over the limit of {CONTROL_QUEUE_BYTES_MAX}"
        elif outbox.queued_bytes > QUEUED_BYTES_MAX:
            problem = f"results of {outbox.queued_bytes} bytes are over the limit of {QUEUED_BYTES_MAX}"
        else:
            return
        self.fail(ProtocolError(f"the client does not read: waiting {problem}", Code.LIMIT))

    def put(self, frame: Frame) -> None:
        """Queues a frame."""
        self.outbox.put(frame)

    def attach(self, source: Source, lane: int) -> None:
        """Adds a source of frames."""
        self.outbox.attach(source, lane)

    def next_stream(self) -> int:
        """A number for a chunked message in this direction."""
        self._last_stream = self._last_stream % 0xFFFFFFFF + 1
        return self._last_stream

    def to_send(self, budget_bytes: int = CHUNK_BYTES) -> list[Buffer]:
        """Buffers for one gathered write: what is left of the last one, or the next frames. Empty when nothing
        waits."""
        if not self.unsent:
            buffers: list[Buffer] = []
            self.unsent_bytes = self.outbox.take(budget_bytes, buffers)
            if not self.unsent_bytes and self._farewell is not None:
                self.outbox.put(self._farewell)
                self._farewell = None
                self.unsent_bytes = self.outbox.take(budget_bytes, buffers)
            self.unsent = buffers
            if not buffers and self.phase is _CLOSING:
                self._move(Event.SENT, None)
        return self.unsent

    def sent(self, size: int) -> bool:
        """Takes note of `size` bytes that the link took; says whether it took all that `to_send` gave."""
        self.sent_bytes += size
        self.unsent_bytes -= size
        if not self.unsent_bytes:
            self.unsent = []
            return True
        buffers = self.unsent
        position = 0
        while size >= len(buffers[position]):
            size -= len(buffers[position])
            position += 1
        self.unsent = buffers[position:]
        if size:
            self.unsent[0] = memoryview(self.unsent[0])[size:]
        return False

    def flush(self, send: Wire | Callable[[Sequence[Buffer]], int]) -> bool:
        """Gives a link what waits until it takes no more.

        Args:
            send: the link, or what takes buffers and returns how many bytes of them it took.

        Returns:
            Whether nothing waits any more.
        """
        wire = send if isinstance(send, Wire) else CallingWire(None, send)
        while self.unsent_bytes or self.outbox.waiting or self._farewell is not None or self.phase is _CLOSING:
            buffers = self.unsent if self.unsent_bytes else self.to_send()
            if not buffers:
                break
            size = wire.send(buffers)
            if size == self.unsent_bytes:
                self.sent_bytes += size
                self.unsent, self.unsent_bytes = [], 0
            else:
                self.sent(size)
                return False
        return True

    def own_unsent(self) -> None:
        """Copies what is left of the last write, so that it refers to nobody's memory: at most about a chunk."""
        self.unsent = [bytes(buffer) for buffer in self.unsent]

    def has_unsent(self) -> bool:
        """Whether the link owes a write."""
        return self.unsent_bytes > 0 or self.outbox.waiting > 0 or self._farewell is not None

    def _send_raw(self, data: bytes) -> None:
        self.unsent.append(data)
        self.unsent_bytes += len(data)

    # Life.

    def welcome(self, welcome: Welcome) -> None:
        """The broker's end: answers the Hello."""
        self._send_raw(handshake.encode_greeting(welcome, handshake.VERSION_MAX, handshake.VERSION_MAX))

    def refuse(self, code: Code, reason: str, *, path: str = "", life: int = 0) -> None:
        """The broker's end: answers the Hello with a refusal; the session is over."""
        self._move(Event.CLOSE, ConnectionClosed(reason, code))
        self._send_raw(handshake.encode_greeting(Refusal(code, reason, path, life)))

    def close(self, code: Code, reason: str) -> None:
        """Closes in order: what is queued still leaves, then a CLOSE with the reason."""
        if self.phase is _OPEN:
            self._farewell = _close_frame(code, reason)
        self._move(Event.CLOSE, ConnectionClosed(reason, code))

    def fail(self, error: ProtocolError) -> None:
        """Closes at once because the peer is at fault or silent: what is queued is dropped, the peer is told why."""
        if self.phase is _OPEN:
            self.outbox.clear()
            self._farewell = _close_frame(error.code, str(error))
        self._move(Event.FAILED, error)

    def lost(self, error: BrokerError) -> None:
        """The link is gone."""
        self._move(Event.PEER_CLOSED, error)

    def tick(self, now_ns: int) -> None:
        """Notices a silent peer and keeps a quiet one talking; call several times within a heartbeat interval."""
        silent_ns = now_ns - self.last_received_ns
        if self.phase is _AWAIT_HELLO:
            if now_ns - self.opened_ns > self._hello_timeout_s * 1e9:
                if not self.is_client and not self.unsent:
                    self._send_raw(handshake.answer_to_stranger(b""))
                self.fail(handshake.too_late(self._hello_timeout_s))
        elif self.phase is _OPEN:
            if silent_ns > self.heartbeat_timeout_ns:
                seconds = self.heartbeat_timeout_ns / 1e9
                self.fail(ProtocolError(f"nothing heard from the peer for {seconds:g} s", Code.HEARTBEAT))
            elif silent_ns > self.heartbeat_interval_ns and now_ns - self._last_ping_ns > self.heartbeat_interval_ns:
                self._last_ping_ns = now_ns
                self.put(Frame(Kind.PING, lane=Lane.CONTROL, time_ns=now_ns))

    def _move(self, event: Event, cause: BrokerError | None) -> None:
        if event is Event.FAILED or event is Event.PEER_CLOSED:
            self._deaf = True
        following = TRANSITIONS.get((self.phase, event))
        if following is None:
            return
        self.phase = following
        if cause is not None and self.failure is None:
            self.failure = without_frames(cause)
        if following is _CLOSED:
            self._let_go()

    def _let_go(self) -> None:
        """Whoever still knows this session holds none of the memory that was on its way in or out."""
        self._deaf = True
        self.outbox.clear()
        self._farewell = self._placed = None
        self._placed_rest, self._rest = _NO_BYTES, b""
        self.unsent, self.unsent_bytes = [], 0

    def __repr__(self) -> str:
        cause = f" {self.failure}" if self.failure else ""
        return (
            f"<Session {self.phase.name} received={self.received_bytes} sent={self.sent_bytes} {self.outbox!r}{cause}>"
        )


def _close_frame(code: int, reason: str) -> Frame:
    return Frame(Kind.CLOSE, lane=Lane.CONTROL, body=encode_body(Failure(code, reason)))


def _address(scratch: memoryview) -> cython.p_uchar:
    """Where a scratch lies; it has to outlive whoever uses this."""
    return cython.address(scratch[0])
