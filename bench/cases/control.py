"""Latency of small control messages while arrays stream over the same client's connection, and what the stream pays.

A thread streams arrays as fast as it may, another one sends 64 B messages at a steady rate: both of one process and
through one client, or, in the points with two publishers, each of a process of its own. The subscriber always receives
both through one client: a handler notes when each control message is there, the main thread sums the arrays and says
so. The stream runs alone for a while first, which gives its bandwidth alone.

    publisher                                            subscriber
      main thread:  64 B at 200/s  --.            .--->  handler: time of arrival
                                      >-- broker -<
      stream thread: array, array ---'            '--->  main thread: sum ---.
           ^                                                                 |
           '------------------ taken, taken ... 64 B each <------------------'

The stream is at most two arrays ahead of what the reader has taken. So one is always on its way, and no system piles up
arrays in a queue without bounds, where the control message's wait would measure nothing but the length of the run.
"""

from __future__ import annotations

import threading
import time
from functools import partial

from msgspec.structs import replace

from bench.case import Case, Column, Point, size_text
from bench.children import StepFailed
from bench.contestant import Bus, Payload
from bench.contestants import BESIDE_BULK
from bench.processes import Team
from bench.tasks import Part, Result, Task
from broker.measuring import payloads
from broker.measuring.percentiles import percentiles

CONTROL_TOPIC, STREAM_TOPIC, TAKEN_TOPIC = "bench/control", "bench/stream", "bench/taken"
CONTROL_BYTES = 64
STREAMS_BYTES_PUBLISHERS = ((16 << 20, 1), (64 << 20, 1), (64 << 20, 2))
QUICK_STREAMS_BYTES_PUBLISHERS = ((4 << 20, 1),)
"""Sizes of the arrays, and from how many publishers the two kinds of messages come."""
AHEAD = 2
"""Arrays that may be on their way: one that is sent and one that is summed."""
RATE_HZ = 200.0
COUNT = 1000
WARM_UP_S, ALONE_S, AFTER_S = 0.5, 1.5, 0.1
"""Phases of the stream: before it is measured, before the first control message, after the last one."""
END = -1
"""First element of the last array."""
PATIENCE_S = 30.0
"""How long the reader waits for control messages after the stream has ended."""


def publish(bus: Bus, task: Task) -> Part:
    """Sends control messages; the times are when each began."""
    publisher = bus.publisher(CONTROL_TOPIC, lane="control")
    cycle = payloads.cycle(CONTROL_BYTES)
    yield
    times_ns = publisher.send_paced(cycle, task.count, task.rate_hz, task.duration_s)
    publisher.flush()
    return Result(times_ns=tuple(times_ns))


def stream(bus: Bus, task: Task) -> Part:
    """Sends arrays until all control messages were sent, as there is room for them, then the end."""
    publisher = bus.publisher(STREAM_TOPIC, lane="bulk")
    room = threading.Semaphore(AHEAD)
    bus.handle(TAKEN_TOPIC, CONTROL_BYTES, lambda payload: room.release())
    tensor = payloads.tensor(task.size_bytes)
    yield
    deadline, index = time.monotonic() + task.duration_s + task.count / task.rate_hz + AFTER_S, 0
    while time.monotonic() < deadline:
        room.acquire()
        tensor[0] = index
        publisher.send_tensor(tensor)
        index += 1
    tensor[0] = END
    publisher.send_tensor(tensor)
    publisher.flush()
    return Result(count=index)


def publish_both(bus: Bus, task: Task) -> Part:
    """Does both at once; the result is that of the control messages."""
    streaming, publishing = stream(bus, task), publish(bus, task)
    next(streaming)
    next(publishing)
    thread = threading.Thread(target=list, args=(streaming,), daemon=True)
    yield
    thread.start()
    result = yield from publishing
    thread.join()
    return result


