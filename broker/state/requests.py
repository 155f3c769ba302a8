"""Requests under way: who was asked, and who has yet to say the last reply.

    PUBLISH, request --> ask      -> the responders that it went to
    PUBLISH, last    --> replied  -> one fewer; of a request for one reply, the others are told to stop
    CANCEL           --> cancel   -> all that are left are told to stop
    a requester's session ends    -> the same, for each of its requests
    a responder's session ends    -> each requester that waits for it is told

A requester numbers its requests; a number of 0 is not followed. What is not followed works all the same, but nobody is
told of its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from broker.ids import SessionId
from broker.limits import REQUESTS_FOLLOWED_MAX
from broker.protocol.bodies import Failure, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.session import Phase
from broker.state.delivery import Subscription
from broker.state.records import SessionRecord
from broker.topics.messages import Message

_REQUEST, _ACKNOWLEDGE = int(Flag.REQUEST), int(Flag.ACKNOWLEDGE)
_NOTHING: Final[dict[int, Request]] = {}
"""What an inbox waits for from which nothing was asked."""
_Key = tuple[Subscription, str, int]
"""A message on its way to a subscription: topic and sequence."""


class Request:
    """One request, with all its retries in one session.

    Attributes:
        number: the requester's number for it.
        reference: by which the requester is answered.
        many: whether more than one reply is wanted.
        asked: the responders that have not said their last reply, each with the message that it was asked by.
    """

    __slots__ = ("asked", "many", "number", "reference", "requester", "topic")

    def __init__(self, requester: SessionRecord, topic: str, number: int, reference: int, *, many: bool) -> None:
        self.requester = requester
        self.topic = topic
        self.number = number
        self.reference = reference
        self.many = many
        self.asked: dict[Subscription, _Key] = {}

    def __repr__(self) -> str:
        return f"<Request {self.number} at {self.topic!r} of {self.requester.name!r} asked={len(self.asked)}>"


class Requests:
    """The requests of all sessions."""

    def __init__(self, flush: Callable[[SessionRecord], None]) -> None:
        self._flush = flush
        self.catch_up: Callable[[str], None] = lambda inbox: None
        """Takes in what the session of an inbox has asked on lines: a reply to it has come first."""
        self._by_inbox: dict[str, dict[int, Request]] = {}
        self._by_responder: dict[SessionId, dict[_Key, Request]] = {}

    def ask(self, session: SessionRecord, frame: Frame, message: Message, responders: list[Subscription]) -> None:
        """A request goes to its responders."""
        many = bool(frame.flags & _ACKNOWLEDGE)
        if many:
            done = Frame(
                Kind.DONE, lane=Lane.CONTROL, target=frame.target, count=len(responders), sequence=message.sequence
            )
            self._send(session, done)
        number = frame.sequence
        if not number or not responders:
            return
        requests = self._of(session)
        request = requests.get(number)
        if request is None:
            if len(requests) >= REQUESTS_FOLLOWED_MAX:
                self._forget(next(iter(requests.values())))
            request = requests[number] = Request(session, message.topic, number, frame.target, many=many)
        request.reference = frame.target
        for subscription in responders:
            self._expect(request, subscription, message)

    def _of(self, session: SessionRecord) -> dict[int, Request]:
        requests = self._by_inbox.get(session.inbox)
        if requests is None:
            # It stays until the session ends: the next request will want it.
            requests = self._by_inbox[session.inbox] = {}
        return requests

    def _expect(self, request: Request, subscription: Subscription, message: Message) -> None:
        """A responder is asked, for the first time or again."""
        if subscription in request.asked:
            self._expect_no_more(request, subscription)
        key = request.asked[subscription] = (subscription, message.topic, message.sequence)
        known = self._by_responder.get(subscription.session.id)
        if known is None:
            known = self._by_responder[subscription.session.id] = {}
        known[key] = request

    def _expect_no_more(self, request: Request, subscription: Subscription) -> None:
        key = request.asked.pop(subscription, None)
        known = self._by_responder.get(subscription.session.id)
        if key is not None and known is not None:
            known.pop(key, None)

    def _forget(self, request: Request) -> None:
        for subscription in list(request.asked):
            self._expect_no_more(request, subscription)
        requests = self._by_inbox.get(request.requester.inbox)
        if requests is not None:
            requests.pop(request.number, None)

    def replied(self, session: SessionRecord, inbox: str, number: int) -> None:
        """A session has said its last reply to a request."""
        request = self._by_inbox.get(inbox, _NOTHING).get(number)
        if request is None:
            self.catch_up(inbox)
            request = self._by_inbox.get(inbox, _NOTHING).get(number)
        if request is None:
            return
        for subscription in request.asked:
            if subscription.session is session:
                self._expect_no_more(request, subscription)
                break
        if not request.many:
            self._stop(request)
        elif not request.asked:
            self._forget(request)

    def cancel(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """CANCEL: the requester wants no more replies."""
        request = self._by_inbox.get(session.inbox, _NOTHING).get(frame.sequence)
        if request is not None:
            self._stop(request)

    def _stop(self, request: Request) -> None:
        """Whoever has been asked and has not said the last reply is told to stop, each session once."""
        if request.asked:
            for responder in {subscription.session: None for subscription in request.asked}:
                cancel = Frame(Kind.CANCEL, lane=Lane.CONTROL, number=request.requester.id, sequence=request.number)
                self._send(responder, cancel)
        self._forget(request)

    def credit(self, session: SessionRecord, frame: Frame) -> None:
        """CREDIT: the requester has taken replies of one responder, which may send as many more."""
        request = self._by_inbox.get(session.inbox, _NOTHING).get(frame.sequence)
        # The responder may have said its last reply meanwhile.
        for subscription in request.asked if request is not None else ():
            responder = subscription.session
            if responder.id == frame.target:
                credit = Frame(
                    Kind.CREDIT, _REQUEST, Lane.CONTROL, number=session.id,
                    count=frame.count, total_bytes=frame.total_bytes, sequence=frame.sequence,
                )  # fmt: skip
                self._send(responder, credit)
                return

    def moved(self, message: Message, old: Subscription, new: Subscription | None) -> None:
        """A message waited for a subscription that has ended, and goes to another one or to nobody."""
        asked = self._by_responder.get(old.session.id)
        request = None if asked is None else asked.get((old, message.topic, message.sequence))
        if request is None:
            return
        self._expect_no_more(request, old)
        if new is not None and new.responder:
            self._expect(request, new, message)
        else:
            self._tell_lost(request, f"{old.session.name!r} does not respond any more")

    def disconnect(self, session: SessionRecord) -> None:
        """A session is over: nobody replies for it, and nobody reads what others reply to it."""
        requests: Iterable[Request] = list(self._by_inbox.get(session.inbox, _NOTHING).values())
        for request in requests:
            self._stop(request)
        self._by_inbox.pop(session.inbox, None)
        asked = self._by_responder.pop(session.id, {})
        for request in dict.fromkeys(asked.values()):
            for subscription in [known for known in request.asked if known.session is session]:
                del request.asked[subscription]
                self._tell_lost(request, f"the session of {session.name!r} has ended")

    def _tell_lost(self, request: Request, reason: str) -> None:
        """Tells a requester of one responder that it need not wait for; `count` says how many are left."""
        body = encode_body(Failure(Code.RESPONDER_LOST, reason))
        left = len(request.asked)
        self._send(
            request.requester, Frame(Kind.ERROR, lane=Lane.CONTROL, target=request.reference, count=left, body=body)
        )
        if not left:
            self._forget(request)

    def _send(self, session: SessionRecord, frame: Frame) -> None:
        # Not to one that is just ending: it may have asked itself.
        if session.session.phase is Phase.OPEN:
            session.session.put(frame)
            self._flush(session)

    @property
    def busy(self) -> bool:
        """Whether anything is remembered at all."""
        return any(self._by_inbox.values()) or any(self._by_responder.values())

    def __len__(self) -> int:
        """Requests that are followed."""
        return sum(len(requests) for requests in self._by_inbox.values())
