"""Checks of what callers ask for, the same for both kinds of client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker.errors import InvalidValue, LimitExceeded
from broker.limits import PRIORITY_MAX, QUEUE_BYTES_MAX, QUEUE_BYTES_MIN, QUEUE_MESSAGES_MAX, WORLD_SIZE_MAX
from broker.protocol.bodies import Declare, Subscribe
from broker.protocol.frames import Flag
from broker.protocol.traces import is_recorded
from broker.protocol.values import Encoded
from broker.topics.names import check_filter
from broker.topics.policy import OVERFLOWS, check_declaration
from clients.connection import environment
from clients.connection.checks import check_name, text_bytes, whole_number
from clients.publishing.outbound import Outbound
from clients.reading.messages import Answer, Message

_WHOLE_NUMBERS: Final = (
    "ring_messages", "ring_bytes", "batch_bytes", "batch_window_us", "max_message_bytes", "max_deliveries",
)  # fmt: skip
RESERVED_ACKS: Final = ("replicated", "durable")
"""Their meaning is fixed, and nothing may pass for them that promises less."""
PUBLISH_TIMEOUT_S: Final = 30.0
HEADERS_BYTES_MAX: Final = 32 * 1024
"""Headers are small by nature; they travel in the frame's body with every message."""


def subscribe_wishes(
    topic_filter: str,
    overflow: str | None,
    queue_messages: int,
    queue_bytes: int,
    queue_group: str | None,
    replay: str | int | None,
    *,
    max_lag: int | None = None,
    responder: bool = False,
) -> Subscribe:
    """The wishes of a subscription.

    Raises:
        InvalidValue: one of them cannot be met.
    """
    check_filter(topic_filter)
    if overflow is not None and overflow not in OVERFLOWS:
        raise InvalidValue("overflow", overflow, f"is none of {', '.join(OVERFLOWS)}")
    queue_messages = whole_number("queue_messages", queue_messages)
    queue_bytes = whole_number("queue_bytes", queue_bytes)
    if isinstance(replay, bool):
        raise InvalidValue("replay", replay, "is neither 'latest', 'all' nor a sequence")
    if not isinstance(replay, str) and replay is not None:
        replay = whole_number("replay", replay)
    if not 1 <= queue_messages <= QUEUE_MESSAGES_MAX:
        raise InvalidValue("queue_messages", queue_messages, f"must be from 1 to {QUEUE_MESSAGES_MAX}")
    if not QUEUE_BYTES_MIN <= queue_bytes <= QUEUE_BYTES_MAX:
        raise InvalidValue("queue_bytes", queue_bytes, f"must be from {QUEUE_BYTES_MIN} to {QUEUE_BYTES_MAX}")
    if queue_group is not None:
        check_name("queue_group", queue_group)
        if not queue_group:
            raise InvalidValue("queue_group", queue_group, "must not be empty; None is for no group")
    if not (replay in (None, "latest", "all") or (isinstance(replay, int) and 0 <= replay < 1 << 63)):
        raise InvalidValue("replay", replay, "is neither 'latest', 'all' nor a sequence")
    if max_lag is not None:
        if isinstance(max_lag, bool):
            raise InvalidValue("max_lag", max_lag, "is not a number of sequences")
        max_lag = whole_number("max_lag", max_lag)
        if not 0 <= max_lag < 1 << 63:
            raise InvalidValue("max_lag", max_lag, "must be 0 or more sequences; None is for no bound")
        if overflow not in (None, "drop_oldest") or queue_group is not None:
            raise InvalidValue(
                "max_lag", max_lag, "drops what is too old: it takes no other overflow and no queue_group"
            )
        overflow = "drop_oldest"
    return Subscribe(
        topic_filter,
        overflow,
        1 if overflow == "latest" else queue_messages,
        queue_bytes,
        queue_group or "",
        replay,
        responder,
        max_lag=max_lag,
    )


