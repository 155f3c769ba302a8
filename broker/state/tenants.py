"""A tenant: all that its sessions share, and nothing that those of another one could see.

Each tenant has topics, subscriptions, requests, declarations, groups and announcements of its own: objects of its own,
and not names with a prefix, so that there is nothing to forget to compare. A session gets its tenant with its hello,
and everything that it asks for goes to that one.

    BrokerState    sessions, the memory of chunks, arenas: of the process
      Tenant       router, publishing, subscribing, requests, pressure, following, groups
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from broker.errors import LimitExceeded
from broker.ids import SessionId
from broker.limits import FRAME_PAYLOAD_BYTES_MAX
from broker.protocol.batches import ENTRY_BYTES, Batch
from broker.protocol.bodies import Failure
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.values import encode_value
from broker.security.quotas import Quotas
from broker.state.authority import Authority
from broker.state.census import Census
from broker.state.delivery import Subscription
from broker.state.flow import Flow
from broker.state.following import Following
from broker.state.groups import Groups
from broker.state.lines import Lines
from broker.state.observing import Observing
from broker.state.pressure import Pressure
from broker.state.publishing import Publishing
from broker.state.records import SessionRecord
from broker.state.requests import Requests
from broker.state.settings import Settings
from broker.state.share import kept_to_share
from broker.state.singles import opened
from broker.state.subscribing import Subscribing
from broker.state.topics import Router, TopicRecord, offer
from broker.state.totals import Totals
from broker.topics.declarations import Policies
from broker.topics.messages import Message
from broker.topics.policy import PRESSURE, TopicPolicy

Handler = Callable[[SessionRecord, Frame, int], None]


class Tenant:
    """One tenant.

    Attributes:
        name: empty for those that belong to none.
        sessions: by their numbers; those that have not said hello are with the tenant of those that have none.
        handlers: what frames ask for that are about nothing but the tenant, by their kinds.
        wall_offset_ns: wall-clock time minus monotonic time; whoever runs the state keeps it right, as clocks are set.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        authority: Authority,
        quotas: Quotas,
        numbers: Iterator[int],
        observing: Observing,
        *,
        clock: Callable[[], int],
        flush: Callable[[SessionRecord], None],
        refuse: Callable[[SessionRecord, int, Failure], None],
    ) -> None:
        """Args:
        name: of the tenant.
        settings: of the broker.
        authority: says who may do what.
        quotas: its own.
        numbers: of groups, that no group of another tenant has.
        observing: of the groups of all tenants.
        clock: the time of the event that is being dealt with, in nanoseconds.
        flush: called with a session that has something to send.
        refuse: answers a session's request, by its reference, with a failure.
        """
        self.name = name
        self.quotas = quotas
        self.sessions: dict[SessionId, SessionRecord] = {}
        self._clock = clock
        self.wall_offset_ns = settings.wall_offset_ns
        defaults = TopicPolicy(ring_messages=settings.ring_messages, ring_bytes=settings.ring_bytes)
        self.router = Router(
            Policies(defaults, settings.declarations), clock=clock, unblock=lambda work: self.publishing.unblock(work)
        )
        self.requests = Requests(flush)
        self.router.on_moved = self.requests.moved
        self.pressure = Pressure(self.router, lambda told: self.announce(PRESSURE, *told, lane=Lane.CONTROL))
        self.flow = Flow(name, quotas)
        self.publishing = Publishing(
            self.router, self.requests, self.pressure,
            settings.publish_window_messages, settings.publish_window_bytes, flush, authority, self.flow,
        )  # fmt: skip
        self.publishing.places = settings.device_memory_bytes > 0
        self.subscribing = Subscribing(
            self.router, self.publishing, self.pressure, authority, self.check_subscriptions,
            settings.subscriptions_per_session_max, flush, refuse,
        )  # fmt: skip
        self.following = Following(self.router, self.publishing, self.sessions)
        self.groups = Groups(flush, self.announce, settings.boards, authority, numbers, observing)
        self.lines = Lines(
            self.publishing, settings.line_memory if settings.shared_memory else None, settings.arena_descriptor_max,
            flush, partial(offer, split=opened),
        )  # fmt: skip
        self._topics_max = self.router.topics_max
        self.bound(quotas)
        handlers: dict[int, Handler] = {
            Kind.TOPIC: lambda session, frame, _: self.publishing.topic(session, frame),
            Kind.STREAM_ABORT: lambda session, frame, _: self.publishing.abort(session, frame),
            Kind.SUBSCRIBE: self.subscribing.subscribe,
            Kind.RESUME: self.subscribing.resume,
            Kind.UNSUBSCRIBE: self.subscribing.unsubscribe,
            Kind.DROPPED: lambda session, frame, _: self.pressure.dropped(session, frame),
            Kind.CANCEL: self.requests.cancel,
            Kind.LINE: self.lines.declined,
            Kind.DRAIN: self.lines.look,
            Kind.ATTACH: self.lines.left,
            Kind.BELL: self.lines.bell,
            **self.groups.handlers,
        }
        self.handlers = kept_to_share(handlers, settings, refuse)

    def bound(self, quotas: Quotas) -> None:
        """From now on the tenant has these quotas."""
        self.quotas = quotas
        # What goes over them is counted by what comes through sockets.
        self.lines.end_all()
        self.router.topics_max = min(self._topics_max, quotas.topics_max or self._topics_max)
        if self.flow.follow(quotas):
            self.publishing.unblock(self.flow)

    # Sessions.

    def check_session(self) -> None:
        """Refuses one session more than the tenant may have, of those that have said hello.

        Raises:
            LimitExceeded: it would be.
        """
        if self.quotas.sessions_max is not None:
            _check("tenant_sessions_max", len(self._greeted()) + 1, self.quotas.sessions_max, self.name)

    def check_subscriptions(self) -> None:
        """Refuses one subscription more than the tenant may have.

        Raises:
            LimitExceeded: it would be.
        """
        if self.quotas.subscriptions_max is not None:
            # Each session has one for its inbox, which is not counted.
            count = sum(len(record.subscriptions) - 1 for record in self._greeted())
            _check("tenant_subscriptions_max", count + 1, self.quotas.subscriptions_max, self.name)

    def _greeted(self) -> list[SessionRecord]:
        return [record for record in self.sessions.values() if record.name]

    def join(self, record: SessionRecord) -> None:
        """A session belongs to it from now on."""
        record.tenant = self
        self.sessions[record.id] = record

    def leave(self, record: SessionRecord) -> None:
        """A session that has said nothing but hello belongs to another tenant."""
        self.sessions.pop(record.id, None)
        self.flow.left(record)

    def disconnect(self, record: SessionRecord) -> None:
        """A session is over; everybody who depends on it is told. Its groups come after its shared memory."""
        self.sessions.pop(record.id, None)
        self.lines.disconnect(record)
        subscriptions = record.subscriptions.values()
        for subscription in (*subscriptions, *record.leaving):
            subscription.forget()
        self.router.remove(*subscriptions)
        for subscription in subscriptions:
            self.publishing.unblock(subscription)
        self.requests.disconnect(record)
        self.publishing.disconnect(record)
        self.router.ended.add_session(record.session)
        self.flow.ended(record)

    # Time.

    def tick(self, now_ns: int) -> None:
        """Time passes: deadlines, leases, announcements, quotas."""
        self.lines.tick(now_ns)
        self.groups.tick(now_ns)
        self.router.works.tick(now_ns)
        self.pressure.tick(now_ns)
        if self.flow.is_bounded:
            self._look_at_flow(now_ns)

    def _look_at_flow(self, now_ns: int) -> None:
        router, most = self.router, self.quotas.held_bytes_max
        waiting = 0
        if most is not None:
            # Here and not with each message: finding what is oldest takes the longer, the more topics there are.
            waiting = sum(each.queue.waiting_bytes for each in self._subscriptions()) + router.works.held_bytes
            if router.retained_bytes > max(0, most - waiting):
                router.let_go(max(0, most - waiting) * 9 // 10)
        if self.flow.look(self.sessions.values(), self.publishing.shared_bytes, waiting, now_ns):
            self.publishing.unblock(self.flow)

    def _subscriptions(self) -> Iterator[Subscription]:
        return (each for record in self.sessions.values() for each in record.subscriptions.values())

    # What it knows.

    def totals(self, census: Census | None = None) -> Totals:
        """What was ever published, delivered, dropped, received and sent: of all that lives and all that is gone.

        What its topics hold is added to a census.
        """
        self.lines.drain()
        totals = Totals()
        totals.add(self.router.ended)
        counted = Census()
        counted.count(self.router.topics, totals)
        for work in counted.works:
            totals.add_work(work)
        if census is not None:
            census.add(counted)
        for record in self.sessions.values():
            totals.add_session(record.session)
            for subscription in record.subscriptions.values():
                totals.add_subscription(subscription)
        return totals

    def announce(self, topic: str, *values: object, lane: Lane = Lane.DEFAULT) -> None:
        """Publishes what the broker itself has to say, below `$sys/`; several values travel as one batch, or as more
        where they do not fit one frame."""
        try:
            record = self.router.topic(topic)
        except LimitExceeded:
            # Clients have used up all topics. They hear of it when they publish; this event is lost.
            return
        batch: list[tuple[int, bytes]] = []
        size_bytes = 0
        for value in values:
            content, _, encoded = encode_value(value)
            assert isinstance(encoded, bytes), "the broker announces plain values"
            if batch and size_bytes + ENTRY_BYTES + len(encoded) > FRAME_PAYLOAD_BYTES_MAX:
                self._route(record, batch, lane)
                batch, size_bytes = [], 0
            batch.append((content, encoded))
            size_bytes += ENTRY_BYTES + len(encoded)
        self._route(record, batch, lane)

    def _route(self, record: TopicRecord, entries: list[tuple[int, bytes]], lane: Lane) -> None:
        sequence, time_ns = record.ring.next_sequence, self._clock() + self.wall_offset_ns
        content, payload = entries[-1]
        flags = 0
        if len(entries) > 1:
            batch, flags = Batch(0), Flag.BATCH
            for content, encoded in entries:
                batch.add(content, time_ns, b"", encoded)
            payload = batch.close()
        message = Message(
            record.name, "broker", sequence, len(entries), lane, flags, content, time_ns, b"", payload, len(payload)
        )
        self.router.route(record, message)

    def __repr__(self) -> str:
        return f"<Tenant {self.name!r} sessions={len(self.sessions)} topics={len(self.router.topics)}>"


def _check(limit: str, value: int, maximum: int | None, tenant: str) -> None:
    if maximum is not None and value > maximum:
        raise LimitExceeded(limit, value, maximum, f"the quota of tenant {tenant!r}: close some, or raise it")
