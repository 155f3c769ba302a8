"""What the HTTP interface tells of the broker, its sessions and its topics, in the shapes of shapes.py."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from broker.admin.shapes import (
    FailureView,
    QueueGroupView,
    ServerView,
    SessionView,
    SettingView,
    SubscriptionView,
    TopicView,
)
from broker.collectives.recorder import Recorded
from broker.measuring.modules import compiled_modules
from broker.metrics import public_topics, sessions_open, subscriptions_open
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
from broker.version import version

BLOCKERS_SHOWN: Final = 16
"""Of one topic: who looks wants to know whom to help first."""


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
        # Without their options, which name files of this host.
        listeners=[str(replace(listener.address, options=())) for listener in server.listeners],
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
        failures=[_failure_view(tenant, each, now_ns) for tenant in tenants for each in tenant.groups.gone_failures],
    )


def _failure_view(tenant: Tenant, failed: Recorded, now_ns: int) -> FailureView:
    ago_s = max(0.0, seconds(now_ns - max(failed.arrived_ns.values(), default=now_ns)))
    return FailureView(failed.outcome.value, failed.failure, ago_s, tenant.name)


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
