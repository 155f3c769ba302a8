"""Topics and their publishers get a number on each session that receives their messages (docs/wire.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.buffers import Buffer
from broker.limits import TOPICS_PER_SESSION_MAX
from broker.protocol.bodies import Topic, encode_body
from broker.protocol.frames import Frame, Kind, encode
from broker.topics.messages import Message

if TYPE_CHECKING:
    from broker.state.records import SessionRecord


def announced(session: SessionRecord, topic: str, sender: str) -> int:
    """The number of a topic and its publisher on this session, which is told of it by a frame if it has none."""
    number = session.announced.get((topic, sender))
    if number is None:
        number, frame = _announcement(session, topic, sender)
        session.session.put(frame)
    return number


def announce(session: SessionRecord, message: Message, buffers: list[Buffer]) -> tuple[int, int]:
    """Gives a number to a topic and its publisher on this session, ahead of their first message.

    Returns:
        The number, and the bytes of the frame that tells of it.
    """
    number, frame = _announcement(session, message.topic, message.sender)
    frame.lane = message.lane
    return number, encode(frame, buffers)


def _announcement(session: SessionRecord, topic: str, sender: str) -> tuple[int, Frame]:
    if len(session.announced) >= TOPICS_PER_SESSION_MAX:
        # Numbers are used again from the start; the receiver takes the newest meaning.
        session.announced.clear()
        session.renumbered += 1
    number = len(session.announced) + 1
    session.announced[topic, sender] = number
    return number, Frame(Kind.TOPIC, number=number, body=encode_body(Topic(topic, sender)))
