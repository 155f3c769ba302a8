"""What `tensorbus bench` does: measures a running broker from two processes of this host.

This process publishes and asks; the other one, started for each measurement, receives and replies. Both use the
synchronous client with its defaults, on topics that nobody else uses. Times are of CLOCK_MONOTONIC, which the two
share, so it does not matter where the broker is.

    this process                        the other process
      start it, with a task   ------->    connects, subscribes
                              <-------    "ready"
      measure                             measure
                              <-------    what it has measured, or what went wrong
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import click
import msgspec
import numpy as np

import clients
from broker.cli.bench_pipe import Pipe
from broker.errors import BrokerError
from broker.measuring import payloads
from broker.measuring.pacing import send_paced
from broker.measuring.percentiles import percentiles

PATIENCE_S: Final = 60.0
"""How long the other process may take beyond the time that is measured."""
DELAY_S: Final = 0.05
WARM_UP_SHARE: Final = 4
"""Of what is measured, one in so many goes before it."""
TENSOR_BYTES_PER_S: Final = 512 << 20
"""Arrays of so many bytes are published for each second that is asked for."""
THROUGHPUT_WARM_UP: Final = 10_000

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Point:
    """One thing to measure.

    Attributes:
        part: which kind of measurement.
        size_bytes: of a message.
        rate_hz: messages per second, where they are paced.
        in_place: whether arrays are made where they are published from.
    """

    part: str
    size_bytes: int
    rate_hz: float = 0.0
    in_place: bool = False

    @property
    def label(self) -> str:
        """The point in words."""
        unit = next(unit for unit in (20, 10, 0) if self.size_bytes >> unit)
        text = f"{self.size_bytes >> unit} { {20: 'MiB', 10: 'KiB', 0: 'B'}[unit] }"
        return text + (f" at {self.rate_hz:,.0f}/s" if self.rate_hz else "") + (", in place" if self.in_place else "")


@dataclass(frozen=True, slots=True)
class Task:
    """What the other process is to do.

    Attributes:
        url: the broker's address; None for the default.
        topic: for this measurement alone; what comes back has `/back` behind it.
        point: what is measured.
        warm_up: messages that are not measured.
        count: messages after them.
        duration_s: how long a sender without a count sends.
    """

    url: str | None
    topic: str
    point: Point
    warm_up: int
    count: int
    duration_s: float


Far = Callable[[clients.Client, Task, Pipe], object]
Near = Callable[[clients.Client, Task, Pipe], Figures]


def _value(message: clients.Message) -> bytes:
    return cast(bytes, message.value)


def _receive_times(bus: clients.Client, task: Task, pipe: Pipe) -> list[int]:
    """When each message was there."""
    cycle, times_ns = payloads.cycle(task.point.size_bytes), []
    with bus.subscribe(task.topic) as subscription:
        pipe.send("ready")
        for index in range(task.warm_up + task.count):
            payload = _value(subscription.next(timeout_s=PATIENCE_S))
            times_ns.append(time.monotonic_ns())
            payloads.check(payload, cycle[index % len(cycle)], index)
    return times_ns


def _latency(bus: clients.Client, task: Task, pipe: Pipe) -> Figures:
    cycle, count = payloads.cycle(task.point.size_bytes), task.warm_up + task.count
    began_ns = send_paced(partial(bus.publish, task.topic), cycle, count, task.point.rate_hz, DELAY_S)
    arrived_ns = cast(list[int], _answer(pipe, task))
    spans_ns = [after - before for before, after in zip(began_ns, arrived_ns, strict=True)]
    return percentiles(spans_ns[task.warm_up :], "us", 1e-3)


def _send_back(bus: clients.Client, task: Task, pipe: Pipe) -> None:
    with bus.subscribe(task.topic) as subscription:
        pipe.send("ready")
        for _ in range(task.warm_up + task.count):
            bus.publish(f"{task.topic}/back", subscription.next(timeout_s=PATIENCE_S).value)
        bus.flush(PATIENCE_S)


def _ping_pong(bus: clients.Client, task: Task, pipe: Pipe) -> Figures:
    with bus.subscribe(f"{task.topic}/back") as subscription:

        def exchange(payload: bytes) -> bytes:
            bus.publish(task.topic, payload)
            return _value(subscription.next(timeout_s=PATIENCE_S))

        return _round_trips(exchange, task)


def _respond(bus: clients.Client, task: Task, pipe: Pipe) -> None:
    bus.respond(task.topic, lambda message: message.value)
    pipe.send("ready")
    # Until this process is ended, or its parent is gone.
    with contextlib.suppress(EOFError):
        pipe.receive()


def _request(bus: clients.Client, task: Task, pipe: Pipe) -> Figures:
    return _round_trips(lambda payload: _value(bus.request(task.topic, payload, timeout_s=PATIENCE_S)), task)


def _round_trips(exchange: Callable[[bytes], bytes], task: Task) -> Figures:
    """The time of each exchange, one after the other."""
    cycle, clock, times_ns = payloads.cycle(task.point.size_bytes), time.monotonic_ns, []
    for index in range(task.warm_up + task.count):
        payload = cycle[index % len(cycle)]
        began_ns = clock()
        back = exchange(payload)
        times_ns.append(clock() - began_ns)
        payloads.check(back, payload, index)
    return percentiles(times_ns[task.warm_up :], "us", 1e-3)


def _receive_all(bus: clients.Client, task: Task, pipe: Pipe) -> Figures:
    """Receives until the end comes."""
    cycle, end = payloads.cycle(task.point.size_bytes), payloads.end(task.point.size_bytes)
    length, index, began = len(cycle), 0, 0.0
    with bus.subscribe(task.topic) as subscription:
        pipe.send("ready")
        for message in subscription:
            payload = _value(message)
            if payload != cycle[index % length]:
                if payload == end:
                    break
                payloads.check(payload, cycle[index % length], index)
            index += 1
            if index == task.warm_up:
                began = time.monotonic()
    rate_hz = (index - task.warm_up) / (time.monotonic() - began)
    return {"messages_per_s": rate_hz, "mb_per_s": rate_hz * task.point.size_bytes / 1e6, "count": index}


def _throughput(bus: clients.Client, task: Task, pipe: Pipe) -> Figures:
    cycle, sent, deadline = payloads.cycle(task.point.size_bytes), 0, time.monotonic() + task.duration_s
    while sent < 2 * task.warm_up or time.monotonic() < deadline:
        for payload in cycle:
            bus.publish(task.topic, payload)
        sent += len(cycle)
    bus.publish(task.topic, payloads.end(task.point.size_bytes))
    bus.flush(PATIENCE_S)
    figures = cast(Figures, _answer(pipe, task))
    if figures["count"] != sent:
        raise BrokerError(f"{sent} messages were published, {figures['count']:.0f} received")
    return figures


def _sum(bus: clients.Client, task: Task, pipe: Pipe) -> Figures:
    """Sums arrays, then one that it has, which is as fast as it could be."""
    size_bytes, began = task.point.size_bytes, time.monotonic()
    with bus.subscribe(task.topic) as subscription:
        pipe.send("ready")
        for index in range(task.warm_up + task.count):
            array = cast(payloads.Tensor, subscription.next(timeout_s=PATIENCE_S).value)
            payloads.check_tensor(array, size_bytes, index)
            del array
            if index + 1 == task.warm_up:
                began = time.monotonic()
        elapsed_s = time.monotonic() - began
    own, began = payloads.tensor(size_bytes), time.monotonic()
    for _ in range(task.count):
        payloads.check_tensor(own, size_bytes, 1)
    bare_s = time.monotonic() - began
    gb_per_s, bare_gb_per_s = (size_bytes * task.count / taken_s / 1e9 for taken_s in (elapsed_s, bare_s))
    return {"gb_per_s": gb_per_s, "bare_sum_gb_per_s": bare_gb_per_s, "count": task.count}


def _tensors(bus: clients.Client, task: Task, pipe: Pipe) -> Figures:
    ordinary = payloads.tensor(task.point.size_bytes)
    for index in range(task.warm_up + task.count):
        tensor = ordinary
        if task.point.in_place:
            tensor = cast(payloads.Tensor, bus.empty(len(ordinary), np.float32))
            tensor.fill(1.0)
        tensor[0] = index
        bus.publish(task.topic, tensor)
        del tensor
    bus.flush(PATIENCE_S)
    return cast(Figures, _answer(pipe, task))


PARTS: Final[dict[str, tuple[Near, Far]]] = {
    "latency": (_latency, _receive_times),
    "ping-pong": (_ping_pong, _send_back),
    "request": (_request, _respond),
    "throughput": (_throughput, _receive_all),
    "tensors": (_tensors, _sum),
}
POINTS: Final = (
    Point("latency", 64, 1000.0),
    Point("latency", 64 << 10, 500.0),
    Point("latency", 1 << 20, 100.0),
    Point("ping-pong", 64),
    Point("request", 64),
    Point("throughput", 64),
    Point("throughput", 1 << 10),
    *(Point("tensors", size_bytes, in_place=there) for size_bytes in (1 << 20, 64 << 20) for there in (False, True)),
)
ROUND_TRIPS_PER_S: Final = 2000


def _task(url: str | None, point: Point, duration_s: float) -> Task:
    if point.part == "throughput":
        warm_up, count = max(1, round(THROUGHPUT_WARM_UP * min(1.0, duration_s))), 0
    else:
        rate_hz = point.rate_hz or ROUND_TRIPS_PER_S
        if point.part == "tensors":
            rate_hz = TENSOR_BYTES_PER_S / point.size_bytes
        count = max(2, round(rate_hz * duration_s))
        warm_up = max(1, count // WARM_UP_SHARE)
    return Task(url, f"bench/{uuid.uuid4()}", point, warm_up, count, duration_s)


def _answer(pipe: Pipe, task: Task) -> object:
    """What the other process says next.

    Raises:
        BrokerError: it says what went wrong, has ended, or says nothing.
    """
    return pipe.receive(task.duration_s + PATIENCE_S)


@contextlib.contextmanager
def _beside(task: Task) -> Iterator[Pipe]:
    """The other process, ready, as long as the context lasts."""
    pipe, its_end = Pipe.pair()
    command = [sys.executable, "-m", "broker.cli.bench_far", str(its_end.fileno())]
    with its_end:
        process = subprocess.Popen(command, pass_fds=[its_end.fileno()])
    try:
        pipe.send(msgspec.to_builtins(task))
        _answer(pipe, task)
        yield pipe
    finally:
        process.terminate()
        process.wait()
        pipe.close()


def measure(url: str | None, parts: Sequence[str], duration_s: float) -> Iterator[tuple[Point, Figures]]:
    """Measures a broker, point by point.

    Args:
        url: its address; None for the default.
        parts: names of PARTS.
        duration_s: about how long to measure each point.

    Raises:
        ConnectError: there is no broker.
        BrokerError: messages were lost or damaged, or the connection was.
    """
    with clients.connect(url, name=f"tensorbus-bench-{os.getpid()}", reconnect_timeout_s=0.0) as bus:
        for point in (point for point in POINTS if point.part in parts):
            task = _task(url, point, duration_s)
            with _beside(task) as pipe:
                yield point, PARTS[point.part][0](bus, task, pipe)


def run(url: str | None, parts: Sequence[str], duration_s: float, *, as_json: bool) -> None:
    """Measures a broker and prints each point as it is done: a line of a table, or a JSON object."""
    for point, figures in measure(url, parts, duration_s):
        if as_json:
            click.echo(json.dumps({"part": point.part, "point": point.label, **figures}))
        else:
            told = "  ".join(f"{name} {_text(value)}" for name, value in figures.items())
            click.echo(f"{point.part:10}  {point.label:16}  {told}")


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
