"""BrokerState: everything the broker knows, with no input or output of its own.

Events go in (`connect`, `receive`, `disconnect`, `tick`), instructions for the server come out of `take_ready()`.
What the broker answers waits in the outboxes of the protocol sessions until the server pulls it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from broker.errors import ConnectionClosed, InvalidValue, LimitExceeded, PermissionDenied, ProtocolError
from broker.ids import SessionId, SubscriptionNumber
from broker.limits import (
    BROKER_POOL_BYTES_MAX,
    CHUNK_BYTES,
    INBOX_MESSAGES,
    NAME_BYTES_MAX,
    QUEUE_BYTES,
)
from broker.protocol.batches import Batch
from broker.protocol.bodies import (
    Declare,
    Failure,
    Hello,
    Settle,
    Subscribe,
    Welcome,
    decode_body,
    encode_body,
)
from broker.protocol.codes import Code, failure_of
from broker.protocol.frames import Flag, Frame, Kind, Lane, kind_name
from broker.protocol.pool import BufferPool
from broker.protocol.pressure import Query
from broker.protocol.session import Phase, Received, Session, make_scratch
from broker.protocol.sharing import Passage
from broker.protocol.values import encode_value
from broker.security.identity import ANYBODY, Identity
from broker.state.admission import Admission
from broker.state.following import Following
from broker.state.groups import Groups
from broker.state.lines import Lines
from broker.state.measured import Latencies
from broker.state.pressure import Pressure
from broker.state.publishing import Publishing
from broker.state.queries import Viewer, answer_to
from broker.state.records import SessionRecord
from broker.state.requests import Requests
from broker.state.settings import Settings
from broker.state.sharing import Sharing
from broker.state.singles import opened
from broker.state.subscribing import Subscribing
from broker.state.topics import INBOX, Router, offer
from broker.state.totals import Totals
from broker.state.watermark import NEW_WORK, Watermark
from broker.topics.declarations import Policies
from broker.topics.messages import Message
from broker.topics.policy import PRESSURE, Declaration, TopicPolicy, check_declaration

log = logging.getLogger(__name__)

Handler = Callable[[SessionRecord, Frame, int], None]
_PUBLISH, _CHUNK = int(Kind.PUBLISH), int(Kind.CHUNK)
_OPEN: Final = Phase.OPEN


class BrokerState:
    """The broker without its sockets. One thread at a time may call."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now_ns = 0
        self.local_path = ""
        """Of the Unix-domain socket to which clients of this host are sent, if there is one."""
        self.sessions: dict[SessionId, SessionRecord] = {}
        self.sessions_opened = 0
        self.draining = False
        defaults = TopicPolicy(ring_messages=settings.ring_messages, ring_bytes=settings.ring_bytes)
        self.router = Router(
            Policies(defaults, settings.declarations),
            clock=lambda: self.now_ns,
            unblock=lambda work: self.publishing.unblock(work),
        )
        self.requests = Requests(self._flush)
        self.router.on_moved = self.requests.moved
        self.pressure = Pressure(self.router, lambda told: self.announce(PRESSURE, *told, lane=Lane.CONTROL))
        self.publishing = Publishing(
            self.router, self.requests, self.pressure,
            settings.publish_window_messages, settings.publish_window_bytes, self._flush,
        )  # fmt: skip
        self.watermark = Watermark(
            self.router, self.publishing, lambda told: self.announce(PRESSURE, told, lane=Lane.CONTROL)
        )
        self.admission = Admission(
            sessions_max=settings.sessions_max,
            half_open_max=settings.half_open_max,
            connections_per_address_max=settings.connections_per_address_max,
            flush=self._flush,
        )
        self.sharing = Sharing(self._flush, settings.arena_descriptor_max, enabled=settings.shared_memory)
        self.subscribing = Subscribing(
            self.router, self.publishing, self.pressure,
            settings.subscriptions_per_session_max, self._flush, self._answer_error,
        )  # fmt: skip
        self.lines = Lines(
            self.publishing, settings.line_memory if settings.shared_memory else None, settings.arena_descriptor_max,
            self._flush, partial(offer, split=opened),
        )  # fmt: skip
        self.following = Following(self.router, self.publishing, self.sessions)
        self.groups = Groups(self._flush, self.announce, settings.boards)
        self.viewer: Viewer | None = None
        """Whoever runs the state sets it."""
        self.latencies = Latencies()
        self.pool = BufferPool(BROKER_POOL_BYTES_MAX)
        self.ready: dict[SessionId, SessionRecord] = {}
        self._scratch = make_scratch()
        self._last_id = 0
        self._handlers: dict[int, Handler] = {
            Kind.TOPIC: lambda session, frame, _: self.publishing.topic(session, frame),
            Kind.STREAM_ABORT: lambda session, frame, _: self.publishing.abort(session, frame),
            Kind.SUBSCRIBE: self._drained(self.subscribing.subscribe),
            Kind.RESUME: self._drained(self.subscribing.resume),
            Kind.UNSUBSCRIBE: self._drained(self.subscribing.unsubscribe),
            Kind.CREDIT: self._credit,
            Kind.DROPPED: self._drained(lambda session, frame, _: self.pressure.dropped(session, frame)),
            Kind.QUERY: self._drained(self._query),
            Kind.SETTLE: self._settle,
            Kind.DECLARE: self._drained(self._declare),
            Kind.FLUSH: self._drained(self._flushed),
            Kind.LINE: self.lines.declined,
            Kind.DRAIN: self.lines.look,
            Kind.ATTACH: self.lines.left,
            Kind.BELL: self.lines.bell,
            Kind.CANCEL: self.requests.cancel,
            Kind.ARENA: self.sharing.arena,
            Kind.MAPPED: self.sharing.mapped,
            Kind.RELEASE: self.sharing.release,
            Kind.MEASURED: self.latencies.measured,
            **self.groups.handlers,
        }

    def _drained(self, handler: Handler) -> Handler:
        """A handler of what depends on what was published."""

        def handle(record: SessionRecord, frame: Frame, now_ns: int) -> None:
            if self.router.lines:
                self.lines.drain()
            handler(record, frame, now_ns)

        return handle

    # Events.

    def connect(
        self, peer: str, now_ns: int, passage: Passage | None = None, identity: Identity = ANYBODY
    ) -> SessionRecord:
        """Somebody has connected; they have yet to say hello.

        Args:
            peer: who, fit for a log.
            now_ns: the monotonic time.
            passage: how shared memory passes over the connection, if it can.
            identity: who the connection proves that it is.
        """
        self.now_ns = now_ns
        self._last_id += 1
        session_id = SessionId(self._last_id)
        session = Session(
            hello=None,
            now_ns=now_ns,
            allocate=self._allocate,
            heartbeat_interval_s=self.settings.heartbeat_interval_s,
            heartbeat_timeout_s=self.settings.heartbeat_timeout_s,
            hello_timeout_s=self.settings.hello_timeout_s,
            passage=passage,
            scratch=self._scratch,
        )
        record = self.sessions[session_id] = SessionRecord(session_id, session, peer, now_ns, identity)
        self.admission.arrive(record)
        return record

    def receive(self, record: SessionRecord, received: Received, now_ns: int) -> None:
        """Something has arrived on a session. Never raises for what a peer did: that closes the peer's session."""
        self.now_ns = now_ns
        if record.session.phase is not _OPEN:
            return
        try:
            if isinstance(received, Frame):
                frame = received
                kind = frame.kind
                if kind == _PUBLISH:
                    self.publishing.publish(record, frame)
                elif kind == _CHUNK:
                    self.publishing.chunk(record, frame)
                else:
                    handler = self._handlers.get(kind)
                    if handler is None:
                        raise ProtocolError(f"a {kind_name(kind)} frame from a client")
                    refusal = self.publishing.refusal
                    if refusal is not None and kind in NEW_WORK:
                        self._answer_error(record, frame.target, failure_of(refusal))
                        return
                    handler(record, frame, now_ns)
            elif isinstance(received, Hello):
                self._hello(record, received)
        except ProtocolError as error:
            record.session.fail(error)
            self._flush(record)

    def disconnect(self, session_id: SessionId, now_ns: int, *, reads_on: bool = False) -> None:
        """A session is over, however it ended; everybody who depends on it is told.

        With `reads_on` its process, which may not have seen the end, may still read what it was lent: the leases stay
        in `record.shares`, and are to be cleared later.
        """
        self.now_ns = now_ns
        record = self.sessions.pop(session_id, None)
        if record is None:
            return
        self.admission.leave(record)
        record.session.lost(ConnectionClosed("disconnected"))
        self.lines.disconnect(record)
        self.ready.pop(session_id, None)
        subscriptions = record.subscriptions.values()
        for subscription in (*subscriptions, *record.leaving):
            subscription.forget()
        self.router.remove(*subscriptions)
        for subscription in subscriptions:
            self.publishing.unblock(subscription)
        self.requests.disconnect(record)
        self.publishing.disconnect(record)
        if record.shares is not None:
            record.shares.disconnect(reads_on=reads_on)
        self.router.ended.add_session(record.session)
        self.groups.disconnect(record, now_ns)
        if record.name:
            self.announce("$sys/sessions", {"event": "closed", "session": session_id, "name": record.name})

    def tick(self, now_ns: int) -> None:
        """Time passes: heartbeats, and deadlines of collectives. Call about ten times a second."""
        self.now_ns = now_ns
        self.lines.drain()
        for record in self.sessions.values():
            session = record.session
            session.tick(now_ns)
            session.check_queued()
            if session.has_unsent or session.phase in (Phase.CLOSING, Phase.CLOSED):
                self._flush(record)
        self.groups.tick(now_ns)
        self.router.works.tick(now_ns)
        self.pressure.tick(now_ns)
        self.pool.tick(now_ns)

    @property
    def has_more(self) -> bool:
        """Whether `go_on` has something to do; whoever runs the state calls it soon, and others in between."""
        return bool(self.following)

    def go_on(self, now_ns: int) -> None:
        """Does a part of what takes long."""
        self.now_ns = now_ns
        self.following.go_on()

    def drain(self, reason: str) -> None:
        """The broker is about to end: every session gets what waits for it and then a CLOSE."""
        self.draining = True
        self.lines.settle()
        for record in self.sessions.values():
            record.session.close(Code.SHUTDOWN, reason)
            self._flush(record)

    def take_ready(self) -> list[SessionRecord]:
        """The instructions for the server: sessions that have something to send or are over, each once.

        For each of them the server sends what `session.to_send()` gives, and closes the connection when the session's
        phase is CLOSED after that.
        """
        ready, self.ready = list(self.ready.values()), {}
        return ready

    def totals(self) -> Totals:
        """What was ever published, delivered, dropped, received and sent: of all that lives and all that is gone."""
        self.lines.drain()
        totals = self.router.ended.copy()
        for topic in self.router.topics.values():
            totals.add_topic(topic)
        for record in self.sessions.values():
            totals.add_session(record.session)
            for subscription in record.subscriptions.values():
                totals.add_subscription(subscription)
        return totals

    def announce(self, topic: str, *values: object, lane: Lane = Lane.DEFAULT) -> None:
        """Publishes what the broker itself has to say, below `$sys/`; several values travel as one batch."""
        try:
            record = self.router.topic(topic)
        except LimitExceeded:
            # Clients have used up all topics. They hear of it when they publish; this event is lost.
            return
        sequence, time_ns = record.ring.next_sequence, self.now_ns + self.settings.wall_offset_ns
        batch, single = Batch(0), b""
        for value in values:
            content, _, encoded = encode_value(value)
            assert isinstance(encoded, bytes), "the broker announces plain values"
            single = encoded
            batch.add(content, time_ns, b"", single)
        flags, payload = (Flag.BATCH, batch.close()) if batch.count > 1 else (0, single)
        message = Message(
            topic, "broker", sequence, batch.count, lane, flags, content, time_ns, b"", payload, len(payload)
        )
        self.router.route(record, message)

    # What clients ask.

    def _hello(self, record: SessionRecord, hello: Hello) -> None:
        if len(hello.name.encode()) > NAME_BYTES_MAX or len(hello.host) > NAME_BYTES_MAX:
            record.session.refuse(
                Code.LIMIT, f"name_bytes_max: the client's name is over the limit of {NAME_BYTES_MAX} bytes"
            )
            self._flush(record)
            return
        if hello.local and self.local_path and self.settings.shared_memory:
            words = f"the same broker is nearer, at unix://{self.local_path}"
            record.session.refuse(Code.MOVED, words, path=self.local_path, life=self.settings.life)
            self._flush(record)
            return
        problem = self.admission.open(record) or self.watermark.refusal()
        if problem is not None:
            record.session.refuse(Code.LIMIT, str(problem))
            self._flush(record)
            return
        record.name = hello.name or f"client-{record.id}"
        record.host, record.process, record.lines = hello.host, hello.process, hello.lines
        self.sessions_opened += 1
        settings = self.settings
        record.session.welcome(
            Welcome(
                session=record.id,
                broker=settings.name,
                chunk_bytes=CHUNK_BYTES,
                publish_window_messages=settings.publish_window_messages,
                publish_window_bytes=settings.publish_window_bytes,
                heartbeat_interval_ms=int(settings.heartbeat_interval_s * 1000),
                heartbeat_timeout_ms=int(settings.heartbeat_timeout_s * 1000),
                life=settings.life,
                shared=self.sharing.begin(record, wanted=hello.shared),
                report_ms=settings.report_ms,
            )
        )
        # `block`, because a reply that is dropped is a requester that waits for it.
        inbox = Subscribe(f"{INBOX}{record.id}", "block", INBOX_MESSAGES, QUEUE_BYTES)
        self.subscribing.add(record, SubscriptionNumber(0), inbox)
        self._flush(record)
        where = {"host": hello.host, "process": hello.process}
        self.announce("$sys/sessions", {"event": "opened", "session": record.id, "name": record.name} | where)

    def _credit(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        if frame.flags & Flag.REQUEST:
            self.requests.credit(record, frame)
            return
        subscription = record.subscriptions.get(frame.number)
        # Credit for a subscription that was just ended is on its way when the end arrives: nothing to do.
        if subscription is not None:
            # What it has read on lines is charged first; it may be that for which it gives credit.
            self.lines.take_in()
            subscription.grant(frame.count, frame.total_bytes)

    def _settle(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        subscription = record.subscriptions.get(frame.number)
        body = decode_body(frame.body, Settle)
        # As with credit: what a subscription had not settled at its end went to others.
        if subscription is not None:
            self.router.works.settle(subscription, body)

    def _declare(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """DECLARE: a policy for the topics that a filter matches."""
        wishes = decode_body(frame.body, Declare)
        try:
            self.following.check()
            settings = check_declaration(wishes.filter, wishes.settings())
            declaration = Declaration(wishes.filter, settings, f"declared by {record.name}")
            replaced = self.router.policies.declare(declaration)
        except (InvalidValue, LimitExceeded, PermissionDenied) as error:
            self._answer_error(record, frame.target, failure_of(error))
            return
        done = partial(self._flushed, record, frame, now_ns)
        if replaced is not None and replaced.settings == settings:
            done()
        else:
            before = "none" if replaced is None else f"{dict(replaced.settings)} {replaced.origin}"
            log.info(
                "policy.declared filter=%r by=%r settings=%s before=%s", wishes.filter, record.name, settings, before
            )
            self.following.begin(wishes.filter, done)

    def _query(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """QUERY: how a topic fares, or what the broker knows."""
        try:
            answer = answer_to(self.router, self.viewer, decode_body(frame.body, Query), now_ns)
        except (InvalidValue, PermissionDenied) as error:
            self._answer_error(record, frame.target, failure_of(error))
            return
        record.session.put(Frame(Kind.DONE, lane=Lane.CONTROL, target=frame.target, body=encode_body(answer)))
        record.session.check_queued()
        self._flush(record)

    def _flushed(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        record.session.put(Frame(Kind.DONE, lane=Lane.CONTROL, target=frame.target))
        self._flush(record)

    def _answer_error(self, record: SessionRecord, reference: int, failure: Failure) -> None:
        record.session.put(Frame(Kind.ERROR, lane=Lane.CONTROL, target=reference, body=encode_body(failure)))
        self._flush(record)

    def _flush(self, record: SessionRecord) -> None:
        self.ready[record.id] = record

    def _allocate(self, frame: Frame, size_bytes: int) -> memoryview:
        return self.pool.acquire(size_bytes).data

    def __repr__(self) -> str:
        return f"<BrokerState sessions={len(self.sessions)} topics={len(self.router.topics)}>"
