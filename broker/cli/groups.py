"""What `tensorbus stuck` and `tensorbus groups` do: who waits for whom in collective groups, and who is always late."""

from __future__ import annotations

from typing import Final

import click
import msgspec

import clients
from broker.admin.shapes import (
    FailureView,
    GroupView,
    MemberView,
    OperationView,
    RecordedView,
    ServerView,
    StragglerView,
)
from broker.cli.connect import ask, connect, duration_text, of_tenant, ranks_text, table
from broker.cli.terminal import printable

FAILURE_TOLD_S: Final = 600.0
"""Failures that are older are told by `groups` alone."""
STRAGGLERS_SHOWN: Final = 3


class _Stuck(msgspec.Struct, omit_defaults=True):
    """Something that waits.

    Attributes:
        group: its group.
        generation: of the group; 0 until it has formed.
        waits_for: `operation`, or `members` when the group has not formed or newcomers are not let in.
        waiting_s: since the first rank came, in seconds.
        unmoved_s: since anything moved, in seconds.
        arrived_ranks: who is there.
        missing_ranks: who is waited for.
        missing: what is known of those.
        sequence: of the operation.
        schedule: of the operation.
        claim: what its ranks ask for.
        tenant: whose group it is; empty for none.
    """

    group: str
    generation: int
    waits_for: str
    waiting_s: float
    unmoved_s: float
    arrived_ranks: list[int]
    missing_ranks: list[int]
    missing: list[MemberView]
    sequence: int = 0
    schedule: str = ""
    claim: str = ""
    tenant: str = ""


def show_stuck(url: str | None, after_s: float, *, as_json: bool) -> bool:
    """Prints what waits, and for whom; says whether anything does.

    Args:
        url: of the broker.
        after_s: what has moved in so many seconds is not stuck.
        as_json: one JSON object per line for each thing that waits; else a paragraph, and the last failures.

    Raises:
        ConnectError: no broker is there.
    """
    with connect(url, "stuck") as bus:
        groups = [group for group, _ in ask(bus, "groups", GroupView)]
        gone = _failures_of_gone(bus)
    found = [stuck for group in groups for stuck in _stuck_of(group) if stuck.unmoved_s >= after_s]
    if as_json:
        for stuck in found:
            click.echo(msgspec.json.encode(stuck))
        return bool(found)
    for stuck in found:
        click.echo("\n".join(printable(line) for line in _paragraph(stuck)))
    for group in groups:
        failure = group.last_failure
        if failure is not None and failure.ago_s < FAILURE_TOLD_S:
            click.echo(_failed(failure, group.tenant))
    for each in gone:
        click.echo(_failed(each, each.tenant))
    if not found:
        click.echo(f"nothing is stuck in {len(groups)} group{'s' * (len(groups) != 1)}")
    return bool(found)


def _failures_of_gone(bus: clients.Client) -> list[FailureView]:
    """Of groups whose ranks have all left, as they do when a program ends over a failure."""
    servers = [server for server, _ in ask(bus, "server", ServerView)]
    return [each for server in servers for each in server.failures if each.ago_s < FAILURE_TOLD_S]


def _stuck_of(group: GroupView) -> list[_Stuck]:
    members = {member.rank: member for member in group.members}
    found = [
        _Stuck(
            group.name, group.generation, "operation", operation.waiting_s, operation.unmoved_s,
            operation.arrived_ranks, operation.missing_ranks,
            [members[rank] for rank in operation.missing_ranks if rank in members],
            operation.sequence, operation.schedule, operation.claim, group.tenant,
        )
        for operation in group.operations
    ]  # fmt: skip
    if group.newcomers and not group.operations:
        waiting_s = max(member.waiting_s for member in group.newcomers)
        arrived = [*group.ranks, *(member.rank for member in group.newcomers if member.rank is not None)]
        # The last one to come is what moved.
        unmoved_s = min(member.waiting_s for member in group.newcomers)
        found.append(
            _Stuck(
                group.name,
                group.generation,
                "members",
                waiting_s,
                unmoved_s,
                sorted(arrived),
                group.missing_ranks,
                [],
                tenant=group.tenant,
            )  # fmt: skip
        )
    return found


