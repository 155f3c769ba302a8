"""What one subscriber that stops reading costs the 99 others, and how much memory it costs the broker.

There are 100 subscribers, each a client with a connection of its own: one in a process that is stopped with SIGSTOP
half way, the others in a few processes. One publisher sends as fast as the 99 take it: it stays a window ahead of the
last message that each of their processes has seen everywhere, which they tell it. So what the 99 receive per second
before and after is what everybody could do at that moment, and nothing is lost for want of speed.

The contestants are variants that hold about 4 MiB for a subscriber that does not read, and then drop messages
(tensorbus, ZeroMQ, Mosquitto) or cut it off (NATS, Redis). The processes end by the clock, so a system that stalls
shows rates of zero.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from bench import contestants
from bench.case import Case, Column, Point, size_text
from bench.children import Child, StepFailed
from bench.contestant import Bus, Payload
from bench.contestants import BOUNDED, BOUNDED_MESSAGE_BYTES
from bench.processes import Team
from bench.tasks import Part, Result, Task
from bench.tensorbus import QUEUE_BYTES
from broker.measuring import payloads

TOPIC, SEEN_TOPIC = "bench/slow", "bench/seen"
SIZE_BYTES = BOUNDED_MESSAGE_BYTES
SUBSCRIBERS, PROCESSES = 100, 3
"""All subscribers, and the processes that those share which are not stopped."""
WINDOW_MESSAGES = 256
"""How far the publisher is ahead of the last message that everybody has seen; below what any contestant holds."""
BURST_MESSAGES = 16
"""Messages that are published, and reported as seen, together."""
BUCKET_NS = 100_000_000
"""Messages are counted by tenths of a second."""
SETTLE_S, BEFORE_S, AFTER_S = 1.0, 4.0, 10.0
"""Phases: until it is measured; before one stops; after it has stopped, long enough to fill what is held for it."""
LINGER_S = 0.3
"""How long the others go on when the measurement is over."""
LOOK_S = 0.05
"""How often a process looks for something new to report as seen when nothing tells it to."""


def publish(bus: Bus, task: Task) -> Part:
    """Sends until it is ended."""
    publisher = bus.publisher(TOPIC)
    reports = bus.subscriber(SEEN_TOPIC, payloads.EDGE_BYTES)
    seen = dict.fromkeys(range(task.world_size), 0)
    filler = bytes(task.size_bytes - 8)
    yield
    sent = 0
    while True:
        burst = [number.to_bytes(8, "little") + filler for number in range(sent + 1, sent + BURST_MESSAGES + 1)]
        publisher.send_many(burst)
        sent += BURST_MESSAGES
        while sent - min(seen.values()) > WINDOW_MESSAGES - BURST_MESSAGES:
            report = bytes(reports.receive())
            seen[report[0]] = int.from_bytes(report[1:9], "little")


class Reader:
    """One subscriber.

    Attributes:
        counts: messages by tenth of a second.
        seen: the number of the last message.
        missed: messages that never came.
    """

    def __init__(self, bus: Bus, task: Task, reached: threading.Event) -> None:
        self.bus = bus
        self.counts: Counter[int] = Counter()
        self.seen = 0
        self.missed = 0
        self.disorder = 0
        self._reached = reached
        # Of the client's thread, which goes on, and of the one that tells the counts.
        self._lock = threading.Lock()
        bus.handle(TOPIC, task.size_bytes, self._take)

    def _take(self, payload: Payload) -> None:
        number = int.from_bytes(payload[:8], "little")
        self.disorder += number <= self.seen
        self.missed += number - self.seen - 1
        self.seen = number
        with self._lock:
            self.counts[time.monotonic_ns() // BUCKET_NS] += 1
        if number % BURST_MESSAGES == 0:
            self._reached.set()

    def counted(self) -> Counter[int]:
        """The counts so far; messages may go on coming."""
        with self._lock:
            return self.counts.copy()


def receive(bus: Bus, task: Task) -> Part:
    """Receives for a time, with many subscribers, and reports what all of them have seen."""
    contestant = contestants.by_name(task.contestant)
    reached = threading.Event()
    readers = [Reader(contestant.connect(task.address, threads=True), task, reached) for _ in range(task.subscribers)]
    reports = bus.publisher(SEEN_TOPIC)
    reported = 0
    yield
    deadline = time.monotonic() + task.duration_s
    while time.monotonic() < deadline:
        reached.wait(LOOK_S)
        reached.clear()
        seen = min(reader.seen for reader in readers)
        if seen > reported and task.rank < task.world_size:
            reported = seen
            reports.send(bytes([task.rank]) + seen.to_bytes(8, "little") + bytes(payloads.EDGE_BYTES - 9))
    if any(reader.disorder for reader in readers):
        raise payloads.WrongPayload(f"{sum(reader.disorder for reader in readers)} messages came twice or out of order")
    counts = sum((reader.counted() for reader in readers), Counter[int]())
    return Result(count=sum(reader.missed for reader in readers), counts=dict(counts))


def memory_bytes(process_id: int, field: str) -> int:
    """Of a process: `VmRSS`, its resident memory now, or `VmHWM`, the most that it ever was (proc_pid_status(5))."""
    size_bytes = status_bytes(Path(f"/proc/{process_id}/status").read_text(encoding="utf-8"), field)
    if size_bytes is None:
        raise StepFailed(f"process {process_id} has ended")
    return size_bytes


def status_bytes(status: str, field: str) -> int | None:
    """A size in the text of /proc/PID/status; None in that of a process that has ended, which has no memory."""
    values = (line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:"))
    return next((int(kilobytes) << 10 for kilobytes in values), None)


def rate_hz(counts: Counter[int], start_ns: int, end_ns: int) -> float:
    """Messages per second between two times, as far as whole buckets lie between them."""
    first, last = -(-start_ns // BUCKET_NS), end_ns // BUCKET_NS
    return sum(counts[bucket] for bucket in range(first, last)) / ((last - first) * BUCKET_NS) * 1e9


def stop_one(broker: Child, victim: Child, settle_s: float, before_s: float, after_s: float) -> tuple[list[int], int]:
    """Stops a process in the middle of the run.

    Returns:
        When the three phases' ends were, and how many bytes the broker has grown by at most since the process stopped.
    """
    time.sleep(settle_s)
    times_ns = [time.monotonic_ns()]
    time.sleep(before_s)
    before_bytes = memory_bytes(broker.process_id, "VmRSS")
    os.kill(victim.process_id, signal.SIGSTOP)
    times_ns.append(time.monotonic_ns())
    time.sleep(after_s)
    times_ns.append(time.monotonic_ns())
    return times_ns, memory_bytes(broker.process_id, "VmHWM") - before_bytes


def measure(
    team: Team, subscribers: int, processes: int, settle_s: float, before_s: float, after_s: float
) -> dict[str, float]:
    """One run."""
    others = subscribers - 1
    shares = [others // processes + (rank < others % processes) for rank in range(processes)]
    task = Task("slow-subscriber.receive", size_bytes=SIZE_BYTES, world_size=processes)
    task = replace(task, duration_s=settle_s + before_s + after_s + LINGER_S)
    healthy = [team.start(replace(task, rank=rank, subscribers=share)) for rank, share in enumerate(shares)]
    victim = team.start(replace(task, rank=processes, subscribers=1))
    publisher = team.start(replace(task, role="slow-subscriber.publish"))
    team.go([*healthy, victim, publisher])
    broker = team.children[0]
    (start_ns, stop_ns, end_ns), grown_bytes = stop_one(broker, victim, settle_s, before_s, after_s)
    results = team.results(healthy)
    counts = sum((Counter(result.counts) for result in results), Counter[int]())
    before_hz, after_hz = rate_hz(counts, start_ns, stop_ns), rate_hz(counts, stop_ns, end_ns)
    if not counts:
        raise StepFailed(f"nothing was received; {publisher.name}{publisher.last_words()}")
    return {
        "before_thousand_per_s": before_hz / 1e3,
        "after_thousand_per_s": after_hz / 1e3,
        "kept_percent": after_hz / before_hz * 100 if before_hz else 0.0,
        "missed_percent": sum(result.count for result in results) / max(1, counts.total()) * 100,
        "grown_mib": grown_bytes / (1 << 20),
        "peak_mib": memory_bytes(broker.process_id, "VmHWM") / (1 << 20),
    }


def points(quick: bool) -> list[Point]:
    """The one point."""
    subscribers, processes = (4, 1) if quick else (SUBSCRIBERS, PROCESSES)
    settle_s, before_s, after_s = (0.1, 0.2, 0.2) if quick else (SETTLE_S, BEFORE_S, AFTER_S)
    run = partial(
        measure,
        subscribers=subscribers,
        processes=processes,
        settle_s=settle_s,
        before_s=before_s,
        after_s=after_s,
    )
    return [Point(f"1 of {subscribers} stops", run, SIZE_BYTES)]


CASE = Case(
    name="slow-subscriber",
    title=(
        f"{size_text(SIZE_BYTES)} messages received by the others when one subscriber stops reading, "
        f"with {size_text(QUEUE_BYTES)} to hold for it"
    ),
    columns=(
        Column("before_thousand_per_s", "before, thousand/s", 1),
        Column("after_thousand_per_s", "after, thousand/s", 1),
        Column("kept_percent", "kept %", 1),
        Column("missed_percent", "lost to others %", 1),
        Column("grown_mib", "broker grew MiB", 1),
        Column("peak_mib", "broker at most MiB", 1),
    ),
    points=points,
    roles={"slow-subscriber.publish": publish, "slow-subscriber.receive": receive},
    contestants=tuple(contestant.name for contestant in BOUNDED),
)
