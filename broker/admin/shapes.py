"""What the HTTP interface tells, as types: their fields are the keys of the JSON, and are kept stable.

Times are durations in seconds up to the moment of the answer, so that nobody has to compare clocks. Whoever reads the
answers in Python can decode them with these types, as the command line does; a field that a broker of an older version
does not tell has a default.
"""

from __future__ import annotations

import msgspec


class FailureView(msgspec.Struct, frozen=True):
    """A collective that failed in a group that is gone.

    Attributes:
        outcome: how it ended, as in `/api/v1/groups`.
        failure: why, in a sentence with the group and what its ranks asked for.
        ago_s: since the last rank came to it, in seconds.
        tenant: whose group it was; empty for none.
    """

    outcome: str
    failure: str
    ago_s: float
    tenant: str = ""


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
        failures: the last one of each of the last groups that are gone, oldest first; of others, see the groups.
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
    failures: list[FailureView] = []


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
