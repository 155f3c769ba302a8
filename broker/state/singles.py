"""The messages of a batch, one by one."""

from __future__ import annotations

from broker.errors import ProtocolError
from broker.protocol.batches import split_batch
from broker.protocol.frames import Flag
from broker.topics.messages import Message


def opened(message: Message) -> list[Message]:
    """The messages of a batch that was accepted before; empty when it is malformed, which is not the asker's fault."""
    try:
        return singles(message)
    except ProtocolError:
        return []


def singles(message: Message) -> list[Message]:
    """The messages of a batch, opened once for all who need them one by one."""
    if not message.flags & Flag.BATCH:
        return [message]
    if message.singles is None:
        flags = message.flags & ~Flag.BATCH
        message.singles = [
            Message(
                message.topic, message.sender, message.sequence + offset, 1, message.lane, flags,
                content, time_ns, body, payload, len(body) + len(payload),
            )
            for offset, (content, time_ns, body, payload) in enumerate(
                split_batch(bytes(message.payload), message.count)
            )
        ]  # fmt: skip
    return message.singles