def declaration(wishes: Declare) -> Declare:
    """The wishes for a policy, with whole numbers of any kind, such as numpy's, as Python's own.

    Raises:
        InvalidValue: the filter or a setting cannot be used.
    """
    for name in _WHOLE_NUMBERS:
        value = getattr(wishes, name)
        if value is not None and not isinstance(value, bool):
            setattr(wishes, name, whole_number(name, value))
    check_declaration(wishes.filter, wishes.settings())
    return wishes


def outbound(
    topic: str,
    value: object,
    headers: Mapping[str, str] | None,
    lane: str | None,
    ack: str | None,
    *,
    urgent: bool,
    priority: int = 0,
    encoded: Encoded | None = None,
) -> tuple[Outbound, bool]:
    """A message to publish, and whether it is to be acknowledged. `encoded` is the value, if it has been encoded.

    Raises:
        InvalidValue: the value or an option cannot be used.
    """
    if ack is not None and ack in RESERVED_ACKS:
        raise InvalidValue("ack", ack, "is not offered yet: brokers keep messages in memory, so 'accepted' is the most")
    if ack not in (None, "accepted"):
        raise InvalidValue("ack", ack, "is neither None nor 'accepted'")
    message = Outbound.of(topic, value, lane, encoded)
    if headers is not None:
        message.headers = _checked(headers)
        if is_recorded(message.headers):
            message.flags = Flag.TRACED
    message.urgent = urgent
    if type(priority) is not int or priority:
        message.priority = whole_number("priority", priority)
        if not 0 <= message.priority <= PRIORITY_MAX:
            raise InvalidValue("priority", priority, f"must be from 0 to {PRIORITY_MAX}; the highest goes first")
    return message, ack is not None


def request_message(
    topic: str,
    value: object,
    headers: Mapping[str, str] | None,
    lane: str,
    retries: int,
    *,
    encoded: Encoded | None = None,
) -> Outbound:
    """A request to publish. `encoded` is the value, if it has been encoded.

    Raises:
        InvalidValue: the value or an option cannot be used.
    """
    if whole_number("retries", retries) < 0:
        raise InvalidValue("retries", retries, "must be 0 or more")
    message, _ = outbound(topic, value, headers, lane, None, urgent=True, encoded=encoded)
    return message


def reply_message(request: Message, answer: Answer, encoded: Encoded | None) -> Outbound:
    """The reply to a request. `encoded` is the answer's value, if it has been encoded.

    Raises:
        InvalidValue: the value or a header cannot be sent.
    """
    message, _ = outbound(
        request.body.reply_to, answer.value, answer.headers, request.lane, None, urgent=True, encoded=encoded
    )
    message.request, message.last, message.error = request.body.request, answer.last, answer.error
    message.end = answer.end
    message.flags = Flag.LAST if answer.last else 0
    return message


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise InvalidValue("headers", headers, "must be a dict of texts")
    for name, text in headers.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise InvalidValue("headers", {name: text}, "names and values are texts")
    size = sum(text_bytes("headers", name) + text_bytes("headers", text) for name, text in headers.items())
    if size > HEADERS_BYTES_MAX:
        raise LimitExceeded("headers_bytes_max", size, HEADERS_BYTES_MAX, "put it into the value")
    return dict(headers)


def group_place(name: str, world_size: int | None, rank: int | None) -> tuple[int, int | None]:
    """The world size and rank to ask for, with the environment's where the caller gave none.

    Raises:
        InvalidValue: one of them cannot be.
    """
    check_name("group name", name)
    if not name:
        raise InvalidValue("group name", name, "must not be empty")
    size = environment.world_size() if world_size is None else whole_number("world_size", world_size)
    if size is None:
        raise InvalidValue("world_size", None, "is needed: pass it, or set WORLD_SIZE")
    if not 1 <= size <= WORLD_SIZE_MAX:
        raise InvalidValue("world_size", size, f"must be from 1 to {WORLD_SIZE_MAX}")
    wanted = environment.rank() if rank is None else whole_number("rank", rank)
    if wanted is not None and not 0 <= wanted < size:
        raise InvalidValue("rank", wanted, f"must be from 0 to {size - 1}, the world size less one")
    return size, wanted
