"""A message as the application sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from enum import Enum
from typing import Final, NamedTuple, NoReturn, Protocol, SupportsIndex

import numpy as np

from broker import devices
from broker.buffers import Buffer
from broker.devices import Device
from broker.devices.memory import DevicePayload
from broker.errors import InvalidValue, ProtocolError
from broker.limits import REFUSAL_DELAY_S_MAX
from broker.protocol.batches import ENTRY_BYTES, split_batch
from broker.protocol.bodies import MessageBody, decode_body
from broker.protocol.frames import Content, Lane
from broker.protocol.session import Session
from broker.protocol.values import decode_value
from clients.connection.checks import seconds_of, stays_here
from clients.reading.placed import read_placed

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

NO_BODY: Final = MessageBody()
_UNREAD: Final = object()
_BYTES: Final = int(Content.BYTES)
_TENSOR: Final = int(Content.TENSOR)
_KNOWN_BODY_BYTES_MAX: Final = 128
_KNOWN_BODIES_MAX: Final = 64
_known_bodies: dict[bytes, MessageBody] = {}
"""Bodies that say nothing but what an array is: those of a topic are mostly the same, and are decoded once."""
_last_array: tuple[bytes, int, tuple[int, ...], np.dtype[np.generic]] = b"", -1, (), np.dtype(np.uint8)
"""Body and payload's length of the array that was read last, and what that came to; replaced as a whole."""
LANE_NAMES: Final = tuple(lane.name.lower() for lane in Lane)


