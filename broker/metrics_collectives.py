"""Metrics of groups: how long their operations take, who is late, what is stuck."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, Metric

from broker.metrics_families import counter, gauge, histogram
from broker.state import BrokerState


def collectives(state: BrokerState, now_ns: int) -> Iterator[Metric]:
    """What groups do, as the broker sees it, or is told by ranks that are linked."""
    tenants = list(state.tenants.values())
    groups = [group for tenant in tenants for group in tenant.groups.by_number.values()]
    for tenant in tenants:
        for group in list(tenant.groups.by_number.values()):
            tenant.groups.look(group, now_ns)
    # Of all tenants together.
    observing = state.observing
    done, failed, generations = observing.totals(groups)
    outcomes = CounterMetricFamily(
        "tensorbus_collectives", "Collective operations that the broker has seen end.", labels=["outcome"]
    )
    outcomes.add_metric(["done"], done)
    outcomes.add_metric(["failed"], failed)
    yield outcomes
    yield counter("group_generations", "Generations of groups that have begun.", generations)
    yield histogram(
        "collective",
        "From the first rank's arrival to the end of a collective operation, of a sample of them.",
        ["kind", "schedule"],
        observing.durations,
    )
    yield histogram(
        "collective_skew",
        "From the first rank's arrival to the last one's, of a sample of all collective operations.",
        [],
        {(): observing.skews},
    )
    yield gauge(
        "groups_stuck",
        "Groups with an operation that has not moved for a second.",
        sum(tenant.groups.reports.stuck_groups for tenant in tenants),
    )
    yield gauge(
        "group_lateness_seconds",
        "By how much the latest rank of all groups usually comes behind the others; 0 when nobody is late.",
        max(tenant.groups.reports.latest_ns for tenant in tenants) / 1e9,
    )
