"""Groups, as the HTTP interface and the command line tell of them: who is in, who is waited for, and what was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import structs

from broker.admin.last import last_message
from broker.admin.shapes import GroupView, MemberView, OperationView, RecordedView, StragglerView
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