class Sent:
    """What `reply` returns in the synchronous client: it is done already, and awaiting it does nothing."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class Answer(NamedTuple):
    """What a responder says to a request: a value, or an error or the mere end in place of it; `last` when no more
    follows."""

    value: object
    headers: Mapping[str, str] | None = None
    last: bool = True
    error: str = ""
    end: bool = False


Reply = Callable[["Message", Answer], Awaitable[None]]
"""Sends the answer to a request."""


class Delivery:
    """How a job came to this client, which is to settle it.

    Attributes:
        subscription: the number of the subscription that got it.
        number: by which the broker knows the delivery, in its session.
        count: how often the job was delivered, with this time.
        reader: keeps the subscription open, once the job was taken.
        session: in which alone it can be settled.
        settle: does it.
        settled: whether that was done.
    """

    __slots__ = ("count", "number", "reader", "session", "settle", "settled", "subscription")

    def __init__(self, subscription: int, number: int, count: int, session: Session | None, settle: Settle) -> None:
        self.subscription = subscription
        self.number = number
        self.count = count
        self.session = session
        self.settle = settle
        self.settled = False
        self.reader: object = None


class Settle(Protocol):
    """Tells the broker what has become of a job; does nothing the second time."""

    def __call__(self, delivery: Delivery, *, refused: bool, delay_s: float) -> Awaitable[None]: ...


class Deferred(Enum):
    """What a function returns that has kept its message: a responder, which will call `reply` later, or a handler of
    jobs, which will call `ack` or `nack`."""

    DEFERRED = "deferred"


DEFERRED: Final = Deferred.DEFERRED


class Publication:
    """A topic and who publishes to it."""

    __slots__ = ("sender", "topic")

    def __init__(self, topic: str, sender: str) -> None:
        self.topic = topic
        self.sender = sender


@cython.freelist(8)
@cython.cclass
class Message:
    """One message of a topic.

    `value` is decoded when it is first asked for. An array's memory is the message's own and may be written to, but for
    one that came in shared memory, which all its readers read: that is read-only. Where the subscription names a
    device, arrays are copied there when `value` is first asked for, on the current stream of the thread that asks.

    Attributes:
        sequence: in its topic, from 1 upwards.
        published_ns: the publisher's wall clock, in nanoseconds since the epoch.
        gap: messages of the topic that this subscription has lost between the one before and this one: dropped by its
            overflow policy, unreadable, or not finished by their publishers. They count in `dropped` too.
    """

    __slots__ = (
        "_body", "_content", "_decoded", "_delivery", "_device", "_lane", "_payload", "_publication", "_reply",
        "_value", "gap", "published_ns", "sequence",
    )  # fmt: skip

    def __init__(
        self,
        publication: Publication,
        sequence: int,
        published_ns: int,
        lane: int,
        content: int,
        body: bytes,
        payload: Buffer,
        reply: Reply | None,
    ) -> None:
        """Made by the client."""
        self.fill(publication, sequence, published_ns, lane, content, body, payload, reply)

    def fill(
        self,
        publication: Publication,
        sequence: int,
        published_ns: int,
        lane: int,
        content: int,
        body: bytes,
        payload: Buffer,
        reply: Reply | None,
    ) -> None:
        """What `__init__` does; compiled, the numbers come here as they are."""
        self._publication = publication
        self.sequence = sequence
        self.published_ns = published_ns
        self._lane = lane
        self._content = content
        self._body = body
        self._payload = payload
        self._reply = reply
        self._decoded: MessageBody | None = None
        self._value: object = _UNREAD
        self._delivery: Delivery | None = None
        self._device: Device | None = None
        self.gap = 0

    @property
    def topic(self) -> str:
        """The topic that it was published to."""
        return self._publication.topic

    @property
    def sender(self) -> str:
        """The publisher's name."""
        return self._publication.sender

    @property
    def lane(self) -> str:
        """`control`, `default` or `bulk`."""
        return LANE_NAMES[self._lane]

    @property
    def value(self) -> object:
        """What was published: an array for an array, bytes for bytes, plain Python values otherwise.

        Raises:
            ProtocolError: the publisher sent something that cannot be read.
            InvalidValue: an array that the subscription's device cannot hold; see `value_on`.
        """
        if self._value is _UNREAD:
            if self._content == _BYTES and type(self._payload) is bytes:
                return self._payload
            if self._content == _TENSOR and self._device is None and type(self._payload) is memoryview:
                self._value = self._array()
            else:
                self._value = self._read(self._device)
        return self._value

    def _array(self) -> object:
        """An array in host memory, which mostly is like the one that was read before."""
        global _last_array
        payload, (body, size_bytes, shape, dtype) = self._payload, _last_array
        if len(payload) == size_bytes and (self._body is body or self._body == body):
            return np.ndarray(shape, dtype, payload)
        array = self._read(None)
        if type(array) is np.ndarray and array.size and array.flags.c_contiguous:
            _last_array = self._body, len(payload), array.shape, array.dtype
        return array

    def value_on(self, device: str) -> object:
        """The value with its arrays on a device, whatever the subscription has asked for; read anew with each call.

        Args:
            device: `cuda:0`, or `cuda` for the current device, or `cpu` for host memory.

        Raises:
            ProtocolError: the publisher sent something that cannot be read.
            InvalidValue: there is no such device here, or it cannot hold an array; the message is as it was.
        """
        return self._read(devices.read_device(device))

    def _read(self, device: Device | None) -> object:
        tensor = self.body.tensor if self._body else None
        if isinstance(self._payload, DevicePayload):
            return read_placed(self._payload, tensor, device)
        value = decode_value(self._content, tensor, self._payload)
        return value if device is None else devices.to_device(value, device)

    @property
    def headers(self) -> Mapping[str, str]:
        """What the publisher gave as headers."""
        return self.body.headers or {}

    @property
    def body(self) -> MessageBody:
        """The decoded body of the message's frame."""
        if self._decoded is None:
            self._decoded = _decoded(self._body) if self._body else NO_BODY
        return self._decoded

    @property
    def content(self) -> int:
        """What the payload is, by its number in docs/wire.md section 8: 0 a value, 1 bytes, 2 a tensor, 3 arrays."""
        return self._content

    @property
    def size_bytes(self) -> int:
        """Bytes of body and payload."""
        return self._size()

    def _size(self) -> int:
        return len(self._body) + len(self._payload)

    @property
    def payload(self) -> Buffer:
        """The payload as it travelled; what lies in a device's memory is copied to the host for it."""
        return self._payload.to_host().data if isinstance(self._payload, DevicePayload) else self._payload

    @property
    def is_request(self) -> bool:
        """Whether the sender waits for a reply."""
        return bool(self.body.reply_to)

    @property
    def cancelled(self) -> bool:
        """Of a request that a responder's function answers: whether its requester has given up, or is gone."""
        return False

    def reply(self, value: object, *, headers: Mapping[str, str] | None = None, last: bool = True) -> Awaitable[None]:
        """Answers a request, at once or later; with the synchronous client from any thread, else on its loop.

        Args:
            value: as for publish.
            headers: short texts that travel with it.
            last: False when more replies of this responder follow (request_many). Such a reply waits while 256 of
                them, or 8 MiB, are under way to the requester.

        Returns:
            Something to await in the asynchronous client; in the synchronous one the reply has left already. A reply to
            a request that was cancelled goes nowhere.

        Raises:
            InvalidValue: the message is not a request or has had its last reply, or the value cannot be sent.
            TimeoutError: the requester does not take its replies.
        """
        return self._answer(Answer(value, headers, last))

    def end(self) -> Awaitable[None]:
        """Says that no more replies follow, after some with last=False."""
        return self._answer(Answer(None, end=True))

    def reply_error(self, error: str) -> Awaitable[None]:
        """Answers a request with an error, which is raised as RequestFailed where the request was made."""
        return self._answer(Answer(None, error=error or "unknown error"))

    def _answer(self, answer: Answer) -> Awaitable[None]:
        if self._reply is None or not self.is_request:
            raise InvalidValue("message on topic", self.topic, "is not a request, so nobody waits for a reply")
        return self._reply(self, answer)

    @property
    def is_job(self) -> bool:
        """Whether it came to a member of a queue group whose topic is acknowledged, so that it is to be settled."""
        return self._delivery is not None

    @property
    def deliveries(self) -> int:
        """How often it was delivered to members of its queue group, with this time: 1 the first time."""
        return 1 if self._delivery is None else self._delivery.count

    @property
    def redelivered(self) -> bool:
        """Whether it was delivered before, and so may have been worked on already."""
        return self.deliveries > 1

    def ack(self) -> Awaitable[None]:
        """Settles a job that is done; from any thread.

        The first `ack` or `nack` counts, later ones do nothing. One that comes too late, after the connection or the
        subscription has ended, does nothing either: another member gets the job.

        Returns:
            Something that may be awaited; it need not be.

        Raises:
            InvalidValue: the message is not from a queue group on a topic with acknowledgement.
        """
        return self._job().settle(self._job(), refused=False, delay_s=0.0)

    def nack(self, delay_s: float = 0.0) -> Awaitable[None]:
        """Gives a job back that is not done, for another delivery, or for the dead letters when it had all of them.

        Args:
            delay_s: not before so many seconds, up to a day.

        Raises:
            InvalidValue: as for `ack`, or a delay that cannot be.
        """
        delay_s = seconds_of("delay_s", delay_s, REFUSAL_DELAY_S_MAX)
        return self._job().settle(self._job(), refused=True, delay_s=delay_s)

    def _job(self) -> Delivery:
        if self._delivery is None:
            raise InvalidValue(
                "message on topic",
                self.topic,
                "is not to be acknowledged: it takes a queue_group, and a topic declared with acknowledge=True",
            )
        return self._delivery

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise stays_here(self, "Pass on what is needed of it: message.topic, message.value, message.headers")

    def __repr__(self) -> str:
        return f"<Message {self.topic} sequence={self.sequence} from {self.sender!r} {self.size_bytes} bytes>"


