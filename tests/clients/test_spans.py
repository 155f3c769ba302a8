"""The span of an all_reduce that goes on while its rank does something else, for both kinds of client."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clients
from broker import conventions
from broker.collectives import shm
from tests.clients.asynchronous import AsyncLoop
from tests.clients.ranks import PATIENCE_S, all_together, embedded_url
from tests.conftest import ROOT
from tests.daemon import Daemon
from tests.spans import Spans, collecting, needs_opentelemetry

pytestmark = needs_opentelemetry


@pytest.fixture
def spans() -> Iterator[Spans]:
    with collecting() as spans:
        yield spans


SCHEDULES = ["star", pytest.param("shm", marks=pytest.mark.skipif(not shm.AVAILABLE, reason="no engine is compiled"))]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_span_of_an_asynchronous_all_reduce_ends_with_the_operation(
    tmp_path: Path, spans: Spans, schedule: str, kind: str, count: int
) -> None:
    begun, come = threading.Event(), threading.Event()

    def early(bus: Any, group: Any, arrays: list[Any]) -> None:
        work = group.all_reduce(arrays if count > 1 else arrays[0], async_op=True)
        begun.set()
        assert spans.all == [], "it goes on"
        assert come.wait(PATIENCE_S)
        deadline_s = time.monotonic() + PATIENCE_S
        while not work.done:
            assert time.monotonic() < deadline_s
            bus.flush()
        waited_ns.append(time.time_ns())
        work.wait(PATIENCE_S)
        work.wait(PATIENCE_S)

    def late(bus: Any, group: Any, arrays: list[Any]) -> None:
        assert begun.wait(PATIENCE_S)
        came_ns.append(time.time_ns())
        group.all_reduce(arrays if count > 1 else arrays[0])
        come.set()

    def rank(number: int, role: Callable[[Any, Any, list[Any]], None]) -> None:
        tracing = role is early
        connect = clients.connect if kind == "synchronous" or not tracing else loop.connect
        with connect(daemon.url, tracing=tracing) as bus:
            group = bus.group("dp", world_size=2, rank=number, schedule=schedule)
            role(bus, group, [np.ones(1000, np.float32) for _ in range(count)])
            group.barrier()

    waited_ns: list[int] = []
    came_ns: list[int] = []
    loop = AsyncLoop()
    try:
        with Daemon(listen=(f"unix://{tmp_path}/bus",)) as daemon:
            all_together(lambda: rank(0, early), lambda: rank(1, late))
    finally:
        loop.close()
    span = spans.one("all_reduce dp")
    assert dict(span.attributes) == {conventions.GROUP: "dp", conventions.GENERATION: 1, conventions.RANK: 0}
    assert span.start_time < came_ns[0] < span.end_time <= waited_ns[0]


def test_a_failed_asynchronous_all_reduce_marks_its_span_with_the_reason(spans: Spans) -> None:
    url = embedded_url()

    def reduce(rank: int) -> None:
        with clients.connect(url, tracing=True) as bus, bus.group("odd", world_size=2, rank=rank) as group:
            work = group.all_reduce(np.ones(10 + rank), async_op=True)
            assert isinstance(work.exception(PATIENCE_S), clients.CollectiveMismatchError)
            group.barrier()

    all_together(lambda: reduce(0), lambda: reduce(1))
    own = spans.named("all_reduce odd", 2)
    assert [span.status.status_code.name for span in own] == ["ERROR"] * 2
    assert all("rank 1: all_reduce sum float64 (11,)" in span.status.description for span in own)


def test_a_wait_that_is_over_too_soon_leaves_the_span_open(spans: Spans) -> None:
    url = embedded_url()
    with clients.connect(url, tracing=True) as bus, clients.connect(url) as other:
        one, two = all_together(
            lambda: bus.group("slow", world_size=2, rank=0), lambda: other.group("slow", world_size=2, rank=1)
        )
        work = one.all_reduce(np.ones(4), async_op=True)
        with pytest.raises(clients.TimeoutError):
            work.wait(0.0)
        assert spans.all == []
        two.all_reduce(np.ones(4))
        work.wait(PATIENCE_S)
        assert spans.one("all_reduce slow").status.status_code.name == "UNSET"


def connecting(kind: str, loop: AsyncLoop) -> Callable[..., Any]:
    return clients.connect if kind == "synchronous" else loop.connect


@pytest.fixture
def loop() -> Iterator[AsyncLoop]:
    loop = AsyncLoop()
    yield loop
    loop.close()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "dropped"])
def test_the_span_of_a_work_that_nobody_waits_for_ends_with_the_operation(
    tmp_path: Path, spans: Spans, loop: AsyncLoop, schedule: str, kind: str, *, kept: bool
) -> None:
    works = []
    with (
        Daemon(listen=(f"unix://{tmp_path}/bus",)) as daemon,
        connecting(kind, loop)(daemon.url, tracing=True) as bus,
        clients.connect(daemon.url) as other,
    ):
        one, two = all_together(
            lambda: bus.group("dp", world_size=2, rank=0, schedule=schedule),
            lambda: other.group("dp", world_size=2, rank=1, schedule=schedule),
        )
        work = one.all_reduce(np.ones(1000), async_op=True)
        works += [work] * kept
        del work
        began_ns = time.time_ns()
        two.all_reduce(np.ones(1000))
        # It is there although the client does nothing, and is not closed.
        span = spans.one("all_reduce dp")
    assert span.end_time > began_ns
    assert span.status.status_code.name == "UNSET"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
def test_the_span_of_an_operation_that_never_ends_ends_with_its_client(
    tmp_path: Path, spans: Spans, loop: AsyncLoop, schedule: str, kind: str
) -> None:
    with Daemon(listen=(f"unix://{tmp_path}/bus",)) as daemon, clients.connect(daemon.url) as other:
        with connecting(kind, loop)(daemon.url, tracing=True) as bus:
            one, _ = all_together(
                lambda: bus.group("dp", world_size=2, rank=0, schedule=schedule),
                lambda: other.group("dp", world_size=2, rank=1, schedule=schedule),
            )
            works = [one.all_reduce(np.ones(10), async_op=True) for _ in range(3)]
            assert [work.problem for work in works] == [None] * 3
        found = spans.all
    assert [span.status.status_code.name for span in found] == ["ERROR"] * 3
    assert all(span.status.description for span in found)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_span_of_a_work_whose_group_has_changed_says_so(tmp_path: Path, spans: Spans, schedule: str) -> None:
    with Daemon(listen=(f"unix://{tmp_path}/bus",)) as daemon, clients.connect(daemon.url, tracing=True) as bus:
        with clients.connect(daemon.url) as other:
            one, _ = all_together(
                lambda: bus.group("dp", world_size=2, rank=0, schedule=schedule),
                lambda: other.group("dp", world_size=2, rank=1, schedule=schedule),
            )
            work = one.all_reduce(np.ones(10), async_op=True)
        span = spans.one("all_reduce dp")
        assert work.problem == span.status.description
        assert "generation" in span.status.description
        assert span.status.status_code.name == "ERROR"


def test_a_program_that_ends_with_operations_in_progress_ends_their_spans(tmp_path: Path) -> None:
    program = """
import atexit, sys, threading
import numpy as np
import clients
from tests.spans import collecting
with collecting() as spans:
    # What is registered first is called last, when all spans have ended.
    atexit.register(lambda: print([span.status.description for span in spans.all]))
    bus = clients.connect(sys.argv[1], tracing=True)
    other = clients.connect(sys.argv[1])
    joining = threading.Thread(target=other.group, args=("dp",), kwargs={"world_size": 2, "rank": 1})
    joining.start()
    group = bus.group("dp", world_size=2, rank=0)
    joining.join()
    group.all_reduce(np.ones(4), async_op=True)
"""
    with Daemon(listen=(f"unix://{tmp_path}/bus",)) as daemon:
        done = subprocess.run(
            [sys.executable, "-c", program, daemon.url], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert (done.stdout, done.returncode) == ("['the program ended before it had ended']\n", 0), done.stderr
