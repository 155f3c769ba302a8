"""The tap: one message of one topic per interval, for a person who looks, as server-sent events.

It is routed to like a subscription, but nothing is ever queued for it. When it wants a message, it looks at the next
one as that comes by, a large one piece by piece; then it wants none until the interval is over:

    message  message  message  message  message  message
    |        .        .        |        .        .            | looked at   . passed by
    '-------- INTERVAL_S ------'

So a tap costs a sample per interval (samples.py) and nothing else, and holds nobody up. It ends with its viewer,
or when its viewer may not subscribe to the topic any more.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import msgspec
from aiohttp import web
from msgspec import structs

from broker.admin.guard import Visitor, visitor
from broker.admin.samples import Sampler, TensorSample, shortened, text_of
from broker.admin.streams import Streams
from broker.errors import BrokerError, InvalidValue
from broker.ids import SessionId, SubscriptionNumber
from broker.limits import HEARTBEAT_INTERVAL_S, HEARTBEAT_TIMEOUT_S, QUEUE_BYTES
from broker.protocol.batches import split_batch
from broker.protocol.bodies import MessageBody, decode_body
from broker.protocol.frames import Content, Flag, Lane
from broker.protocol.session import Session
from broker.server import Server
from broker.state.delivery import Subscription
from broker.state.records import SessionRecord
from broker.state.tenants import Tenant
from broker.state.topics import INBOX
from broker.topics.messages import Chunk, Message, Stream
from broker.topics.names import check_topic
from broker.topics.policy import Overflow
from broker.topics.queues import Queue

INTERVAL_S: Final = 0.5
TAPS_MAX: Final = 16
"""That are open at the same time."""
BATCH_BYTES_MAX: Final = 128 * 1024
"""Longer batches are told by their length."""
HEADERS_SHOWN: Final = 16
_KINDS: Final = {
    int(Content.MESSAGEPACK): "value",
    int(Content.BYTES): "bytes",
    int(Content.TENSOR): "tensor",
    int(Content.STRUCTURE): "arrays",
}


class Seen(msgspec.Struct, frozen=True):
    """A message, as much as is told of it.

    Attributes:
        topic: where it was published.
        sequence: in the topic.
        sender: the publisher's name.
        lane: `control`, `default` or `bulk`.
        kind: `value`, `bytes`, `tensor`, `arrays` (a value with arrays in it), or `unknown`.
        size_bytes: of its payload, or of the batch in which it came.
        ago_s: since it was published, by the publisher's clock, in seconds.
        headers: at most 16.
        text: the value, cut to a length; empty for a tensor.
        tensor: of a tensor, what is in it.
    """

    topic: str
    sequence: int
    sender: str
    lane: str
    kind: str
    size_bytes: int
    ago_s: float
    headers: dict[str, str]
    text: str
    tensor: TensorSample | None


class Told(msgspec.Struct, frozen=True):
    """One event of a tap.

    Attributes:
        topic: which one.
        exists: whether anybody has published to it or subscribed to it.
        messages: published to it, ever.
        message: a new one; null when none has come since the event before.
    """

    topic: str
    exists: bool
    messages: int
    message: Seen | None


@dataclass(slots=True)
class _Large:
    """A large tensor that is being looked at, piece by piece.

    Attributes:
        chunk: the last one that was looked at.
    """

    message: Message
    body: MessageBody
    stream: Stream
    chunk: Chunk
    sampler: Sampler


class Tap(Subscription):
    """A place in the routes of one topic, where messages come by.

    Attributes:
        wants: whether the next message is to be looked at.
    """

    def __init__(self, record: SessionRecord, topic: str) -> None:
        # `block`, so that batches come unopened; as nothing is queued, nobody is ever held back.
        super().__init__(
            record, SubscriptionNumber(1), topic, Queue(Overflow.BLOCK, 1, QUEUE_BYTES),
            queue_group="", responder=False, flush=_ignore, unblock=_ignore, lost=_ignore,
        )  # fmt: skip
        self.wants = True
        self._seen: Seen | None = None
        self._seen_ns = 0
        self._large: _Large | None = None

    def offer(self, message: Message) -> None:
        """A message comes by."""
        if not self.wants:
            return
        self.wants = False
        self._seen_ns = message.time_ns
        try:
            if message.stream is None:
                self._seen = _small(message)
            else:
                self._begin(message, message.stream)
        except BrokerError as error:
            self._seen = _seen(message, message.content, MessageBody(), f"a message that cannot be read: {error}")

    def _begin(self, message: Message, stream: Stream) -> None:
        """A large message: of a tensor all pieces are looked at, of anything else none."""
        body = decode_body(message.body, MessageBody) if message.body else MessageBody()
        if message.content == Content.TENSOR and body.tensor is not None and message.first is not None:
            self._large = _Large(message, body, stream, message.first, Sampler(body.tensor))
            self.resume()
        else:
            text = f"{_KINDS.get(message.content, 'a message')} of {message.size_bytes} bytes"
            self._seen = _seen(message, message.content, body, text)

    def resume(self) -> None:
        """More of the large message has come, or no more will; called by its stream."""
        large = self._large
        if large is None:
            return
        while large.chunk.following is not None:
            large.chunk = large.chunk.following
            large.sampler.feed(large.chunk.data())
        if large.stream.aborted is not None:
            self._large = None
            self.wants = True
        elif large.stream.complete:
            self._large = None
            self._seen = _sampled(large.message, large.body, large.sampler)
        else:
            large.stream.waiters.append(self)

    def look_back(self, kept: list[Message]) -> None:
        """Looks at the newest message that is kept and complete, as if it came by now."""
        complete = [message for message in kept if message.stream is None or message.stream.complete]
        for message in complete[-1:]:
            self.offer(message)

    def take(self, wall_ns: int) -> Seen | None:
        """What was seen and not taken yet; from here on another message is wanted."""
        seen, self._seen = self._seen, None
        # A large message that is still coming is waited for.
        self.wants = self._large is None
        return None if seen is None else structs.replace(seen, ago_s=max(0, wall_ns - self._seen_ns) / 1e9)

    def end(self) -> None:
        """Looks at nothing any more."""
        self.wants = False
        self._large = None

    def __repr__(self) -> str:
        return f"<Tap {self.filter!r} wants={self.wants}>"


class Taps:
    """The taps of one server; its loop may call."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._streams = Streams("taps", TAPS_MAX)

    def stop(self) -> None:
        """Ends all taps."""
        self._streams.stopping.set()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answers a request with what comes by, until its viewer is gone, or the broker ends."""
        topic, tenant = request.query.get("topic", ""), self._server.state.tenants.get(request.query.get("tenant", ""))
        try:
            check_topic(topic, reserved=True)
            if topic.startswith(INBOX):
                raise InvalidValue("topic", topic, "an inbox belongs to its session")
            if tenant is None:
                raise InvalidValue("tenant", request.query["tenant"], "nobody of it is here")
        except InvalidValue as error:
            return web.json_response({"error": str(error)}, status=400)
        reader = visitor(request)
        if problem := reader.unreadable(tenant.name, topic):
            return reader.refuse(problem)
        return await self._streams.serve(request, lambda response: self._watch(response, reader, tenant, topic))

    async def _watch(self, response: web.StreamResponse, visitor: Visitor, tenant: Tenant, topic: str) -> None:
        router = tenant.router
        tap = Tap(spectator(tenant), topic)
        router.add(tap)
        try:
            known = router.topics.get(topic)
            if known is not None:
                tap.look_back(known.ring.last())
            while not self._streams.stopping.is_set() and visitor.may_read(tenant.name, topic):
                known = router.topics.get(topic)
                seen = tap.take(time.time_ns())
                told = Told(topic, known is not None, 0 if known is None else known.published, seen)
                await self._streams.send(response, msgspec.json.encode(told))
                await self._streams.pause(INTERVAL_S)
        finally:
            tap.end()
            router.remove(tap)

    def __repr__(self) -> str:
        return f"<Taps {self._streams!r}>"


def spectator(tenant: Tenant) -> SessionRecord:
    """A session that nobody has opened, because taps have to belong to one; the broker does not know of it."""
    session = Session(
        hello=None,
        now_ns=0,
        allocate=lambda frame, size: memoryview(bytearray(size)),
        heartbeat_interval_s=HEARTBEAT_INTERVAL_S,
        heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S,
    )
    record = SessionRecord(SessionId(0), session, "dashboard", 0, tenant)
    record.name = "dashboard"
    return record


def _ignore(*_: object) -> None:
    """Nothing is ever lost, sent or held back here."""


def _small(message: Message) -> Seen:
    """What a message that came in one frame holds; of a batch, its last one."""
    content, body, payload = message.content, message.body, message.payload
    sequence = message.sequence + message.count - 1
    if message.flags & Flag.BATCH:
        if len(payload) > BATCH_BYTES_MAX:
            text = f"{message.count} small messages of {len(payload)} bytes"
            return _seen(message, content, MessageBody(), text)
        content, _, body, payload = split_batch(bytes(payload), message.count)[-1]
    decoded = decode_body(body, MessageBody) if body else MessageBody()
    if content == Content.TENSOR and decoded.tensor is not None:
        sampler = Sampler(decoded.tensor)
        sampler.feed(payload)
        return _seen(message, content, decoded, "", sampler.sample(), sequence)
    return _seen(message, content, decoded, text_of(content, payload), None, sequence)


def _sampled(message: Message, body: MessageBody, sampler: Sampler) -> Seen:
    try:
        return _seen(message, message.content, body, "", sampler.sample())
    except BrokerError as error:
        return _seen(message, message.content, body, f"a message that cannot be read: {error}")


def _seen(
    message: Message,
    content: int,
    body: MessageBody,
    text: str,
    tensor: TensorSample | None = None,
    sequence: int | None = None,
) -> Seen:
    headers = list((body.headers or {}).items())[:HEADERS_SHOWN]
    return Seen(
        topic=message.topic,
        sequence=message.sequence if sequence is None else sequence,
        sender=message.sender,
        lane=Lane(message.lane).name.lower(),
        kind=_KINDS.get(content, "unknown"),
        size_bytes=message.size_bytes - len(message.body),
        ago_s=0.0,
        headers={shortened(name): shortened(value) for name, value in headers},
        text=text,
        tensor=tensor,
    )
