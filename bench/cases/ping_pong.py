"""Round trips of one message at a time over two topics: one process sends, another one sends it back."""

from __future__ import annotations

import time
from functools import partial

from bench.case import Case, Column, Point, size_text
from bench.contestant import Bus
from bench.processes import Team
from bench.tasks import Part, Result, Task
from broker.measuring import payloads
from broker.measuring.percentiles import percentiles

PING_TOPIC, PONG_TOPIC = "bench/ping", "bench/pong"
SIZE_BYTES = 64
COUNT, WARM_UP = 5000, 500


def ping(bus: Bus, task: Task) -> Part:
    """The times are those of the round trips."""
    cycle = payloads.cycle(task.size_bytes)
    subscriber, publisher = bus.subscriber(PONG_TOPIC, task.size_bytes), bus.publisher(PING_TOPIC)
    clock, length = time.monotonic_ns, len(cycle)
    times_ns: list[int] = []
    yield
    for index in range(task.warm_up + task.count):
        began_ns = clock()
        publisher.send(cycle[index % length])
        payload = subscriber.receive()
        times_ns.append(clock() - began_ns)
        payloads.check(payload, cycle[index % length], index)
    return Result(times_ns=tuple(times_ns[task.warm_up :]))


def pong(bus: Bus, task: Task) -> Part:
    """Sends back what comes."""
    subscriber, publisher = bus.subscriber(PING_TOPIC, task.size_bytes), bus.publisher(PONG_TOPIC)
    yield
    for _ in range(task.warm_up + task.count):
        publisher.send(bytes(subscriber.receive()))
    publisher.flush()
    return Result()


def measure(team: Team, count: int, warm_up: int) -> dict[str, float]:
    """One run."""
    roles = ("ping-pong.pong", "ping-pong.ping")
    _, pinged = team.run([Task(role, size_bytes=SIZE_BYTES, count=count, warm_up=warm_up) for role in roles])
    return percentiles(pinged.times_ns, "us", 1e-3)


def points(quick: bool) -> list[Point]:
    """The one point."""
    count, warm_up = (100, 10) if quick else (COUNT, WARM_UP)
    return [Point(size_text(SIZE_BYTES), partial(measure, count=count, warm_up=warm_up), SIZE_BYTES)]


CASE = Case(
    name="ping-pong",
    title=f"Round trips of {SIZE_BYTES} B over two topics, microseconds",
    columns=(
        Column("p50_us", "p50", 1, ratio=True),
        Column("p90_us", "p90", 1),
        Column("p99_us", "p99", 1, ratio=True),
        Column("p99.9_us", "p99.9", 1),
        Column("max_us", "max", 1),
        Column("count", "round trips"),
    ),
    points=points,
    roles={"ping-pong.ping": ping, "ping-pong.pong": pong},
)
