"""A message as the application sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from enum import Enum
from typing import Final, NamedTuple

import msgspec

from broker.buffers import Buffer
from broker.errors import InvalidValue
from broker.protocol.bodies import MessageBody, decode_body
from broker.protocol.frames import Content, Lane
from broker.protocol.values import decode_value

NO_BODY: Final = MessageBody()
_UNREAD: Final = object()
_BYTES: Final = int(Content.BYTES)
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


class Deferred(Enum):
    """What a responder's function returns when it has kept the request and will call its `reply` later."""

    DEFERRED = "deferred"


DEFERRED: Final = Deferred.DEFERRED


class Publication(NamedTuple):
    """A topic and who publishes to it."""

    topic: str
    sender: str


class Message(msgspec.Struct, eq=False):
    """One message of a topic.

    `value` is decoded when it is first asked for; an array's memory is the message's own and may be written to.

    Attributes:
        sequence: in its topic, from 1 upwards; a gap is a message that this subscription did not get.
        published_ns: the publisher's wall clock, in nanoseconds since the epoch.
    """

    _publication: Publication
    sequence: int
    published_ns: int
    _lane: int
    _content: int
    _body: bytes
    _payload: Buffer
    _reply: Reply | None
    _decoded: MessageBody | None = None
    _value: object = _UNREAD

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
        """
        if self._value is _UNREAD:
            if self._content == _BYTES and type(self._payload) is bytes:
                return self._payload
            tensor = self.body.tensor if self._body else None
            self._value = decode_value(self._content, tensor, self._payload)
        return self._value

    @property
    def headers(self) -> Mapping[str, str]:
        """What the publisher gave as headers."""
        return self.body.headers or {}

    @property
    def body(self) -> MessageBody:
        """The decoded body of the message's frame."""
        if self._decoded is None:
            self._decoded = decode_body(self._body, MessageBody) if self._body else NO_BODY
        return self._decoded

    @property
    def size_bytes(self) -> int:
        """Bytes of body and payload."""
        return len(self._body) + len(self._payload)

    @property
    def payload(self) -> Buffer:
        """The payload as it travelled."""
        return self._payload

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

    def __repr__(self) -> str:
        return f"<Message {self.topic} sequence={self.sequence} from {self.sender!r} {self.size_bytes} bytes>"
