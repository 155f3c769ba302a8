"""How many small messages per second subscribers receive from publishers that send as fast as they can."""

from __future__ import annotations

import time
from functools import partial

from msgspec.structs import replace

from bench.case import Case, Column, Point, size_text
from bench.children import StepFailed
from bench.contestant import Bus
from bench.processes import Team
from bench.tasks import Part, Result, Task
from broker.measuring import payloads

TOPIC = "bench/throughput"
SIZES_BYTES = (64, 1 << 10)
PUBLISHERS_SUBSCRIBERS = ((1, 1), (1, 4), (4, 1))
DURATION_S = 2.0
WARM_UP = 20_000


def publish(bus: Bus, task: Task) -> Part:
    """Sends for a time, then the end."""
    cycle = payloads.cycle(task.size_bytes, task.rank)
    publisher = bus.publisher(TOPIC)
    yield
    count = 0
    deadline = time.monotonic() + task.duration_s
    while count < 2 * task.warm_up or time.monotonic() < deadline:
        publisher.send_many(cycle)
        count += len(cycle)
    publisher.send_many([payloads.end(task.size_bytes)])
    publisher.flush()
    return Result(count=count)


def receive(bus: Bus, task: Task) -> Part:
    """Receives until the end comes, and times what comes after the warm-up."""
    cycle, end = payloads.cycle(task.size_bytes), payloads.end(task.size_bytes)
    length, index, began, warm_up = len(cycle), 0, 0.0, task.warm_up
    subscriber = bus.subscriber(TOPIC, task.size_bytes)
    yield
    for payload in subscriber.receive_many():
        if payload != cycle[index % length]:
            if payload == end:
                break
            payloads.check(payload, cycle[index % length], index)
        index += 1
        if index == warm_up:
            began = time.monotonic()
    return Result(count=index, elapsed_s=time.monotonic() - began)


def receive_mixed(bus: Bus, task: Task) -> Part:
    """The same from several publishers, whose messages come in order each, but between one another."""
    cycles = [payloads.cycle(task.size_bytes, rank) for rank in range(task.world_size)]
    end, place, length = payloads.end(task.size_bytes), payloads.RANK_BYTE, len(cycles[0])
    indices, left, count, began, warm_up = [0] * task.world_size, task.world_size, 0, 0.0, task.warm_up
    subscriber = bus.subscriber(TOPIC, task.size_bytes)
    yield
    for payload in subscriber.receive_many():
        if payload == end:
            left -= 1
            if not left:
                break
            continue
        rank = payload[place]
        index = indices[rank]
        if payload != cycles[rank][index % length]:
            payloads.check(payload, cycles[rank][index % length], index)
        indices[rank] = index + 1
        count += 1
        if count == warm_up:
            began = time.monotonic()
    return Result(count=count, elapsed_s=time.monotonic() - began)


def measure(
    team: Team, size_bytes: int, publishers: int, subscribers: int, duration_s: float, warm_up: int
) -> dict[str, float]:
    """One run; the rate is the sum over the subscribers."""
    role = "throughput.receive" if publishers == 1 else "throughput.receive_mixed"
    receiver = Task(role, size_bytes=size_bytes, warm_up=warm_up, world_size=publishers)
    sender = Task("throughput.publish", size_bytes=size_bytes, duration_s=duration_s, warm_up=warm_up)
    results = team.run([receiver] * subscribers + [replace(sender, rank=rank) for rank in range(publishers)])
    received, sent = results[:subscribers], sum(result.count for result in results[subscribers:])
    if any(result.count != sent for result in received):
        raise StepFailed(f"{sent} messages were sent, {[result.count for result in received]} received")
    rate_hz = sum((result.count - warm_up) / result.elapsed_s for result in received)
    return {"thousand_per_s": rate_hz / 1e3, "mb_per_s": rate_hz * size_bytes / 1e6, "count": sent}


def points(quick: bool) -> list[Point]:
    """The sizes and numbers of publishers and subscribers."""
    duration_s, warm_up = (0.1, 1000) if quick else (DURATION_S, WARM_UP)
    return [
        Point(
            f"{size_text(size_bytes)}, {publishers} to {subscribers}",
            partial(
                measure,
                size_bytes=size_bytes,
                publishers=publishers,
                subscribers=subscribers,
                duration_s=duration_s,
                warm_up=warm_up,
            ),
            publishers=publishers,
        )
        for size_bytes in SIZES_BYTES[: 1 if quick else None]
        for publishers, subscribers in PUBLISHERS_SUBSCRIBERS[:: 2 if quick else 1]
    ]


CASE = Case(
    name="throughput",
    title="Messages received, thousands per second over all subscribers",
    columns=(
        Column("thousand_per_s", "thousand/s", 1, ratio=True, more_is_better=True),
        Column("mb_per_s", "MB/s", 1),
        Column("count", "messages"),
    ),
    points=points,
    roles={
        "throughput.publish": publish,
        "throughput.receive": receive,
        "throughput.receive_mixed": receive_mixed,
    },
)
