"""Bandwidth of float32 arrays that readers sum, one after the other.

Two ways to publish: an array that is there, in ordinary memory; and one that is made for it, in place, in the memory
that the client lends. Where a client lends none, the second one is made in ordinary memory and published from there.

The floor is what a reader could do if arrays came by themselves: how fast it sums one that it has.
"""

from __future__ import annotations

import time
from functools import partial

from bench.case import Case, Column, Point, size_text
from bench.contestant import Bus
from bench.contestants import WITH_UCX
from bench.processes import Team
from bench.tasks import Part, Result, Task
from broker.measuring import payloads

TOPIC = "bench/tensors"
SIZES_BYTES = (1 << 20, 16 << 20, 64 << 20, 256 << 20)
SIZE_OF_TWO_READERS_BYTES = 64 << 20
TOTAL_BYTES = 512 << 20
WARM_UP_BYTES = 192 << 20
ARRAYS_MIN = 4


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


def publish_in_place(bus: Bus, task: Task) -> Part:
    """Makes each array where it is sent from."""
    publisher = bus.publisher(TOPIC)
    yield
    for index in range(task.warm_up + task.count):
        tensor = publisher.lend(task.size_bytes)
        tensor.fill(1.0)
        tensor[0] = index
        publisher.send_lent(tensor)
        del tensor
    publisher.flush()
    return Result()


def receive(bus: Bus, task: Task) -> Part:
    """Sums each array, and times those after the warm-up; then, as its times, one that it has."""
    subscriber = bus.subscriber(TOPIC, task.size_bytes)
    yield
    for index in range(task.warm_up):
        payloads.check_tensor(subscriber.receive_tensor(), task.size_bytes, index)
    began = time.monotonic()
    for index in range(task.warm_up, task.warm_up + task.count):
        payloads.check_tensor(subscriber.receive_tensor(), task.size_bytes, index)
    elapsed_s = time.monotonic() - began
    own = payloads.tensor(task.size_bytes)
    times_ns = [time.monotonic_ns()]
    for _ in range(task.warm_up + task.count):
        payloads.check_tensor(own, task.size_bytes, 1)
        times_ns.append(time.monotonic_ns())
    return Result(count=task.count, elapsed_s=elapsed_s, times_ns=(times_ns[task.warm_up], times_ns[-1]))


def measure(team: Team, size_bytes: int, readers: int, count: int, warm_up: int, *, in_place: bool) -> dict[str, float]:
    """One run; the figures are those of the slowest reader."""
    receiver = Task("tensors.receive", size_bytes=size_bytes, count=count, warm_up=warm_up)
    role = "tensors.publish_in_place" if in_place else "tensors.publish"
    sender = Task(role, size_bytes=size_bytes, count=count, warm_up=warm_up)
    *received, _ = team.run([*[receiver] * readers, sender])
    elapsed_s = max(result.elapsed_s for result in received)
    bare_s = max(result.times_ns[1] - result.times_ns[0] for result in received) / 1e9
    return {
        "gb_per_s": size_bytes * count / elapsed_s / 1e9,
        "ms_per_array": elapsed_s / count * 1e3,
        "bare_gb_per_s": size_bytes * count / bare_s / 1e9,
        "of_bare": bare_s / elapsed_s,
        "count": count,
    }


def points(quick: bool) -> list[Point]:
    """The sizes, each in both ways, and two readers."""
    total_bytes, warm_up_bytes = (8 << 20, 2 << 20) if quick else (TOTAL_BYTES, WARM_UP_BYTES)
    sizes_readers = [(size_bytes, 1) for size_bytes in SIZES_BYTES[: 1 if quick else None]]
    sizes_readers.append((SIZES_BYTES[0] if quick else SIZE_OF_TWO_READERS_BYTES, 2))
    return [
        Point(
            size_text(size_bytes) + (", in place" if in_place else "") + (f", {readers} readers" * (readers > 1)),
            partial(
                measure,
                size_bytes=size_bytes,
                readers=readers,
                count=max(ARRAYS_MIN, total_bytes // size_bytes),
                warm_up=max(1, warm_up_bytes // size_bytes),
                in_place=in_place,
            ),
            size_bytes,
        )
        for size_bytes, readers in sizes_readers
        for in_place in (False, True)
    ]


CASE = Case(
    name="tensors",
    title="float32 arrays, summed by each reader",
    columns=(
        Column("gb_per_s", "GB/s", 2, ratio=True, more_is_better=True),
        Column("ms_per_array", "ms each", 2),
        Column("bare_gb_per_s", "bare sum GB/s", 2),
        Column("of_bare", "/bare sum", 2),
        Column("count", "arrays"),
    ),
    points=points,
    roles={
        "tensors.publish": publish,
        "tensors.publish_in_place": publish_in_place,
        "tensors.receive": receive,
    },
    contestants=tuple(contestant.name for contestant in WITH_UCX),
)
