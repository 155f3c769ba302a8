"""Collectives on a board: what they compute, and that a failure is the same for all and changes nothing."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from broker.collectives import shm
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.collectives.shm import Outcome
from broker.errors import InvalidValue, LimitExceeded
from broker.transport.shared_memory import SharedMemory
from tests.collectives.boards import PATIENCE_S, SECOND_NS, Process, end_board, new_board, on_threads

pytestmark = pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled")

LONG = 3 << 20
"""Elements of float32 that do not fit into the stages, so that the array changes while others may still fail."""
SIZES = [0, 1, 3, 1023, 1024, 1025, 16_384, 100_003, 524_288, 524_289, 1_300_001]


def all_reduce(elements: int, positions: int, op: ReduceOp = ReduceOp.SUM, claim: bytes = b"") -> shm.Plan:
    return shm.Plan(
        CollectiveKind.ALL_REDUCE, claim or b"%d" % elements, positions,
        op=op, dtype="float32", array_bytes=4 * elements,
    )  # fmt: skip


def inputs(positions: int, elements: int) -> list[np.ndarray]:
    return [np.random.default_rng(each).standard_normal(elements).astype(np.float32) for each in range(positions)]


def total(arrays: list[np.ndarray]) -> np.ndarray:
    """In the order of the positions, as float32."""
    result = arrays[0].copy()
    for array in arrays[1:]:
        result += array
    return result


@pytest.mark.parametrize("positions", [1, 2, 3, 5])
@pytest.mark.parametrize("elements", SIZES)
def test_all_positions_get_the_sum_in_the_order_of_the_positions(positions: int, elements: int) -> None:
    arrays = inputs(positions, elements)
    expected = total(arrays)
    plan = all_reduce(elements, positions)

    def work(engine: shm.Engine, position: int) -> list[np.ndarray]:
        results = []
        for _ in range(3):
            array = arrays[position].copy()
            assert engine.run(shm.Task(plan, array, array, 20 * SECOND_NS)) == Outcome.COMMITTED
            results.append(array)
        return results

    for results in on_threads(positions, work):
        for result in results:
            assert np.array_equal(result, expected)


@pytest.mark.parametrize("positions", [2, 3])
@pytest.mark.parametrize("rows", [1, 7, 500, 40_000])
def test_the_other_kinds(positions: int, rows: int) -> None:
    arrays = inputs(positions, rows * positions * 3)
    size = arrays[0].nbytes
    reduced = total(arrays) / np.float32(positions)

    def work(engine: shm.Engine, position: int) -> None:
        def run(plan: shm.Plan, source: np.ndarray | None, target: np.ndarray | None) -> None:
            assert engine.run(shm.Task(plan, source, target, 20 * SECOND_NS)) == Outcome.COMMITTED

        own = arrays[position]
        part = np.empty(own.size // positions, np.float32)
        scatter = shm.Plan(
            CollectiveKind.REDUCE_SCATTER, b"s", positions, op=ReduceOp.MEAN, dtype="float32", array_bytes=size
        )
        run(scatter, own, part)
        assert np.array_equal(part, reduced[position * part.size : (position + 1) * part.size])
        run(shm.Plan(CollectiveKind.BARRIER, b"b", positions), None, None)
        whole = np.empty(own.size * positions, np.float32)
        run(shm.Plan(CollectiveKind.ALL_GATHER, b"g", positions, array_bytes=size), own, whole)
        assert np.array_equal(whole, np.concatenate(arrays))
        copy = own.copy()
        root = positions - 1
        broadcast = shm.Plan(CollectiveKind.BROADCAST, b"c", positions, root=root, array_bytes=size)
        run(broadcast, copy if position == root else None, None if position == root else copy)
        assert np.array_equal(copy, arrays[root])

    on_threads(positions, work)


def test_submitted_operations_are_carried_out_in_their_order() -> None:
    plans = [all_reduce(elements, 2) for elements in (10, 200_000, 5, 70_000)]

    def work(engine: shm.Engine, position: int) -> None:
        arrays = [np.full(plan.array_bytes // 4, position + 1, np.float32) for plan in plans]
        tasks = [shm.Task(plan, array, array, 20 * SECOND_NS) for plan, array in zip(plans, arrays, strict=True)]
        for task in tasks[:-1]:
            engine.submit(task)
        # A call waits behind what was submitted.
        assert engine.run(tasks[-1]) == Outcome.COMMITTED
        assert all(engine.wait(task, 0.0) == Outcome.COMMITTED for task in tasks)
        assert [task.sequence for task in tasks] == [1, 2, 3, 4]
        assert all((array == 3).all() for array in arrays)

    on_threads(2, work)


def test_a_mismatch_names_the_claims_and_changes_nothing() -> None:
    def work(engine: shm.Engine, position: int) -> dict[int, bytes]:
        array = np.full(2_000_000 + position, position, np.float32)
        task = shm.Task(all_reduce(array.size, 3), array, array, 20 * SECOND_NS)
        assert engine.run(task) == Outcome.MISMATCH
        assert (array == position).all()
        again = np.ones(5, np.float32)
        assert engine.run(shm.Task(all_reduce(5, 3), again, again, 20 * SECOND_NS)) == Outcome.COMMITTED
        return task.claims()

    claims = {0: b"2000000", 1: b"2000001", 2: b"2000002"}
    assert on_threads(3, work) == [claims] * 3


def test_a_mismatch_does_not_wait_for_the_deadline_of_those_who_do_not_come() -> None:
    late = threading.Barrier(3)

    def work(engine: shm.Engine, position: int) -> dict[int, bytes]:
        if position == 2:
            late.wait()
        array = np.ones(7, np.float32)
        claim = b"late" if position == 2 else b"%d" % position
        task = shm.Task(all_reduce(7, 3, claim=claim), array, array, 1000 * SECOND_NS)
        assert engine.run(task) == Outcome.MISMATCH
        if position != 2:
            late.wait()
        return task.claims()

    assert on_threads(3, work) == [{0: b"0", 1: b"1"}] * 3


@pytest.mark.parametrize("elements", [1, LONG])
def test_who_does_not_come_is_named_also_to_itself(elements: int) -> None:
    failed = threading.Barrier(3)

    def work(engine: shm.Engine, position: int) -> list[int]:
        plan, missing = all_reduce(elements, 3), []
        if position == 1:
            failed.wait()
        # More than there are verdicts.
        for _ in range(1 if elements == LONG else 70):
            array = np.full(elements, position, np.float32)
            task = shm.Task(plan, array, array, SECOND_NS // 1000 if position == 0 else 1000 * SECOND_NS)
            assert engine.run(task) == Outcome.MISSING
            assert (array == position).all()
            assert task.timeout_ns == SECOND_NS // 1000
            missing = task.positions
        if position != 1:
            failed.wait()
        array = np.full(elements, position, np.float32)
        assert engine.run(shm.Task(plan, array, array, 20 * SECOND_NS)) == Outcome.COMMITTED
        assert (array == 3).all()
        return missing

    # Position 2 may be late for one or the other of them as well.
    assert all(1 in missing for missing in on_threads(3, work))


@pytest.mark.parametrize("draining", [False, True])
def test_the_end_of_a_board_ends_who_waits(draining: bool) -> None:
    memory = new_board(2)
    begun = threading.Event()

    def work(engine: shm.Engine, position: int) -> int:
        if position == 1:
            begun.wait()
            end_board(memory, 2, draining=draining)
        array = np.ones(LONG, np.float32)
        task = shm.Task(all_reduce(LONG, 2), array, array, 1000 * SECOND_NS)
        if position == 0:
            engine.submit(task)
            begun.set()
            while engine.wait(task, 1.0) == Outcome.PENDING:
                pass
            status = task.status
        else:
            status = engine.run(task)
        assert (array == 1).all()
        return status

    assert on_threads(2, work, memory) == [Outcome.OVER] * 2


def test_closing_ends_what_was_submitted() -> None:
    memory = new_board(2)
    engine = shm.Engine(memory.descriptor, memory.size_bytes, 2, 0)
    arrays = [np.ones(100_000, np.float32) for _ in range(3)]
    tasks = [shm.Task(all_reduce(100_000, 2), array, array, 1000 * SECOND_NS) for array in arrays]
    for task in tasks:
        engine.submit(task)
    engine.close()
    assert [task.status for task in tasks] == [Outcome.OVER] * 3
    assert engine.run(shm.Task(all_reduce(100_000, 2), arrays[0], arrays[0], SECOND_NS)) == Outcome.OVER


def test_a_board_of_another_kind_does_not_fit() -> None:
    memory = new_board(2)
    with pytest.raises(InvalidValue, match="none of 3 positions"):
        shm.Engine(memory.descriptor, memory.size_bytes, 3, 0)
    with pytest.raises(InvalidValue, match="none of 2 positions"):
        shm.Engine(memory.descriptor, memory.size_bytes - 4096, 2, 0)
    with pytest.raises(InvalidValue, match="position"):
        shm.Engine(memory.descriptor, memory.size_bytes, 2, 2)
    ctypes.c_uint32.from_address(memory.address + 8).value = shm.VERSION + 1
    with pytest.raises(InvalidValue, match="none of 2 positions"):
        shm.Engine(memory.descriptor, memory.size_bytes, 2, 0)
    with pytest.raises(LimitExceeded, match="mapped"):
        shm.Engine(-1, memory.size_bytes, 2, 0)
    assert shm.board_bytes(0) == shm.board_bytes(shm.POSITIONS_MAX + 1) == 0


def test_a_board_is_writable_for_all_and_keeps_its_length() -> None:
    memory = new_board(2)
    with pytest.raises(InvalidValue, match="seals"):
        SharedMemory.adopt(_duplicate(memory), memory.size_bytes)
    private = SharedMemory.create(4096)
    with pytest.raises(Exception, match="mapped"):
        SharedMemory.adopt(_duplicate(private), 4096, common=True)


def _duplicate(memory: SharedMemory) -> int:
    return os.dup(memory.descriptor)


def test_arrays_that_do_not_fit_the_plan_are_refused() -> None:
    with pytest.raises(InvalidValue, match="source of bytes 8"):
        shm.Task(shm.Plan(CollectiveKind.ALL_GATHER, b"", 2, array_bytes=4), np.ones(1), np.ones(1), 1)
    with pytest.raises(InvalidValue, match="target of bytes 4"):
        shm.Task(shm.Plan(CollectiveKind.ALL_GATHER, b"", 2, array_bytes=4), None, np.ones(1, np.float32), 1)
    with pytest.raises(InvalidValue, match="too many axes"):
        shm.Plan(CollectiveKind.BARRIER, b"x" * 509, 2)


# Processes.


@pytest.fixture
def ranks() -> Iterator[tuple[SharedMemory, list[Process]]]:
    memory = new_board(3)
    processes = [Process(memory, 3, position) for position in range(3)]
    yield memory, processes
    for process in processes:
        process.end()


def begin_all(processes: list[Process], **wishes: object) -> None:
    for process in processes:
        process.begin(**wishes)


@pytest.mark.parametrize("elements", [1, 500_000, LONG])
def test_processes_reduce_many_times(ranks: tuple[SharedMemory, list[Process]], elements: int) -> None:
    begin_all(ranks[1], elements=elements, timeout_s=20, count=5)
    for process in ranks[1]:
        assert process.outcome() | {"positions": []} == {
            "outcome": "COMMITTED", "intact": True, "positions": [], "claims": {}, "done": 5
        }  # fmt: skip


@pytest.mark.parametrize("elements", [1, 500_000, LONG])
def test_a_killed_process_hangs_nobody(ranks: tuple[SharedMemory, list[Process]], elements: int) -> None:
    memory, processes = ranks
    begin_all(processes, elements=elements, timeout_s=1000, count=1_000_000)
    # The operations go on by themselves, so this hits at any moment of one.
    _wait_for_sequence(memory, 1, 2)
    processes.pop().kill()
    end_board(memory, 3)
    for process in processes:
        told = process.outcome()
        assert told["outcome"] == "OVER"
        assert told["intact"]


@pytest.mark.parametrize("elements", [1, LONG])
def test_a_stopped_process_is_named_and_told(ranks: tuple[SharedMemory, list[Process]], elements: int) -> None:
    memory, processes = ranks
    begin_all(processes, elements=elements, timeout_s=5, count=1_000_000)
    _wait_for_sequence(memory, 1, 2)
    processes[1].send(signal.SIGSTOP)
    others = [processes[0].outcome(), processes[2].outcome()]
    processes[1].send(signal.SIGCONT)
    for told in [*others, processes[1].outcome()]:
        assert told["outcome"] == "MISSING"
        assert told["intact"]
        assert 1 in told["positions"]  # type: ignore[operator]
    assert others[0]["done"] == others[1]["done"]


def test_ctrl_c_fails_the_operation_everywhere(ranks: tuple[SharedMemory, list[Process]]) -> None:
    memory, processes = ranks
    for process in processes[:2]:
        process.begin(elements=LONG, timeout_s=1000)
    _wait_for_sequence(memory, 0, 1)
    processes[0].send(signal.SIGINT)
    assert processes[0].outcome() == {"raised": "KeyboardInterrupt", "intact": True}
    told = processes[1].outcome()
    assert (told["outcome"], told["positions"], told["intact"]) == ("INTERRUPTED", [0], True)


def _wait_for_sequence(memory: SharedMemory, position: int, sequence: int) -> None:
    """Until a position has arrived at an operation; its slot begins with that counter."""
    slot_bytes = (memory.size_bytes - 16384) // 3 - (2 << 20)
    counter = ctypes.c_uint64.from_address(memory.address + 16384 + position * slot_bytes)
    never, deadline = threading.Event(), time.monotonic() + PATIENCE_S
    while counter.value < sequence:
        assert time.monotonic() < deadline, f"position {position} has not arrived at operation {sequence}"
        never.wait(0.001)
