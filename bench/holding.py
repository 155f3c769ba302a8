"""Subscriptions that are only there: what a broker has to look through, and what it remembers."""

from __future__ import annotations

from bench import contestants
from bench.children import Child
from bench.contestant import Bus
from bench.processes import Team
from bench.tasks import Part, Result, Role, Task

TOPICS = "bench/held"


def hold(bus: Bus, task: Task) -> Part:
    """Subscribes to `count` topics, each to its own, over as many connections as it takes."""
    contestant = contestants.by_name(task.contestant)
    topics = [f"{TOPICS}/{number}" for number in range(task.count)]
    buses = []
    for start in range(0, task.count, task.subscribers):
        buses.append(contestant.connect(task.address))
        buses[-1].hold(topics[start : start + task.subscribers])
    yield
    return Result(count=len(buses))


def held(team: Team, count: int, each: int) -> Child:
    """Starts a process with `count` subscriptions, `each` on a connection; they are there when this returns."""
    holder = team.start(Task("hold", count=count, subscribers=each))
    holder.line()
    return holder


ROLES: dict[str, Role] = {"hold": hold}
