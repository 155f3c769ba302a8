"""What the HTTP interface tells, as types: their fields are the keys of the JSON, and are kept stable.

Times are durations in seconds up to the moment of the answer, so that nobody has to compare clocks. Whoever reads the
answers in Python can decode them with these types.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from broker.collectives.snapshots import GroupSnapshot, OperationSnapshot
from broker.metrics import public_topics, sessions_open, subscriptions_open, version
from broker.server import Server
from broker.state.delivery import Subscription
from broker.state.pressure import Blocker
from broker.state.queries import blockers
from broker.state.records import SessionRecord
from broker.state.topics import Router, TopicRecord
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
        publishes: topics to which it has published, sorted.
        groups: collective groups in which it is a member or waits to be one, sorted.
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
    publishes: list[str]
    groups: list[str]


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


class OperationView(msgspec.Struct, frozen=True):
    """A collective operation in progress.

    Attributes:
        sequence: in its generation.
        state: `gathering`, `mismatched` or `running`.
        claim: what the ranks ask for, in words.
        arrived_ranks: in the order of their coming.
        missing_ranks: who holds it up at this moment, ascending.
        waiting_s: since the first rank came, in seconds.
        deadline_s: until it fails, in seconds.
        rounds_done: chunks that are reduced and sent.
        held_bytes: payload that waits for other ranks.
    """

    sequence: int
    state: str
    claim: str
    arrived_ranks: list[int]
    missing_ranks: list[int]
    waiting_s: float
    deadline_s: float
    rounds_done: int
    held_bytes: int


class GroupView(msgspec.Struct, frozen=True):
    """One of the `groups` of `/api/v1/groups`.

    Attributes:
        name: the group.
        number: in this broker.
        generation: 0 until it has formed.
        world_size: ranks that it is made for.
        ranks: its members, ascending.
        missing_ranks: those that nobody has and nobody waits for, ascending.
        waiting: sessions that are to become members.
        age_s: since the first one joined, in seconds.
        operations: in progress, by sequence.
        untold_failures: failed operations that some rank has not started, and so not heard of.
    """

    name: str
    number: int
    generation: int
    world_size: int
    ranks: list[int]
    missing_ranks: list[int]
    waiting: int
    age_s: float
    operations: list[OperationView]
    untold_failures: int


def server_view(server: Server, now_ns: int) -> ServerView:
    """The broker at this moment."""
    state = server.state
    totals = state.totals()
    return ServerView(
        name=server.config.name,
        version=version(),
        process=os.getpid(),
        uptime_s=_seconds(now_ns - server.started_ns),
        listeners=[str(listener.address) for listener in server.listeners],
        draining=state.draining,
        sessions=sessions_open(state),
        subscriptions=subscriptions_open(state),
        topics=len(public_topics(state)),
        groups=len(state.groups.by_number),
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
    return [_session_view(record, now_ns) for record in server.state.sessions.values()]


def _session_view(record: SessionRecord, now_ns: int) -> SessionView:
    session = record.session
    return SessionView(
        id=record.id,
        name=record.name,
        host=record.host,
        process=record.process,
        peer=record.peer,
        phase=session.phase.value,
        open_s=_seconds(now_ns - record.opened_ns),
        silent_s=_seconds(now_ns - session.last_received_ns),
        received_bytes=session.received_bytes,
        sent_bytes=session.sent_bytes,
        subscriptions=[_subscription_view(subscription) for n, subscription in record.subscriptions.items() if n],
        publishes=sorted({publisher.topic.name for publisher in record.publishers.values()}),
        groups=sorted(record.groups),
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


def topic_views(server: Server, topic_filter: str = ALL_LEVELS) -> list[TopicView]:
    """The topics of clients that a filter matches, by name.

    Raises:
        InvalidValue: a filter that cannot be.
    """
    check_filter(topic_filter)
    topics = [topic for topic in public_topics(server.state) if matches(topic_filter, topic.name)]
    return [_topic_view(server.state.router, topic) for topic in sorted(topics, key=lambda topic: topic.name)]


def _topic_view(router: Router, topic: TopicRecord) -> TopicView:
    ring, routes = topic.ring, router.routes(topic)
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
            for held in router.policies.explain(topic.name)
        ],
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


def group_views(server: Server, now_ns: int) -> list[GroupView]:
    """All collective groups, oldest first."""
    return [_group_view(group.snapshot(), now_ns) for group in server.state.groups.by_number.values()]


def _group_view(group: GroupSnapshot, now_ns: int) -> GroupView:
    return GroupView(
        name=group.name,
        number=group.number,
        generation=group.generation,
        world_size=group.world_size,
        ranks=list(group.ranks),
        missing_ranks=list(group.missing_ranks),
        waiting=group.waiting,
        age_s=_seconds(now_ns - group.created_ns),
        operations=[_operation_view(operation, now_ns) for operation in group.operations],
        untold_failures=group.untold_failures,
    )


def _operation_view(operation: OperationSnapshot, now_ns: int) -> OperationView:
    return OperationView(
        sequence=operation.sequence,
        state=operation.state.value,
        claim=operation.claim,
        arrived_ranks=list(operation.arrived_ns),
        missing_ranks=list(operation.missing_ranks),
        waiting_s=_seconds(now_ns - min(operation.arrived_ns.values(), default=now_ns)),
        deadline_s=_seconds(operation.deadline_ns - now_ns),
        rounds_done=operation.rounds_done,
        held_bytes=operation.held_bytes,
    )


def _seconds(duration_ns: int) -> float:
    """Rounded to microseconds: more digits would only be noise."""
    return round(duration_ns / 1e9, 6)
