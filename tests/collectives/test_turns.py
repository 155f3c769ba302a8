"""Operations on a board that wait: which goes first, that it is the same one everywhere, and how one is given up."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import random
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from broker.collectives import shm
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.collectives.shm import Outcome
from tests.collectives.boards import SECOND_NS, new_board, on_threads

pytestmark = pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled")

LONG = 1_500_000
"""Elements of float32 that do not fit into the stages."""
PATIENCE_NS = 60 * SECOND_NS
FLUSH_TO_ZERO = 0x8040
"""Flush-to-zero and denormals-are-zero, in the control word of x86-64."""


def plan(kind: CollectiveKind, elements: int, positions: int, claim: bytes = b"") -> shm.Plan:
    """Of float32; what is reduced is summed, and the root is the last position."""
    op = ReduceOp.SUM if "reduce" in kind else None
    return shm.Plan(
        kind, claim or str(kind).encode(), positions,
        op=op, dtype="float32", array_bytes=4 * elements, root=positions - 1,
    )  # fmt: skip


def test_the_most_urgent_of_what_all_have_submitted_goes_first() -> None:
    """Who comes last has nothing that waits while it comes, so it is up to chance when the urgent one overtakes."""
    low, high = plan(CollectiveKind.ALL_REDUCE, LONG, 2, b"low"), plan(CollectiveKind.ALL_REDUCE, 100, 2, b"high")

    def work(engine: shm.Engine, position: int) -> list[list[int]]:
        turns = []
        for _ in range(50):
            tasks = []
            for each, priority in [(low, 0), (low, 0), (low, 1), (low, 0), (high, 7)]:
                array = np.full(each.array_bytes // 4, position + 1, np.float32)
                tasks.append((array, shm.Task(each, array, array, PATIENCE_NS, priority=priority)))
                engine.submit(tasks[-1][1])
            for array, task in tasks:
                assert engine.wait(task, 20.0) == Outcome.COMMITTED
                assert (array == 3).all()
            first = min(task.sequence for _, task in tasks)
            turns.append([task.sequence - first for _, task in tasks])
            # The same number of rounds on both, since the turns are the same.
            if turns[-1][4] < 4:
                break
        return turns

    first, second = on_threads(2, work)
    assert first == second
    assert first[-1][4] < 4, "nothing urgent has overtaken anything in 50 rounds"
    assert first[-1][4] < first[-1][3]
    assert first[-1][0] < first[-1][1] < first[-1][3], "equal priorities stay in their order"


@pytest.mark.parametrize("seed", range(4))
def test_positions_of_different_speed_take_the_same_turns(seed: int) -> None:
    calls = random.Random(seed)
    program = [(calls.choice([0, 0, 1, 5]), calls.choice([3, 3000, 100_000]), calls.random() < 0.2) for _ in range(120)]
    kind = CollectiveKind.ALL_REDUCE
    plans = [plan(kind, elements, 3, b"%d" % each) for each, (_, elements, _) in enumerate(program)]

    def work(engine: shm.Engine, position: int) -> list[int]:
        speed = random.Random(seed * 10 + position)
        tasks = []
        for (priority, elements, waits), its_plan in zip(program, plans, strict=True):
            array = np.full(elements, position + 1, np.float32)
            task = shm.Task(its_plan, array, array, PATIENCE_NS, priority=priority)
            for _ in range(speed.choice([0, 0, 10, 3000])):
                pass
            # Ranks may differ in how they call, as long as they call for the same.
            if waits and speed.random() < 0.5:
                assert engine.run(task) == Outcome.COMMITTED
            else:
                engine.submit(task)
                if waits:
                    engine.wait(task, 20.0)
            tasks.append((array, task))
        for array, task in tasks:
            assert engine.wait(task, 20.0) == Outcome.COMMITTED
            assert (array == 6).all()
        return [task.sequence for _, task in tasks]

    turns = on_threads(3, work)
    assert turns[0] == turns[1] == turns[2]
    assert sorted(turns[0]) == list(range(1, len(program) + 1))


def test_urgent_operations_that_fail_fail_on_all_positions_alike() -> None:
    program = [(each % 4, 50 if each % 3 else 40_000) for each in range(60)]
    plans = [plan(CollectiveKind.ALL_REDUCE, elements, 2, b"%d" % each) for each, (_, elements) in enumerate(program)]

    def work(engine: shm.Engine, position: int) -> list[tuple[int, int]]:
        chance = random.Random(position)
        tasks = []
        for (priority, elements), its_plan in zip(program, plans, strict=True):
            array = np.full(elements, position + 1, np.float32)
            tasks.append((array, shm.Task(its_plan, array, array, PATIENCE_NS, priority=priority)))
            engine.submit(tasks[-1][1])
            if chance.random() < 0.2:
                engine.cancel(chance.choice(tasks)[1])
        for array, task in tasks:
            status = engine.wait(task, 20.0)
            assert (array == (3 if status == Outcome.COMMITTED else position + 1)).all()
        return [(task.sequence, task.status) for _, task in tasks]

    first, second = on_threads(2, work)
    assert first == second
    assert {status for _, status in first} == {Outcome.COMMITTED, Outcome.INTERRUPTED}


KINDS = [
    CollectiveKind.ALL_REDUCE,
    CollectiveKind.REDUCE,
    CollectiveKind.BROADCAST,
    CollectiveKind.ALL_GATHER,
    CollectiveKind.GATHER,
    CollectiveKind.SCATTER,
    CollectiveKind.REDUCE_SCATTER,
    CollectiveKind.ALL_TO_ALL,
]


@pytest.mark.parametrize("elements", [600, 200_001, LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_up_at_any_moment_is_as_it_was_or_done(kind: CollectiveKind, elements: int) -> None:
    """In one piece and in several; what one position cancels ends alike on all."""
    its_plan = plan(kind, elements, 3)
    pieces = kind is not CollectiveKind.REDUCE_SCATTER

    def buffers(array: np.ndarray, each: int) -> object:
        return [array[:7], array[7:7], array[7:500], array[500:]] if pieces and each % 2 else array

    def work(engine: shm.Engine, position: int) -> list[int]:
        chance, outcomes = random.Random(elements), []
        for each in range(12):
            source = np.full(elements, position + 1, np.float32)
            sends = position == 2 or kind not in (CollectiveKind.BROADCAST, CollectiveKind.SCATTER)
            only_root = kind in (CollectiveKind.REDUCE, CollectiveKind.GATHER)
            receives = not (only_root and position != 2) and not (kind is CollectiveKind.BROADCAST and position == 2)
            target = np.full(its_plan.result_bytes // 4, -1, np.float32) if receives else None
            task = shm.Task(
                its_plan,
                buffers(source, each) if sends else None,
                buffers(target, each) if target is not None else None,
                PATIENCE_NS,
            )
            engine.submit(task)
            turns, who = chance.choice([0, 100, 1000, 10_000, 100_000]), chance.randrange(3)
            if who == position and each % 4:
                for _ in range(turns):
                    if task.status:
                        break
                engine.cancel(task)
            assert engine.wait(task, 20.0) in (Outcome.COMMITTED, Outcome.INTERRUPTED)
            outcomes.append(task.status)
            assert (source == position + 1).all()
            if target is not None:
                assert (target == -1).all() == (task.status != Outcome.COMMITTED)
                if task.status == Outcome.COMMITTED:
                    assert (target > 0).all()
        return outcomes

    first, second, third = on_threads(3, work)
    assert first == second == third
    assert Outcome.COMMITTED in first


@contextmanager
def nobody_else_runs() -> Iterator[None]:
    """This thread keeps Python's lock for as long as it computes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("elements", [10, LONG])
