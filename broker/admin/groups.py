"""Groups, as the HTTP interface and the command line tell of them: who is in, who is waited for, and what was.

As in shapes.py, the fields are the keys of the JSON, and times are durations in seconds up to the moment of the
answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from msgspec import structs

from broker.admin.last import LastMessage, last_message
from broker.admin.views import seconds
from broker.collectives.group import Group
from broker.collectives.recorder import Recorded
from broker.collectives.snapshots import GroupSnapshot, OperationSnapshot
from broker.ids import SessionId
from broker.server import Server
from broker.state.tenants import Tenant

MayRead = Callable[[str, str], bool]
"""Whether somebody may subscribe, of a tenant, to a topic."""
RECENT_SHOWN: Final = 32
"""Operations of each group that are shown; its recorder may have more."""
ARRIVALS_SHOWN: Final = 4096
"""Ranks times operations: of large groups fewer operations are shown."""


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


def groups_of(server: Server, tenants: Iterable[Tenant] | None = None) -> list[tuple[Tenant, Group]]:
    """The collective groups of some tenants, or of all; of each the oldest first."""
    tenants = server.state.tenants.values() if tenants is None else tenants
    return [(tenant, group) for tenant in tenants for group in tenant.groups.by_number.values()]


def group_views(server: Server, now_ns: int, may_read: MayRead) -> list[GroupView]:
    """All collective groups, as somebody may see them."""
    return [shown_to(may_read, group_view(server, tenant, group, now_ns)) for tenant, group in groups_of(server)]


def shown_to(may_read: MayRead, group: GroupView) -> GroupView:
    """A group without the last messages that somebody may not read."""
    return structs.replace(
        group,
        members=[_readable(may_read, group.tenant, member) for member in group.members],
        newcomers=[_readable(may_read, group.tenant, member) for member in group.newcomers],
    )


def _readable(may_read: MayRead, tenant: str, member: MemberView) -> MemberView:
    last = member.last_message
    return member if last is None or may_read(tenant, last.topic) else structs.replace(member, last_message=None)


def group_view(server: Server, tenant: Tenant, group: Group, now_ns: int) -> GroupView:
    """One group at this moment."""
    shown = tenant.groups.snapshot(group, now_ns)
    members = [
        _member(server, session, rank, None, now_ns) for rank, session in zip(shown.ranks, shown.sessions, strict=True)
    ]
    recorder, failure = shown.recorder, shown.recorder.last_failure
    recent = recorder.recent(max(2, min(RECENT_SHOWN, ARRIVALS_SHOWN // shown.world_size)))
    return GroupView(
        name=shown.name,
        number=shown.number,
        generation=shown.generation,
        world_size=shown.world_size,
        ranks=list(shown.ranks),
        missing_ranks=list(shown.missing_ranks),
        waiting=len(shown.newcomers),
        age_s=seconds(now_ns - shown.created_ns),
        schedule=shown.schedule,
        operations=[_operation(operation, now_ns) for operation in shown.operations],
        untold_failures=shown.untold_failures,
        members=members,
        newcomers=[_member(server, each.session, each.rank, each.since_ns, now_ns) for each in shown.newcomers],
        stragglers=_stragglers(shown, {member.rank: member for member in members}),
        recorded_operations=recorder.operations,
        failed_operations=recorder.failed_operations,
        last_outcome=recent[-1].outcome.value if recent else "",
        last_failure=None if failure is None else _recorded(failure, now_ns),
        recent=[_recorded(operation, now_ns) for operation in recent],
        tenant=tenant.name,
        problem=tenant.groups.problem(group),
    )


def _member(server: Server, number: SessionId, rank: int | None, since_ns: int | None, now_ns: int) -> MemberView:
    record = server.state.sessions.get(number)
    waiting_s = 0.0 if since_ns is None else seconds(now_ns - since_ns)
    if record is None:
        return MemberView(rank, number, "", "", 0, 0.0, waiting_s, None)
    silent_s = seconds(max(0, now_ns - record.session.last_received_ns))
    last = last_message(record, time.time_ns())
    return MemberView(rank, number, record.name, record.host, record.process, silent_s, waiting_s, last)


def _operation(operation: OperationSnapshot, now_ns: int) -> OperationView:
    arrived = operation.arrived_ns
    first_ns = min(arrived.values(), default=now_ns)
    return OperationView(
        sequence=operation.sequence,
        schedule=operation.schedule,
        state=operation.state.value,
        claim=operation.claim,
        arrived_ranks=list(arrived),
        missing_ranks=list(operation.missing_ranks),
        waiting_s=max(0.0, seconds(now_ns - first_ns)),
        unmoved_s=max(0.0, seconds(now_ns - operation.moved_ns)),
        behind_s={rank: seconds(came_ns - first_ns) for rank, came_ns in arrived.items()},
        deadline_s=None if operation.deadline_ns is None else seconds(operation.deadline_ns - now_ns),
        rounds_done=operation.rounds_done,
        held_bytes=operation.held_bytes,
    )


def _recorded(operation: Recorded, now_ns: int) -> RecordedView:
    arrived, claim = operation.arrived_ns, operation.claim
    first_ns = min(arrived.values(), default=now_ns)
    return RecordedView(
        generation=operation.generation,
        sequence=operation.sequence,
        schedule=operation.schedule,
        claim="" if claim is None else claim.describe(),
        kind="" if claim is None else claim.kind.value,
        op="" if claim is None or claim.op is None else claim.op.value,
        dtype="" if claim is None else claim.dtype,
        shape=[] if claim is None else list(claim.shape),
        bytes=0 if claim is None else claim.nbytes,
        outcome=operation.outcome.value,
        failure=operation.failure,
        ago_s=max(0.0, seconds(now_ns - max(arrived.values(), default=now_ns))),
        duration_s=max(0.0, seconds(operation.finished_ns - first_ns)) if operation.finished_ns else None,
        behind_s={rank: seconds(came_ns - first_ns) for rank, came_ns in arrived.items()},
    )


def _stragglers(shown: GroupSnapshot, members: dict[int | None, MemberView]) -> list[StragglerView]:
    found = []
    for straggler in shown.recorder.stragglers():
        member = members.get(straggler.rank)
        name, host, process = ("", "", 0) if member is None else (member.name, member.host, member.process)
        found.append(
            StragglerView(
                straggler.rank, name, host, process,
                seconds(straggler.lateness_ns), straggler.late_operations, straggler.operations,
            )
        )  # fmt: skip
    return found
