"""A message that is ready to be published, also as a request or as a reply. Pure."""

from __future__ import annotations

from broker.buffers import Payload
from broker.errors import InvalidValue
from broker.protocol.bodies import MessageBody, encode_body
from broker.protocol.tensors import TensorMeta
from broker.protocol.values import Encoded, encode_value
from broker.topics.names import check_topic
from clients.publishing.blocks import Place
from clients.publishing.outgoing_topic import LANES


class Outbound:
    """A message that is ready to be published.

    Attributes:
        lane: None takes the topic's.
        request: of a request and its replies, the request's number.
        last: of a reply: no more follow.
        error: of a reply: the responder's function raised.
        end: of a last reply: it has no value.
        value: the array that the payload was made of, if it was one.
        place: where the payload lies in shared memory, as well or instead.
        replies: whether it is a reply, and names the session that it comes from.
    """

    __slots__ = (
        "content", "end", "error", "flags", "headers", "lane", "last", "payload", "place", "priority", "reference",
        "replies", "reply_to", "request", "tensor", "topic", "urgent", "value",
    )  # fmt: skip

    def __init__(
        self,
        topic: str,
        lane: int | None,
        content: int,
        tensor: TensorMeta | None,
        payload: Payload,
        headers: dict[str, str] | None = None,
        *,
        last: bool = False,
        value: object = None,
    ) -> None:
        self.topic = topic
        self.lane = lane
        self.content = content
        self.tensor = tensor
        self.payload = payload
        self.headers = headers
        self.urgent = False
        self.priority = 0
        self.flags = 0
        self.reference = 0
        self.reply_to = ""
        self.request = 0
        self.last = last
        self.error = ""
        self.end = False
        self.value = value
        self.place: Place | None = None
        self.replies = False

    @classmethod
    def of(cls, topic: str, value: object, lane: str | None, encoded: Encoded | None = None) -> Outbound:
        """Encodes a value, unless its caller has.

        Raises:
            InvalidValue: the topic is no text, or the value or the lane cannot be used.
        """
        if type(topic) is not str:
            check_topic(topic, reserved=True)
        number = LANES.get(lane) if isinstance(lane, str) else None
        if number is None and lane is not None:
            raise InvalidValue("lane", lane, f"is none of {', '.join(LANES)}")
        content, tensor, payload = encoded or encode_value(value)
        return cls(topic, number, content, tensor, payload, value=None if tensor is None else value)

    def body(self, session: int = 0) -> bytes:
        """The body of the message's frame, on a session."""
        responder = session if self.replies else 0
        return encode_body(
            MessageBody(
                self.headers, self.tensor, self.reply_to, self.request, self.last, self.error, responder, self.end
            )
        )
