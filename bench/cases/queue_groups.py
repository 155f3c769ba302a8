"""How fast jobs are done by workers that acknowledge each one: work queues, whose jobs are done at least once.

One process puts all jobs in as fast as it can, and ends when the broker has them; workers take one after the other,
check it and acknowledge it. All begin together. A worker ends when there has been nothing for it for a while, and every
job must have been done by then; how many were done twice is counted.
"""

from __future__ import annotations

import time
from functools import partial

from bench.case import Case, Column, Point
from bench.children import StepFailed
from bench.contestant import Bus
from bench.processes import Team
from bench.tasks import Part, Result, Task
from broker.measuring import payloads

NAME = "bench/jobs"
SIZE_BYTES = 64
JOBS = 10_000
WORKERS = 8
PUT = 256
"""Jobs that are put in together."""
IDLE_S = 2.0
"""A worker that has got nothing for so long is done."""


def put(bus: Bus, task: Task) -> Part:
    """Puts the jobs in, numbered; the times are those of the first call and of the last return."""
    filler = bytes(task.size_bytes - 8)
    queue = bus.work_queue(NAME)
    yield
    began_ns = time.monotonic_ns()
    for start in range(0, task.count, PUT):
        numbers = range(start, min(start + PUT, task.count))
        queue.put_many([number.to_bytes(8, "little") + filler for number in numbers])
    return Result(count=task.count, times_ns=(began_ns, time.monotonic_ns()))


def work(bus: Bus, task: Task) -> Part:
    """Does jobs; the time is that of the last acknowledgement."""
    filler = bytes(task.size_bytes - 8)
    queue = bus.work_queue(NAME)
    numbers: list[int] = []
    done_ns = 0
    yield
    while (job := queue.take(IDLE_S)) is not None:
        payloads.check(job[8:], filler, len(numbers))
        numbers.append(int.from_bytes(job[:8], "little"))
        queue.acknowledge()
        done_ns = time.monotonic_ns()
    return Result(numbers=tuple(numbers), times_ns=(done_ns,))


def measure(team: Team, jobs: int, workers: int) -> dict[str, float]:
    """One run."""
    worker = Task("queue-groups.work", size_bytes=SIZE_BYTES)
    *worked, sent = team.run([worker] * workers + [Task("queue-groups.put", size_bytes=SIZE_BYTES, count=jobs)])
    done = [number for result in worked for number in result.numbers]
    if set(done) != set(range(jobs)):
        raise StepFailed(f"{jobs} jobs were put in, {len(set(done))} of them were done")
    began_ns, put_ns = sent.times_ns
    elapsed_s = (max(result.times_ns[0] for result in worked) - began_ns) / 1e9
    shares = sorted(len(result.numbers) for result in worked)
    return {
        "thousand_per_s": jobs / elapsed_s / 1e3,
        "put_thousand_per_s": jobs / (put_ns - began_ns) * 1e6,
        "least": shares[0],
        "most": shares[-1],
        "again": len(done) - jobs,
    }


def points(quick: bool) -> list[Point]:
    """The one point."""
    jobs, workers = (200, 2) if quick else (JOBS, WORKERS)
    return [Point(f"{jobs:,} jobs, {workers} workers", partial(measure, jobs=jobs, workers=workers))]


CASE = Case(
    name="queue-groups",
    title="Jobs of 64 B done and acknowledged, thousands per second over all workers",
    columns=(
        Column("thousand_per_s", "thousand/s", 2, ratio=True, more_is_better=True),
        Column("put_thousand_per_s", "put in, thousand/s", 2),
        Column("least", "fewest of a worker"),
        Column("most", "most of a worker"),
        Column("again", "done again"),
    ),
    points=points,
    roles={"queue-groups.put": put, "queue-groups.work": work},
    contestants=("tensorbus", "nats", "redis"),
)
