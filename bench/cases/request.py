"""Requests, one at a time, and their replies, in the way that each system has for them."""

from __future__ import annotations

import time
from functools import partial

from bench.case import Case, Column, Point, size_text
from bench.contestant import Bus
from bench.processes import Team
from bench.tasks import Part, Result, Task
from broker.measuring import payloads
from broker.measuring.percentiles import percentiles

TOPIC = "bench/request"
SIZE_BYTES = 64
COUNT, WARM_UP = 5000, 500


def ask(bus: Bus, task: Task) -> Part:
    """The times are those from each request to its reply."""
    cycle = payloads.cycle(task.size_bytes)
    request = bus.requester(TOPIC, task.size_bytes)
    clock, length = time.monotonic_ns, len(cycle)
    times_ns: list[int] = []
    yield
    for index in range(task.warm_up + task.count):
        began_ns = clock()
        reply = request(cycle[index % length])
        times_ns.append(clock() - began_ns)
        payloads.check(reply, cycle[index % length], index)
    return Result(times_ns=tuple(times_ns[task.warm_up :]))


def answer(bus: Bus, task: Task) -> Part:
    """Replies to each request with its own payload."""
    responder = bus.responder(TOPIC, task.size_bytes)
    yield
    responder.serve(task.warm_up + task.count)
    return Result()


def measure(team: Team, count: int, warm_up: int) -> dict[str, float]:
    """One run."""
    roles = ("request.answer", "request.ask")
    _, asked = team.run([Task(role, size_bytes=SIZE_BYTES, count=count, warm_up=warm_up) for role in roles])
    return percentiles(asked.times_ns, "us", 1e-3)


def points(quick: bool) -> list[Point]:
    """The one point."""
    count, warm_up = (100, 10) if quick else (COUNT, WARM_UP)
    return [Point(size_text(SIZE_BYTES), partial(measure, count=count, warm_up=warm_up), SIZE_BYTES)]


CASE = Case(
    name="request",
    title=f"Requests of {SIZE_BYTES} B and their replies, microseconds",
    columns=(
        Column("p50_us", "p50", 1, ratio=True),
        Column("p90_us", "p90", 1),
        Column("p99_us", "p99", 1, ratio=True),
        Column("p99.9_us", "p99.9", 1),
        Column("max_us", "max", 1),
        Column("count", "requests"),
    ),
    points=points,
    roles={"request.ask": ask, "request.answer": answer},
    contestants=("relay", "tensorbus", "nats", "rabbitmq", "zenoh", "iceoryx2"),
)
