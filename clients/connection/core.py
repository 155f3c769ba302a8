"""The client without its sockets: what the synchronous and the asynchronous client share. Pure: time is an argument.

Frames go in with `receive`; what is to be sent waits in the session's outbox. Whoever waits does so on a Signal.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import replace
from typing import Protocol

from broker.devices import Device
from broker.devices.memory import names
from broker.errors import BrokerError, ConnectionClosed
from broker.limits import CONTROL_QUEUE_BYTES_MAX, PLACED_BYTES_MIN
from broker.protocol.bodies import Declare, Failure, Subscribe, Welcome, decode_body, encode_body
from broker.protocol.codes import error_for
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.places import charge
from broker.protocol.receiver import Received, Receiver
from broker.protocol.session import Session
from clients.asking.exchanges import Responders
from clients.asking.requests import PendingRequest, Requests
from clients.collectives.membership import failure_error
from clients.collectives.places import PendingJoin, Places, turn_down
from clients.connection.reconnected import Reconnected
from clients.connection.signals import Pending, Signal
from clients.publishing.arenas import Arenas
from clients.publishing.device_arenas import DeviceArenas
from clients.publishing.outbound import Outbound
from clients.publishing.outgoing import Outgoing
from clients.reading.drops import tell_drops
from clients.reading.incoming import Incoming
from clients.reading.lines import Lines
from clients.reading.messages import Message, Reply, Settle
from clients.reading.subscription_state import SubscriptionState

log = logging.getLogger(__name__)

_DELIVER, _CHUNK, _PUBLISH = int(Kind.DELIVER), int(Kind.CHUNK), int(Kind.PUBLISH)
_TOPIC, _CREDIT, _RESULT = int(Kind.TOPIC), int(Kind.CREDIT), int(Kind.RESULT)
_CONTROL, _DEFAULT = int(Lane.CONTROL), int(Lane.DEFAULT)
_REQUEST, _ACKNOWLEDGE, _TRACED = int(Flag.REQUEST), int(Flag.ACKNOWLEDGE), int(Flag.TRACED)
_CHUNKED, _SHARED = int(Flag.CHUNKED), int(Flag.SHARED)


class Bell(Protocol):
    """An eventfd that is waited for."""

    descriptor: int
    identity: int


class Core(Receiver):
    """The state of one client. One thread at a time may call.

    Attributes:
        session: None while there is no connection.
        online: ready while there is one.
        closed: why there will never be one again.
    """

    def __init__(self, name: str, reply: Reply, settle: Settle) -> None:
        """Args:
        name: what the client calls itself.
        reply: publishes the answer to a request, in the way of the client.
        settle: tells the broker what has become of a job, in the way of the client.
        """
        self.name = name
        self.session: Session | None = None
        self.session_number = 0
        self.online = Signal()
        self.closed: BrokerError | None = None
        self.outgoing = Outgoing()
        self.requests = Requests()
        self.responders = Responders()
        self.incoming = Incoming(reply, self._replied, settle, self.requests.reply_aborted)
        self.lines = Lines(self.incoming)
        self.bell: Bell | None = None
        """By which publishers wake this client when there is something on a line, where the driver has one."""
        self.places = Places()
        self.completions = -1
        """An eventfd that is to tell of operations on boards, where the driver has one."""
        self.arenas = Arenas()
        self.devices: DeviceArenas | None = None
        """Memory of devices that is published from; None where the broker takes none."""
        self.declarations: dict[str, Declare] = {}
        """Policies that this client has declared, by filter: a broker that was restarted is told again."""
        self.lost: Reconnected | None = None
        """What the last connection's end may have cost, until the next one is open."""
        self.unread: dict[SubscriptionState, object] = {}
        """Subscriptions that nobody can read any more: the next tick ends them."""
        self._bell_told = False
        self._pendings: dict[int, Pending] = {}
        # Not from 0: a reply that was held back over a restart of the broker shall not fit another client's request.
        self._last_reference = secrets.randbits(31)
        self._last_subscription = 0

    # The connection.

    def connected(self, session: Session, welcome: Welcome) -> None:
        """A session is open: topics and subscriptions move to it."""
        self._end_unread()
        self.session = session
        self.session_number = welcome.session
        session.set_heartbeat(welcome.heartbeat_interval_ms / 1000, welcome.heartbeat_timeout_ms / 1000)
        for wishes in self.declarations.values():
            self.send(Frame(Kind.DECLARE, lane=Lane.CONTROL, body=encode_body(wishes)))
        self.arenas.connected(enabled=welcome.shared and session.passage is not None)
        self.devices = DeviceArenas(welcome.device_bytes) if welcome.device_bytes and welcome.shared else None
        self.outgoing.connected(session, welcome.publish_window_messages, welcome.publish_window_bytes)
        # Whoever waits for a `latest` subscription's next message has asked the old session for it.
        asked = {number: subscription.asked for number, subscription in self.incoming.subscriptions.items()}
        self.incoming.connected(session, welcome.life)
        self._bell_told = not welcome.shared
        self.places.told_of_joins = welcome.takes_back
        self.incoming.latencies.connected(welcome.report_ms, devices=welcome.device_bytes > 0)
        for subscription in self.incoming.subscriptions.values():
            self._send_subscribe(subscription, 0, again=True)
            ask = subscription.ask() if asked.get(subscription.number) else None
            if ask is not None:
                self.send(ask)
        if self.lost is not None:
            filters = tuple(subscription.wishes.filter for subscription in self.incoming.subscriptions.values())
            self.lost = replace(self.lost, subscriptions=filters)
        self.online.set()

    def disconnected(self, error: ConnectionClosed) -> None:
        """The connection is gone; what waited for an answer fails, subscriptions stay."""
        self.session = None
        self.online.clear()
        self.lines.disconnected()
        self.incoming.disconnected()
        self.arenas.disconnected()
        if self.devices is not None:
            self.devices.disconnected()
            self.devices = None
        lost = self.outgoing.disconnected(error)
        if self.lost is not None:
            lost += self.lost.lost_messages_max
        self.lost = Reconnected(lost, str(error), ())
        self.places.disconnected(error)
        pendings, self._pendings = self._pendings, {}
        for pending in pendings.values():
            pending.fail(error)
        self.requests.disconnected(error)
        self.responders.disconnected()

    def closing(self) -> None:
        """A CLOSE is queued: nothing may be queued behind it."""
        self.session = self.outgoing.session = self.incoming.session = None
        self.online.clear()

    def close(self, error: BrokerError) -> None:
        """The client is closed for good; every waiter learns it."""
        if self.closed is not None:
            return
        self.closed = error
        cause = ConnectionClosed.by(error)
        self.disconnected(cause)
        self.responders.close()
        for subscription in self.incoming.subscriptions.values():
            subscription.close(cause)
        for topic in self.outgoing.topics.values():
            topic.credit.set()
        self.online.set()

    def check_open(self) -> None:
        """Raises if the client is closed for good.

        Raises:
            ConnectionClosed: it is.
        """
        if self.closed is not None:
            raise ConnectionClosed.by(self.closed) from self.closed

    def farewell(self) -> None:
        """A CLOSE is about to be queued: what is to be said before that, is."""
        self.before_waiting()
        self.places.farewell()
        if self.session is not None:
            self.incoming.latencies.tell(self.session)

    def before_waiting(self) -> None:
        """Somebody is about to wait: what others may be waiting for is said first."""
        if self.outgoing.open_batches:
            self.outgoing.send_batches()
        if self.session is not None:
            self.incoming.leases.give_back(self.session)

    def tick(self, now_ns: int) -> None:
        """Time passes: heartbeats, batches that are due, memory that is not needed any more."""
        self.requests.end_abandoned(self.session)
        self._end_unread()
        self.incoming.pool.tick(now_ns)
        if self.session is not None:
            self.session.tick(now_ns)
            self.incoming.leases.give_back(self.session)
            self.arenas.tick(now_ns, self.session)
            if self.devices is not None:
                self.devices.tick(now_ns, self.session)
            self.places.tick(now_ns)
            self.incoming.latencies.tick(now_ns, self.session)
            tell_drops(self.incoming.subscriptions.values(), self.session)
            if self.outgoing.open_batches:
                self.outgoing.send_batches(now_ns)

    # Frames in.

    def allocate(self, frame: Frame, size_bytes: int) -> memoryview:
        """Memory for a payload that is about to be received."""
        if frame.kind == _RESULT:
            memory = self.places.destination(frame, size_bytes)
            if memory is not None:
                return memory
        return self.incoming.allocate(frame, size_bytes)

    def receive(self, received: Received, now_ns: int) -> None:
        """Something has come from the broker.

        Raises:
            ProtocolError: the broker does not keep to the protocol; the session is to be closed.
        """
        if not isinstance(received, Frame):
            return
        frame = received
        kind = frame.kind
        self.incoming.latencies.read_at(now_ns)
        if kind == _DELIVER:
            self.incoming.deliver(frame)
        elif kind == _CHUNK:
            self.incoming.chunk(frame)
        elif kind == _TOPIC:
            self.incoming.topic(frame)
        elif kind == _CREDIT:
            if frame.flags & _REQUEST:
                self.responders.credit(frame)
            else:
                self.outgoing.granted(frame)
        elif kind == Kind.POLICY:
            self.outgoing.policy(frame)
        elif kind in (Kind.DONE, Kind.JOINED):
            self._answered(frame)
        elif kind == Kind.ERROR:
            self._refused(frame)
        elif kind == Kind.CANCEL:
            self.responders.cancel(frame)
        elif kind == Kind.GAP:
            self.incoming.gap(frame)
        elif kind == Kind.DROPPED:
            if frame.number:
                self.incoming.dropped(frame)
            else:
                self.requests.dropped(frame.sequence)
        elif kind == Kind.STREAM_ABORT:
            self.incoming.abort(frame)
        elif kind == Kind.UNSUBSCRIBE:
            self.incoming.ended(frame)
        elif kind == Kind.RELEASE:
            self.arenas.released(frame)
            if self.devices is not None:
                self.devices.released(frame)
        elif kind == Kind.MAPPED:
            (self.outgoing.lines if frame.stream else self.arenas).mapped(frame)
            if self.devices is not None:
                self.devices.mapped(frame)
        elif kind == Kind.ARENA and self.session is not None:
            self.incoming.leases.arena(self.session, frame)
        elif kind == Kind.LINE:
            self.outgoing.offered(frame)
        elif kind == Kind.ATTACH and self.session is not None:
            self.lines.attach(self.session, frame, now_ns)
        elif kind == Kind.FAILED and not frame.number:
            pending = self._pendings.pop(frame.target, None)
            if pending is not None:
                pending.fail(failure_error(pending.what, frame))
        elif self.session is not None:
            self.places.receive(self.session, frame)

    def _answered(self, frame: Frame) -> None:
        if frame.kind == Kind.DONE and frame.number:
            self.incoming.began(frame)
        pending = self._pendings.pop(frame.target, None)
        if pending is not None:
            pending.number, pending.sequence, pending.body = frame.number, frame.sequence, frame.body
            if isinstance(pending, PendingJoin) and self.session is not None:
                pending.seat(self.session, self.places, frame)
            if pending.on_answer is not None:
                pending.on_answer(frame)
            pending.set()
        elif frame.kind == Kind.JOINED and self.session is not None:
            turn_down(self.session, frame, told=self.places.told_of_joins)
        else:
            self.requests.told(frame)

    def _refused(self, frame: Frame) -> None:
        failure = decode_body(frame.body, Failure)
        if not frame.target:
            if frame.number:
                self.outgoing.refused(frame, failure)
            else:
                log.warning("broker.refused name=%r reason=%s", self.name, failure.reason)
            return
        pending = self._pendings.pop(frame.target, None)
        if pending is not None:
            pending.fail(error_for(failure, pending.what))
        else:
            self.requests.refused(frame, failure)

    def pending(self, pending: Pending) -> int:
        """Registers something that waits for an answer; returns the reference for its frame."""
        self._last_reference = self._last_reference % 0xFFFFFFFF + 1
        self._pendings[self._last_reference] = pending
        return self._last_reference

    def forget(self, pending: Pending) -> None:
        """Nobody waits for this answer any more; the broker is told where that matters to others."""
        for reference in [reference for reference, waiting in self._pendings.items() if waiting is pending]:
            del self._pendings[reference]
            if isinstance(pending, PendingJoin) and self.places.told_of_joins and self.session is not None:
                self.session.put(Frame(Kind.LEAVE, lane=Lane.CONTROL, sequence=reference))

    def ask(self, kind: Kind, what: str, *, number: int = 0, sequence: int = 0, body: bytes = b"") -> Pending:
        """Sends a frame that the broker answers."""
        pending = Pending(what)
        target = self.pending(pending)
        self.send(Frame(kind, lane=Lane.CONTROL, number=number, target=target, sequence=sequence, body=body))
        return pending

    def send(self, frame: Frame) -> None:
        """Queues a frame.

        Raises:
            ConnectionClosed: there is no connection at the moment, or never again.
        """
        if self.session is None:
            self.check_open()
            raise ConnectionClosed("there is no connection to the broker at the moment")
        self.session.put(frame)

    def take_back(self) -> None:
        """Has back what it has published in shared memory and nobody needs any more, as far as that is known here."""
        self.arenas.take_back(self.outgoing.lines.take_back())

    def declare(self, wishes: Declare) -> Pending:
        """Asks for a policy of topics; once the broker has agreed, it is asked again after each reconnect."""

        def agreed(_: Frame) -> None:
            if any(value is not None for value in wishes.settings().values()):
                self.declarations[wishes.filter] = wishes
            else:
                self.declarations.pop(wishes.filter, None)

        pending = Pending(f"the broker to take the policy of {wishes.filter!r}", agreed)
        body = encode_body(wishes)
        self.send(Frame(Kind.DECLARE, lane=Lane.CONTROL, target=self.pending(pending), body=body))
        return pending

    # Subscriptions.

    def subscribe(self, wishes: Subscribe, device: Device | None = None) -> tuple[SubscriptionState, Pending]:
        """Asks for a subscription, whose arrays are to be on a device."""
        encode_body(wishes)
        self._last_subscription += 1
        subscription = SubscriptionState(self._last_subscription, wishes, device)
        pending = Pending(wishes.filter, None if wishes.overflow is not None else subscription.decided)
        self.incoming.subscriptions[subscription.number] = subscription
        self._send_subscribe(subscription, self.pending(pending), again=False)
        return subscription, pending

    def _send_subscribe(self, subscription: SubscriptionState, reference: int, *, again: bool) -> None:
        self._tell_bell()
        if subscription.device is not None:
            subscription.wishes.devices = [] if self.devices is None else list(names())
        for frame in subscription.seen.frames(subscription.number, reference, again=again):
            self.send(frame)

    def _tell_bell(self) -> None:
        """Whoever subscribes or waits for replies can read lines, if it can be woken."""
        bell, session = self.bell, self.session
        if self._bell_told:
            return
        self._bell_told = True
        if bell is None or session is None or session.passage is None or not session.passage.enabled:
            return
        session.passage.give(bell)
        self.send(Frame(Kind.BELL, lane=Lane.CONTROL, sequence=bell.identity))

    def _end_unread(self) -> None:
        while self.unread:
            self.unsubscribe(self.unread.popitem()[0])

    def unsubscribe(self, subscription: SubscriptionState) -> Pending | None:
        """Ends a subscription; None when there is nobody to tell."""
        if self.incoming.subscriptions.pop(subscription.number, None) is None:
            return None
        subscription.close(ConnectionClosed("the subscription is closed"))
        if self.session is None:
            return None
        tell_drops((subscription,), self.session)
        return self.ask(
            Kind.UNSUBSCRIBE, f"unsubscribe from {subscription.wishes.filter!r}", number=subscription.number
        )

    # Requests.

    def new_request(self, topic: str, *, many: bool) -> PendingRequest:
        """A request that waits for replies; `requests.forget` when nobody waits for it any more."""
        self._last_reference = self._last_reference % 0xFFFFFFFF + 1
        return self.requests.new(topic, self._last_reference, many=many)

    def address(self, message: Outbound, pending: PendingRequest) -> None:
        """Says on a request where its replies go, and to what."""
        if not self._bell_told:
            self._tell_bell()
        message.flags = _REQUEST | (_ACKNOWLEDGE if pending.many else 0) | message.flags & _TRACED
        message.reply_to, message.request = self.inbox(), pending.number
        message.reference = pending.number & 0xFFFFFFFF

    def _replied(self, message: Message) -> None:
        self.requests.replied(message)
        self.incoming.give_inbox_credit()

    def inbox(self) -> str:
        """The topic on which replies come to this client."""
        return f"$inbox/{self.session_number}"


