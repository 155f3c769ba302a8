"""What the engines have in common, on a board and over links: what they compute, and that all fail alike."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest

from broker.collectives import encoding, ring, shm
from broker.collectives.claims import INT8_BLOCKS, ITEM_BYTES, CollectiveKind, ReduceOp, op_problem
from broker.collectives.reduce import accumulate
from broker.collectives.tasks import Outcome, Plan, Task, Turns
from tests.collectives import boards, rings
from tests.collectives.processes import ATTEMPTS

pytestmark = pytest.mark.skipif(not (shm.AVAILABLE and ring.AVAILABLE), reason="the engines are not compiled")

SECOND_NS = rings.SECOND_NS
LONG = 3 << 20
"""Elements of float32 that change an array while others may still fail."""
WORLDS: dict[str, Callable[..., list[Any]]] = {
    "board": boards.on_threads,
    "unix": rings.on_threads,
    "tcp": partial(rings.on_threads, lanes=3, make=rings.tcp_pair),
}
SIZES = [0, 1, 3, 1023, 1024, 1025, 16_384, 100_003, 524_289, 1_300_001]
DTYPES = [dtype for dtype in ITEM_BYTES if dtype != INT8_BLOCKS]
PAIRS = [(op, dtype) for op in ReduceOp for dtype in DTYPES if not op_problem(op, dtype)]


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """Runs a function on threads that are connected in one of the ways."""
    return WORLDS[request.param]


def all_reduce(
    elements: int, positions: int, op: ReduceOp = ReduceOp.SUM, claim: bytes = b"", dtype: str = "float32", **more: Any
) -> Plan:
    return Plan(
        CollectiveKind.ALL_REDUCE, claim or b"%d" % elements, positions,
        op=op, dtype=dtype, array_bytes=ITEM_BYTES[dtype] * elements, **more,
    )  # fmt: skip


def inputs(positions: int, elements: int) -> list[np.ndarray]:
    """Whole numbers, of which sums are exact in any order."""
    return [whole_numbers(each, elements) for each in range(positions)]


@lru_cache(32)
def whole_numbers(seed: int, elements: int) -> np.ndarray:
    """They are the same for many tests, and take longer to make than to add."""
    numbers = np.random.default_rng(seed).integers(-9, 9, elements, endpoint=True).astype(np.float32)
    numbers.flags.writeable = False
    return numbers


@lru_cache(16)
def normal_numbers(seed: int, elements: int) -> np.ndarray:
    """As above."""
    numbers = np.random.default_rng(seed).normal(size=elements).astype(np.float32)
    numbers.flags.writeable = False
    return numbers


def small_numbers(dtype: str, positions: int, elements: int) -> list[bytes]:
    """Numbers of any dtype, as bytes, of which even products are exact in any order."""
    found = []
    for position in range(positions):
        numbers = np.random.default_rng(position).integers(0, 2, elements, endpoint=True)
        if dtype == "bfloat16":
            found.append((numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes())
        elif dtype.startswith("complex"):
            found.append((numbers + 1j * (numbers == 1)).astype(dtype).tobytes())
        else:
            found.append(numbers.astype(dtype).tobytes())
    return found


def run(engine: Turns, plan: Plan, source: object, target: object) -> None:
    task = Task(plan, source, target, 60 * SECOND_NS)
    assert engine.run(task) == Outcome.COMMITTED, Outcome(task.status).name


@pytest.mark.parametrize("positions", [1, 2, 3, 5])
@pytest.mark.parametrize("elements", SIZES)
def test_all_positions_get_the_sum(world: Callable[..., list[Any]], positions: int, elements: int) -> None:
    arrays = inputs(positions, elements)
    expected = sum(arrays)
    plan = all_reduce(elements, positions)

    def work(engine: Turns, position: int) -> None:
        array = np.empty_like(arrays[position])
        for _ in range(3):
            array[:] = arrays[position]
            run(engine, plan, array, array)
            assert np.array_equal(array, expected)

    world(positions, work)


@pytest.mark.parametrize(("op", "dtype"), PAIRS)
def test_every_op_of_every_dtype_is_as_with_numpy(world: Callable[..., list[Any]], op: ReduceOp, dtype: str) -> None:
    lengths, positions = [1, 63, 4097, 40_000], 3
    arrays = {length: small_numbers(dtype, positions, length) for length in lengths}
    due = {length: bytearray(len(arrays[length][0])) for length in lengths}
    for length in lengths:
        accumulate(op, arrays[length], dtype, positions, due[length])

    def work(engine: Turns, position: int) -> None:
        for length in lengths:
            for schedule in ("ring", "halving"):
                array = bytearray(arrays[length][position])
                run(engine, all_reduce(length, positions, op, dtype=dtype, schedule=schedule), array, array)
                assert array == due[length]

    world(positions, work)


@pytest.mark.parametrize("op", [ReduceOp.SUM, ReduceOp.MEAN])
@pytest.mark.parametrize("positions", [2, 3, 5])
def test_blocks_come_out_alike_everywhere_and_near_the_exact_result(
    world: Callable[..., list[Any]], op: ReduceOp, positions: int
) -> None:
    lengths = [60, 5000, 600_000]
    arrays = {length: [normal_numbers(each, length) for each in range(positions)] for length in lengths}
    results: dict[tuple[int, str], set[bytes]] = {}

    def work(engine: Turns, position: int) -> None:
        for length in lengths:
            for schedule in ("ring", "halving"):
                array = encoding.encode(INT8_BLOCKS, arrays[length][position])
                blocks = array.nbytes // ITEM_BYTES[INT8_BLOCKS]
                run(engine, all_reduce(blocks, positions, op, dtype=INT8_BLOCKS, schedule=schedule), array, array)
                results.setdefault((length, schedule), set()).add(array.tobytes())

    world(positions, work)
    for (length, _), found in results.items():
        assert len(found) == 1
        decoded = np.empty(length, np.float32)
        encoding.decode(INT8_BLOCKS, np.frombuffer(found.pop(), np.uint8), decoded)
        exact = np.sum(arrays[length], axis=0, dtype=np.float64) / (positions if op is ReduceOp.MEAN else 1)
        assert np.linalg.norm(decoded - exact) <= 0.03 * np.linalg.norm(exact)


@pytest.mark.parametrize("positions", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 7, 500, 20_000])
def test_the_other_kinds(world: Callable[..., list[Any]], positions: int, rows: int) -> None:
    arrays = inputs(positions, rows * positions * 3)
    size = arrays[0].nbytes
    reduced, gathered = sum(arrays) / np.float32(positions), np.concatenate(arrays)

    def work(engine: Turns, position: int) -> None:
        own = arrays[position]
        before = own.copy()
        part = np.empty(own.size // positions, np.float32)
        scatter = Plan(
            CollectiveKind.REDUCE_SCATTER, b"s", positions, op=ReduceOp.MEAN, dtype="float32", array_bytes=size
        )
        run(engine, scatter, own, part)
        assert np.array_equal(part, reduced[position * part.size : (position + 1) * part.size])
        run(engine, Plan(CollectiveKind.BARRIER, b"b", positions), None, None)
        whole = np.empty(own.size * positions, np.float32)
        run(engine, Plan(CollectiveKind.ALL_GATHER, b"g", positions, array_bytes=size), own, whole)
        assert np.array_equal(whole, gathered)
        assert np.array_equal(own, before)
        for root in range(positions):
            copy = own.copy()
            broadcast = Plan(CollectiveKind.BROADCAST, b"c%d" % root, positions, root=root, array_bytes=size)
            run(engine, broadcast, copy if position == root else None, None if position == root else copy)
            assert np.array_equal(copy, arrays[root])

    world(positions, work)


def test_submitted_operations_are_carried_out_in_their_order(world: Callable[..., list[Any]]) -> None:
    plans = [all_reduce(elements, 2) for elements in (10, 200_000, 5, 70_000)]

    def work(engine: Turns, position: int) -> None:
        arrays = [np.full(plan.array_bytes // 4, position + 1, np.float32) for plan in plans]
        tasks = [Task(plan, array, array, 60 * SECOND_NS) for plan, array in zip(plans, arrays, strict=True)]
        for task in tasks[:-1]:
            engine.submit(task)
        # A call waits behind what was submitted.
        assert engine.run(tasks[-1]) == Outcome.COMMITTED
        assert all(engine.wait(task, 0.0) == Outcome.COMMITTED for task in tasks)
        assert [task.sequence for task in tasks] == [1, 2, 3, 4]
        assert all((array == 3).all() for array in arrays)

    world(2, work)


def test_a_mismatch_names_the_claims_and_changes_nothing(world: Callable[..., list[Any]]) -> None:
    def work(engine: Turns, position: int) -> dict[int, bytes]:
        array = np.full(2_000_000 + position, position, np.float32)
        task = Task(all_reduce(array.size, 3), array, array, 60 * SECOND_NS)
        assert engine.run(task) == Outcome.MISMATCH
        assert (array == position).all()
        claims = task.claims()
        again = np.ones(5, np.float32)
        run(engine, all_reduce(5, 3), again, again)
        return claims

    claims = {0: b"2000000", 1: b"2000001", 2: b"2000002"}
    # Who is late by more than a moment, on a busy machine, is not among them. That is not so each time.
    assert any(world(3, work) == [claims] * 3 for _ in range(ATTEMPTS))


@pytest.mark.parametrize("elements", [1, 100_000])
def test_what_cannot_be_is_a_mismatch(world: Callable[..., list[Any]], elements: int) -> None:
    def work(engine: Turns, position: int) -> list[int]:
        array = np.full(elements, position, np.float32)
        task = Task(all_reduce(elements, 3, impossible=True), array, array, 60 * SECOND_NS)
        assert engine.run(task) == Outcome.MISMATCH
        assert (array == position).all()
        return task.positions

    assert any(world(3, work) == [[0, 1, 2]] * 3 for _ in range(ATTEMPTS))


def test_a_mismatch_does_not_wait_for_the_deadline_of_those_who_do_not_come(world: Callable[..., list[Any]]) -> None:
    late = threading.Barrier(3)

    def work(engine: Turns, position: int) -> dict[int, bytes]:
        if position == 2:
            late.wait()
        array = np.ones(7, np.float32)
        claim = b"late" if position == 2 else b"%d" % position
        task = Task(all_reduce(7, 3, claim=claim), array, array, 1000 * SECOND_NS)
        assert engine.run(task) == Outcome.MISMATCH
        claims = task.claims()
        if position != 2:
            late.wait()
        return claims

    assert world(3, work) == [{0: b"0", 1: b"1"}] * 3


@pytest.mark.parametrize("elements", [1, LONG])
def test_who_does_not_come_is_named_also_to_itself(world: Callable[..., list[Any]], elements: int) -> None:
    failed = threading.Barrier(3)

    def work(engine: Turns, position: int) -> list[int]:
        plan, missing = all_reduce(elements, 3), []
        if position == 1:
            failed.wait()
        # More than are remembered.
        for _ in range(1 if elements == LONG else 70):
            array = np.full(elements, position, np.float32)
            task = Task(plan, array, array, SECOND_NS // 1000 if position == 0 else 1000 * SECOND_NS)
            assert engine.run(task) == Outcome.MISSING
            assert (array == position).all()
            assert task.timeout_ns == SECOND_NS // 1000
            missing = task.positions
        if position != 1:
            failed.wait()
        array = np.full(elements, position, np.float32)
        run(engine, plan, array, array)
        assert (array == 3).all()
        return missing

    # Position 2 may be late for one or the other of them as well.
    assert all(1 in missing for missing in world(3, work))


OUT_OF_PLACE = [
    (CollectiveKind.ALL_REDUCE, "ring"),
    (CollectiveKind.ALL_REDUCE, "halving"),
    (CollectiveKind.BROADCAST, "auto"),
    (CollectiveKind.ALL_GATHER, "auto"),
    (CollectiveKind.REDUCE_SCATTER, "auto"),
]


def out_of_place(kind: CollectiveKind, schedule: str, elements: int, positions: int) -> Plan:
    """Sums of float32; the root is the last position."""
    return Plan(
        kind, b"claim", positions,
        op=ReduceOp.SUM if "reduce" in kind else None, dtype="float32",
        array_bytes=4 * elements, root=positions - 1, schedule=schedule,
    )  # fmt: skip


def expected_of(kind: CollectiveKind, positions: int, elements: int) -> np.ndarray:
    """What comes of arrays that are full of their position + 1."""
    if kind is CollectiveKind.ALL_GATHER:
        return np.repeat(np.arange(1, positions + 1, dtype=np.float32), elements)
    size = elements // positions if kind is CollectiveKind.REDUCE_SCATTER else elements
    total = positions if kind is CollectiveKind.BROADCAST else positions * (positions + 1) // 2
    return np.full(size, total, np.float32)


@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize("positions", [1, 2, 3, 5])
@pytest.mark.parametrize(("kind", "schedule"), OUT_OF_PLACE)
def test_a_result_may_belong_elsewhere(
    world: Callable[..., list[Any]], kind: CollectiveKind, schedule: str, positions: int, scratch: bool
) -> None:
    # A position's own part of the whole is as long for all kinds: a chunk and more, and pieces.
    whole = 1 if kind is CollectiveKind.ALL_GATHER else positions
    plans = [out_of_place(kind, schedule, whole * part, positions) for part in (1, 3000, 200_000)]
    due = [expected_of(kind, positions, plan.array_bytes // 4) for plan in plans]

    def work(engine: Turns, position: int) -> None:
        for plan, expected in zip(plans, due, strict=True):
            source = np.full(plan.array_bytes // 4, position + 1, np.float32)
            target = np.full(plan.result_bytes // 4, -1, np.float32)
            sent = source if kind is not CollectiveKind.BROADCAST or position == positions - 1 else None
            task = Task(plan, sent, target, 60 * SECOND_NS, scratch=scratch)
            assert engine.run(task) == Outcome.COMMITTED
            assert np.array_equal(target, expected)
            assert (source == position + 1).all()

    world(positions, work)


@pytest.mark.parametrize("elements", [600, 30_000, 600_000])
@pytest.mark.parametrize(("kind", "schedule"), OUT_OF_PLACE)
def test_what_is_cancelled_at_any_moment_is_as_it_was_or_done_on_all(
    world: Callable[..., list[Any]], kind: CollectiveKind, schedule: str, elements: int
) -> None:
    plan, done = out_of_place(kind, schedule, elements, 3), expected_of(kind, 3, elements)

    def work(engine: Turns, position: int) -> list[int]:
        chance, outcomes = random.Random(elements), []
        for each in range(16):
            source = np.full(elements, position + 1, np.float32)
            target = np.full(done.size, -1, np.float32)
            sent = source if kind is not CollectiveKind.BROADCAST or position == 2 else None
            task = Task(plan, sent, target, 60 * SECOND_NS)
            turns, who = chance.choice([0, 0, 100, 1000, 10_000]), chance.randrange(3)
            if who == position and each % 4 == 1:
                engine.cancel(task)
            engine.submit(task)
            if who == position and each % 4 > 1:
                for _ in range(turns):
                    if task.status:
                        break
                engine.cancel(task)
            assert engine.wait(task, 20.0) in (Outcome.COMMITTED, Outcome.INTERRUPTED)
            outcomes.append(task.status)
            assert (source == position + 1).all()
            assert np.array_equal(target, done if task.status == Outcome.COMMITTED else np.full_like(target, -1))
        return outcomes

    outcomes = world(3, work)
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert all(outcome == Outcome.COMMITTED for outcome in outcomes[0][::4])
    assert all(outcome == Outcome.INTERRUPTED for outcome in outcomes[0][1::4]), "cancelled before it was submitted"


def test_all_that_waits_can_be_cancelled_by_another_thread(world: Callable[..., list[Any]]) -> None:
    cancelled = threading.Event()

    def work(engine: Turns, position: int) -> list[int]:
        tasks = [Task(all_reduce(0, 2), None, None, 1000 * SECOND_NS) for _ in range(3)]
        if position == 1:
            # Only when they have ended on the other position, so that nothing but the other thread can have ended them.
            cancelled.wait(20.0)
            return [engine.run(task) for task in tasks]
        for task in tasks[1:]:
            engine.submit(task)
        engine.submit(tasks[0])
        waiting = threading.Thread(target=lambda: [engine.wait(task, 20.0) for task in tasks])
        waiting.start()
        assert engine.cancel_all()
        waiting.join()
        cancelled.set()
        assert not engine.cancel_all()
        return [task.status for task in tasks]

    assert world(2, work) == [[Outcome.INTERRUPTED] * 3] * 2


def test_closing_ends_what_was_submitted(world: Callable[..., list[Any]]) -> None:
    def work(engine: Turns, position: int) -> None:
        if position == 1:
            return
        arrays = [np.ones(100_000, np.float32) for _ in range(3)]
        tasks = [Task(all_reduce(100_000, 2), array, array, 1000 * SECOND_NS) for array in arrays]
        for task in tasks:
            engine.submit(task)
        engine.close()  # type: ignore[attr-defined]
        assert [task.status for task in tasks] == [Outcome.OVER] * 3
        assert engine.run(Task(all_reduce(100_000, 2), arrays[0], arrays[0], SECOND_NS)) == Outcome.OVER
        assert all((array == 1).all() for array in arrays)

    world(2, work)


def test_arrays_that_do_not_fit_the_plan_are_refused() -> None:
    with pytest.raises(ValueError, match="source of bytes 8"):
        Task(Plan(CollectiveKind.ALL_GATHER, b"", 2, array_bytes=4), np.ones(1), np.ones(1), 1)
    with pytest.raises(ValueError, match="target of bytes 4"):
        Task(Plan(CollectiveKind.ALL_GATHER, b"", 2, array_bytes=4), None, np.ones(1, np.float32), 1)
    with pytest.raises(ValueError, match="too many axes"):
        Plan(CollectiveKind.BARRIER, b"x" * 509, 2)
    with pytest.raises(ValueError, match="none of auto, ring, halving"):
        Plan(CollectiveKind.BARRIER, b"x", 2, schedule="star")


def test_what_is_cancelled_before_another_one_comes_never_ends_well(world: Callable[..., list[Any]]) -> None:
    """Also where the engine first learns that the other one is here, and only then that it has been given up."""
    rounds = 1000
    cancelled, ended = threading.Barrier(2, timeout=20.0), threading.Barrier(2, timeout=20.0)

    def work(engine: Turns, position: int) -> list[int]:
        outcomes = []
        for _ in range(rounds):
            task = Task(all_reduce(0, 2), None, None, 60 * SECOND_NS)
            if position == 1:
                cancelled.wait()
            engine.submit(task)
            if position == 0:
                engine.cancel(task)
                cancelled.wait()
            engine.wait(task, 20.0)
            outcomes.append(task.status)
            ended.wait()
        return outcomes

    assert world(2, work) == [[Outcome.INTERRUPTED] * rounds] * 2
