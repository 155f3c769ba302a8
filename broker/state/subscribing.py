"""How a session's subscriptions begin and end in the broker."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from broker.errors import InvalidValue, LimitExceeded, PermissionDenied
from broker.ids import SubscriptionNumber
from broker.limits import NAME_BYTES_MAX, QUEUE_BYTES_MAX, QUEUE_BYTES_MIN, QUEUE_MESSAGES_MAX
from broker.limits_devices import DEVICE_NAME_BYTES_MAX, DEVICES_NAMED_MAX
from broker.protocol.bodies import Failure, Resume, Subscribe, Subscribed, decode_body, encode_body
from broker.protocol.codes import Code, failure_of
from broker.protocol.frames import Frame, Kind, Lane
from broker.security.roles import Verb
from broker.state.authority import Authority
from broker.state.delivery import Subscription
from broker.state.enlisting import check_group, enlist
from broker.state.pressure import Pressure
from broker.state.publishing import Publishing
from broker.state.records import SessionRecord
from broker.state.replay import replay, resume
from broker.state.revoking import restrict
from broker.state.singles import opened
from broker.state.topics import INBOX, Router
from broker.topics.names import check_filter
from broker.topics.policy import OVERFLOWS, Overflow
from broker.topics.queues import Queue


class Subscribing:
    """What SUBSCRIBE, RESUME and UNSUBSCRIBE ask for."""

    def __init__(
        self,
        router: Router,
        publishing: Publishing,
        pressure: Pressure,
        authority: Authority,
        check_room: Callable[[], None],
        subscriptions_max: int,
        flush: Callable[[SessionRecord], None],
        refuse: Callable[[SessionRecord, int, Failure], None],
    ) -> None:
        """Args:
        router: where subscriptions belong.
        publishing: whom they hold back.
        pressure: told of what they lose.
        authority: says who may subscribe to what.
        check_room: raises LimitExceeded if there may be no other subscription.
        subscriptions_max: of one session.
        flush: called with a session that has something to send.
        refuse: answers a session's request, by its reference, with a failure.
        """
        self._router = router
        self._publishing = publishing
        self._authority = authority
        self._check_room = check_room
        self._subscriptions_max = subscriptions_max
        self._flush = flush
        self._answer_error = refuse
        self._make_subscription = partial(Subscription, flush=flush, unblock=publishing.unblock, lost=pressure.lost)

    def subscribe(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """SUBSCRIBE: DONE or ERROR answers it, and what the topics have kept comes behind."""
        wishes = decode_body(frame.body, Subscribe)
        undecided = wishes.overflow is None
        try:
            self._check(record, frame.number, wishes)
            if undecided:
                wishes.overflow = self._router.policies.of_filter(wishes.filter).overflow
            subscription = self.add(record, SubscriptionNumber(frame.number), wishes)
        except _Problem as error:
            self._refuse(record, frame, Failure(Code.INVALID, str(error)))
            return
        except (InvalidValue, LimitExceeded, PermissionDenied) as error:
            self._refuse(record, frame, failure_of(error))
            return
        outcome = encode_body(Subscribed(subscription.queue.overflow.value)) if undecided else b""
        moment = self._router.begin()
        record.session.put(
            Frame(
                Kind.DONE, lane=Lane.CONTROL,
                number=frame.number, target=frame.target, sequence=moment, body=outcome,
            )
        )  # fmt: skip
        if wishes.queue_group:
            enlist(self._router, subscription, wishes.replay)
        if wishes.resume is not None:
            number, seen = record.resuming
            resume(self._router, subscription, wishes.resume, wishes.replay, seen if number == frame.number else {})
        elif wishes.replay is not None:
            replay(self._router, subscription, wishes.replay)
        record.resuming = (0, {})
        self._flush(record)

    def _check(self, record: SessionRecord, number: int, wishes: Subscribe) -> None:
        """Refuses what cannot be, or must not.

        Raises:
            InvalidValue: the filter is malformed.
            _Problem: another wish is.
            PermissionDenied: the session may not.
            LimitExceeded: there are too many subscriptions, or queue groups.
        """
        if wishes.filter.startswith(INBOX):
            raise PermissionDenied("an inbox belongs to its session")
        if number in record.subscriptions:
            raise _Problem(f"subscription number {number} is in use")
        if problem := _problem_with(wishes):
            raise _Problem(problem)
        check_filter(wishes.filter)
        self._authority.authorize(record, verb_of(responder=wishes.responder), wishes.filter)
        if wishes.queue_group:
            # Its members take messages away from one another.
            self._authority.authorize(record, Verb.JOIN, wishes.queue_group)
        if len(record.subscriptions) > self._subscriptions_max:
            limit = "subscriptions_per_session_max"
            raise LimitExceeded(limit, len(record.subscriptions), self._subscriptions_max)
        self._check_room()
        if wishes.queue_group:
            check_group(self._router, wishes.queue_group, wishes.filter)

    def _refuse(self, record: SessionRecord, frame: Frame, failure: Failure) -> None:
        if frame.target:
            self._answer_error(record, frame.target, failure)
        else:
            # It is one that was there in an earlier session, and for whose end nobody waits.
            self.tell_ended(record, frame.number, failure)

    def tell_ended(self, record: SessionRecord, number: int, failure: Failure) -> None:
        """Tells a subscriber that it gets no more."""
        body = encode_body(failure)
        record.session.put(Frame(Kind.UNSUBSCRIBE, lane=Lane.CONTROL, number=number, body=body))
        self._flush(record)

    def resume(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """RESUME: what the subscription has received that is about to be asked for; topics that are gone matter not."""
        number, seen = record.resuming
        if number != frame.number:
            record.resuming = (frame.number, seen := {})
        topics = self._router.topics
        seen.update((topic, lanes) for topic, lanes in decode_body(frame.body, Resume).seen.items() if topic in topics)

    def add(self, record: SessionRecord, number: SubscriptionNumber, wishes: Subscribe) -> Subscription:
        """A subscription of wishes that are allowed.

        Raises:
            InvalidValue: the filter is malformed.
        """
        subscription = self._make_subscription(
            record,
            number,
            wishes.filter,
            Queue(
                Overflow(wishes.overflow or "block"),
                wishes.queue_messages,
                wishes.queue_bytes,
                opened,
                wishes.max_lag,
            ),
            queue_group=wishes.queue_group,
            responder=wishes.responder,
        )
        if number:
            subscription.rules = record.rights.rules(verb_of(responder=wishes.responder))
        self._router.add(subscription)
        record.subscriptions[number] = subscription
        if wishes.devices and record.shares is not None:
            record.shares.devices[number] = frozenset(wishes.devices)
        return subscription

    def unsubscribe(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """UNSUBSCRIBE: nothing comes behind its DONE."""
        subscription = record.subscriptions.pop(frame.number, None) if frame.number else None
        if subscription is None:
            self._answer_error(record, frame.target, Failure(Code.NOT_FOUND, f"no subscription number {frame.number}"))
            return
        self._end(record, subscription)
        if record.shares is not None:
            record.shares.devices.pop(frame.number, None)
        record.session.put(Frame(Kind.DONE, lane=Lane.CONTROL, target=frame.target))
        self._flush(record)

    def _end(self, record: SessionRecord, subscription: Subscription) -> None:
        self._router.settle(subscription.filter)
        subscription.end()
        record.leaving = [each for each in (*record.leaving, subscription) if each.is_under_way]
        self._router.remove(subscription)
        self._publishing.unblock(subscription)

    def follow_rights(self, record: SessionRecord) -> None:
        """What a session may do has changed: subscriptions that may not be any more end, others lose what they may not
        have."""
        for number, subscription in list(record.subscriptions.items()):
            verb, group = verb_of(responder=subscription.responder), subscription.queue_group
            if not number:
                continue
            try:
                self._authority.authorize(record, verb, subscription.filter)
                if group:
                    self._authority.authorize(record, Verb.JOIN, group)
            except PermissionDenied as error:
                del record.subscriptions[number]
                self._end(record, subscription)
                self.tell_ended(record, number, failure_of(error))
                continue
            rules = record.rights.rules(verb)
            if rules != subscription.rules:
                restrict(self._router, subscription, rules)
                self._publishing.unblock(subscription)


class _Problem(Exception):
    """A wish that cannot be, in words."""


def verb_of(*, responder: bool) -> Verb:
    """What a subscription does."""
    return Verb.RESPOND if responder else Verb.SUBSCRIBE


def _problem_with(wishes: Subscribe) -> str | None:
    if wishes.overflow is not None and wishes.overflow not in OVERFLOWS:
        return f"overflow {wishes.overflow[:16]!r} is none of {', '.join(OVERFLOWS)}"
    if not 1 <= wishes.queue_messages <= QUEUE_MESSAGES_MAX:
        return f"queue_messages {wishes.queue_messages} is not between 1 and {QUEUE_MESSAGES_MAX}"
    if not QUEUE_BYTES_MIN <= wishes.queue_bytes <= QUEUE_BYTES_MAX:
        return f"queue_bytes {wishes.queue_bytes} is not between {QUEUE_BYTES_MIN} and {QUEUE_BYTES_MAX}"
    if len(wishes.queue_group.encode()) > NAME_BYTES_MAX:
        return f"queue_group is over the limit of {NAME_BYTES_MAX} bytes"
    if isinstance(wishes.replay, str) and wishes.replay not in ("latest", "all"):
        return f"replay {wishes.replay[:16]!r} is neither 'latest', 'all' nor a sequence"
    if wishes.resume is not None and (wishes.queue_group or wishes.responder or wishes.resume < 0):
        return "resume: a queue group or a responder does not go on where it was, and moments are not below 0"
    if wishes.max_lag is not None and (
        wishes.overflow != Overflow.DROP_OLDEST.value or wishes.max_lag < 0 or wishes.queue_group
    ):
        return f"max_lag {wishes.max_lag}: it takes overflow drop_oldest and no queue group, and is not below 0"
    named = wishes.devices
    if len(named) > DEVICES_NAMED_MAX or any(len(name) > DEVICE_NAME_BYTES_MAX for name in named):
        return f"devices: more than {DEVICES_NAMED_MAX}, or one whose name is longer than {DEVICE_NAME_BYTES_MAX}"
    if isinstance(wishes.replay, int) and wishes.replay < 0:
        return f"replay {wishes.replay} is not a sequence: they start at 1"
    return None
