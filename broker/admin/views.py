"""What the HTTP interface tells, as types: their fields are the keys of the JSON, and are kept stable.

Times are durations in seconds up to the moment of the answer, so that nobody has to compare clocks. Whoever reads the
answers in Python can decode them with these types.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

import msgspec

from broker.measuring.modules import compiled_modules
from broker.metrics import public_topics, sessions_open, subscriptions_open, version
from broker.server import Server
from broker.state.census import Census
from broker.state.delivery import Subscription
from broker.state.pressure import Blocker
from broker.state.queries import blockers
from broker.state.records import SessionRecord
from broker.state.tenants import Tenant
from broker.state.topics import TopicRecord
from broker.state.totals import Totals
from broker.state.works import Work
from broker.topics.names import ALL_LEVELS, check_filter, matches

BLOCKERS_SHOWN: Final = 16
"""Of one topic: who looks wants to know whom to help first."""


class ServerView(msgspec.Struct, frozen=True):
    """`/api/v1/server`: the broker as a whole.

    Attributes:
        name: what it calls itself.
        version: of tensorbus.
        process: its process number.
        uptime_s: time since it started, in seconds.
        clock_ns: its wall clock, in nanoseconds since 1970.
        python: the version that it runs on.
        compiled_modules: of the hot modules, how many are compiled.
        shared_memory: whether it shares memory with clients on its host.
        listeners: the addresses at which it accepts sessions.
        draining: whether it is about to end.
        sessions: open ones.
        subscriptions: of clients.
        topics: of clients.
        groups: collective groups.
        published_messages: ever; likewise all that follow.
        published_bytes: payload and headers.
        delivered_messages: handed to subscribers.
        dropped_messages: lost by subscribers, by overflow policy.
        refused_messages: that were longer than their topic's policy allows.
        redelivered_messages: jobs of queue groups that were given out again.
        dead_messages: jobs that went to a dead-letter topic after too many deliveries.
        received_bytes: from clients, all kinds of frames together.
        sent_bytes: to clients, all kinds of frames together.
    """

    name: str
    version: str
    process: int
    uptime_s: float
    clock_ns: int
    python: str
    compiled_modules: int
    shared_memory: bool
    listeners: list[str]
    draining: bool
    sessions: int
    subscriptions: int
    topics: int
    groups: int
    published_messages: int
    published_bytes: int
    delivered_messages: int
    dropped_messages: dict[str, int]
    refused_messages: int
    redelivered_messages: int
    dead_messages: int
    received_bytes: int
    sent_bytes: int


class SubscriptionView(msgspec.Struct, frozen=True):
    """One subscription of a session.

    Attributes:
        number: within the session.
        filter: which topics.
        overflow: its policy.
        queue_group: empty when it is in none.
        waiting_messages: on their way in the broker.
        waiting_bytes: their bytes.
        unread_messages: that the application has not taken; those that wait are among them.
        delivered_messages: handed to the session, ever.
        dropped_messages: lost, ever.
        unsettled_jobs: of acknowledged topics, that it has and did not settle.
        blocks_topics: topics whose publishers wait for this subscription, sorted.
    """

    number: int
    filter: str
    overflow: str
    queue_group: str
    waiting_messages: int
    waiting_bytes: int
    unread_messages: int
    delivered_messages: int
    dropped_messages: int
    unsettled_jobs: int
    blocks_topics: list[str]


class SessionView(msgspec.Struct, frozen=True):
    """One of the `sessions` of `/api/v1/sessions`.

    Attributes:
        id: never used twice in a broker's life.
        name: what the client calls itself; empty until it has said hello.
        host: the client's machine, as it says.
        process: the client's process number, as it says.
        peer: the address it came from.
        phase: `awaiting hello`, `open`, `closing` or `closed`.
        open_s: since it connected, in seconds.
        silent_s: since its last bytes came, in seconds; heartbeats count.
        received_bytes: from the client.
        sent_bytes: to the client.
        subscriptions: without the inbox.
        waiting_messages: on their way to it in the broker, of all subscriptions.
        dropped_messages: lost by its subscriptions that are open.
        publishes: topics to which it has published, sorted.
        groups: collective groups in which it is a member or waits to be one, sorted.
        tenant: to which it belongs; empty for none.
        shared_memory: whether large messages go and come in shared memory.
    """

    id: int
    name: str
    host: str
    process: int
    peer: str
    phase: str
    open_s: float
    silent_s: float
    received_bytes: int
    sent_bytes: int
    subscriptions: list[SubscriptionView]
    waiting_messages: int
    dropped_messages: int
    publishes: list[str]
    groups: list[str]
    tenant: str = ""
    shared_memory: bool = False


class QueueGroupView(msgspec.Struct, frozen=True):
    """A queue group with acknowledgement on one topic.

    Attributes:
        name: the queue group.
        members: subscriptions that may get its jobs.
        waiting_jobs: that no member has.
        delayed_jobs: that were refused and are put off.
        leased_jobs: that members have and did not settle.
        held_bytes: of all of these.
        redelivered_messages: deliveries that were not a job's first, ever.
        dead_messages: jobs that went to the dead-letter topic, ever.
        holds_back: whether publishers wait because there are too many jobs.
    """

    name: str
    members: int
    waiting_jobs: int
    delayed_jobs: int
    leased_jobs: int
    held_bytes: int
    redelivered_messages: int
    dead_messages: int
    holds_back: bool


class SettingView(msgspec.Struct, frozen=True):
    """One setting of a topic, and why it holds.

    Attributes:
        setting: its name.
        value: what holds; null is none.
        filter: of the declaration that decides, empty when none does.
        origin: `default`, `configuration`, or `declared by` and a client's name.
    """

    setting: str
    value: bool | int | float | str | None
    filter: str
    origin: str


class TopicView(msgspec.Struct, frozen=True):
    """One of the `topics` of `/api/v1/topics`.

    Attributes:
        name: the topic.
        published_messages: ever.
        published_bytes: payload and headers, ever.
        refused_messages: that were longer than the topic's policy allows, ever.
        next_sequence: of the message that will come next.
        oldest_sequence: that can be replayed; `next_sequence` when none can.
        retained_messages: kept for replay.
        retained_bytes: kept for replay.
        subscriptions: that get its messages.
        held_back_publishers: that wait for a slow subscriber.
        held_back_by: the clients that they wait for, or `queue group` and its name, at most 16.
        queue_groups: with acknowledgement, by name.
        policy: all settings.
        tenant: whose topic it is; empty for none.
    """

    name: str
    published_messages: int
    published_bytes: int
    refused_messages: int
    next_sequence: int
    oldest_sequence: int
    retained_messages: int
    retained_bytes: int
    subscriptions: int
    held_back_publishers: int
    held_back_by: list[str]
    queue_groups: list[QueueGroupView]
    policy: list[SettingView]
    tenant: str = ""


def server_view(server: Server, now_ns: int, tenants: Sequence[Tenant] | None = None) -> ServerView:
    """The broker at this moment; what it counts is of some tenants, or of all."""
    state, census = server.state, Census()
    if tenants is None or len(tenants) == len(state.tenants):
        tenants, totals = list(state.tenants.values()), state.totals(census)
    else:
        totals = Totals()
        for tenant in tenants:
            totals.add(tenant.totals(census))
    return ServerView(
        name=server.config.name,
        version=version(),
        process=os.getpid(),
        uptime_s=seconds(now_ns - server.started_ns),
        clock_ns=time.time_ns(),
        python=platform.python_version(),
        compiled_modules=compiled_modules(),
        shared_memory=server.config.shared_memory,
        listeners=[str(listener.address) for listener in server.listeners],
        draining=state.draining,
        sessions=sessions_open(tenants),
        subscriptions=subscriptions_open(tenants),
        topics=census.topics,
        groups=sum(len(tenant.groups.by_number) for tenant in tenants),
        published_messages=totals.published_messages,
        published_bytes=totals.published_bytes,
        delivered_messages=totals.delivered_messages,
        dropped_messages={overflow.value: count for overflow, count in totals.dropped_messages.items()},
        refused_messages=totals.refused_messages,
        redelivered_messages=totals.redelivered_messages,
        dead_messages=totals.dead_messages,
        received_bytes=totals.received_bytes,
        sent_bytes=totals.sent_bytes,
    )


def session_views(server: Server, now_ns: int) -> list[SessionView]:
    """All sessions, oldest first."""
    server.state.drain_lines()
    return [session_view(record, now_ns) for record in server.state.sessions.values()]


def session_view(record: SessionRecord, now_ns: int) -> SessionView:
    """One session."""
    session = record.session
    return SessionView(
        id=record.id,
        name=record.name,
        host=record.host,
        process=record.process,
        peer=record.peer,
        phase=session.phase.value,
        open_s=seconds(now_ns - record.opened_ns),
        silent_s=seconds(max(0, now_ns - session.last_received_ns)),
        received_bytes=session.received_bytes,
        sent_bytes=session.sent_bytes,
        subscriptions=[_subscription_view(subscription) for n, subscription in record.subscriptions.items() if n],
        waiting_messages=sum(each.queue.waiting_messages for each in record.subscriptions.values()),
        dropped_messages=sum(each.dropped for each in record.subscriptions.values()),
        publishes=sorted({publisher.topic.name for publisher in record.publishers.values()}),
        groups=sorted(record.groups),
        tenant=record.tenant.name,
        shared_memory=record.shares is not None,
    )


def _subscription_view(subscription: Subscription) -> SubscriptionView:
    queue = subscription.queue
    return SubscriptionView(
        number=subscription.number,
        filter=subscription.filter,
        overflow=queue.overflow.value,
        queue_group=subscription.queue_group,
        waiting_messages=queue.waiting_messages,
        waiting_bytes=queue.waiting_bytes,
        unread_messages=queue.unread_messages,
        delivered_messages=subscription.delivered,
        dropped_messages=subscription.dropped,
        unsettled_jobs=0 if subscription.worker is None else subscription.worker.load,
        blocks_topics=sorted(topic.name for topic in subscription.blocking),
    )


def topics_of(
    server: Server, topic_filter: str = ALL_LEVELS, after: int = 0, tenants: Iterable[Tenant] | None = None
) -> Iterator[tuple[Tenant, TopicRecord]]:
    """The topics of clients that a filter matches, of some tenants or of all; of each tenant the oldest first.

    The first `after` of them are left out.

    Raises:
        InvalidValue: a filter that cannot be.
    """
    check_filter(topic_filter)
    server.state.drain_lines()
    tenants = server.state.tenants.values() if tenants is None else tenants
    found = (pair for pair in public_topics(tenants) if matches(topic_filter, pair[1].name))
    return islice(found, after, None)


def topic_views(server: Server, topic_filter: str = ALL_LEVELS) -> list[TopicView]:
    """The topics of clients that a filter matches, by name.

    Raises:
        InvalidValue: a filter that cannot be.
    """
    topics = sorted(topics_of(server, topic_filter), key=lambda pair: (pair[1].name, pair[0].name))
    return [topic_view(tenant, topic) for tenant, topic in topics]


def topic_view(tenant: Tenant, topic: TopicRecord, *, explained: bool = True) -> TopicView:
    """One topic; its policy only if it is to be explained."""
    router, ring = tenant.router, topic.ring
    routes = router.routes(topic)
    return TopicView(
        name=topic.name,
        published_messages=topic.published,
        published_bytes=topic.published_bytes,
        refused_messages=topic.refused,
        next_sequence=ring.next_sequence,
        oldest_sequence=ring.oldest_sequence,
        retained_messages=ring.held_messages,
        retained_bytes=ring.held_bytes,
        subscriptions=len(routes.subscriptions()) + sum(work.members for work in routes.works),
        held_back_publishers=len(topic.held_back),
        held_back_by=_names(blockers(router, topic)),
        queue_groups=[_queue_group_view(topic.works[name]) for name in sorted(topic.works)],
        policy=[
            SettingView(held.setting, held.value, held.filter, held.origin)
            for held in (router.policies.explain(topic.name) if explained else ())
        ],
        tenant=tenant.name,
    )


def _names(found: list[Blocker]) -> list[str]:
    names = [f"queue group {blocker.group}" if isinstance(blocker, Work) else blocker.session.name for blocker in found]
    return list(dict.fromkeys(names))[:BLOCKERS_SHOWN]


def _queue_group_view(work: Work) -> QueueGroupView:
    queue = work.queue
    return QueueGroupView(
        name=work.group,
        members=work.members,
        waiting_jobs=queue.waiting,
        delayed_jobs=queue.delayed,
        leased_jobs=queue.leased,
        held_bytes=queue.held_bytes,
        redelivered_messages=queue.redelivered,
        dead_messages=queue.dead,
        holds_back=bool(work.blocking),
    )


def seconds(duration_ns: int) -> float:
    """Rounded to microseconds: more digits would only be noise."""
    return round(duration_ns / 1e9, 6)
