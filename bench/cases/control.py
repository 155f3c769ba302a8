"""Latency of small control messages while large ones stream to the same subscriber, and what that costs the stream.

One process streams 16 MiB arrays as fast as it can, another sends 64 B messages at a steady rate, a third receives both
through one client: a thread sums the arrays, the main thread waits for control messages. The stream runs alone for a
while first, which gives its bandwidth alone.
"""

from __future__ import annotations

import threading
import time
from functools import partial

from bench import payloads
from bench.case import Case, Column, Point
from bench.contestant import Bus, Subscriber
from bench.pacing import send_paced
from bench.processes import Team
from bench.summary import percentiles
from bench.tasks import Part, Result, Task

CONTROL_TOPIC, STREAM_TOPIC = "bench/control", "bench/stream"
CONTROL_BYTES, STREAM_BYTES = 64, 16 << 20
RATE_HZ = 200.0
COUNT = 600
WARM_UP_S, ALONE_S, AFTER_S = 0.5, 1.5, 0.3
"""Phases of the stream: before it is measured, before the first control message, after the last one."""
END = -1
"""First element of the last array."""


def publish(bus: Bus, task: Task) -> Part:
    """Sends control messages; the times are when each began."""
    publisher = bus.publisher(CONTROL_TOPIC, lane="control")
    cycle = payloads.cycle(CONTROL_BYTES)
    yield
    times_ns = send_paced(publisher.send, cycle, task.count, task.rate_hz, task.duration_s)
    publisher.flush()
    return Result(times_ns=tuple(times_ns))


def stream(bus: Bus, task: Task) -> Part:
    """Sends arrays for a time, then the end."""
    publisher = bus.publisher(STREAM_TOPIC, lane="bulk")
    tensor = payloads.tensor(STREAM_BYTES)
    yield
    deadline, index = time.monotonic() + task.duration_s, 0
    while time.monotonic() < deadline:
        tensor[0] = index
        publisher.send_tensor(tensor)
        index += 1
    tensor[0] = END
    publisher.send_tensor(tensor)
    publisher.flush()
    return Result(count=index)


def read_stream(subscriber: Subscriber, times_ns: list[int]) -> None:
    """Sums arrays until the end, and notes when each was done."""
    while (tensor := subscriber.receive_tensor())[0] != END:
        payloads.check_tensor(tensor, STREAM_BYTES, len(times_ns))
        times_ns.append(time.monotonic_ns())


def receive(bus: Bus, task: Task) -> Part:
    """The times are when each control message was there, the stream's times when each array was summed."""
    control = bus.subscriber(CONTROL_TOPIC, CONTROL_BYTES)
    arrays = bus.subscriber(STREAM_TOPIC, STREAM_BYTES)
    cycle = payloads.cycle(CONTROL_BYTES)
    times_ns: list[int] = []
    stream_times_ns: list[int] = []
    reader = threading.Thread(target=read_stream, args=(arrays, stream_times_ns), daemon=True)
    yield
    reader.start()
    for index in range(task.count):
        payload = control.receive()
        times_ns.append(time.monotonic_ns())
        payloads.check(payload, cycle[index % len(cycle)], index)
    reader.join()
    return Result(count=len(stream_times_ns), times_ns=tuple(times_ns), stream_times_ns=tuple(stream_times_ns))


def bandwidth_gb_per_s(times_ns: list[int]) -> float:
    """From the first array to the last; 0 when there are not two."""
    if len(times_ns) < 2:
        return 0.0
    return STREAM_BYTES * (len(times_ns) - 1) / (times_ns[-1] - times_ns[0])


def measure(team: Team, count: int, warm_up_s: float, alone_s: float, after_s: float) -> dict[str, float]:
    """One run."""
    before_s = warm_up_s + alone_s
    received, _, sent = team.run(
        [
            Task("control.receive", count=count),
            Task("control.stream", duration_s=before_s + count / RATE_HZ + after_s),
            Task("control.publish", count=count, rate_hz=RATE_HZ, duration_s=before_s),
        ]
    )
    times = list(zip(sent.times_ns, received.times_ns, strict=True))
    first_ns, last_ns = times[0][0], times[-1][1]
    alone = [at for at in received.stream_times_ns if first_ns - alone_s * 1e9 <= at < first_ns]
    beside = [at for at in received.stream_times_ns if first_ns <= at <= last_ns]
    return {
        **percentiles([arrived_ns - began_ns for began_ns, arrived_ns in times], "ms", 1e-6),
        "alone_gb_per_s": bandwidth_gb_per_s(alone),
        "beside_gb_per_s": bandwidth_gb_per_s(beside),
    }


def points(quick: bool) -> list[Point]:
    """The one point."""
    count, warm_up_s, alone_s, after_s = (20, 0.1, 0.1, 0.1) if quick else (COUNT, WARM_UP_S, ALONE_S, AFTER_S)
    run = partial(measure, count=count, warm_up_s=warm_up_s, alone_s=alone_s, after_s=after_s)
    return [Point(f"64 B at {RATE_HZ:.0f}/s", run)]


CASE = Case(
    name="control",
    title="Control messages beside a stream of 16 MiB arrays to the same client, milliseconds",
    columns=(
        Column("p50_ms", "p50", 3, ratio=True),
        Column("p90_ms", "p90", 3),
        Column("p99_ms", "p99", 3, ratio=True),
        Column("max_ms", "max", 3),
        Column("count", "messages"),
        Column("alone_gb_per_s", "stream alone GB/s", 2),
        Column("beside_gb_per_s", "beside GB/s", 2),
    ),
    points=points,
    roles={"control.publish": publish, "control.stream": stream, "control.receive": receive},
)
