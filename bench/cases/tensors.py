"""Bandwidth of float32 arrays that a reader sums, one after the other."""

from __future__ import annotations

import time
from functools import partial

from bench import payloads
from bench.case import Case, Column, Point, size_text
from bench.contestant import Bus
from bench.processes import Team
from bench.tasks import Part, Result, Task

TOPIC = "bench/tensors"
SIZES_BYTES = (1 << 20, 64 << 20)
TOTAL_BYTES = 1 << 30
WARM_UP_BYTES = 192 << 20


def publish(bus: Bus, task: Task) -> Part:
    """Sends the same array, numbered in its first element, as fast as it can."""
    tensor = payloads.tensor(task.size_bytes)
    publisher = bus.publisher(TOPIC)
    yield
    for index in range(task.warm_up + task.count):
        tensor[0] = index
        publisher.send_tensor(tensor)
    publisher.flush()
    return Result()


def receive(bus: Bus, task: Task) -> Part:
    """Sums each array, and times those after the warm-up."""
    subscriber = bus.subscriber(TOPIC, task.size_bytes)
    yield
    for index in range(task.warm_up):
        payloads.check_tensor(subscriber.receive_tensor(), task.size_bytes, index)
    began = time.monotonic()
    for index in range(task.warm_up, task.warm_up + task.count):
        payloads.check_tensor(subscriber.receive_tensor(), task.size_bytes, index)
    return Result(count=task.count, elapsed_s=time.monotonic() - began)


def measure(team: Team, size_bytes: int, count: int, warm_up: int) -> dict[str, float]:
    """One run."""
    roles = ("tensors.receive", "tensors.publish")
    received, _ = team.run([Task(role, size_bytes=size_bytes, count=count, warm_up=warm_up) for role in roles])
    return {
        "gb_per_s": size_bytes * received.count / received.elapsed_s / 1e9,
        "ms_per_array": received.elapsed_s / received.count * 1e3,
        "count": received.count,
    }


def points(quick: bool) -> list[Point]:
    """The sizes."""
    total_bytes, warm_up_bytes = (8 << 20, 2 << 20) if quick else (TOTAL_BYTES, WARM_UP_BYTES)
    return [
        Point(
            size_text(size_bytes),
            partial(
                measure,
                size_bytes=size_bytes,
                count=total_bytes // size_bytes,
                warm_up=warm_up_bytes // size_bytes,
            ),
            size_bytes,
        )
        for size_bytes in SIZES_BYTES[: 1 if quick else None]
    ]


CASE = Case(
    name="tensors",
    title="float32 arrays, summed by the reader",
    columns=(
        Column("gb_per_s", "GB/s", 2, ratio=True, more_is_better=True),
        Column("ms_per_array", "ms each", 2),
        Column("count", "arrays"),
    ),
    points=points,
    roles={"tensors.publish": publish, "tensors.receive": receive},
)
