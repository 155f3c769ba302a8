"""What a message looks like in the dead-letter topic: as it was published, with the story of its end in its headers."""

from __future__ import annotations

from broker.errors import ProtocolError
from broker.limits import FRAME_BODY_BYTES_MAX
from broker.protocol.bodies import MessageBody, decode_body, encode_body
from broker.protocol.frames import Flag
from broker.topics.messages import Message
from broker.topics.work import Job

_CHUNKED = int(Flag.CHUNKED)


def dead_letter(message: Message, topic: str, sequence: int, job: Job) -> Message:
    """A copy of a dead job's message for another topic, with the same sender, time and payload.

    Args:
        message: as it was published.
        topic: the dead-letter topic.
        sequence: the next one there.
        job: what became of it.
    """
    body = _told(message, job)
    size_bytes = message.size_bytes - len(message.body) + len(body)
    return Message(
        topic, message.sender, sequence, 1, message.lane, message.flags & _CHUNKED, message.content, message.time_ns,
        body, message.payload, size_bytes, message.stream, message.first,
    )  # fmt: skip


def _told(message: Message, job: Job) -> bytes:
    try:
        body = decode_body(message.body, MessageBody) if message.body else MessageBody()
    except ProtocolError:
        # Its publisher's fault, which a reader of the dead letters may want to see as it is.
        return message.body
    body.headers = {
        **(body.headers or {}),
        "dead-letter-topic": message.topic,
        "dead-letter-sequence": str(message.sequence),
        "dead-letter-reason": job.reason,
        "dead-letter-deliveries": str(job.deliveries),
    }
    encoded = encode_body(body)
    return encoded if len(encoded) <= FRAME_BODY_BYTES_MAX else message.body