def _paragraph(stuck: _Stuck) -> list[str]:
    waits = f"has waited {duration_text(stuck.waiting_s)} for {_who(stuck.missing_ranks)}"
    if stuck.waits_for == "members":
        head = f"group {of_tenant(stuck.group, stuck.tenant)} has not formed: it {waits}"
        return [head, f"  there    {_who(stuck.arrived_ranks)}"]
    return [
        f"group {of_tenant(stuck.group, stuck.tenant)}, generation {stuck.generation}: operation {stuck.sequence}, "
        f"{stuck.claim} ({stuck.schedule}), {waits}",
        f"  came     {_who(stuck.arrived_ranks)}",
        *(f"  missing  {_about(member)}" for member in stuck.missing),
    ]


def _who(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) != 1)} {ranks_text(ranks)}" if ranks else "nobody"


def _about(member: MemberView) -> str:
    text = f"rank {member.rank}: {member.name}, process {member.process} on {member.host or 'an unknown host'}"
    text += f", last heard of {duration_text(member.silent_s)} ago"
    last = member.last_message
    if last is not None:
        text += f"; its last message, {duration_text(last.ago_s)} ago: {last.topic} {last.text}"
    return text


def show_groups(url: str | None, *, as_json: bool) -> None:
    """Prints the groups: members, what is in progress, who is late, and how the last operation ended.

    Raises:
        ConnectError: no broker is there.
    """
    with connect(url, "groups") as bus:
        groups = ask(bus, "groups", GroupView)
        gone = _failures_of_gone(bus)
    if as_json:
        for _, whole in groups:
            click.echo(msgspec.json.encode(whole))
        return
    for each in gone:
        click.echo(_failed(each, each.tenant))
    if not groups:
        click.echo("no groups", err=True)
        return
    head = ("GROUP", "GENERATION", "RANKS", "SCHEDULE", "IN PROGRESS", "STRAGGLERS", "LAST")
    click.echo("\n".join(printable(line) for line in table([head, *(_row(group) for group, _ in groups)])))
    for group, _ in groups:
        if group.last_failure is not None:
            click.echo(_failed(group.last_failure, group.tenant))


def _failed(failure: RecordedView | FailureView, tenant: str) -> str:
    whose = f" (tenant {tenant})" if tenant else ""
    return printable(f"failed {duration_text(failure.ago_s)} ago{whose}: {failure.failure}")


def group_row(group: dict[str, object]) -> tuple[str, ...]:
    """A group, as it comes without members and the last operations, as a row of the table."""
    return _row(msgspec.convert({"members": [], "recent": [], **group}, GroupView, str_keys=True))


def _row(group: GroupView) -> tuple[str, ...]:
    ranks = f"{ranks_text(group.ranks) or 'none'} of {group.world_size}"
    if group.missing_ranks:
        ranks += f", missing {ranks_text(group.missing_ranks)}"
    if group.newcomers:
        ranks += f", {len(group.newcomers)} waiting"
    return (
        of_tenant(group.name, group.tenant),
        str(group.generation),
        ranks,
        group.schedule,
        "; ".join(_in_progress(operation) for operation in group.operations[:2]) or "-",
        late_text(group.stragglers) or "-",
        f"{group.recent[-1].outcome} {duration_text(group.recent[-1].ago_s)} ago"
        if group.recent
        else group.last_outcome or "-",
    )


def late_text(stragglers: list[StragglerView]) -> str:
    """Who is late, and by how much: `2 by 50.3 ms (20 of 20)`."""
    words = [
        f"{late.rank} by {duration_text(late.lateness_s)} ({late.late_operations} of {late.operations})"
        for late in stragglers[:STRAGGLERS_SHOWN]
    ]
    more = len(stragglers) - STRAGGLERS_SHOWN
    return ", ".join([*words, f"{more} more"] if more > 0 else words)


def _in_progress(operation: OperationView) -> str:
    words = operation.claim.split(" ", 1)[0] or "operation"
    return f"{words} {duration_text(operation.waiting_s)}, waits for {ranks_text(operation.missing_ranks) or 'nobody'}"
