"""The benchmarks, in the order in which they run."""

from __future__ import annotations

from typing import Final

from bench.case import Case
from bench.cases import all_reduce, control, latency, queue_groups, slow_subscriber, tensors, throughput
from bench.tasks import Role

ALL: Final[tuple[Case, ...]] = (
    latency.CASE,
    throughput.CASE,
    tensors.CASE,
    all_reduce.CASE,
    control.CASE,
    slow_subscriber.CASE,
    queue_groups.CASE,
)
ROLES: Final[dict[str, Role]] = {name: role for case in ALL for name, role in case.roles.items()}
