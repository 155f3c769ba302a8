"""One-way latency of paced messages, from the publisher's call to the subscriber's return."""

from __future__ import annotations

import time
from functools import partial

from bench.case import Case, Column, Point, size_text
from bench.contestant import Bus, Payload
from bench.contestants import WITH_UCX
from bench.processes import Team
from bench.tasks import Part, Result, Task
from broker.measuring import payloads
from broker.measuring.percentiles import percentiles

TOPIC = "bench/latency"
SIZES_RATES_COUNTS = ((64, 1000.0, 4000), (64 << 10, 500.0, 2000), (1 << 20, 100.0, 500))
"""No rate is near what any contestant can do, or the time in its queue would be all that is measured."""
WARM_UP_S = 0.5
DELAY_S = 0.05


def publish(bus: Bus, task: Task) -> Part:
    """Sends at a steady rate; the times are when each message began."""
    cycle = payloads.cycle(task.size_bytes)
    publisher = bus.publisher(TOPIC)
    yield
    times_ns = publisher.send_paced(cycle, task.warm_up + task.count, task.rate_hz, DELAY_S)
    publisher.flush()
    return Result(times_ns=tuple(times_ns))


def receive(bus: Bus, task: Task) -> Part:
    """The times are when each message was there."""
    cycle = payloads.cycle(task.size_bytes)
    subscriber = bus.subscriber(TOPIC, task.size_bytes)
    clock, length, total = time.monotonic_ns, len(cycle), task.warm_up + task.count
    times_ns: list[int] = []

    def take(payload: Payload) -> bool:
        times_ns.append(clock())
        index = len(times_ns) - 1
        payloads.check(payload, cycle[index % length], index)
        return index + 1 == total

    yield
    subscriber.each(take)
    return Result(times_ns=tuple(times_ns))


def measure(team: Team, size_bytes: int, rate_hz: float, count: int, warm_up: int) -> dict[str, float]:
    """One run."""
    received, sent = team.run(
        [
            Task(role, size_bytes=size_bytes, count=count, warm_up=warm_up, rate_hz=rate_hz)
            for role in ("latency.receive", "latency.publish")
        ]
    )
    times = zip(sent.times_ns, received.times_ns, strict=True)
    latencies_ns = [arrived_ns - began_ns for began_ns, arrived_ns in times]
    return percentiles(latencies_ns[warm_up:], "us", 1e-3)


def points(quick: bool) -> list[Point]:
    """The sizes."""
    return [
        Point(
            f"{size_text(size_bytes)} at {rate_hz:,.0f}/s",
            partial(
                measure,
                size_bytes=size_bytes,
                rate_hz=rate_hz,
                count=100 if quick else count,
                warm_up=10 if quick else int(rate_hz * WARM_UP_S),
            ),
            size_bytes,
        )
        for size_bytes, rate_hz, count in SIZES_RATES_COUNTS[: 1 if quick else None]
    ]


CASE = Case(
    name="latency",
    title="One-way latency, microseconds",
    columns=(
        Column("p50_us", "p50", 1, ratio=True),
        Column("p90_us", "p90", 1),
        Column("p99_us", "p99", 1, ratio=True),
        Column("p99.9_us", "p99.9", 1),
        Column("max_us", "max", 1),
        Column("count", "messages"),
    ),
    points=points,
    roles={"latency.publish": publish, "latency.receive": receive},
    contestants=tuple(contestant.name for contestant in WITH_UCX),
)