def _decoded(body: bytes) -> MessageBody:
    known = _known_bodies.get(body)
    if known is not None:
        return known
    decoded = decode_body(body, MessageBody)
    if len(body) <= _KNOWN_BODY_BYTES_MAX and decoded == MessageBody(tensor=decoded.tensor):
        if len(_known_bodies) >= _KNOWN_BODIES_MAX:
            _known_bodies.clear()
        _known_bodies[body] = decoded
    return decoded


def unpack_batch(
    payload: bytes, count: int, publication: Publication, first_sequence: int, lane: int, reply: Reply | None
) -> list[Message]:
    """The messages of a batch, which is laid out as `broker/protocol/batches.py` says.

    Raises:
        ProtocolError: the lengths inside do not add up to the payload, or the count is another one.
    """
    if not cython.compiled:
        return [
            Message(publication, sequence, time_ns, lane, content, body, single, reply)
            for sequence, (content, time_ns, body, single) in enumerate(split_batch(payload, count), first_sequence)
        ]
    messages = []
    data, head, start, end, sequence = payload, ENTRY_BYTES, 0, len(payload), first_sequence
    while start + head <= end:
        # Once ENTRY, with machines that are little-endian.
        at = cython.cast(cython.p_uchar, data) + start
        body_bytes = cython.cast(cython.p_ushort, at)[1]
        size = cython.cast(cython.p_uint, at)[1]
        start += head
        if start + body_bytes + size > end:
            break
        message = Message.__new__(Message)
        message._publication, message.sequence, message._lane, message._reply = publication, sequence, lane, reply
        message._content, message.published_ns = at[0], cython.cast(cython.p_ulonglong, at)[1]
        message._body = payload[start : start + body_bytes] if body_bytes else b""
        start += body_bytes
        message._payload = payload[start : start + size]
        start += size
        message._decoded = message._delivery = None
        message._value, message.gap = _UNREAD, 0
        messages.append(message)
        sequence += 1
    if start != end or len(messages) != count:
        raise ProtocolError(f"batch of {count} messages in {end} bytes is truncated or lies about its lengths")
    return messages