def receive(bus: Bus, task: Task) -> Part:
    """The times are when each control message was there, the stream's times when each array was summed."""
    arrays = bus.subscriber(STREAM_TOPIC, task.size_bytes)
    taken = bus.publisher(TAKEN_TOPIC)
    cycle = payloads.cycle(CONTROL_BYTES)
    arrived: list[tuple[int, bytes]] = []
    arrived_all = threading.Event()

    def handle(payload: Payload) -> None:
        arrived.append((time.monotonic_ns(), bytes(payload)))
        if len(arrived) == task.count:
            arrived_all.set()

    bus.handle(CONTROL_TOPIC, CONTROL_BYTES, handle)
    stream_times_ns: list[int] = []
    yield
    while (tensor := arrays.receive_tensor())[0] != END:
        payloads.check_tensor(tensor, task.size_bytes, len(stream_times_ns))
        stream_times_ns.append(time.monotonic_ns())
        taken.send(cycle[0])
    arrived_all.wait(PATIENCE_S)
    for index, (_, payload) in enumerate(arrived):
        payloads.check(payload, cycle[index % len(cycle)], index)
    return Result(times_ns=tuple(at for at, _ in arrived), stream_times_ns=tuple(stream_times_ns))


def bandwidth_gb_per_s(times_ns: list[int], size_bytes: int) -> float:
    """From the first array to the last; 0 when there are not two."""
    if len(times_ns) < 2:
        return 0.0
    return size_bytes * (len(times_ns) - 1) / (times_ns[-1] - times_ns[0])


def measure(
    team: Team, size_bytes: int, publishers: int, count: int, warm_up_s: float, alone_s: float
) -> dict[str, float]:
    """One run."""
    before_s = warm_up_s + alone_s
    task = Task(
        "control.receive", size_bytes=size_bytes, count=count, rate_hz=RATE_HZ, duration_s=before_s, threads=True
    )
    roles = ("control.both",) if publishers == 1 else ("control.publish", "control.stream")
    received, sent, *_ = team.run([task, *(replace(task, role=role) for role in roles)])
    if len(received.times_ns) != count:
        raise StepFailed(f"{count} control messages were sent, {len(received.times_ns)} received")
    times = list(zip(sent.times_ns, received.times_ns, strict=True))
    first_ns, last_ns = times[0][0], times[-1][1]
    alone = [at for at in received.stream_times_ns if first_ns - alone_s * 1e9 <= at < first_ns]
    beside = [at for at in received.stream_times_ns if first_ns <= at <= last_ns]
    return {
        **percentiles([arrived_ns - began_ns for began_ns, arrived_ns in times], "ms", 1e-6),
        "alone_gb_per_s": bandwidth_gb_per_s(alone, size_bytes),
        "beside_gb_per_s": bandwidth_gb_per_s(beside, size_bytes),
    }


def points(quick: bool) -> list[Point]:
    """The sizes of the arrays."""
    count, warm_up_s, alone_s = (10, 0.05, 0.05) if quick else (COUNT, WARM_UP_S, ALONE_S)
    return [
        Point(
            f"beside {size_text(size_bytes)}, {publishers} publisher{'s'[: publishers - 1]}",
            partial(
                measure,
                size_bytes=size_bytes,
                publishers=publishers,
                count=count,
                warm_up_s=warm_up_s,
                alone_s=alone_s,
            ),
            size_bytes,
        )
        for size_bytes, publishers in (QUICK_STREAMS_BYTES_PUBLISHERS if quick else STREAMS_BYTES_PUBLISHERS)
    ]


CASE = Case(
    name="control",
    title=f"64 B control messages at {RATE_HZ:.0f}/s beside a stream of arrays over the same client, milliseconds",
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
    roles={
        "control.publish": publish,
        "control.stream": stream,
        "control.both": publish_both,
        "control.receive": receive,
    },
    contestants=tuple(contestant.name for contestant in BESIDE_BULK),
)
