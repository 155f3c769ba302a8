"""What a client asks of responders: the requests that wait for replies, and what ends them. Pure.

A request has a number that no other request has, in any client: the client's own random number and the reference by
which the broker answers. So a responder knows a repeated request again, whatever connections were lost meanwhile.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from typing import Final

from broker.errors import BrokerError, LimitExceeded, NoResponders, ProtocolError, RequestFailed, ResponderLost
from broker.limits import INBOX_MESSAGES, REPLIES_AHEAD, REPLIES_AHEAD_BYTES, REPLIES_WAITING_MAX
from broker.protocol.bodies import Failure
from broker.protocol.codes import error_for
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.session import Session
from clients.connection.signals import Signal
from clients.reading.messages import Message

log = logging.getLogger(__name__)

_REFERENCES: Final = 1 << 32


class PendingRequest(Signal):
    """A request that waits for replies; ready while it has one, has failed, or is over.

    Attributes:
        many: whether the replies of all responders are wanted, or the first one only.
        asked: how many responders have the request; None until the broker has said so. Only with `many`.
        ended: how many of them have said their last reply or are lost.
        error: why there will be no more replies.
        failures: of single responders, while others may still reply.
        sent_on: the session on which it was asked last.
        lane: in which it was asked.
    """

    __slots__ = (
        "_owed", "asked", "ended", "error", "failures", "lane", "many", "number", "replies", "sent_on", "topic",
    )  # fmt: skip

    def __init__(self, topic: str, number: int, *, many: bool) -> None:
        # As Signal begins, without the call.
        self.ready, self.callbacks = False, []
        self.topic = topic
        self.number = number
        self.many = many
        self.lane = int(Lane.DEFAULT)
        self.replies: deque[Message] = deque()
        self.sent_on: Session | None = None
        self._owed: dict[int, tuple[int, int]] = {}
        self.again()

    def again(self) -> None:
        """It will be asked once more."""
        self.asked: int | None = None
        self.ended = 0
        self.error: BrokerError | None = None
        self.failures: list[BrokerError] = []
        self._look()

    @property
    def settled(self) -> bool:
        """Whether no responder works on it any more, as far as one can know here."""
        return self._settled()

    def _settled(self) -> bool:
        if not self.many:
            return self.ended > 0 or isinstance(self.error, NoResponders)
        return isinstance(self.error, NoResponders) or (self.asked is not None and self.ended >= self.asked)

    def fail(self, error: BrokerError) -> None:
        """There will be no more replies."""
        self.error = self.error or error
        self.set()

    def replied(self, message: Message) -> None:
        """A reply has come."""
        body, replies = message.body, self.replies
        # Who merely reads the topic may reply too, and is not among those that were asked.
        if body.last and (body.responder or not self.many):
            self.ended += 1
        if body.error:
            self._failed(RequestFailed(self.topic, body.error))
        elif not body.end:
            replies.append(message)
        elif not self.many and not replies:
            self.fail(RequestFailed(self.topic, "it has ended without a reply"))
        if len(replies) > REPLIES_WAITING_MAX:
            waiting = len(replies)
            self.fail(LimitExceeded("replies_waiting_max", waiting, REPLIES_WAITING_MAX, "take replies as they come"))
        self._look()

    def lost(self, error: ResponderLost, left: int) -> None:
        """A responder is gone; so many are left."""
        if self.many:
            self.ended += 1
            self.failures.append(error)
        elif not left:
            self.fail(error)
        self._look()

    def told(self, asked: int) -> None:
        """The broker has said how many responders were asked."""
        self.asked = asked
        self._look()

    def _failed(self, error: BrokerError) -> None:
        if self.many:
            self.failures.append(error)
        else:
            self.fail(error)

    def _look(self) -> None:
        if not self.replies and self.error is None and not self._settled():
            self.ready = False
        elif self.callbacks:
            self.set()
        else:
            self.ready = True

    def take(self) -> Message | None:
        """The next reply; None when all have been taken.

        Raises:
            RequestFailed, ResponderLost: a responder has failed, and the others have said all that they had to say.
            BrokerError: the request has failed.
        """
        if self.replies:
            message = self.replies.popleft()
            self._look()
            return message
        if self.error is not None:
            raise self.error
        if self.failures:
            raise self.failures[0]
        return None

    def credit(self, message: Message) -> Frame | None:
        """The CREDIT that is due, if one is, now that a reply was taken."""
        responder = message.body.responder
        if message.body.last or not responder:
            return None
        messages, size_bytes = self._owed.get(responder, (0, 0))
        messages, size_bytes = messages + 1, size_bytes + len(message.payload)
        if messages < REPLIES_AHEAD // 2 and size_bytes < REPLIES_AHEAD_BYTES // 2:
            self._owed[responder] = messages, size_bytes
            return None
        self._owed[responder] = 0, 0
        return Frame(
            Kind.CREDIT, Flag.REQUEST, Lane.CONTROL,
            target=responder, count=messages, total_bytes=size_bytes, sequence=self.number,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<PendingRequest {self.number} at {self.topic!r} replies={len(self.replies)} ended={self.ended}>"


class Requests:
    """The requests of one client that wait for replies.

    Attributes:
        abandoned: requests that were dropped by whoever could not take the client's lock; `end_abandoned` ends them.
    """

    def __init__(self) -> None:
        self._base = secrets.randbits(31) * _REFERENCES
        self._waiting: dict[int, PendingRequest] = {}
        self.abandoned: deque[PendingRequest] = deque()

    def new(self, topic: str, reference: int, *, many: bool) -> PendingRequest:
        """A request under a new reference; `forget` when nobody waits for replies any more."""
        request = PendingRequest(topic, self._base + reference, many=many)
        self._waiting[request.number] = request
        return request

    def forget(self, request: PendingRequest, session: Session | None) -> bool:
        """Later replies are dropped; whoever still works on it is told, by way of the broker. Says whether it is."""
        known = self._waiting.pop(request.number, None)
        if known is None or session is None or request.sent_on is not session or request._settled():
            return False
        # In the lane of the request, so that it does not pass it.
        session.put(Frame(Kind.CANCEL, lane=request.lane, sequence=request.number))
        return True

    def end_abandoned(self, session: Session | None) -> None:
        """Forgets what was abandoned."""
        while self.abandoned:
            self.forget(self.abandoned.popleft(), session)

    def replied(self, message: Message) -> None:
        """A message has come to the inbox."""
        try:
            number = message.body.request
        except ProtocolError:
            # Its sender is at fault, and this session need not end for that.
            log.exception("reply.unreadable sender=%r", message.sender)
            return
        request = self._waiting.get(number)
        # A reply to a request that has been given up, or a second one after a retry.
        if request is not None:
            request.replied(message)

    def reply_aborted(self, number: int, reason: str) -> None:
        """A large reply will not be completed."""
        request = self._waiting.get(number)
        if request is not None:
            request.ended += 1
            request._failed(RequestFailed(request.topic, f"its reply was broken off: {reason}"))
            request._look()

    def told(self, frame: Frame) -> None:
        """DONE: a request is with so many responders."""
        request = self._waiting.get(self._base + frame.target)
        if request is not None:
            request.told(frame.count)

    def refused(self, frame: Frame, failure: Failure) -> None:
        """ERROR: nobody responds, or a responder is lost."""
        request = self._waiting.get(self._base + frame.target)
        if request is None:
            return
        error = error_for(failure, request.topic)
        if isinstance(error, ResponderLost):
            request.lost(error, frame.count)
        else:
            request.fail(error)

    def dropped(self, total: int) -> None:
        """DROPPED: replies were lost, and nobody can say to which requests."""
        error = LimitExceeded("inbox_messages", INBOX_MESSAGES + total, INBOX_MESSAGES, "replies were dropped")
        for request in list(self._waiting.values()):
            request.fail(error)

    def disconnected(self, error: BrokerError) -> None:
        """The connection is gone."""
        for request in list(self._waiting.values()):
            request.fail(error)