def try_publish(core: Core, message: Outbound, now_ns: int, wall_ns: int) -> Signal:
    """Publishes a message as far as that goes without waiting.

    Returns:
        SENT when it has been queued; BATCHED or BATCH_OPENED when it is in a batch; a StreamSource that is ready when
        it has left; or another Signal to wait for before this is called again with the same message.

    Raises:
        InvalidValue: the topic cannot be published to.
        LimitExceeded: it is longer than the topic's policy allows, or the broker has refused an earlier one for that.
        PermissionDenied: the broker has refused an earlier one because this client may not publish to the topic.
        ConnectionClosed: the client is closed.
    """
    if core.session is None:
        core.check_open()
        return core.online
    outgoing = core.outgoing
    topic = outgoing.topics.get(message.topic) or outgoing.topic(message.topic)
    payload = message.payload
    if topic.special:
        topic.check(len(payload), requests=bool(message.flags & _REQUEST))
    lane = topic.lane if message.lane is None else message.lane
    if lane == _CONTROL and core.session.outbox.control_bytes > CONTROL_QUEUE_BYTES_MAX:
        outgoing.link_room.clear()
        return outgoing.link_room
    if lane != _CONTROL and (topic.credit_messages <= 0 or topic.credit_bytes <= 0):
        topic.credit.clear()
        return topic.credit
    plain = message.headers is None and message.tensor is None and not message.request
    body = b"" if plain else message.body(core.session_number)
    if message.place is not None:
        answered = core.arenas.announce(message.place.block.arena, core.session)
        if not answered.ready:
            return answered
        shared = core.arenas.share(message.place)
        if shared is not None:
            frame = Frame(
                _PUBLISH, message.flags | _SHARED, lane, message.content,
                number=topic.number, target=message.reference, count=message.priority, total_bytes=len(payload),
                sequence=message.request, time_ns=wall_ns, body=body, payload=shared,
            )  # fmt: skip
            return outgoing.publish_shared(topic, frame, charge(len(payload)), message.place.block.arena.name)
    if len(payload) >= PLACED_BYTES_MIN:
        if topic.stream is not None:
            return topic.stream_over
        full = outgoing.streams.full()
        if full is not None:
            return full
        opening = Frame(
            _PUBLISH, message.flags | _CHUNKED, lane, message.content,
            number=topic.number, target=message.reference, count=message.priority, total_bytes=len(payload),
            sequence=message.request, time_ns=wall_ns, body=body,
        )  # fmt: skip
        return outgoing.start_stream(topic, opening, payload)
    data = payload if type(payload) is bytes else bytes(payload)
    if lane == _DEFAULT and not message.flags and not message.urgent and not message.priority:
        batched = outgoing.offer_to_batch(topic, message.content, body, data, wall_ns, now_ns)
        if batched is not None:
            return batched
    return outgoing.publish_one(
        topic, message.flags, lane, message.content, message.reference, message.priority, message.request, wall_ns,
        body, data,
    )  # fmt: skip
