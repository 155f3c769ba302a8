"""How latency grows with the subscriptions that a broker looks through, and with those that it sends to."""

from __future__ import annotations

from functools import partial

from bench.case import Case, Column, Point
from bench.cases import latency
from bench.holding import ROLES, held
from bench.processes import Team
from bench.tasks import Task
from broker.measuring.percentiles import percentiles

SIZE_BYTES = 64
SUBSCRIPTIONS = (100, 1000, 10_000, 100_000)
SUBSCRIPTIONS_OF_A_CLIENT = 4000
SUBSCRIBERS = (1, 10, 100)
MATCHING = ("tensorbus", "zeromq", "nats", "redis", "mosquitto", "rabbitmq", "zenoh")
"""Who has a broker that matches topics."""
RABBITMQ_SUBSCRIPTIONS_MAX = 10_000
"""100,000 bindings take it longer than a step may."""
WITHOUT_RABBITMQ = tuple(name for name in MATCHING if name != "rabbitmq")
FAN_OUT_RATE_HZ, FAN_OUT_COUNT, FAN_OUT_WARM_UP = 50.0, 200, 20
"""A message to a hundred processes takes milliseconds of both cores."""


def match(team: Team, subscriptions: int, count: int, warm_up: int) -> dict[str, float]:
    """The latency of messages to one subscriber, beside subscriptions to other topics."""
    held(team, subscriptions, SUBSCRIPTIONS_OF_A_CLIENT)
    return latency.measure(team, SIZE_BYTES, 1000.0, count, warm_up)


def fan_out(team: Team, subscribers: int, rate_hz: float, count: int, warm_up: int) -> dict[str, float]:
    """The time until the last of the subscribers, each a process of its own, has a message."""
    task = Task("latency.receive", size_bytes=SIZE_BYTES, count=count, warm_up=warm_up)
    publisher = Task("latency.publish", size_bytes=SIZE_BYTES, count=count, warm_up=warm_up, rate_hz=rate_hz)
    *received, sent = team.run([*[task] * subscribers, publisher])
    last_ns = [max(times) for times in zip(*(result.times_ns for result in received), strict=True)]
    spans_ns = [arrived_ns - began_ns for began_ns, arrived_ns in zip(sent.times_ns, last_ns, strict=True)]
    return percentiles(spans_ns[warm_up:], "us", 1e-3)


def points(quick: bool) -> list[Point]:
    """The numbers of subscriptions, then those of subscribers."""
    count, warm_up = (50, 5) if quick else (2000, 500)
    matching = [
        Point(
            f"beside {subscriptions:,} subscriptions",
            partial(match, subscriptions=subscriptions, count=count, warm_up=warm_up),
            contestants=MATCHING if subscriptions <= RABBITMQ_SUBSCRIPTIONS_MAX else WITHOUT_RABBITMQ,
            curve=("subscriptions to other topics", subscriptions),
        )
        for subscriptions in SUBSCRIPTIONS[: 1 if quick else None]
    ]
    rate_hz, count, warm_up = (200.0, 10, 2) if quick else (FAN_OUT_RATE_HZ, FAN_OUT_COUNT, FAN_OUT_WARM_UP)
    fanning = [
        Point(
            f"to {subscribers} subscriber{'s'[: subscribers - 1]}",
            partial(fan_out, subscribers=subscribers, rate_hz=rate_hz, count=count, warm_up=warm_up),
            curve=("subscribers", subscribers),
        )
        for subscribers in SUBSCRIBERS[: 2 if quick else None]
    ]
    return [*matching, *fanning]


CASE = Case(
    name="scaling",
    title=f"{SIZE_BYTES} B to one subscriber beside subscriptions to other topics, and until the last of many has it, "
    "microseconds",
    columns=(
        Column("p50_us", "p50", 1, ratio=True),
        Column("p99_us", "p99", 1, ratio=True),
        Column("max_us", "max", 1),
        Column("count", "messages"),
    ),
    points=points,
    roles=ROLES,
)