def test_operations_end_while_the_only_thread_of_python_computes(elements: int) -> None:
    board = new_board(2)
    engines = [shm.Engine(board.descriptor, board.size_bytes, 2, position) for position in range(2)]
    arrays = [np.full(elements, position + 1, np.float32) for position in range(2)]
    its_plan = plan(CollectiveKind.ALL_REDUCE, elements, 2)
    tasks = [shm.Task(its_plan, array, array, PATIENCE_NS) for array in arrays]
    with nobody_else_runs():
        for engine, task in zip(engines, tasks, strict=True):
            engine.submit(task)
        for _ in range(100_000_000):
            if tasks[0].status and tasks[1].status:
                break
    assert [task.status for task in tasks] == [Outcome.COMMITTED] * 2
    assert all((array == 3).all() for array in arrays)
    for engine in engines:
        engine.close()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the control word is that of x86-64")
@pytest.mark.parametrize("elements", [8, 100_000])
@pytest.mark.parametrize("submitted", [False, True])
def test_a_rank_that_flushes_small_numbers_to_zero_has_the_same_bits(elements: int, submitted: bool) -> None:
    tiny = np.float32(1e-42)
    math = ctypes.CDLL(ctypes.util.find_library("m"))

    def control_word() -> tuple[ctypes.Array[ctypes.c_char], int]:
        environment = ctypes.create_string_buffer(32)
        math.fegetenv(environment)
        return environment, struct.unpack_from("<I", environment, 28)[0]

    def work(engine: shm.Engine, position: int) -> np.ndarray:
        if position == 1:
            environment, word = control_word()
            struct.pack_into("<I", environment, 28, word | FLUSH_TO_ZERO)
            math.fesetenv(environment)
        array = np.full(elements, tiny)
        task = shm.Task(plan(CollectiveKind.ALL_REDUCE, elements, 2), array, array, PATIENCE_NS)
        if submitted:
            engine.submit(task)
            engine.wait(task, 20.0)
        else:
            engine.run(task)
        assert bool(control_word()[1] & FLUSH_TO_ZERO) == (position == 1)
        return array.view(np.uint32)

    first, second = on_threads(2, work)
    assert np.array_equal(first, second)
    assert (first == (np.full(1, tiny) + tiny).view(np.uint32)).all()
    assert first[0] > 0


def test_what_another_thread_waits_for_can_be_cancelled() -> None:
    cancelled = threading.Event()

    def work(engine: shm.Engine, position: int) -> int:
        barrier = shm.Task(plan(CollectiveKind.BARRIER, 0, 2), None, None, PATIENCE_NS)
        if position == 1:
            # Only when it has ended on the other position, so that nothing but the other thread can have ended it.
            cancelled.wait(20.0)
            return int(engine.run(barrier))
        ended: list[int] = []
        waiting = threading.Thread(target=lambda: ended.append(engine.run(barrier)))
        waiting.start()
        while not engine.cancel_all():
            pass
        waiting.join()
        cancelled.set()
        return ended[0]

    assert on_threads(2, work) == [Outcome.INTERRUPTED] * 2
