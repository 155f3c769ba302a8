"""BrokerState: everything the broker knows, with no input or output of its own.

Events go in (`connect`, `receive`, `disconnect`, `tick`), instructions for the server come out of `take_ready()`.
What the broker answers waits in the outboxes of the protocol sessions until the server pulls it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Final

from broker.errors import ConnectionClosed, InvalidValue, LimitExceeded, PermissionDenied, ProtocolError
from broker.ids import SessionId, SubscriptionNumber
from broker.limits import BROKER_POOL_BYTES_MAX, INBOX_MESSAGES, NAME_BYTES_MAX, QUEUE_BYTES, TENANTS_MAX
from broker.protocol.bodies import Declare, Failure, Hello, Settle, Subscribe, decode_body, encode_body
from broker.protocol.codes import Code, failure_of
from broker.protocol.frames import Flag, Frame, Kind, Lane, kind_name
from broker.protocol.line import VERSION as LINES_VERSION
from broker.protocol.pool import BufferPool
from broker.protocol.pressure import Query
from broker.protocol.receiver import Received
from broker.protocol.session import Phase, Session, make_scratch
from broker.protocol.sharing import Passage
from broker.security.identity import ANYBODY, Identity
from broker.security.permissions import Permissions
from broker.security.quotas import Quotas, quotas_of
from broker.security.roles import Verb
from broker.state.arrivals import Arrivals, Stranger
from broker.state.authority import Authority
from broker.state.census import Census
from broker.state.measured import Latencies
from broker.state.observing import Observing
from broker.state.queries import Viewer, answer_to
from broker.state.records import Ready, SessionRecord
from broker.state.revoking import revoke
from broker.state.settings import Settings
from broker.state.share import Handler, kept_to_share
from broker.state.sharing import Sharing
from broker.state.tenants import Tenant
from broker.state.topics import INBOX
from broker.state.totals import Totals
from broker.state.watermark import NEW_WORK, Watermark
from broker.topics.policy import Declaration, check_declaration

log = logging.getLogger(__name__)

_DEPENDS: Final = frozenset(
    map(
        int,
        (
            Kind.SUBSCRIBE, Kind.RESUME, Kind.UNSUBSCRIBE, Kind.DROPPED, Kind.QUERY, Kind.DECLARE, Kind.FLUSH,
            Kind.CANCEL,
        ),
    )
)  # fmt: skip
"""What depends on what was published, so that lines are drained before."""
_PUBLISH, _CHUNK = int(Kind.PUBLISH), int(Kind.CHUNK)
_OPEN: Final = Phase.OPEN
_AWAIT_HELLO: Final = Phase.AWAIT_HELLO


class BrokerState:
    """The broker without its sockets. One thread at a time may call."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now_ns = 0
        self.local_path = ""
        """Of the Unix-domain socket to which clients of this host are sent, if there is one."""
        self.addresses: list[str] = []
        """Where the broker listens, for clients that choose."""
        self.sessions: dict[SessionId, SessionRecord] = {}
        self.sessions_opened = 0
        self.draining = False
        self.ready = Ready()
        self.authority = Authority(settings.permissions, settings.audit)
        self.quotas = settings.quotas
        self.ended = Totals()
        self.wake: Callable[[int], None] = lambda at_ns: None
        """Is told when `end_due` has to be called, for a deadline that cannot wait for the next tick."""
        self.on_tenant: Callable[[Tenant], None] = lambda tenant: None
        """Is told of each tenant that comes into being."""
        self.arrivals = Arrivals(
            sessions_max=settings.sessions_max,
            half_open_max=settings.half_open_max,
            hello_timeout_s=settings.hello_timeout_s,
            connections_per_address_max=settings.connections_per_address_max,
            flush=self.ready,
        )
        self.sharing = Sharing(
            self.ready, settings.arena_descriptor_max,
            enabled=settings.shared_memory, device_bytes_max=settings.device_memory_bytes,
        )  # fmt: skip
        self.tenants: dict[str, Tenant] = {}
        self.watermark = Watermark(self.tenants)
        self._group_numbers = count(1)
        self.observing = Observing()
        own = self.own = self._tenant("")
        """Of the sessions that belong to no tenant."""
        # Typed, as they are asked for at every turn.
        self.router, self.publishing, self.following = own.router, own.publishing, own.following
        self.viewer: Viewer | None = None
        """Whoever runs the state sets it."""
        self.latencies = Latencies()
        self.pool = BufferPool(BROKER_POOL_BYTES_MAX)
        self._scratch = make_scratch()
        handlers: dict[int, Handler] = {
            Kind.CREDIT: self._credit,
            Kind.QUERY: self._query,
            Kind.SETTLE: self._settle,
            Kind.DECLARE: self._declare,
            Kind.FLUSH: self._flushed,
            Kind.ARENA: self.sharing.arena,
            Kind.MAPPED: self.sharing.mapped,
            Kind.RELEASE: self._release,
            Kind.MEASURED: self.latencies.measured,
        }
        self._handlers = kept_to_share(handlers, settings, self._answer_error)

    def _tenant(self, name: str) -> Tenant:
        """A tenant, which comes into being with its first session.

        Raises:
            LimitExceeded: there are too many.
        """
        tenant = self.tenants.get(name)
        if tenant is None:
            if len(self.tenants) >= TENANTS_MAX:
                self._forget_tenant()
            tenant = self.tenants[name] = Tenant(
                name, self.settings, self.authority, quotas_of(self.quotas, name),
                self._group_numbers, self.observing,
                clock=lambda: self.now_ns, flush=self.ready, refuse=self._answer_error,
            )  # fmt: skip
            tenant.groups.wake = lambda at_ns: self.wake(at_ns)
            self.watermark.follow(tenant)
            self.on_tenant(tenant)
        return tenant

    def _forget_tenant(self) -> None:
        """Makes room by forgetting the oldest tenant without sessions, with all that it retains."""
        empty = next((each for each in self.tenants.values() if each is not self.own and not each.sessions), None)
        if empty is None:
            raise LimitExceeded("tenants_max", len(self.tenants) + 1, TENANTS_MAX, "use fewer tenants")
        del self.tenants[empty.name]
        self.ended.add(empty.totals())

    # Events.

    def connect(
        self,
        peer: str,
        now_ns: int,
        passage: Passage | None = None,
        identity: Identity = ANYBODY,
        stranger: Stranger | None = None,
    ) -> SessionRecord:
        """Somebody has connected; they have yet to say hello.

        Args:
            peer: who, fit for a log.
            now_ns: the monotonic time.
            passage: how shared memory passes over the connection, if it can.
            identity: who the connection proves that it is.
            stranger: who they were until now, if they have arrived before (`Arrivals.arrive`).
        """
        self.now_ns = now_ns
        session_id = self.arrivals.number() if stranger is None else stranger.id
        session = Session(
            hello=None,
            now_ns=now_ns if stranger is None else stranger.opened_ns,
            allocate=self._allocate,
            heartbeat_interval_s=self.settings.heartbeat_interval_s,
            heartbeat_timeout_s=self.settings.heartbeat_timeout_s,
            hello_timeout_s=self.settings.hello_timeout_s,
            passage=passage,
            scratch=self._scratch,
        )
        record = self.sessions[session_id] = SessionRecord(session_id, session, peer, now_ns, self.own, identity)
        self.own.join(record)
        self.arrivals.arrive(record)
        return record

    def receive(self, record: SessionRecord, received: Received, now_ns: int) -> None:
        """Something has arrived on a session. Never raises for what a peer did: that closes the peer's session."""
        self.now_ns = now_ns
        if record.session.phase is not _OPEN:
            return
        try:
            if isinstance(received, Frame):
                frame = received
                kind, tenant = frame.kind, record.tenant
                publishing = self.publishing if tenant is self.own else tenant.publishing
                if kind == _PUBLISH:
                    publishing.publish(record, frame)
                elif kind == _CHUNK:
                    publishing.chunk(record, frame)
                else:
                    self._handle(tenant, record, frame, now_ns)
            elif isinstance(received, Hello):
                self._hello(record, received)
        except ProtocolError as error:
            record.session.fail(error)
            self.ready.add(record)

    def _handle(self, tenant: Tenant, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        handler = tenant.handlers.get(frame.kind) or self._handlers.get(frame.kind)
        if handler is None:
            raise ProtocolError(f"a {kind_name(frame.kind)} frame from a client")
        refusal = tenant.publishing.refusal
        if refusal is not None and frame.kind in NEW_WORK:
            self._answer_error(record, frame.target, failure_of(refusal))
            return
        if tenant.router.lines and frame.kind in _DEPENDS:
            tenant.lines.drain()
        handler(record, frame, now_ns)

    def still_reads(self, record: SessionRecord) -> bool:
        """Whether the process of a session that is over may still read what it was lent; its lines end for that."""
        record.tenant.lines.disconnect(record)
        return record.shares is not None and bool(record.shares.leases)

    def disconnect(self, session_id: SessionId, now_ns: int, *, reads_on: bool = False) -> None:
        """A session is over, however it ended; everybody who depends on it is told.

        With `reads_on` its process, which may not have seen the end, may still read what it was lent: the leases stay
        in `record.shares`, and are to be cleared later.
        """
        self.now_ns = now_ns
        record = self.sessions.pop(session_id, None)
        if record is None:
            return
        self.arrivals.leave(record)
        record.session.lost(ConnectionClosed("disconnected"))
        self.ready.discard(record)
        self.authority.forget(session_id)
        tenant = record.tenant
        tenant.disconnect(record)
        if record.shares is not None:
            record.shares.disconnect(reads_on=reads_on)
        tenant.groups.disconnect(record)
        if record.name:
            tenant.announce("$sys/sessions", {"event": "closed", "session": session_id, "name": record.name})

    def tick(self, now_ns: int) -> None:
        """Time passes: heartbeats, and deadlines of collectives. Call about ten times a second."""
        self.now_ns = now_ns
        self.arrivals.tick(now_ns)
        for record in self.sessions.values():
            session = record.session
            if session.phase is _AWAIT_HELLO:
                # There may be very many of them, and a message that comes now waits for all of this.
                continue
            session.tick(now_ns)
            session.check_queued()
            if session.has_unsent() or session.phase in (Phase.CLOSING, Phase.CLOSED):
                self.ready.add(record)
        for tenant in self.tenants.values():
            tenant.tick(now_ns)
        self.pool.tick(now_ns)

    def end_due(self, now_ns: int) -> None:
        """As tick, but only for collectives whose deadline is over."""
        self.now_ns = now_ns
        for tenant in self.tenants.values():
            tenant.groups.end_due(now_ns)

    def has_more(self) -> bool:
        """Whether `go_on` has something to do; whoever runs the state calls it soon, and others in between."""
        if self.following.waits():
            return True
        if len(self.tenants) == 1:
            return False
        waiting = [each for each in self.tenants.values() if each.following]
        return bool(waiting)

    def go_on(self, now_ns: int) -> None:
        """Does a part of what takes long."""
        self.now_ns = now_ns
        for tenant in self.tenants.values():
            tenant.following.go_on()

    def replace_permissions(self, permissions: Permissions) -> None:
        """From now on sessions may do what these say, also those that are open.

        Subscriptions that may not be any more end, publishers are refused from their next message on, and a session
        that is in a group that it may not be in is closed: the others of the group go on without it.
        """
        self.authority.permissions = permissions
        for record in list(self.sessions.values()):
            if record.name:
                revoke(record, self.authority, self.ready)

    def replace_quotas(self, quotas: Mapping[str, Quotas]) -> None:
        """From now on tenants have these; what is there already stays, even if it is more."""
        self.quotas = quotas
        for tenant in self.tenants.values():
            tenant.bound(quotas_of(quotas, tenant.name))

    def drain(self, reason: str) -> None:
        """The broker is about to end: every session gets what waits for it and then a CLOSE."""
        self.draining = True
        for tenant in self.tenants.values():
            tenant.lines.settle()
        for record in self.sessions.values():
            record.session.close(Code.SHUTDOWN, reason)
            self.ready.add(record)

    def drain_lines(self) -> None:
        """Takes in what was written to lines: somebody is about to look."""
        for tenant in self.tenants.values():
            tenant.lines.drain()

    def take_ready(self) -> list[SessionRecord]:
        """The instructions for the server: sessions that have something to send or are over, each once.

        For each of them the server sends what `session.to_send()` gives, and closes the connection when the session's
        phase is CLOSED after that.
        """
        return self.ready.take()

    def totals(self, census: Census | None = None) -> Totals:
        """What was ever published, delivered, dropped, received and sent: of all that lives and all that is gone.

        What the topics of all tenants hold is added to a census.
        """
        totals = Totals()
        totals.add(self.ended)
        for tenant in self.tenants.values():
            totals.add(tenant.totals(census))
        return totals

    # What clients ask.

    def _hello(self, record: SessionRecord, hello: Hello) -> None:
        if len(hello.name.encode()) > NAME_BYTES_MAX or len(hello.host) > NAME_BYTES_MAX:
            record.session.refuse(
                Code.LIMIT, f"name_bytes_max: the client's name is over the limit of {NAME_BYTES_MAX} bytes"
            )
            self.ready.add(record)
            return
        if hello.local and self.local_path and self.settings.shared_memory:
            words = f"the same broker is nearer, at unix://{self.local_path}"
            record.session.refuse(Code.MOVED, words, path=self.local_path, life=self.settings.life)
            self.ready.add(record)
            return
        problem = self.arrivals.open(record) or self.watermark.refusal()
        record.rights = self.authority.rights(record)
        try:
            if problem is not None:
                raise problem
            self._enter(record, hello.tenant or record.identity.tenant)
        except (InvalidValue, LimitExceeded, PermissionDenied) as error:
            record.session.refuse(Code(failure_of(error).code), str(error))
            self.ready.add(record)
            return
        record.name = record.identity.called(hello.name) or f"client-{record.id}"
        record.host, record.process = hello.host, hello.process
        # It may be any number, of any length.
        record.lines = hello.lines if hello.lines == LINES_VERSION else 0
        self.sessions_opened += 1
        shared = self.sharing.begin(record, wanted=hello.shared)
        offers = self.addresses if hello.choose else []
        record.session.welcome(self.settings.welcome(record.id, offers, shared=shared))
        if record.shares is not None:
            record.shares.reads = record.rights.reads_all
        # `block`, because a reply that is dropped is a requester that waits for it.
        inbox = Subscribe(f"{INBOX}{record.id}", "block", INBOX_MESSAGES, QUEUE_BYTES)
        record.tenant.subscribing.add(record, SubscriptionNumber(0), inbox)
        self.ready.add(record)
        where = {"host": hello.host, "process": hello.process}
        record.tenant.announce("$sys/sessions", {"event": "opened", "session": record.id, "name": record.name} | where)

    def _enter(self, record: SessionRecord, name: str) -> None:
        """A session gets its tenant.

        Raises:
            InvalidValue: it cannot be the name of one.
            PermissionDenied: it may not go there.
            LimitExceeded: there are too many, or too many sessions of this one.
        """
        identity = record.identity
        if name != identity.tenant:
            if len(name.encode()) > NAME_BYTES_MAX or not name.isprintable():
                raise InvalidValue("tenant", name[:16], f"is none: it has at most {NAME_BYTES_MAX} printable bytes")
            if identity.tenant:
                raise PermissionDenied(f"tenant {name!r}: {record.rights.who} belongs to tenant {identity.tenant!r}")
            self.authority.authorize(record, Verb.ADMIN, f"tenants/{name}")
        tenant = self._tenant(name)
        tenant.check_session()
        if tenant is not self.own:
            self.own.leave(record)
            tenant.join(record)

    def _credit(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        if frame.flags & Flag.REQUEST:
            record.tenant.requests.credit(record, frame)
            return
        subscription = record.subscriptions.get(frame.number)
        # Credit for a subscription that was just ended is on its way when the end arrives: nothing to do.
        if subscription is not None:
            # What it has read on lines is charged first; it may be that for which it gives credit.
            record.tenant.lines.take_in()
            subscription.grant(frame.count, frame.total_bytes)

    def _release(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        if frame.body or record.shares is None:
            self.sharing.release(record, frame, now_ns)
        else:
            record.tenant.lines.let_go(record)

    def _settle(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        subscription = record.subscriptions.get(frame.number)
        body = decode_body(frame.body, Settle)
        # As with credit: what a subscription had not settled at its end went to others.
        if subscription is not None:
            record.tenant.router.works.settle(subscription, body)

    def _declare(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """DECLARE: a policy for the topics that a filter matches."""
        wishes, tenant = decode_body(frame.body, Declare), record.tenant
        try:
            tenant.following.check()
            settings = check_declaration(wishes.filter, wishes.settings())
            self.authority.authorize(record, Verb.DECLARE, wishes.filter)
            if wishes.dead_letter is not None:
                # Or messages could be had there that one may not subscribe to, or given to those who may not.
                self.authority.authorize(record, Verb.PUBLISH, wishes.dead_letter)
                self.authority.authorize_reading_all(record, wishes.filter)
            declaration = Declaration(wishes.filter, settings, f"declared by {record.name}")
            replaced = tenant.router.policies.declare(declaration)
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
            tenant.following.begin(wishes.filter, done)

    def _query(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """QUERY: how a topic fares, or what the broker knows."""
        try:
            query = decode_body(frame.body, Query)
            self.authority.authorize_question(record, query.topic, query.view)
            router, rights = record.tenant.router, record.rights
            answer = answer_to(router, self.viewer, query, self._seen_by(record), rights, now_ns)
        except (InvalidValue, PermissionDenied) as error:
            self._answer_error(record, frame.target, failure_of(error))
            return
        record.session.put(Frame(Kind.DONE, lane=Lane.CONTROL, target=frame.target, body=encode_body(answer)))
        record.session.check_queued()
        self.ready.add(record)

    def _seen_by(self, record: SessionRecord) -> list[Tenant]:
        """The tenants of which a session may be told: its own, and of those that belong to none, where they may go."""
        if record.tenant is not self.own:
            return [record.tenant]
        may = record.rights.may
        return [each for each in self.tenants.values() if each is self.own or may(Verb.ADMIN, f"tenants/{each.name}")]

    def _flushed(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        record.session.put(Frame(Kind.DONE, lane=Lane.CONTROL, target=frame.target))
        self.ready.add(record)

    def _answer_error(self, record: SessionRecord, reference: int, failure: Failure) -> None:
        record.session.put(Frame(Kind.ERROR, lane=Lane.CONTROL, target=reference, body=encode_body(failure)))
        self.ready.add(record)

    def _allocate(self, frame: Frame, size_bytes: int) -> memoryview:
        return self.pool.acquire(size_bytes).data

    def __repr__(self) -> str:
        return f"<BrokerState sessions={len(self.sessions)} topics={len(self.router.topics)}>"
