"""The engine of links: that what it computes is the same everywhere, and that all agree whatever breaks."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from broker.collectives import ring
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.collectives.ring import Engine, Outcome, Plan, Task
from broker.errors import InvalidValue, LimitExceeded
from tests.collectives.processes import PATIENCE_S, Process
from tests.collectives.rings import SECOND_NS, close_all, mesh, new_processes, on_threads, tcp_pair, unix_pair
from tests.collectives.stranger import Cut

pytestmark = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine is not compiled")

LONG = 400_000


def all_reduce(elements: int, positions: int, schedule: str = "auto", op: ReduceOp = ReduceOp.SUM) -> Plan:
    return Plan(
        CollectiveKind.ALL_REDUCE, b"claim", positions,
        op=op, dtype="float32", array_bytes=4 * elements, schedule=schedule,
    )  # fmt: skip


def begin(engine: Engine, elements: int, positions: int = 2, timeout_s: float = 1000) -> tuple[Task, np.ndarray]:
    """Submits an all_reduce of ones."""
    array = np.ones(elements, np.float32)
    task = Task(all_reduce(elements, positions), array, array, int(timeout_s * SECOND_NS))
    engine.submit(task)
    return task, array


def ended(engine: Engine, task: Task) -> int:
    """Waits for it."""
    deadline = time.monotonic() + PATIENCE_S
    while engine.wait(task, 1.0) == Outcome.PENDING:
        assert time.monotonic() < deadline, task
    return task.status


def test_who_waits_for_long_sleeps() -> None:
    links = mesh(2)
    with contextlib.closing(Engine(links[0], 0)) as engine:
        array = np.ones(2, np.float32)
        before_s = time.thread_time()
        assert engine.run(Task(all_reduce(2, 2), array, array, SECOND_NS // 2)) == Outcome.MISSING
        assert time.thread_time() - before_s < 0.25
    close_all([links[1]])


# What is computed.


@pytest.mark.parametrize("schedule", ["ring", "halving"])
@pytest.mark.parametrize("positions", [2, 3, 4, 5, 6, 7, 8])
def test_sums_have_the_same_bits_everywhere_and_always(positions: int, schedule: str) -> None:
    def work(engine: Engine, position: int) -> list[bytes]:
        results = []
        for elements in (1025, 50_001, 300_000):
            for _ in range(2):
                array = np.random.default_rng(position).standard_normal(elements).astype(np.float32)
                task = Task(all_reduce(elements, positions, schedule), array, array, 60 * SECOND_NS)
                assert engine.run(task) == Outcome.COMMITTED
                results.append(array.tobytes())
        return results

    first, *others = on_threads(positions, work, lanes=2)
    assert all(other == first for other in others)
    assert first[::2] == first[1::2]
    again, *_ = on_threads(positions, work, lanes=1, make=tcp_pair)
    assert again == first


@pytest.mark.parametrize("schedule", ["ring", "halving"])
def test_a_mean_is_divided_once(schedule: str) -> None:
    def work(engine: Engine, position: int) -> None:
        array = np.full(70_000, 0.1 * (position + 1), np.float32)
        task = Task(all_reduce(70_000, 3, schedule, ReduceOp.MEAN), array, array, 60 * SECOND_NS)
        assert engine.run(task) == Outcome.COMMITTED
        assert np.abs(array - np.float32(0.2)).max() < 1e-6

    on_threads(3, work)


@pytest.mark.parametrize("dtype", ["float16", "float64", "complex128"])
def test_pieces_that_come_in_parts_are_added_whole(dtype: str) -> None:
    elements, positions = 123_457, 3

    def work(engine: Engine, position: int) -> None:
        plan = Plan(
            CollectiveKind.ALL_REDUCE, b"", positions,
            op=ReduceOp.SUM, dtype=dtype, array_bytes=elements * np.dtype(dtype).itemsize, schedule="ring",
        )  # fmt: skip
        array = (np.arange(elements) % 100 + position).astype(dtype)
        expected = (np.arange(elements) % 100 * positions + 3).astype(dtype)
        assert engine.run(Task(plan, array, array, 60 * SECOND_NS)) == Outcome.COMMITTED
        assert np.array_equal(array, expected)

    def narrow() -> tuple[socket.socket, socket.socket]:
        """So little room that bytes come in odd numbers."""
        pair = unix_pair()
        for each in pair:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
        return pair

    on_threads(positions, work, lanes=2, make=narrow)


def test_many_operations_of_all_sizes_keep_the_links_in_step() -> None:
    sizes = [random.Random(1).choice([0, 1, 1000, 1100, 30_000, 200_000]) for _ in range(60)]

    def work(engine: Engine, position: int) -> None:
        for number, elements in enumerate(sizes):
            array = np.full(elements, position + number, np.float32)
            schedule = "halving" if number % 2 else "ring"
            task = Task(all_reduce(elements, 4, schedule), array, array, 60 * SECOND_NS)
            assert engine.run(task) == Outcome.COMMITTED
            assert (array == 6 + 4 * number).all()
        assert engine.committed == len(sizes)

    on_threads(4, work, lanes=3)


# Links that break.


def all_end(engines: list[Engine]) -> None:
    for engine in engines:
        engine.end()


def outcomes_with_a_cut(positions: int, elements: int, cut: Cut, operations: int) -> list[list[int]]:
    """What has become of operations in a row, for each position, when the link from 0 to 1 is one that breaks.

    Arrays are checked, and what is undecided is settled as a broker does it.
    """
    pairs = iter([cut.ends])
    links = mesh(positions, make=lambda: next(pairs, None) or unix_pair())
    engines = [Engine(links[position], position) for position in range(positions)]
    tasks: list[list[tuple[Task, np.ndarray]]] = [[] for _ in engines]

    def work(position: int) -> None:
        engine = engines[position]
        for number in range(operations):
            array = np.full(elements, position + number, np.float32)
            task = Task(all_reduce(elements, positions), array, array, 1000 * SECOND_NS)
            tasks[position].append((task, array))
            if engine.run(task) != Outcome.COMMITTED:
                all_end(engines)
                break

    threads = [threading.Thread(target=work, args=(position,)) for position in range(positions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    for number in range(operations):
        begun = [(position, *tasks[position][number]) for position in range(positions) if number < len(tasks[position])]
        committed = any(task.status == Outcome.COMMITTED for _, task, _ in begun)
        for position, task, array in begun:
            if task.status == Outcome.UNDECIDED:
                assert (array == position + number).all()
                engines[position].settle(task, committed=committed)
            expected = sum(range(positions)) + positions * number if committed else position + number
            assert task.status == (Outcome.COMMITTED if committed else Outcome.OVER)
            assert (array == expected).all()
    for engine in engines:
        engine.close()
    return [[task.status for task, _ in of] for of in tasks]


@pytest.mark.parametrize("positions", [2, 3, 4])
@pytest.mark.parametrize("elements", [1, 3000, 30_000, 150_000])
def test_wherever_a_link_breaks_all_agree_and_nothing_is_half_applied(positions: int, elements: int) -> None:
    choice = random.Random(positions * elements)
    words = [choice.randrange(0, 500) for _ in range(25)]
    data = [choice.randrange(0, 8 * elements + 1000) for _ in range(25)]
    failed = 0
    for bytes_max in words + data:
        cut = Cut(bytes_max)
        outcomes = outcomes_with_a_cut(positions, elements, cut, 3)
        failed += any(Outcome.OVER in each for each in outcomes)
        cut.close()
    assert failed


@pytest.mark.parametrize("elements", [1, LONG])
def test_the_end_of_an_engine_ends_who_waits(elements: int) -> None:
    begun = threading.Event()

    def work(engine: Engine, position: int) -> None:
        if position == 0:
            begun.wait()
            engine.end()
        task, array = begin(engine, elements, 3)
        begun.set()
        assert ended(engine, task) == Outcome.OVER
        assert (array == 1).all()
        assert engine.run(Task(all_reduce(1, 3), array[:1], array[:1], SECOND_NS)) == Outcome.OVER

    on_threads(3, work)


def test_who_has_committed_may_leave_at_once() -> None:
    """The end of a link says nothing about an operation for which its other end was ready."""
    for _ in range(30):

        def work(engine: Engine, position: int) -> None:
            for elements in (1, 5000):
                array = np.ones(elements, np.float32)
                assert engine.run(Task(all_reduce(elements, 3), array, array, 1000 * SECOND_NS)) == Outcome.COMMITTED
            engine.close()

        on_threads(3, work, make=tcp_pair)


# Making one.


def test_links_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidValue, match="sockets 0"):
        Engine([[], []], 0)
    with pytest.raises(InvalidValue, match="sockets 1"):
        Engine([[5]], 0)
    with pytest.raises(InvalidValue, match="position 2"):
        Engine([[], [5]], 2)
    with pytest.raises(InvalidValue, match="positions 65"):
        Engine([[]] * 65, 0)
    with pytest.raises(InvalidValue, match="sockets 17"):
        Engine([[], list(range(17))], 0)
    with pytest.raises(LimitExceeded, match="errno"):
        Engine([[], [999_999]], 0)
    links = mesh(2)
    with pytest.raises(LimitExceeded, match="errno"):
        Engine(links[0], 0, 999_999)
    # They are the caller's as before.
    close_all(links)


def test_what_links_do_not_carry_is_refused() -> None:
    engine = Engine([[]], 0)
    array = np.ones(4, np.float32)
    pieces = Task(all_reduce(4, 1), [array[:1], array[1:]], array, SECOND_NS)
    with pytest.raises(InvalidValue, match="links do not carry"):
        engine.run(pieces)
    with pytest.raises(InvalidValue, match="links do not carry"):
        engine.submit(pieces)
    assert pieces.status == Outcome.PENDING
    engine.close()


def test_an_engine_closes_its_sockets() -> None:
    links = mesh(2)
    engine = Engine(links[0], 0)
    engine.close()
    del engine
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(links[0][1][0])
    close_all([links[1]])


def test_an_eventfd_tells_of_what_was_submitted() -> None:
    told = os.eventfd(0)
    links = mesh(2)
    engines = [Engine(links[0], 0, told), Engine(links[1], 1)]
    tasks = [begin(engine, 1) for engine in engines]
    assert os.eventfd_read(told) == 1
    assert tasks[0][0].status == Outcome.COMMITTED
    os.close(told)
    for engine in engines:
        engine.close()


# Processes.


@pytest.fixture
def ranks() -> Iterator[list[Process]]:
    processes = new_processes(3, lanes=2)
    yield processes
    for process in processes:
        process.end()


def begin_all(processes: list[Process], **wishes: object) -> None:
    """Lets all begin; returns when all have done one operation, so that they are in the midst of the rest."""
    for process in processes:
        process.begin(elements=1, timeout_s=1000)
    for process in processes:
        assert process.outcome()["outcome"] == "COMMITTED"
    for process in processes:
        process.begin(**wishes)


def assert_agreed(told: list[dict[str, object]]) -> None:
    """Who is an operation behind another one does not claim that it has failed."""
    done = max(int(str(each["done"])) for each in told)
    for each in told:
        assert each["intact"]
        assert each["done"] == done or (each["done"] == done - 1 and each["outcome"] == "UNDECIDED")


@pytest.mark.parametrize("elements", [1, 10_000, 30_000, 3 << 20])
def test_processes_reduce_many_times(ranks: list[Process], elements: int) -> None:
    begin_all(ranks, elements=elements, timeout_s=20, count=5)
    for process in ranks:
        told = process.outcome()
        assert (told["outcome"], told["intact"], told["done"]) == ("COMMITTED", True, 5)


@pytest.mark.parametrize("elements", [1, 10_000, 30_000, 3 << 20])
def test_a_killed_process_hangs_nobody(ranks: list[Process], elements: int) -> None:
    begin_all(ranks, elements=elements, timeout_s=1000, count=1_000_000)
    ranks.pop(1).kill()
    told = [process.outcome() for process in ranks]
    assert {each["outcome"] for each in told} <= {"OVER", "UNDECIDED"}
    assert_agreed(told)


@pytest.mark.parametrize("elements", [10_000, 3 << 20])
def test_a_stopped_process_is_named_and_told(ranks: list[Process], elements: int) -> None:
    begin_all(ranks, elements=elements, timeout_s=2, count=1_000_000)
    ranks[1].send(signal.SIGSTOP)
    told = [ranks[0].outcome(), ranks[2].outcome()]
    ranks[1].send(signal.SIGCONT)
    told.append(ranks[1].outcome())
    assert_agreed(told)
    # It may have been stopped when all others were ready.
    if any(each["outcome"] == "UNDECIDED" for each in told):
        return
    for each in told:
        assert each["outcome"] == "MISSING"
        assert 1 in each["positions"]  # type: ignore[operator]
    begin_all(ranks, elements=30_000, timeout_s=20, count=3)
    assert all(process.outcome()["outcome"] == "COMMITTED" for process in ranks)
