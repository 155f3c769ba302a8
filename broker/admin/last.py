"""What a session has published last: found among what topics retain when somebody asks, so it costs nothing before."""

from __future__ import annotations

from typing import Final

from broker.admin import samples as admin_samples
from broker.admin.shapes import LastMessage
from broker.errors import ProtocolError
from broker.protocol.batches import split_batch
from broker.protocol.frames import Content, Flag
from broker.state.records import SessionRecord
from broker.topics.messages import Message

TOPICS_SEEN: Final = 16
"""Topics of a session that are looked at, those that it began to publish to last."""
TEXT_MAX: Final = 100
"""Characters that are shown of a value."""
_SHOWN_BYTES_MAX: Final = 4096
"""Longer values are told by their length."""
_BATCH_BYTES_MAX: Final = 8192
"""Longer batches are not opened."""
_UNREADABLE: Final = "a value that cannot be read"
_LARGE: Final[dict[int, str]] = {Content.TENSOR: "a tensor", Content.STRUCTURE: "arrays"}


def last_message(record: SessionRecord, wall_ns: int) -> LastMessage | None:
    """What a session has published last, as far as it is the last value of its topic."""
    newest: Message | None = None
    for publisher in [*record.publishers.values()][-TOPICS_SEEN:]:
        for message in publisher.topic.ring.last():
            ours = message.sender == record.name and not publisher.topic.name.startswith("$")
            if ours and (newest is None or message.time_ns > newest.time_ns):
                newest = message
    if newest is None:
        return None
    return LastMessage(newest.topic, line_of(newest), round(max(0, wall_ns - newest.time_ns) / 1e9, 6))


def line_of(message: Message) -> str:
    """A message's value in one short line."""
    content, payload = message.content, message.payload
    if message.flags & Flag.BATCH:
        if len(payload) > _BATCH_BYTES_MAX:
            return f"{message.count} small messages of {len(payload)} bytes"
        try:
            content, _, _, payload = split_batch(bytes(payload), message.count)[-1]
        except (ProtocolError, IndexError):
            return _UNREADABLE
    if message.stream is not None or len(payload) > _SHOWN_BYTES_MAX:
        return f"{_LARGE.get(content, 'a message')} of {max(len(payload), message.size_bytes)} bytes"
    text = admin_samples.text_of(content, payload)
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= TEXT_MAX else line[: TEXT_MAX - 3] + "..."
