"""Time and bandwidth of all-reduce, a sum, in the words of NVIDIA's nccl-tests (doc/PERFORMANCE.md).

    algorithm bandwidth = S / t                       S bytes in the array of each rank, t the median time
    bus bandwidth       = S / t * 2 * (n - 1) / n     n ranks: what each rank's link carries in the best schedule

A barrier comes before every operation. An operation's time runs from the last rank's call to the last rank's return, on
the clock that all processes of a host share, so that the ranks' different ways out of the barrier do not count.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from bench.case import Case, Column, Point, size_text
from bench.contestant import Bus, numpy_dtype
from bench.processes import Team
from bench.tasks import Part, Result, Task
from broker.measuring import payloads
from broker.measuring.percentiles import percentiles

MIB: Final = 1 << 20
COUNTS: Final = {8: 3000, 64 << 10: 1000, MIB: 100, 16 * MIB: 24, 64 * MIB: 8}
"""Operations of a run, by the bytes of each rank's array."""
SHAPES: Final = (
    *((ranks, size, "float32") for ranks in (2, 4) for size in COUNTS),
    (8, MIB, "float32"),
    *((ranks, 64 * MIB, dtype) for ranks in (2, 4) for dtype in ("float16", "bfloat16")),
)
"""Ranks, bytes and dtype of each point."""
QUICK: Final = (SHAPES[0], (2, 64 << 10, "float16"))
WARM_UP: Final = 3


def take_part(bus: Bus, task: Task) -> Part:
    """One rank; the times are call and return of each operation, in turn."""
    expected = task.world_size * (task.world_size + 1) / 2
    clock = time.monotonic_ns
    times_ns: list[int] = []
    collective = bus.collective(task)
    array = collective.empty(task.size_bytes // numpy_dtype(task.dtype).itemsize, task.dtype)
    reduce, result = collective.all_reduce(array), collective.result(array)
    yield
    for index in range(task.warm_up + task.count):
        array.fill(task.rank + 1)
        collective.barrier()
        called_ns = clock()
        reduce()
        returned_ns = clock()
        if not (result == expected).all():
            raise payloads.WrongPayload(f"all-reduce {index} gave {result}, due was {expected} everywhere")
        if index >= task.warm_up:
            times_ns += called_ns, returned_ns
    collective.barrier()
    return Result(times_ns=tuple(times_ns))


def measure(team: Team, ranks: int, size_bytes: int, dtype: str, count: int) -> dict[str, float]:
    """One run."""
    task = Task("all_reduce.rank", size_bytes=size_bytes, count=count, warm_up=WARM_UP, world_size=ranks, dtype=dtype)
    times_ns = [result.times_ns for result in team.run_ranks(task)]
    called = zip(*(times[0::2] for times in times_ns), strict=True)
    returned = zip(*(times[1::2] for times in times_ns), strict=True)
    durations_ns = [max(after) - max(before) for before, after in zip(called, returned, strict=True)]
    figures = percentiles(durations_ns, "ms", 1e-6)
    algorithm_gb_per_s = size_bytes / figures["p50_ms"] / 1e6
    bus_gb_per_s = algorithm_gb_per_s * 2 * (ranks - 1) / ranks
    return {**figures, "algorithm_gb_per_s": algorithm_gb_per_s, "bus_gb_per_s": bus_gb_per_s}


def points(quick: bool) -> list[Point]:
    """The numbers of ranks, the sizes and the dtypes."""
    return [
        Point(
            f"{ranks} ranks, {size_text(size)}" + ("" if dtype == "float32" else f" of {dtype}"),
            partial(measure, ranks=ranks, size_bytes=size, dtype=dtype, count=5 if quick else COUNTS[size]),
            dtype=dtype,
        )
        for ranks, size, dtype in (QUICK if quick else SHAPES)
    ]


CASE = Case(
    name="all-reduce",
    title="All-reduce, sum of float32 or as said, milliseconds from the last rank's call to the last rank's return",
    columns=(
        Column("p50_ms", "p50", 3, ratio=True),
        Column("p90_ms", "p90", 3),
        Column("p99_ms", "p99", 3),
        Column("max_ms", "max", 3),
        Column("algorithm_gb_per_s", "algorithm GB/s", 3),
        Column("bus_gb_per_s", "bus GB/s", 3),
        Column("count", "operations"),
    ),
    points=points,
    roles={"all_reduce.rank": take_part},
    contestants=("limit", "limit/apart", "tensorbus", "tensorbus/shared", "gloo", "openmpi"),
    compared=("limit", "limit/apart", "gloo", "openmpi"),
)
