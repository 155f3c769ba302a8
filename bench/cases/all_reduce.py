"""Time and bandwidth of all-reduce, sum of float32, in the words of NVIDIA's nccl-tests (doc/PERFORMANCE.md).

    algorithm bandwidth = S / t                       S bytes in the array of each rank, t the median time
    bus bandwidth       = S / t * 2 * (n - 1) / n     n ranks: what each rank's link carries in the best schedule

A barrier comes before every operation. An operation's time runs from the last rank's call to the last rank's return, on
the clock that all processes of a host share, so that the ranks' different ways out of the barrier do not count.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from bench.case import Case, Column, Point, size_text
from bench.contestant import Bus
from bench.processes import Team
from bench.tasks import Part, Result, Task
from bench.tensorbus import TensorbusBus
from broker.measuring import payloads
from broker.measuring.percentiles import percentiles

WORLD_SIZES = (2, 4)
SIZES_AND_COUNTS = ((8, 500), (64 << 10, 300), (1 << 20, 100), (64 << 20, 8))
WARM_UP = 3


def take_part(bus: Bus, task: Task) -> Part:
    """One rank; the times are call and return of each operation, in turn."""
    assert isinstance(bus, TensorbusBus)
    array = np.empty(task.size_bytes // 4, np.float32)
    expected = task.world_size * (task.world_size + 1) / 2
    clock = time.monotonic_ns
    times_ns: list[int] = []
    group = bus.client.group("bench", world_size=task.world_size, rank=task.rank)
    yield
    for index in range(task.warm_up + task.count):
        array.fill(task.rank + 1)
        group.barrier()
        called_ns = clock()
        group.all_reduce(array)
        returned_ns = clock()
        if not (array == expected).all():
            raise payloads.WrongPayload(f"all-reduce {index} gave {array}, due was {expected} everywhere")
        if index >= task.warm_up:
            times_ns += called_ns, returned_ns
    group.barrier()
    return Result(times_ns=tuple(times_ns))


def measure(team: Team, size_bytes: int, world_size: int, count: int) -> dict[str, float]:
    """One run."""
    task = Task("all_reduce.rank", size_bytes=size_bytes, count=count, warm_up=WARM_UP, world_size=world_size)
    ranks = [result.times_ns for result in team.run_ranks(task)]
    called = zip(*(times[0::2] for times in ranks), strict=True)
    returned = zip(*(times[1::2] for times in ranks), strict=True)
    durations_ns = [max(after) - max(before) for before, after in zip(called, returned, strict=True)]
    figures = percentiles(durations_ns, "ms", 1e-6)
    algorithm_gb_per_s = size_bytes / figures["p50_ms"] / 1e6
    bus_gb_per_s = algorithm_gb_per_s * 2 * (world_size - 1) / world_size
    return {**figures, "algorithm_gb_per_s": algorithm_gb_per_s, "bus_gb_per_s": bus_gb_per_s}


def points(quick: bool) -> list[Point]:
    """The numbers of ranks and the sizes."""
    return [
        Point(
            f"{world_size} ranks, {size_text(size_bytes)}",
            partial(measure, size_bytes=size_bytes, world_size=world_size, count=5 if quick else count),
        )
        for world_size in WORLD_SIZES[: 1 if quick else None]
        for size_bytes, count in SIZES_AND_COUNTS[: 1 if quick else None]
    ]


CASE = Case(
    name="all-reduce",
    title="All-reduce, sum of float32, milliseconds from the last rank's call to the last rank's return",
    columns=(
        Column("p50_ms", "p50", 3),
        Column("p90_ms", "p90", 3),
        Column("p99_ms", "p99", 3),
        Column("max_ms", "max", 3),
        Column("algorithm_gb_per_s", "algorithm GB/s", 3),
        Column("bus_gb_per_s", "bus GB/s", 3),
        Column("count", "operations"),
    ),
    points=points,
    roles={"all_reduce.rank": take_part},
    contestants=("tensorbus",),
)
