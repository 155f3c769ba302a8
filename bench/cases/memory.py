"""What a broker's process holds in memory: idle, for each connection, and for each topic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.case import Case, Column, Point
from bench.cases.slow_subscriber import memory_bytes
from bench.contestant import Bus
from bench.holding import held
from bench.processes import Team
from bench.tasks import Part, Result, Task

CONNECTIONS, SUBSCRIPTIONS = 200, 10
TOPICS = 100_000
TOPICS_OF_A_CLIENT = 50_000
SIZE_BYTES = 64
BROKERS = ("tensorbus", "nats", "redis", "mosquitto", "rabbitmq", "zenoh")
"""Who has a broker that knows topics."""


def publish(bus: Bus, task: Task) -> Part:
    """Publishes one message to each of its topics; the broker has them all when it gets the last one back."""
    first, payload = task.rank * task.count, bytes(task.size_bytes)
    last = f"bench/topics/{first + task.count - 1}"
    subscriber = bus.subscriber(last, task.size_bytes)
    yield
    for number in range(first, first + task.count - 1):
        bus.publish(f"bench/topics/{number}", payload)
    bus.publisher(last).send(payload)
    subscriber.receive()
    return Result()


def resident_bytes(team: Team) -> int:
    """Of the broker."""
    return memory_bytes(team.children[0].process_id, "VmRSS")


def measure(team: Team, fill: Callable[[Team], None], count: int) -> dict[str, float]:
    """One run.

    Args:
        team: with a new broker.
        fill: makes the broker remember things.
        count: how many.
    """
    # One that was there: until then, a broker may not have begun in earnest.
    held(team, 1, 1)
    idle_bytes = resident_bytes(team)
    fill(team)
    full_bytes = resident_bytes(team)
    return {
        "idle_mib": idle_bytes / 2**20,
        "full_mib": full_bytes / 2**20,
        "each_kib": max(0, full_bytes - idle_bytes) / count / 2**10,
    }


def connect(team: Team, count: int) -> None:
    """Connections with subscriptions."""
    held(team, count * SUBSCRIPTIONS, SUBSCRIPTIONS)


def fill_topics(team: Team, count: int) -> None:
    """Topics with a message each, published by clients that are still there."""
    clients = max(1, count // TOPICS_OF_A_CLIENT)
    task = Task("memory.publish", size_bytes=SIZE_BYTES, count=count // clients, world_size=clients)
    team.run_ranks(task)


def points(quick: bool) -> list[Point]:
    """Connections, and topics."""
    connections, topics = (4, 100) if quick else (CONNECTIONS, TOPICS)
    return [
        Point(
            f"{connections} connections of {SUBSCRIPTIONS} subscriptions",
            partial(measure, fill=partial(connect, count=connections), count=connections),
        ),
        Point(f"{topics:,} topics", partial(measure, fill=partial(fill_topics, count=topics), count=topics)),
    ]


CASE = Case(
    name="memory",
    title="Resident memory of the broker: idle, full, and for each connection or topic",
    columns=(
        Column("idle_mib", "idle MiB", 1, ratio=True),
        Column("full_mib", "full MiB", 1),
        Column("each_kib", "each KiB", 2, ratio=True),
    ),
    points=points,
    roles={"memory.publish": publish},
    contestants=BROKERS,
)
