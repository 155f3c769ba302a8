"""Sums over links that are rounded once: what a float16, a bfloat16 or a block of int8 loses between hosts."""

from __future__ import annotations

import contextlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from broker.collectives import ring
from broker.collectives.claims import INT8_BLOCKS, CollectiveKind, ReduceOp
from broker.collectives.reduce import accumulate
from broker.collectives.ring import Engine, Outcome, Plan, Task
from tests.collectives.processes import PATIENCE_S
from tests.collectives.rings import SECOND_NS, mesh, on_threads, tcp_pair

pytestmark = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine is not compiled")

DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
HALF_STEP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The most that rounding to nearest changes a number, as a part of it."""
FLOAT32_STEP = 2.0**-24
LENGTHS = (2049, 5000, 300_001)
"""In MEET no more, parts of a piece, and parts of several."""


def numbers(dtype: str, elements: int, rank: int) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal(elements).astype(DTYPES[dtype])


def reduced(
    engine: Engine, array: np.ndarray, dtype: str, positions: int, op: ReduceOp = ReduceOp.SUM, schedule: str = "ring"
) -> np.ndarray:
    """The array of this position becomes the result."""
    plan = Plan(
        CollectiveKind.ALL_REDUCE, b"claim", positions, op=op, dtype=dtype, array_bytes=array.nbytes, schedule=schedule
    )
    task = Task(plan, array.view(np.uint8), array.view(np.uint8), int(PATIENCE_S * SECOND_NS))
    assert engine.run(task) == Outcome.COMMITTED
    return array


def at_once(arrays: list[np.ndarray], dtype: str, op: ReduceOp = ReduceOp.SUM) -> bytes:
    """What a board and the broker make of them."""
    out = bytearray(arrays[0].nbytes)
    accumulate(op, [array.tobytes() for array in arrays], dtype, len(arrays), out)
    return bytes(out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [2, 3, 4, 8])
def test_sums_are_rounded_once_and_have_the_bits_of_other_schedules(positions: int, dtype: str) -> None:
    def work(engine: Engine, position: int) -> list[bytes]:
        return [
            reduced(engine, numbers(dtype, elements, position), dtype, positions, op).tobytes()
            for elements in LENGTHS
            for op in (ReduceOp.SUM, ReduceOp.MEAN)
        ]

    found = on_threads(positions, work, lanes=2, make=tcp_pair)
    due = [
        at_once([numbers(dtype, elements, rank) for rank in range(positions)], dtype, op)
        for elements in LENGTHS
        for op in (ReduceOp.SUM, ReduceOp.MEAN)
    ]
    assert all(each == due for each in found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [2, 4, 8])
@pytest.mark.parametrize("schedule", ["ring", "halving"])
def test_the_error_against_a_sum_in_float64_is_bounded(schedule: str, positions: int, dtype: str) -> None:
    def work(engine: Engine, position: int) -> np.ndarray:
        return reduced(engine, numbers(dtype, LENGTHS[-1], position), dtype, positions, schedule=schedule)

    found = on_threads(positions, work)[0].astype(np.float64)
    arrays = [numbers(dtype, LENGTHS[-1], rank).astype(np.float64) for rank in range(positions)]
    exact, size = np.sum(arrays, axis=0), np.sum(np.abs(arrays), axis=0)
    float32_error = positions * FLOAT32_STEP * size
    roundings = 1 if schedule == "ring" else int(np.log2(positions))
    bound = HALF_STEP[dtype] * (np.abs(exact) if roundings == 1 else roundings * 1.01 * size) + float32_error + 2**-24
    assert (np.abs(found - exact) <= bound).all()


@pytest.mark.parametrize("positions", [2, 3, 4])
def test_blocks_of_int8_get_their_scale_once(positions: int) -> None:
    def blocks(rank: int) -> np.ndarray:
        generator = np.random.default_rng(rank)
        array = np.empty((5000, 64), np.uint8)
        array[:, :4] = generator.uniform(0.01, 1.0, 5000).astype(np.float32).view(np.uint8).reshape(-1, 4)
        array[:, 4:] = generator.integers(-127, 128, (5000, 60)).astype(np.int8).view(np.uint8)
        return array.reshape(-1)

    def work(engine: Engine, position: int) -> bytes:
        return reduced(engine, blocks(position), INT8_BLOCKS, positions).tobytes()

    due = at_once([blocks(rank) for rank in range(positions)], INT8_BLOCKS)
    assert on_threads(positions, work) == [due] * positions


def test_a_mean_is_finite_where_the_sum_is_not() -> None:
    def work(engine: Engine, position: int) -> np.ndarray:
        return reduced(engine, np.full(5000, 60_000, np.float16), "float16", 4, ReduceOp.MEAN)

    assert all((array == np.float16(60_000)).all() for array in on_threads(4, work))


@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize("positions", [2, 3, 4])
def test_shares_of_a_reduce_scatter_are_rounded_once_too(positions: int, *, scratch: bool) -> None:
    elements = 150_000 * positions

    def work(engine: Engine, position: int) -> bytes:
        source, share = numbers("bfloat16", elements, position), np.empty(2 * elements // positions, np.uint8)
        plan = Plan(
            CollectiveKind.REDUCE_SCATTER, b"claim", positions,
            op=ReduceOp.SUM, dtype="bfloat16", array_bytes=2 * elements, schedule="ring",
        )  # fmt: skip
        task = Task(plan, source.view(np.uint8), share, int(PATIENCE_S * SECOND_NS), scratch)
        assert engine.run(task) == Outcome.COMMITTED
        assert source.tobytes() == numbers("bfloat16", elements, position).tobytes()
        return share.tobytes()

    due = at_once([numbers("bfloat16", elements, rank) for rank in range(positions)], "bfloat16")
    assert b"".join(on_threads(positions, work)) == due


def test_an_array_is_as_before_when_a_link_breaks_while_it_is_added_up() -> None:
    links = mesh(2, make=tcp_pair)
    with contextlib.closing(Engine(links[0], 0)) as first, contextlib.closing(Engine(links[1], 1)) as second:
        # So long that it is under way when the link breaks. To make so many numbers takes longer than to add them up.
        before = [np.resize(numbers("float16", 100_003, rank), 30_000_001).view(np.uint16) for rank in range(2)]
        arrays = [each.copy() for each in before]
        tasks = []
        for engine, array in zip((first, second), arrays, strict=True):
            plan = Plan(
                CollectiveKind.ALL_REDUCE, b"claim", 2,
                op=ReduceOp.SUM, dtype="float16", array_bytes=array.nbytes, schedule="ring",
            )  # fmt: skip
            tasks.append(Task(plan, array, array, int(PATIENCE_S * SECOND_NS)))
            engine.submit(tasks[-1])
        while first.glance(0, 0).begun == 0:
            pass
        second.end()
        for engine, task in zip((first, second), tasks, strict=True):
            while engine.wait(task, 1.0) == Outcome.PENDING:
                pass
            if task.status == Outcome.UNDECIDED:
                engine.settle(task, committed=False)
        assert all(task.status != Outcome.COMMITTED for task in tasks)
        assert all(np.array_equal(array, each) for array, each in zip(arrays, before, strict=True))
