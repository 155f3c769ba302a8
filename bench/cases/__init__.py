"""The benchmarks, in the order in which they run."""

from __future__ import annotations

from typing import Final

from bench.case import Case
from bench.cases import (
    all_reduce,
    control,
    latency,
    memory,
    ping_pong,
    queue_groups,
    request,
    scaling,
    slow_subscriber,
    tensors,
    throughput,
)
from bench.tasks import Role

ALL: Final[tuple[Case, ...]] = (
    latency.CASE,
    ping_pong.CASE,
    request.CASE,
    throughput.CASE,
    tensors.CASE,
    all_reduce.CASE,
    control.CASE,
    slow_subscriber.CASE,
    queue_groups.CASE,
    scaling.CASE,
    memory.CASE,
)
ROLES: Final[dict[str, Role]] = {name: role for case in ALL for name, role in case.roles.items()}
