"""What a subscription has received, so that it can go on behind it after the connection was lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

import msgspec

from broker.protocol.bodies import Resume, Subscribe, encode_body
from broker.protocol.frames import LANES, Frame, Kind, Lane

log = logging.getLogger(__name__)

SEEN_TOPICS_MAX: Final = 131_072
"""Topics of one lane that a subscription keeps in mind; with more it comes back without what it has missed."""
_TOPICS_PER_FRAME: Final = 400


class Seen:
    """The last sequence of each topic in each lane, which is all that the order of a lane takes.

    Attributes:
        moment: in the broker's count, when the subscription first began, 0 when that was on another broker; None as
            long as it has not, or when it is one that does not go on: a member of a queue group, whose messages have
            gone to others, or a responder, whose requesters ask again.
    """

    __slots__ = ("_goes_on", "_lane", "_lanes", "_sequence", "_topic", "_wishes", "moment")

    def __init__(self, wishes: Subscribe) -> None:
        self._wishes = wishes
        self._goes_on = not wishes.queue_group and not wishes.responder
        self._lanes: tuple[dict[str, int], ...] = tuple({} for _ in range(LANES))
        self.moment: int | None = None
        # Of the last message, of which most following ones have the topic and the lane: not yet among the others.
        self._topic: str | None = None
        self._lane = 0
        self._sequence = 0

    @property
    def lanes(self) -> tuple[dict[str, int], ...]:
        """By lane, the last sequence of each topic."""
        self._note()
        return self._lanes

    def saw(self, topic: str, lane: int, sequence: int) -> None:
        """A topic's messages up to this one need not come again in another session."""
        if topic is not self._topic or lane != self._lane:
            self._note()
            self._topic, self._lane = topic, lane
        self._sequence = sequence

    def _note(self) -> None:
        """The last message's topic joins the others."""
        if self._topic is not None:
            seen = self._lanes[self._lane]
            if self._topic not in seen:
                self._first_of(self._lane)
            seen[self._topic] = self._sequence
            self._topic = None

    def began(self, moment: int) -> None:
        """The broker has begun to send; what it sent before that, in an earlier session, stays seen.

        The first moment holds for all later sessions: what was on its way when one of them ended may be a topic's first
        message, of which nothing was seen.
        """
        if self._goes_on and self.moment is None:
            self.moment = moment

    def _first_of(self, lane: int) -> None:
        """Another topic is about to be noted in a lane; where that leads nowhere, it stays the only one."""
        if self._goes_on and len(self._lanes[lane]) >= SEEN_TOPICS_MAX:
            log.warning("subscription.does_not_resume filter=%r topics=%d", self._wishes.filter, len(self._lanes[lane]))
            self._goes_on, self.moment = False, None
        if not self._goes_on:
            self._lanes[lane].clear()

    def other_broker(self) -> None:
        """What was seen came from another broker: all that this one has is new."""
        for seen in self.lanes:
            seen.clear()
        if self.moment is not None:
            self.moment = 0

    def frames(self, number: int, reference: int, *, again: bool) -> Iterator[Frame]:
        """What asks for the subscription.

        Args:
            number: the subscription's.
            reference: by which the answer names the question.
            again: whether it was asked for before, on another session.
        """
        wishes = self._wishes
        if self.moment is not None:
            wishes = msgspec.structs.replace(wishes, resume=self.moment)
            topics = list(dict.fromkeys(topic for seen in self.lanes for topic in seen))
            for start in range(0, len(topics), _TOPICS_PER_FRAME):
                body = Resume({topic: self._of(topic) for topic in topics[start : start + _TOPICS_PER_FRAME]})
                yield Frame(Kind.RESUME, lane=Lane.CONTROL, number=number, body=encode_body(body))
        elif again and not self._goes_on:
            # A broker replays for its first session only.
            wishes = msgspec.structs.replace(wishes, replay=None)
        yield Frame(Kind.SUBSCRIBE, lane=Lane.CONTROL, number=number, target=reference, body=encode_body(wishes))

    def _of(self, topic: str) -> tuple[int, int, int]:
        control, default, bulk = (seen.get(topic, 0) for seen in self.lanes)
        return control, default, bulk

    def __repr__(self) -> str:
        return f"<Seen moment={self.moment} topics={[len(seen) for seen in self.lanes]}>"
