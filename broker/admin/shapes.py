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
    clock_ns: int = 0


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


class LastMessage(msgspec.Struct, frozen=True):
    """The newest message of a session that is still retained as the last one of its topic.

    Attributes:
        topic: where.
        text: the value, shortened.
        ago_s: since it was published, by the publisher's clock, in seconds.
    """

    topic: str
    text: str
    ago_s: float


class MemberView(msgspec.Struct, frozen=True):
    """A session that is a member, or waits to be one.

    Attributes:
        rank: its rank; null when it waits for any that is free.
        session: its number.
        name: of the client.
        host: the client's machine, as it says.
        process: the client's process number, as it says.
        silent_s: since its last bytes came, in seconds; heartbeats count.
        waiting_s: of a session that waits to be a member, since it asked, in seconds; else 0.
        last_message: what it has published last, if it is known and whoever asks may subscribe to its topic.
    """

    rank: int | None
    session: int
    name: str
    host: str
    process: int
    silent_s: float
    waiting_s: float
    last_message: LastMessage | None


class OperationView(msgspec.Struct, frozen=True):
    """An operation of a group in progress.

    Attributes:
        sequence: in the group's generation and schedule.
        schedule: `star`, `shm`, `ring` or `halving`.
        state: `gathering`, `mismatched` or `running`.
        claim: what the ranks ask for, in words.
        arrived_ranks: in the order of their coming.
        missing_ranks: who holds it up at this moment, ascending.
        waiting_s: since the first rank came, in seconds.
        unmoved_s: since anything last moved in it, in seconds; seen to a twentieth of a second.
        behind_s: of each rank that has come, how long after the first one, in seconds.
        deadline_s: until it fails, in seconds; null when only its ranks know.
        rounds_done: chunks that are reduced and sent.
        held_bytes: payload that waits for other ranks.
    """

    sequence: int
    schedule: str
    state: str
    claim: str
    arrived_ranks: list[int]
    missing_ranks: list[int]
    waiting_s: float
    unmoved_s: float
    behind_s: dict[int, float]
    deadline_s: float | None
    rounds_done: int
    held_bytes: int


class RecordedView(msgspec.Struct, frozen=True):
    """An operation that is over.

    Attributes:
        generation: in which it was.
        sequence: in the generation and the schedule.
        schedule: `star`, `shm`, `ring` or `halving`.
        claim: what the ranks asked for, in words; empty when it is not known any more.
        kind: all_reduce, ...; likewise.
        op: how it was reduced; empty when it was not.
        dtype: of the array.
        shape: of the array.
        bytes: of the array that each rank contributed.
        outcome: `done`, `missing`, `mismatch`, `interrupted`, `broken`, or `void` when the members changed.
        failure: why, in words; empty when it was done.
        ago_s: since its last rank came, in seconds.
        duration_s: from the first rank's coming to its end, in seconds; null when nobody has looked at a clock, as with
            small ones on a board.
        behind_s: of each rank that came, how long after the first one, in seconds.
    """

    generation: int
    sequence: int
    schedule: str
    claim: str
    kind: str
    op: str
    dtype: str
    shape: list[int]
    bytes: int
    outcome: str
    failure: str
    ago_s: float
    duration_s: float | None
    behind_s: dict[int, float]


class StragglerView(msgspec.Struct, frozen=True):
    """A rank that keeps the others waiting.

    Attributes:
        rank: which one.
        name: of its client.
        host: its client's machine.
        process: its client's process number.
        lateness_s: by how much it usually comes behind the others, where anybody waits, in seconds.
        late_operations: how often it was, of the window.
        operations: of the window, which are the last 64 at most.
    """

    rank: int
    name: str
    host: str
    process: int
    lateness_s: float
    late_operations: int
    operations: int


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
        schedule: how operations go: `shm` when the generation has a board, `ring` or `halving` over links, else `star`.
        operations: in progress, by schedule and sequence.
        untold_failures: failed operations that some rank has not started, and so not heard of.
        members: by ascending rank.
        newcomers: sessions that are to become members.
        stragglers: the latest first.
        recorded_operations: operations that were seen to end, ever; on a busy board some are missed.
        failed_operations: of these, those that were not done.
        last_outcome: how the last operation ended; empty before the first one.
        last_failure: the last one that failed, other than by a change of members; null when none has.
        recent: the last operations, at most 32, oldest first.
        tenant: whose group it is; numbers are a tenant's own.
        problem: why its operations go no quicker way than by `schedule`; empty for `shm`, the quickest.
    """

    name: str
    number: int
    generation: int
    world_size: int
    ranks: list[int]
    missing_ranks: list[int]
    waiting: int
    age_s: float
    schedule: str
    operations: list[OperationView]
    untold_failures: int
    members: list[MemberView]
    newcomers: list[MemberView]
    stragglers: list[StragglerView]
    recorded_operations: int
    failed_operations: int
    last_outcome: str
    last_failure: RecordedView | None
    recent: list[RecordedView]
    tenant: str = ""
    problem: str = ""
